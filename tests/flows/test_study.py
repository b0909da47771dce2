"""The flows of the probes on a real server: the rewriting's steps, then an artifact for each probe."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows import launch
from flows.rewrite import rewrite
from flows.study import sample_size, study
from nlrewrite import pipeline, profiles
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides, probing
from nlrewrite.progress import Progress
from nlrewrite.specs import PROBES
from tests import small_steps

STEPS = pipeline.labels(profiles.settled("smoke", Overrides()))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps.install(monkeypatch)


@pytest.mark.usefixtures("api")
def test_a_study_adds_the_probes_to_the_rewriting(place: dict[str, str]) -> None:
    execution = Execution(store=place["store"], runs=place["runs"])
    before: Any = rewrite(profile="smoke", execution=execution)
    after: Any = study(profile="smoke", execution=execution)
    states = {row.step: row.state for row in after.rows}
    assert [step for step, state in states.items() if state == "built"] == [*PROBES, "report"]
    assert [row.step for row in before.rows] == [*STEPS]
    one: Any = sample_size(profile="smoke", execution=execution)
    assert [row.step for row in one.rows if row.step in PROBES] == ["sample-size"]
    assert [row.step for row in one.rows if row.state == "built"] == ["report"]


@pytest.mark.usefixtures("api")
def test_the_command_lines_study_is_the_flow(place: dict[str, str], client: SyncPrefectClient) -> None:
    overrides = probing(Overrides(), ["requirement"])
    parameters = launch.Parameters(
        flow="study",
        profile="smoke",
        overrides=overrides,
        execution=Execution(store=place["store"], runs=place["runs"]),
    )
    outcome = launch.run(launch.parse(parameters.model_dump_json()), Progress())
    assert [row.step for row in outcome.rows if row.step in PROBES] == ["requirement"]
    last = client.request("POST", "/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()[0]
    assert last["parameters"]["probes"] == ["requirement"]


@pytest.mark.parametrize("flow", [study, sample_size])
def test_forms_are_typed_and_described(flow: Any) -> None:
    form = flow.parameters.model_dump()
    assert form["properties"]["profile"]["enum"][0] == "tiny"
    assert set(PROBES) < set(form["properties"]["refresh"]["items"]["enum"])
    assert all(field["description"] for field in form["properties"].values())
    if flow is study:
        assert form["properties"]["probes"]["items"]["enum"] == [*PROBES]


def test_the_deployments_name_the_flows() -> None:
    import yaml

    file = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
    found = {each["entrypoint"]: each for each in yaml.safe_load(file.read_text())["deployments"]}
    files = {"flows/rewrite.py:rewrite", "flows/study.py:study", "flows/study.py:sample_size", "flows/pilot.py:pilot"}
    files |= {f"flows/coding.py:{name}" for name in ("train_coder", "sweep", "replace")}
    assert set(found) == files
    assert all(json.dumps(each["parameters"]) == '{"profile": "tiny"}' for each in found.values())
    assert len({json.dumps(each["work_pool"]) for each in found.values()}) == 1
