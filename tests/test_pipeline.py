"""Runs and plans over real, small steps: what is built, what is reused, why, and what a failure leaves behind."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nlrewrite import pipeline, planning, profiles, steps
from nlrewrite.artifacts import Artifact, Store
from nlrewrite.errors import NotYet, SettingError
from nlrewrite.execution import Execution
from nlrewrite.pipeline import Outcome
from nlrewrite.planning import Plan
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from nlrewrite.specs import PROBES, TinySubject
from tests import small_steps

BEFORE_EXPLAIN = {"corpus", "subject", "tokens", "coder"}
ALL = set(pipeline.labels(profiles.settled("smoke", Overrides())))


@pytest.fixture
def execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execution:
    small_steps.install(monkeypatch)
    monkeypatch.setattr(small_steps, "FAILING", set())
    return Execution(store=str(tmp_path / "store"), runs=str(tmp_path / "runs"))


def run(execution: Execution, *settings: str, refresh: tuple[str, ...] = ()) -> Outcome:
    spec = profiles.settled("smoke", Overrides(settings=settings))
    return pipeline.run_local(spec, "smoke", refresh, execution, Progress())


def plan(execution: Execution, *settings: str, refresh: tuple[str, ...] = ()) -> Plan:
    return planning.plan("smoke", profiles.settled("smoke", Overrides(settings=settings)), refresh, execution)


def built(outcome: Outcome) -> set[str]:
    return {row.step for row in outcome.rows if row.state == "built"}


def artifact(outcome: Outcome, label: str) -> Artifact:
    return next(row.artifact for row in outcome.rows if row.step == label)


def why(found: Plan, label: str) -> tuple[str, str]:
    return next((row.state, row.why) for row in found.rows if row.step == label)


def data_file(execution: Execution, of: Artifact) -> Path:
    return Store(execution.store).folder(of).path("data.bin")


def test_a_second_run_is_all_hits_and_publishes_the_same_report(execution: Execution):
    first = run(execution)
    assert built(first) == ALL
    report = first.report_path.read_bytes()
    second = run(execution)
    assert built(second) == set()
    assert second.report_path.read_bytes() == report
    assert [row.artifact for row in second.rows] == [row.artifact for row in first.rows]
    assert all(row.bytes > 1000 for row in second.rows)


def test_results_json_gets_the_steps_and_nothing_else(execution: Execution):
    outcome = run(execution)
    results = json.loads(outcome.results_path.read_text())
    rows = results.pop("steps")
    assert results == small_steps.RESULTS
    assert list(rows[0]) == ["step", "artifact", "state", "seconds", "bytes"]
    assert {row["step"] for row in rows} == ALL
    assert rows[0]["artifact"] == str(artifact(outcome, "corpus"))
    assert outcome.results_path == Path(execution.runs) / "smoke" / "results.json"
    assert sorted(path.name for path in outcome.results_path.parent.iterdir()) == ["report.html", "results.json"]


def test_only_what_follows_a_changed_setting_is_rebuilt(execution: Execution):
    run(execution)
    assert built(run(execution, "evaluate.resamples=300")) == {"evaluation", "report"}
    assert built(run(execution, "report.latents=3")) == {"report"}
    assert built(run(execution, "score.examples=11")) == {"scores", "evaluation", "report"}
    assert built(run(execution)) == set()


def test_refresh_by_kind_and_by_label_cascades(execution: Execution):
    run(execution)
    assert built(run(execution, refresh=("activations",))) == ALL - BEFORE_EXPLAIN
    assert built(run(execution, refresh=("activations-report",))) == {"activations-report", "evaluation", "report"}
    assert built(run(execution, refresh=("subject",))) == ALL - {"corpus"}
    assert built(run(execution)) == set()


def test_a_refreshed_artifact_is_replaced_only_when_the_new_one_is_whole(execution: Execution):
    first = run(execution)
    before = Store(execution.store).manifest(artifact(first, "coder"))
    small_steps.FAILING.add("CoderSpec")
    with pytest.raises(ZeroDivisionError):
        run(execution, refresh=("coder",))
    assert Store(execution.store).manifest(artifact(first, "coder")) == before
    small_steps.FAILING.clear()
    assert built(run(execution)) == set()


def test_unknown_refresh_names_its_neighbours(execution: Execution):
    with pytest.raises(SettingError, match=r"no step is called 'codr'.*coder"):
        run(execution, refresh=("codr",))
    with pytest.raises(SettingError, match="codr"):
        plan(execution, refresh=("codr",))


def test_a_failing_step_says_which_and_leaves_no_artifact(execution: Execution):
    small_steps.FAILING.add("ExplainSpec")
    with pytest.raises(ZeroDivisionError) as caught:
        run(execution)
    assert caught.value.__notes__[0].startswith("while building explanations (explanations/")
    kinds = {each.kind for each in Store(execution.store).listed()}
    assert kinds == {"corpus", "subject", "tokens", "coder", "activations"}
    assert not Path(execution.runs).exists()
    small_steps.FAILING.clear()
    assert not built(run(execution)) & (BEFORE_EXPLAIN | {"activations-explain"})


def lose_a_file(execution: Execution, outcome: Outcome) -> None:
    data_file(execution, artifact(outcome, "calibration")).unlink()


def cut_a_file(execution: Execution, outcome: Outcome) -> None:
    data_file(execution, artifact(outcome, "coder")).write_bytes(b"short")


def lose_an_artifact(execution: Execution, outcome: Outcome) -> None:
    Store(execution.store).forget(artifact(outcome, "explanations"))


def rebuild_an_input_alone(execution: Execution, outcome: Outcome) -> None:
    small_steps.FAILING.add("TokensSpec")
    with pytest.raises(ZeroDivisionError):
        run(execution, refresh=("subject",))
    small_steps.FAILING.clear()


def nothing(execution: Execution, outcome: Outcome) -> None:
    return None


@pytest.mark.parametrize(
    ("accident", "settings", "refresh", "expected"),
    [
        (nothing, (), (), set()),
        (nothing, ("evaluate.resamples=300",), (), {"evaluation", "report"}),
        (nothing, ("simulate.window=16",), ("scores",), None),
        (nothing, (), ("simulation-report", "calibration"), None),
        (lose_a_file, (), (), {"calibration", "evaluation", "report"}),
        (cut_a_file, (), (), ALL - {"corpus", "subject", "tokens"}),
        (lose_an_artifact, (), (), None),
        (rebuild_an_input_alone, (), (), ALL - {"corpus", "subject"}),
        (lose_a_file, ("coder.k=2",), ("corpus",), ALL),
        (nothing, ("lengths=[3, 4]",), (), None),
        (nothing, ("lengths=[4]",), ("explanations",), None),
    ],
)
def test_a_run_builds_exactly_what_the_plan_said(
    execution: Execution,
    accident: Callable[[Execution, Outcome], None],
    settings: tuple[str, ...],
    refresh: tuple[str, ...],
    expected: set[str] | None,
):
    accident(execution, run(execution))
    planned = {row.step for row in plan(execution, *settings, refresh=refresh).rows if row.state != "hit"}
    assert planned == built(run(execution, *settings, refresh=refresh))
    assert expected is None or planned == expected
    assert built(run(execution, *settings)) == set()


def test_the_plan_says_why(execution: Execution):
    assert why(plan(execution), "corpus") == ("missing", "not in the store")
    assert why(plan(execution), "subject") == ("missing", "its input corpus will be built")
    first = run(execution)
    assert {row.state for row in plan(execution).rows} == {"hit"}
    assert why(plan(execution), "coder")[1].startswith("built 20")

    changed = plan(execution, "coder.k=3", "score.examples=12")
    digits = artifact(first, "coder").digest[:4]
    assert why(changed, "coder") == ("missing", f"nearest coder/{digits} differs in coder.k: 4 -> 3")
    assert why(changed, "activations-report") == ("missing", "its input coder will be built")
    state, reason = why(changed, "scores")
    assert state == "missing"
    assert reason.startswith("its input activations will be built; nearest scores/")
    assert reason.endswith("scores.examples: 10 -> 12")

    refreshed = plan(execution, refresh=("subject",))
    assert why(refreshed, "subject") == ("refresh", "a refresh was asked for")
    assert why(refreshed, "tokens") == ("downstream", "its input subject will be rebuilt")
    assert why(refreshed, "report")[0] == "downstream"

    cut_a_file(execution, first)
    state, reason = why(plan(execution), "coder")
    assert state == "damaged"
    assert "data.bin has 5 bytes where the manifest says 1000" in reason


def test_drift_is_shown_and_rebuilds_nothing(execution: Execution, monkeypatch: pytest.MonkeyPatch):
    run(execution)
    assert not any(row.drift for row in plan(execution).rows)
    small_steps.install(monkeypatch, sources=("tests.small_steps", "nlrewrite.errors"))
    assert all(row.drift and row.state == "hit" for row in plan(execution).rows)
    again = run(execution)
    assert built(again) == set()
    assert all(row.drift for row in again.rows)


def test_queries_are_latents_times_positions_of_every_simulation(execution: Execution):
    before = plan(execution)
    simulated = 3  # sentences, the same shuffled, and shorter ones
    bound = 64 * 64 * (40 + 30) * simulated  # latents x window x (calibrate + report)
    assert (before.queries, before.queries_left, before.at_most) == (bound, bound, True)
    run(execution)
    after = plan(execution)
    assert (after.queries, after.queries_left, after.at_most) == (64 * (300 + 200) * simulated, 0, False)
    assert after.tokens["train the coder"] == 60 * 256
    assert after.tokens["report"] == 200
    refreshed = plan(execution, refresh=("simulation-report",))
    assert refreshed.queries_left == 64 * 200
    assert plan(execution, "tokens.seed=7").queries == bound


def test_one_artifact_under_two_labels_is_built_and_refreshed_once(execution: Execution):
    twice = ("lengths=[4]",)  # the limit that explanations have anyway
    first = run(execution, *twice)
    assert artifact(first, "explanations") == artifact(first, "explanations-4")
    refreshed = run(execution, *twice, refresh=("explanations",))
    assert "explanations" in built(refreshed)
    assert "explanations-4" not in built(refreshed)
    assert plan(execution, *twice, refresh=("simulation",)).queries_left == 64 * (300 + 200) * 2


def test_queries_are_unknown_while_nothing_bounds_the_windows(execution: Execution):
    spec = profiles.settled("tiny", Overrides())
    assert isinstance(spec.subject, TinySubject)
    fresh = planning.plan("tiny", spec, (), execution)
    assert fresh.queries is None
    assert fresh.tokens == {
        "train the subject": spec.subject.steps * spec.subject.batch * spec.subject.context,
        "train the coder": spec.coder.steps * spec.coder.batch,
    }


def test_published_experiments_plan_and_do_not_run(execution: Execution):
    name = "pythia-160m-transcoder"
    spec = profiles.settled(name, Overrides())
    found = planning.plan(name, spec, (), execution)
    assert found.queries == 327_680_000
    assert found.tokens["train the coder"] == 8_000_000_000
    assert {row.state for row in found.rows} == {"missing"}
    with pytest.raises(NotYet, match="next-token prompts of a random length"):
        pipeline.run_local(spec, name, (), execution, Progress())
    assert Store(execution.store).listed() == []


def test_a_run_of_hits_loads_no_numeric_library(execution: Execution):
    run(execution)
    code = """
