"""The flows about coders: one pass for what is missing, a task for each coder, the walk's own report."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient

from flows import coding, launch
from flows.rewrite import rewrite, show_plots
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from tests import small_steps


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps.install(monkeypatch)


def task_runs(client: SyncPrefectClient, run: str) -> list[tuple[str, str]]:
    answer = client.request("POST", "/task_runs/filter", json={"flow_runs": {"id": {"any_": [run]}}})
    found = sorted(answer.json(), key=lambda each: each["start_time"])
    return [(each["name"].partition("/")[0], each["state_name"]) for each in found]


def swept(client: SyncPrefectClient, place: dict[str, str], *values: int) -> tuple[Any, list[tuple[str, str]]]:
    overrides = Overrides(settings=(f"sweep.values={list(values)}",))
    state = coding.sweep(profile="smoke", overrides=overrides, execution=Execution(**place), return_state=True)
    return state.result(), task_runs(client, str(state.state_details.flow_run_id))


@pytest.mark.usefixtures("api")
def test_a_sweep_trains_what_is_missing_in_one_task(client: SyncPrefectClient, place: dict[str, str]) -> None:
    outcome, runs = swept(client, place, 2, 8)
    assert runs == [
        *((kind, "Completed") for kind in ("corpus", "subject", "tokens")),
        ("2 coders in one pass", "Completed"),
        *[("coder", "Cached")] * 2,
        *((kind, "Completed") for kind in ("frontier", "coders-report")),
    ]
    assert {row.step: row.state for row in outcome.rows if row.step.startswith("coder-")} == {
        "coder-2": "built",
        "coder-8": "built",
    }
    again, runs = swept(client, place, 2, 8)
    assert {state for _, state in runs} == {"Cached"}
    assert [row.artifact for row in again.rows] == [row.artifact for row in outcome.rows]
    wider, runs = swept(client, place, 2, 4, 8)
    assert [each for each in runs if each[0] == "coder"] == [
        ("coder", state) for state in ("Cached", "Completed", "Cached")
    ]
    after: Any = rewrite(profile="smoke", execution=Execution(**place))  # its coder has k=4
    coder = next(row for row in after.rows if row.step == "coder")
    assert (coder.state, coder.artifact) == ("hit", next(row.artifact for row in wider.rows if row.step == "coder-4"))


@pytest.mark.usefixtures("api")
def test_layers_are_replaced_under_their_own_name(client: SyncPrefectClient, place: dict[str, str]) -> None:
    overrides = Overrides(settings=("layers.layers=[0,1]",))
    made: Any = coding.replace(profile="smoke", overrides=overrides, execution=Execution(**place))
    assert [row.step for row in made.rows][-4:] == ["coder-0", "coder-1", "replacement", "report"]
    assert made.report_path == Path(place["runs"]) / "smoke" / "replace" / "report.html"


@pytest.mark.usefixtures("api")
def test_the_command_lines_commands_are_the_flows(place: dict[str, str]) -> None:
    parameters = launch.Parameters(flow="train-coder", profile="smoke", refresh=["coder"], execution=Execution(**place))
    outcome = launch.run(launch.parse(parameters.model_dump_json()), Progress())
    assert [row.step for row in outcome.rows] == ["corpus", "subject", "tokens", "coder", "report"]


@pytest.mark.parametrize("flow", coding.FLOWS.values(), ids=list(coding.FLOWS))
def test_forms_are_typed_and_described(flow: Any) -> None:
    form = flow.parameters.model_dump()
    assert form["properties"]["profile"]["enum"][0] == "tiny"
    assert {"coder", "frontier", "replacement", "coders-report"} < set(form["properties"]["refresh"]["items"]["enum"])
    assert all(field["description"] for field in form["properties"].values())
    assert json.dumps(form)


@pytest.mark.usefixtures("api")
def test_plots_are_shown_where_the_tables_are(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown_in_a_run = flow(show_plots)
    (tmp_path / "figures").mkdir()
    shown_in_a_run(tmp_path)
    (tmp_path / "figures" / "small.svg").write_text("<svg/>")
    (tmp_path / "figures" / "large.svg").write_text("<svg/>" * 100)
    monkeypatch.setattr("flows.rewrite.MOST_BYTES_OF_A_PICTURE", 100)
    shown_in_a_run(tmp_path)
    found = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["plots"]}}}).json()
    (shown,) = [each["data"] for each in found if "small" in each["data"]]
    assert shown == f"![small](data:image/svg+xml;base64,{base64.b64encode(b'<svg/>').decode()})"
