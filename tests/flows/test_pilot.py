"""The pilot as a flow: it builds what it needs alone, says what it predicts, and leaves hits for the rewriting."""

from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.pilot import pilot
from flows.rewrite import rewrite
from nlrewrite.execution import Execution
from tests import small_steps


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps.install(monkeypatch)


@pytest.mark.usefixtures("api")
def test_a_pilot_leaves_a_prediction_and_hits(place: dict[str, str], client: SyncPrefectClient) -> None:
    execution = Execution(store=place["store"], runs=place["runs"])
    predicted: Any = pilot(profile="smoke", execution=execution)
    assert predicted == small_steps.PILOT
    after: Any = rewrite(profile="smoke", execution=execution)
    hits = {row.step for row in after.rows if row.state == "hit"}
    assert {"corpus", "subject", "coder", "activations-calibrate", "explanations", "simulation-calibrate"} <= hits
    assert not hits & {"simulation-report", "activations-report", "evaluation", "report"}
    shown = client.request("POST", "/artifacts/latest/filter", json={}).json()
    (text,) = [each["data"] for each in shown if each["key"] == "pilot"]
    assert "gap closed, predicted: 0.500 [0.400, 0.600] (80% interval)" in text


def test_its_form_is_typed_and_described() -> None:
    form = pilot.parameters.model_dump()
    assert form["properties"]["profile"]["enum"][0] == "tiny"
    assert all(field["description"] for field in form["properties"].values())