import sys
from tests import small_steps
before = set(sys.modules)
from nlrewrite import pipeline, profiles
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
small_steps.install()
execution = Execution(store=sys.argv[1], runs=sys.argv[2])
spec = profiles.settled("smoke", profiles.Overrides())
outcome = pipeline.run_local(spec, "smoke", (), execution, Progress())
assert {row.state for row in outcome.rows} == {"hit"}
heavy = ("torch", "transformers", "tokenizers", "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "s3fs", "rich")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, execution.store, execution.runs], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_labels_are_the_steps_of_the_composition_in_order():
    found = pipeline.labels(profiles.settled("smoke", profiles.probing(Overrides(), PROBES)))
    assert (next(iter(found)), next(reversed(found))) == ("corpus", "report")
    models = {"reader", "tuned", "sentences", "quiz", "answers"}
    coders = {"stream", "frontier", "replacement", "coders-report"}
    assert set(found.values()) == set(steps.STEPS) - models - coders - {"pilot"}
    plain = set(pipeline.labels(profiles.settled("smoke", Overrides())).values())
    assert plain == set(steps.STEPS) - models - coders - {"pilot", *PROBES}
    written = ("writer.kind=hub", "writer.model=someone/model", f"writer.revision={'a' * 40}")
    by_model = pipeline.labels(profiles.settled("smoke-reader", Overrides(settings=(*written, "tune.steps=3"))))
    assert models <= set(by_model.values())


# -- coders alone -----------------------------------------------------------------------------------------------------


def walk(execution: Execution, name: str, *settings: str, refresh: tuple[str, ...] = ()) -> Outcome:
    spec = profiles.settled("smoke", Overrides(settings=settings))
    return pipeline.run_local(spec, "smoke", refresh, execution, Progress(), name)


def passes(execution: Execution, of: Artifact) -> int | None:
    """How many coders were made in the pass that made this one; none where it was made alone."""
    folder = Store(execution.store).folder(of)
    names = [entry.path for entry in folder.manifest.files]
    return json.loads(folder.path("passes.json").read_bytes()) if "passes.json" in names else None


def test_the_coder_of_a_rewriting_is_the_one_trained_alone(execution: Execution):
    alone = walk(execution, "train-coder")
    assert built(alone) == {"corpus", "subject", "tokens", "coder", "report"}
    assert alone.report_path == Path(execution.runs) / "smoke" / "train-coder" / "report.html"
    assert BEFORE_EXPLAIN.isdisjoint(built(run(execution)))
    assert walk(execution, "train-coder", "coder.data.kind=rows").rows[3].step == "stream"


def test_missing_coders_of_a_sweep_are_made_by_one_pass(execution: Execution):
    first = walk(execution, "sweep", "sweep.values=[2,8,16]")
    swept = {f"coder-{k}" for k in (2, 8, 16)}
    assert built(first) == {"corpus", "subject", "tokens", *swept, "frontier", "report"}
    assert {passes(execution, artifact(first, label)) for label in swept} == {3}
    second = walk(execution, "sweep", "sweep.values=[4,8,16]")
    assert built(second) == {"coder-4", "frontier", "report"}
    assert passes(execution, artifact(second, "coder-4")) is None
    assert artifact(second, "coder-4") == artifact(walk(execution, "train-coder"), "coder")  # k=4 is the profile's own
    assert built(walk(execution, "sweep", "sweep.values=[4,8,16]")) == set()
    again = walk(execution, "sweep", "sweep.values=[4,8,16]", refresh=("coder",))
    assert built(again) == {"coder-4", "coder-8", "coder-16", "frontier", "report"}


def test_layers_to_replace_have_a_coder_each(execution: Execution):
    found = walk(execution, "replace", "layers.layers=[1,0]")
    assert [row.step for row in found.rows] == [
        "corpus",
        "subject",
        "tokens",
        "coder-1",
        "coder-0",
        "replacement",
        "report",
    ]
    assert artifact(found, "coder-1") == artifact(walk(execution, "train-coder"), "coder")
    assert artifact(found, "coder-0") != artifact(found, "coder-1")


def test_coders_that_differ_in_their_seed_read_the_data_in_one_order():
    made = profiles.settled("smoke", Overrides(seed=3, settings=("sweep.over=seed", "sweep.values=[3,4]")))
    found = made.sweep.coders(made.coder)
    assert {label: (each.seed, each.order_seed) for label, each in found.items()} == {
        "coder-3": (3, 3),
        "coder-4": (4, 3),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("sweep.over=penalty", "sweep.values=[0.1]"), "only relu and jumprelu have a penalty to vary"),
        (
            ("sweep.values=[100]",),
            "sweep.over=k, value 100: k must be at most the number of latents: k=100, latents=64",
        ),
        (("sweep.values=[4,4]",), "sweep.values names one twice: 4, 4. Name each once"),
        (("sweep.values=[4,4.5]",), "sweep.values are whole numbers when sweep.over=k, not 4.5."),
        (
            ("coder.activation=relu", "sweep.values=[4,8]"),
            "only topk and batchtopk keep k latents: coder.activation=relu, and its coders would be alike. "
            "Use --set sweep.over=penalty",
        ),
        (
            ("sweep.over=layer", "sweep.values=[0,5]"),
            "the subject has layers 0 to 1, and sweep.values names 5. Change --set sweep.values",
        ),
        (("layers.layers=[1,1]",), "layers.layers names one twice: 1, 1"),
        (
            ("coder.kind=folder", "coder.width=64", "sweep.values=[4]"),
            "only a coder trained here has another k: coder.kind=folder. Use --set sweep.over=layer",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(settings: tuple[str, ...], message: str):
    with pytest.raises(SettingError, match=re.escape(message)):
        pipeline.labels(profiles.settled("smoke", Overrides(settings=settings)), "sweep")


@pytest.mark.parametrize(
    ("walk", "setting"),
    [("rewrite", "coder.site.layer=2"), ("train-coder", "coder.site.layer=2"), ("replace", "layers.layers=[1,2]")],
)
def test_a_layer_that_the_subject_will_not_have_is_refused_before_it_is_trained(walk: str, setting: str):
    spec = profiles.settled("smoke", Overrides(settings=(setting,)))
    name = setting.partition("=")[0]
    with pytest.raises(SettingError, match=rf"layers 0 to 1, and {name} names 2\. Change --set {name}$"):
        pipeline.labels(spec, walk)


@pytest.mark.parametrize("walk", ["train-coder", "sweep", "replace"])
def test_the_smallest_profile_goes_on_every_walk_over_coders(walk: str):
    assert pipeline.labels(profiles.settled("smoke", Overrides()), walk)["report"] == "coders-report"
