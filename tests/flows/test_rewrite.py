"""The flow on a real server: what is built, what is a hit, what the history and the UI's artifacts say of it."""

import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import Task
from prefect.client.orchestration import SyncPrefectClient

from flows.rewrite import rewrite
from nlrewrite import filling, pipeline, profiles
from nlrewrite.errors import CorruptArtifact, NotYet, SettingError, StoreError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.pipeline import Outcome
from nlrewrite.printing import headline
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from tasks import TASKS
from tests import small_steps

ROOT = Path(__file__).parents[2]
LABELS = pipeline.labels(profiles.settled("smoke", Overrides()))
STEPS, KINDS = len(LABELS), set(LABELS.values())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps.install(monkeypatch)


class Run:
    """A finished run of the flow and what the server knows of it."""

    def __init__(self, client: SyncPrefectClient, **parameters: Any) -> None:
        state = rewrite(profile="smoke", return_state=True, **parameters)
        self.id = str(state.state_details.flow_run_id)
        self.state = state
        self._client = client

    @property
    def outcome(self) -> Outcome:
        result: Any = self.state.result()
        return result

    def ask(self, path: str, **body: Any) -> Any:
        mine = {"flow_runs": {"id": {"any_": [self.id]}}}
        answer = self._client.request("POST", path, json={**mine, **body})
        answer.raise_for_status()
        return answer.json()

    def task_runs(self) -> list[dict[str, Any]]:
        return sorted(self.ask("/task_runs/filter"), key=lambda run: run["start_time"])

    def artifact(self, key: str) -> Any:
        (found,) = self.ask("/artifacts/filter", artifacts={"key": {"any_": [key]}})
        return found["data"]

    def states(self) -> dict[str, str]:
        return {row["step"]: row["state"] for row in json.loads(self.artifact("steps"))}


def test_builds_once_and_then_finds_everything(client: SyncPrefectClient, place: dict[str, str]) -> None:
    first, second = (Run(client, execution=Execution(**place)) for _ in range(2))
    for run, name in ((first, "Completed"), (second, "Cached")):
        runs = run.task_runs()
        assert [each["state_name"] for each in runs] == [name] * STEPS
        assert {each["state_type"] for each in runs} == {"COMPLETED"}
        assert [each["name"] for each in runs] == [str(row.artifact) for row in run.outcome.rows]
        assert run.ask("/flow_runs/filter")[0]["state_type"] == "COMPLETED"
        names = {each["id"]: each["name"].partition("/")[0] for each in runs}
        (evaluation,) = [each for each in runs if each["name"].startswith("evaluation/")]
        before = {names[each["id"]] for each in evaluation["task_inputs"]["wait_for"]}
        assert before == KINDS - {"corpus", "gates", "evaluation", "report"}
    messages = {each["state"]["message"] for each in second.task_runs()}
    assert all(f"by flow-run {first.id}" in message for message in messages)
    assert set(first.states().values()) == {"built"}
    assert set(second.states().values()) == {"hit"}
    assert len(second.states()) == STEPS


def test_same_names_as_without_prefect(client: SyncPrefectClient, place: dict[str, str], tmp_path: Path) -> None:
    run = Run(client, execution=Execution(**place))
    local = Execution(store=str(tmp_path / "other"), runs=str(tmp_path / "other-runs"))
    spec = filling.filled(profiles.settled("smoke", Overrides()), local)
    outcome = pipeline.run_local(spec, "smoke", [], local, Progress())
    assert [row.artifact for row in outcome.rows] == [row.artifact for row in run.outcome.rows]
    assert outcome.results["headline"] == run.outcome.results["headline"]


def test_lost_data_is_no_hit(client: SyncPrefectClient, place: dict[str, str]) -> None:
    first = Run(client, execution=Execution(**place)).outcome
    coder = next(row.artifact for row in first.rows if row.step == "coder")
    shutil.rmtree(Path(place["store"]) / "objects" / str(coder))
    states = Run(client, execution=Execution(**place)).states()
    assert [step for step, state in states.items() if state == "hit"] == ["corpus", "subject", "tokens"]


def test_refresh_rebuilds_a_step_and_what_follows(client: SyncPrefectClient, place: dict[str, str]) -> None:
    Run(client, execution=Execution(**place))
    states = Run(client, execution=Execution(**place), refresh=["scores"]).states()
    assert [step for step, state in states.items() if state == "built"] == ["scores", "evaluation", "report"]


