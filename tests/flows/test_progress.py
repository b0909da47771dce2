"""Progress as an artifact: made when a stage lasts, kept up to date in place, and never in the way of the work."""

import json

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient

from nlrewrite.progress import Progress
from tasks.progress import ArtifactProgress, artifact_key, beside
from tests.flows.conftest import Seen


@task
def work(every: float, label: str) -> int:
    done = 0
    with ArtifactProgress(every).stage(label, total=4) as advance:
        for _ in range(4):
            done += 1
            advance(1, f"loss {done}")
    return done


def _artifacts(client: SyncPrefectClient, key: str) -> list[dict[str, object]]:
    answer = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}})
    answer.raise_for_status()
    return answer.json()


def test_a_lasting_stage_leaves_one_full_artifact_of_its_task(client: SyncPrefectClient) -> None:
    @flow
    def working() -> int:
        return work(0.0, "Train the coder (k=4)")

    assert working() == 4
    (found,) = _artifacts(client, "progress-train-the-coder-k-4")
    assert found["type"] == "progress"
    assert json.loads(str(found["data"])) == 100.0
    assert found["description"] == "Train the coder (k=4): 4 of 4, loss 4"
    assert found["flow_run_id"]
    assert found["task_run_id"]


def test_a_short_stage_leaves_none(client: SyncPrefectClient) -> None:
    assert flow(work.fn)(60.0, "over in a moment") == 4
    assert _artifacts(client, "progress-over-in-a-moment") == []


def test_shows_the_same_beside_it(api: str) -> None:
    @flow
    def working() -> int:
        return work(60.0, "on the terminal")

    seen = Seen()
    with beside(seen):
        working()
    assert seen.told == [("on the terminal", 4, step, f"loss {step}") for step in (1, 2, 3, 4)]


def test_an_artifact_that_is_gone_does_not_stop_the_work(
    client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    def disturbed() -> int:
        with ArtifactProgress(0.0).stage("disturbed", total=3) as advance:
            advance()
            (found,) = _artifacts(client, "progress-disturbed")
            client.request("DELETE", f"/artifacts/{found['id']}").raise_for_status()
            advance()
            advance()
        return 3

    assert disturbed() == 3
    assert caplog.text.count("'disturbed' is no longer shown") == 1


@pytest.mark.parametrize(("label", "key"), [("Train it", "progress-train-it"), ("a: b/c", "progress-a-b-c")])
def test_keys_are_in_the_letters_that_prefect_allows(label: str, key: str) -> None:
    assert artifact_key(label) == key


def test_no_progress_is_the_default() -> None:
    with Progress().stage("anything", 1) as advance:
        advance()
