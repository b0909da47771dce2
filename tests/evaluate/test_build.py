"""Every stage once, for real, on made-up text: what the evaluation's files say of one another."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nlrewrite import steps
from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import read
from nlrewrite.activations.statistics import read_latents
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.calibrate import lookup
from nlrewrite.calibrate.fit import read_calibrated
from nlrewrite.coders import form
from nlrewrite.composition import rewrite
from nlrewrite.evaluate import build, gather
from nlrewrite.evaluate.arms import Sources
from nlrewrite.execution import Execution
from nlrewrite.profiles import PROFILES
from nlrewrite.progress import Progress
from nlrewrite.simulate import rules as simulation
from nlrewrite.specs import EvaluateSpec, RewriteSpec, TextFolder
from nlrewrite.text import sources
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows
from tests.text.conftest import made_up

CALIBRATORS = ("none", "quantile-6", "quantile-5-on-prompt", "levels")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """The evaluation of a small rewriting, as `evaluation`, and all that it was made from."""
    folder, store = tmp_path_factory.mktemp("texts"), Store(str(tmp_path_factory.mktemp("store")))
    for number in range(90):
        (folder / f"{number:02}.txt").write_text(made_up(number), encoding="utf-8")
    execution = Execution(text_folder=str(folder))
    fields = {
        **PROFILES["smoke"].fields,
        "subject": {**PROFILES["smoke"].fields["subject"], "kind": "tiny"},
        "coder": {**PROFILES["smoke"].fields["coder"], "kind": "trained"},
        "text": {"source": sources.identified(TextFolder(), execution)},
        "calibrate": {"calibrators": CALIBRATORS, "folds": 2},
        "explain": {"max_quotes": 4, "max_words": 30, "min_active": 60},
    }
    folders: dict[str, Folder] = {}

    def step(label: str, kind: str, spec, **inputs: Artifact) -> Artifact:
        artifact = steps.name(kind, spec, inputs)
        if kind != "report":
            found = store.find(artifact)
            if found.manifest is None:
                steps.build(artifact, spec, inputs, store, execution, Progress(), "test", found)
        if kind == "evaluation":
            folders.update({name: store.folder(each) for name, each in {**inputs, kind: artifact}.items()})
        return artifact

    rewrite(RewriteSpec.model_validate(fields), step)
    return folders


@pytest.fixture(scope="module")
def plain(made: dict[str, Folder]) -> Sources:
    """What its arms write."""
    where = positions(read_windows(made["tokens"], "report"))
    vocabulary = json.loads(made["tokens"].path("tokens.json").read_text())["vocabulary"]
    return gather.gather(made, where, form.read(made["coder"]).dec_LE.numpy(), vocabulary)


def test_latents_without_a_sentence_get_the_mean_of_the_earlier_splits(made: dict[str, Folder], plain: Sources) -> None:
    explained = simulation.read(made["simulation"]).explained
    assert 0 < (~explained).sum() < len(explained)
    where = positions(read_windows(made["tokens"], "report"))
    coder, found = form.read(made["coder"]), plain
    totals, count = 0.0, 0
    for split in ("explain", "calibrate"):
        active = read(made[split])
        sums = np.bincount(active.latents.ravel(), active.values.ravel(), minlength=coder.latents)
        totals, count = totals + sums, count + len(active.values)
    every = np.arange(len(where))
    assert found.mean.dense(every) == pytest.approx(np.tile(totals / count, (len(every), 1)), rel=1e-4)
    for _, codes in (*found.rewritten.values(), *found.lengths.values()):
        assert codes.dense(every)[:, ~explained] == pytest.approx(found.mean.dense(every)[:, ~explained])
    fitted, chosen = read_calibrated(made["calibration"])
    assert chosen in CALIBRATORS
    assert not chosen.endswith("on-prompt")
    for name, values in fitted.items():
        arrays = found.rewritten[name][0].arrays
        same = all(np.array_equal(arrays[label], array) for label, array in values.arrays.items())
        assert same != name.endswith("on-prompt"), name
        assert (found.rewritten[name][0].information == "test marginals") == name.endswith("on-prompt")


def test_the_files_agree_with_one_another(made: dict[str, Folder]) -> None:
    folder = made["evaluation"]
    results = json.loads(folder.path("results.json").read_text())
    sums = pd.read_parquet(folder.path("losses.parquet")).groupby("arm")[["ce", "positions"]].sum()
    mean = (sums["ce"] / sums["positions"]).tolist()
    ordered = [row["ce"] for position in ("all", "last") for row in results["arms"] if row["position"] == position]
    assert sorted(mean) == pytest.approx(sorted(ordered), rel=1e-4)
    head = results["headline"]
    quoted = [row for row in results["arms"] if all(row[name] == head[name] for name in KEY if name != "fraction")]
    assert [row["gap_closed"] for row in quoted if row["fraction"] == 1] == [head["gap_closed"]]
    assert (head["position"], head["fraction"], head["chosen_on"]) == ("all", 1, "calibrate")
    latents = pd.read_parquet(folder.path("latents.parquet"))
    assert head["n_unexplained"] == (~latents["explained"]).sum()
    spread = json.loads(folder.path("spread.json").read_text())
    positions_of_report = len(read(made["report"]).values)
    assert sum(spread["counts"]["true"]) == positions_of_report * len(latents)


KEY = (
    "arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "fraction", "position",
    "subset_seed",
)  # fmt: skip


@pytest.mark.parametrize("unexplained", ["true", "zero", "largest"])
def test_a_latent_without_a_sentence_is_given_what_was_asked_for(
    made: dict[str, Folder], plain: Sources, unexplained: str
) -> None:
    where = positions(read_windows(made["tokens"], "report"))
    coder, every = form.read(made["coder"]), np.arange(len(where))
    vocabulary = json.loads(made["tokens"].path("tokens.json").read_text())["vocabulary"]
    spec = EvaluateSpec.model_validate({"unexplained": unexplained, "harmless": False})
    found = gather.gather(made, where, coder.dec_LE.numpy(), vocabulary, spec)
    largest = np.tile(read_latents(made["explain"])["max"].to_numpy(), (len(every), 1))
    given = {"true": found.truth.dense(every), "zero": np.zeros_like(largest), "largest": largest}[unexplained]
    rules, misled = (found.silent[name] for name in ("rules", "shuffled"))
    assert rules.any()
    for silent, (_, values), (_, before) in (
        *((rules, found.rewritten[name], plain.rewritten[name]) for name in found.rewritten),
        (misled, found.shuffled, plain.shuffled),
        (found.silent["gated"], found.rungs["gated"], plain.rungs["gated"]),
    ):
        assert values.dense(every)[:, silent] == pytest.approx(given[:, silent])
        assert values.dense(every)[:, ~silent] == pytest.approx(before.dense(every)[:, ~silent])
    assert found.gain is None


def test_every_rung_has_a_row_by_the_calibrator_that_was_chosen_for_it(made: dict[str, Folder]) -> None:
    results = json.loads(made["evaluation"].path("results.json").read_text())
    for position in ("all", "last"):
        rows = [row for row in results["arms"] if row["position"] == position and row["selection"] == "all"]
        for explanation, simulator in (("gate", "gate"), ("gated", "gate + rules")):
            (row,) = [row for row in rows if row["explanation"] == explanation]
            assert (row["arm"], row["simulator"]) == ("rewritten", simulator)
            assert row["calibrator"] == read_calibrated(made[f"calibration-{explanation}"])[1]
            silent = ~simulation.read(made[f"simulation-{explanation}"]).explained
            assert row["n_unexplained"] == silent.sum()
    assert results["protocol"]["name"] == "ours"


def test_latents_are_selected_on_the_calibrate_split_and_reported_on_the_report_split(made: dict[str, Folder]) -> None:
    """The gain needs nothing that knows the report split, and the step refuses anything else in its place."""
    known = {name: made[name] for name in ("calibration", "on-calibrate", "explain")}
    dec_LE = form.read(made["coder"]).dec_LE.numpy()
    seen = gather.lookup.Seen(
        positions(read_windows(made["tokens"], "calibrate")), gather.true_codes(read(made["calibrate"]), len(dec_LE))
    )
    chosen = read_calibrated(made["calibration"])[1]
    found = gather.gain(known, seen, chosen, dec_LE)
    results = json.loads(made["evaluation"].path("results.json").read_text())
    rows = [row for row in results["arms"] if row["selection"] == "harmless"]
    assert [row["n_latents"] for row in rows] == [found.harmless.sum()] * 2
    assert not found.harmless[~simulation.read(made["on-calibrate"]).explained].any()

    given = {name: folder.manifest.artifact for name, folder in made.items() if name != "evaluation"}
    given["on-calibrate"] = given["simulation"]
    artifact, store = steps.name("evaluation", EvaluateSpec(), given), made["tokens"]._store
    with pytest.raises(AssertionError, match="must read on-calibrate from the calibrate split, and was given the repo"):
        steps.build(artifact, EvaluateSpec(), given, store, Execution(), Progress(), "test", store.find(artifact))


def test_what_the_published_program_does_can_be_asked_for(made: dict[str, Folder], tmp_path: Path) -> None:
    inputs = {name: folder for name, folder in made.items() if name != "evaluation"}
    spec = EvaluateSpec(
        fractions=(0.5, 1.0), positions=("last",), selections=("top", "gain", "sampled"), subsets=1, draw="fresh",
        topk=("mixed",), unexplained="largest", rank_by="detection_balanced_accuracy", protocol="p1-code",
        resamples=200,
    )  # fmt: skip
    build.build(spec, inputs, tmp_path, steps.Running(Execution(), Progress()))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["defects"]
    assert results["headline"]["topk"] == "mixed"
    rows = results["arms"]
    assert {row["selection"] for row in rows} == {"all", "top", "gain", "sampled", "harmless"}
    parts = [row for row in rows if row["topk"] == "mixed" and row["fraction"] < 1]
    assert {row["arm"] for row in parts} == {"rewritten", "shuffled"}
    assert all(0 < row["eviction_rate"] <= 1 for row in parts if row["calibrator"] == "none")
    assert {row["eviction_rate"] for row in rows if row["topk"] != "mixed"} == {0.0}
    assert [row["arm"] for row in rows if row["arm"] == "mean" and row["selection"] in ("top", "gain")] == []


def test_two_evaluations_have_the_same_bytes(made: dict[str, Folder], tmp_path: Path) -> None:
    first = made["evaluation"]
    inputs = {name: folder for name, folder in made.items() if name != "evaluation"}
    spec = EvaluateSpec.model_validate(first.manifest.spec)
    build.build(spec, inputs, tmp_path, steps.Running(Execution(batch_tokens=8192), Progress()))
    for entry in first.manifest.files:
        assert (tmp_path / entry.path).read_bytes() == first.path(entry.path).read_bytes(), entry.path


def test_latents_are_selected_without_a_look_at_the_report_split(made: dict[str, Folder], plain: Sources) -> None:
    coder = form.read(made["coder"])
    where = positions(read_windows(made["tokens"], "calibrate"))
    seen = lookup.Seen(where, true_codes(read(made["calibrate"]), coder.latents))
    earlier = {name: made[name] for name in ("explain", "calibration", "on-calibrate")}
    found = gather.gain(earlier, seen, plain.chosen, coder.dec_LE.numpy())
    assert plain.gain is not None
    assert found.mean.tobytes() == plain.gain.mean.tobytes()
    assert found.lower.tobytes() == plain.gain.lower.tobytes()
    assert (found.mean != 0).any()