def test_leaves_tables_and_the_place_of_the_report(client: SyncPrefectClient, place: dict[str, str]) -> None:
    run = Run(client, execution=Execution(**place), overrides=Overrides(k=8))
    (row, *_) = json.loads(run.artifact("steps"))
    assert set(row) == {"step", "artifact", "state", "seconds", "bytes", "drift", "why"}
    assert run.artifact("results").startswith(headline(small_steps.RESULTS))
    assert "| rewritten" in run.artifact("results")
    assert run.outcome.report_path.resolve().as_uri() in run.artifact("report")
    assert run.ask("/flow_runs/filter")[0]["name"].startswith("smoke mlp.1 64x8 ")
    assert f"0 of {STEPS} steps were hits" in run.state.message


def test_the_librarys_log_is_in_the_runs_log(client: SyncPrefectClient, place: dict[str, str]) -> None:
    from prefect.logging.handlers import APILogHandler

    logging.getLogger("nlrewrite").setLevel(logging.NOTSET)  # as in a process that shows no log of its own
    run = Run(client, execution=Execution(**place))
    asked = {"logs": {"flow_run_id": {"any_": [run.id]}, "level": {"ge_": logging.INFO}}}
    until = time.monotonic() + 30
    found: list[str] = []
    while not found and time.monotonic() < until:
        APILogHandler().flush()
        logs = client.request("POST", "/logs/filter", json=asked).json()
        found = [log["message"] for log in logs if log["name"].startswith("nlrewrite")]
    assert any("not in the store" in message for message in found)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"overrides": Overrides(k=100)}, SettingError),
        ({"overrides": Overrides(settings=("coder.wdth=4",))}, SettingError),
        ({"refresh": ["explanation"]}, SettingError),
        ({"profile": "pythia-160m-transcoder"}, NotYet),
    ],
)
def test_refuses_before_any_task(api: str, parameters: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        rewrite(**{"profile": "smoke", **parameters})


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (Unreachable("the hub is down"), 3),
        (StoreError("the store is down"), 3),
        (CorruptArtifact("a file was damaged"), 1),
        (SettingError("k is too large"), 1),
        (ZeroDivisionError("a defect"), 1),
    ],
)
def test_tries_again_only_what_can_pass(
    client: SyncPrefectClient,
    place: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    tries: int,
) -> None:
    called = []

    def failing(*arguments: object) -> None:
        called.append(arguments)
        raise error

    monkeypatch.setattr(small_steps, "build", failing)
    hasty: Task[..., Any] = TASKS["corpus"].with_options(retry_delay_seconds=0)
    monkeypatch.setitem(TASKS, "corpus", hasty)
    run = Run(client, execution=Execution(**place))
    assert len(called) == tries
    with pytest.raises(type(error), match=str(error)):
        run.outcome  # noqa: B018
    (task_run,) = run.task_runs()
    assert task_run["state_type"] == "FAILED"
    assert run.states() == {}


def test_the_form_is_the_golden_one() -> None:
    golden = ROOT / "tests" / "golden" / "rewrite_form.json"
    form = json.dumps(rewrite.parameters.model_dump(), indent=1) + "\n"
    assert form == golden.read_text(), f"the form changed. If that is meant: {sys.executable} -m {__name__}"


def test_every_field_of_the_form_is_described() -> None:
    form = rewrite.parameters.model_dump()
    assert list(form["properties"]) == ["profile", "overrides", "refresh", "execution"]
    assert form["properties"]["profile"]["enum"][0] == "tiny"
    for properties in (form["properties"], *(each["properties"] for each in form["definitions"].values())):
        for name, field in properties.items():
            assert field.get("description"), f"{name} has no description"
            assert "default" in field, f"{name} has no default"


def test_the_module_is_light_to_import() -> None:
    heavy = "torch transformers pandas pyarrow matplotlib scipy datasets s3fs"
    code = (
        "import sys, prefect.artifacts, prefect.client.orchestration; from prefect import Task, flow; "
        "before = set(sys.modules); "
        f"import flows.rewrite; print(*[name for name in '{heavy}'.split() if name in set(sys.modules) - before])"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.split() == []


def test_files_hide_no_package() -> None:
    """Prefect puts the folder of the flow's file first on the path."""
    from importlib.metadata import packages_distributions

    files = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert files.isdisjoint(sys.stdlib_module_names)
    assert files.isdisjoint(packages_distributions())


if __name__ == "__main__":
    (ROOT / "tests" / "golden" / "rewrite_form.json").write_text(
        json.dumps(rewrite.parameters.model_dump(), indent=1) + "\n"
    )
