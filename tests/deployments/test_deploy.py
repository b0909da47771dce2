"""The deployment, for real: deployed by its file, started through the API, run by a worker of a process work pool."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import server
from nlrewrite import pipeline
from nlrewrite.profiles import Overrides, settled

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
STEPS = len(pipeline.labels(settled("smoke", Overrides())))


class Api:
    """The server's REST interface, as another program would use it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        return self._answer(urllib.request.Request(f"{self.url}{path}"))

    def post(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        return self._answer(urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"}))

    def _answer(self, request: urllib.request.Request) -> Any:
        """As Prefect's own client does, try again when the server says it is busy."""
        for _ in range(20):
            try:
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                error.close()
                time.sleep(0.5)
        raise AssertionError(f"the server stays busy: {request.full_url}")

    def wait_for(self, run: str, *states: str, seconds: float = 240) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (found := self.get(f"/flow_runs/{run}"))["state_type"] not in states:
            assert time.monotonic() < deadline, f"the run is still {found['state']}"
            assert found["state_type"] not in ("FAILED", "CRASHED"), found["state"]["message"]
            time.sleep(0.2)
        return found

    def count(self, run: str, **task_runs: Any) -> int:
        return self.post("/task_runs/count", flow_runs={"id": {"any_": [run]}}, task_runs=task_runs)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.delenv("PREFECT_API_URL", raising=False)
        with server.attached() as at:
            server.wait_until_healthy(at)
            yield Api(at.api)


def prefect(*arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def deployment(api: Api) -> dict[str, Any]:
    prefect("work-pool", "create", "cpu", "--type", "process")
    prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    return api.get("/deployments/name/rewrite/tiny")


@pytest.fixture
def worker(deployment: dict[str, Any]) -> Iterator[None]:
    """A worker of the pool. From a shell's background it would outlive its SIGTERM; from here it does not."""
    environment = {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu", "--limit", "2"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    yield
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode is not None, output


def test_is_deployed_as_the_file_says(deployment: dict[str, Any]) -> None:
    assert deployment["parameters"] == {"profile": "tiny"}
    assert sorted(deployment["tags"]) == ["cpu", "tiny"]
    (schedule,) = deployment["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"], schedule["slug"]) == (False, "0 3 * * *", "nightly")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert "every step is a hit" in deployment["description"]
    golden = json.loads((ROOT / "tests" / "golden" / "rewrite_form.json").read_text())
    form = deployment["parameter_openapi_schema"]
    assert {"required": [], **form} == golden, "the typed form was lost on the way"


def test_the_probes_are_deployed_with_their_forms(api: Api, deployment: dict[str, Any]) -> None:
    study, sample_size = (api.get(f"/deployments/name/{flow}/tiny") for flow in ("study", "sample-size"))
    for found in (study, sample_size):
        assert found["parameters"] == {"profile": "tiny"}
        assert found["work_pool_name"] == deployment["work_pool_name"]
        assert found["parameter_openapi_schema"]["properties"]["profile"]["enum"][0] == "tiny"
    assert "sample-size" in study["parameter_openapi_schema"]["properties"]["probes"]["items"]["enum"]


def test_the_api_refuses_what_the_form_does_not_offer(api: Api, deployment: dict[str, Any]) -> None:
    for parameters in ({"profile": "small"}, {"execution": {"threads": 0}}, {"overrides": {"width": 3}}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            api.post(f"/deployments/{deployment['id']}/create_flow_run", parameters=parameters)
        assert refused.value.code in (409, 422)
        refused.value.close()


@pytest.mark.usefixtures("worker")
def test_runs_when_the_api_is_asked_to_and_the_second_run_is_all_hits(
    api: Api, deployment: dict[str, Any], tmp_path: Path
) -> None:
    place = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs")}

    def start() -> str:
        path = f"/deployments/{deployment['id']}/create_flow_run"
        parameters = {"profile": "smoke", "execution": place}
        return api.post(path, parameters=parameters, state={"type": "SCHEDULED"})["id"]

    first = start()
    api.wait_for(first, "RUNNING", "COMPLETED")
    refused = start()
    assert api.wait_for(refused, "CANCELLED", seconds=60)["state_type"] == "CANCELLED"
    assert api.wait_for(first, "COMPLETED")["name"].startswith("smoke mlp.1 64x4 ")
    second = start()
    api.wait_for(second, "COMPLETED")
    for run, name in ((first, "Completed"), (second, "Cached")):
        assert api.count(run, state={"type": {"any_": ["COMPLETED"]}, "name": {"any_": [name]}}) == STEPS
        assert api.count(run) == STEPS
    assert (tmp_path / "runs" / "smoke" / "report.html").exists()
    deadline = time.monotonic() + 20  # the log of a run arrives a little after its end
    while True:
        logs = api.post("/logs/filter", logs={"flow_run_id": {"any_": [second]}})
        if any(log["name"] == "nlrewrite.pipeline" for log in logs):
            break
        assert time.monotonic() < deadline, {log["name"] for log in logs}
        time.sleep(0.5)
