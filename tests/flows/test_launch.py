"""The command that runs the flow: a server around it, a whole history after it, one line for each kind of failure."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from flows import launch, server
from nlrewrite import pipeline, steps
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.filling import filled
from nlrewrite.printing import headline
from nlrewrite.profiles import Overrides, settled
from tests import small_steps

ROOT = Path(__file__).parents[2]
STEPS = len(pipeline.labels(settled("smoke", Overrides())))
SMALL = "from tests import small_steps; small_steps.install(); from flows import launch; import sys; "
RUN = SMALL + "raise SystemExit(launch.main(sys.argv[1:]))"


def run(parameters: dict[str, Any], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(parameters)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def ask(api: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{api}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_leaves_a_whole_history_and_no_server(
    own_home: Path, place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(own_home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for state in ("built", "hit"):
        done = run({"profile": "smoke", "execution": place})
        assert done.returncode == 0, done.stderr
        rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
        assert sum(row[3].strip() == state for row in rows) == STEPS
        assert headline(small_steps.RESULTS) in done.stdout
        assert "Traceback" not in done.stderr
        assert server.noted(own_home) is None
        assert not (own_home / "server.json").exists()
    with server.attached() as at:
        server.wait_until_healthy(at)
        states = [each["state_name"] for each in ask(at.api, "/task_runs/filter")]
        assert (states.count("Completed"), states.count("Cached"), len(states)) == (STEPS, STEPS, 2 * STEPS)
        assert [each["state_type"] for each in ask(at.api, "/flow_runs/filter")] == ["COMPLETED", "COMPLETED"]
        assert ask(at.api, "/logs/filter", logs={}, limit=1)


@pytest.mark.parametrize(
    ("parameters", "code", "said"),
    [
        ({"profile": "smoke", "overrides": {"settings": ["coder.k=100"]}}, 2, "k=100, latents=64"),
        ({"profile": "smok"}, 2, "no profile is called 'smok'"),
        ({"profile": "smoke", "refresh": ["code"]}, 2, "no step is called 'code'"),
        ({"profile": "smoke", "overrides": {"kk": 1}}, 2, "overrides.kk: extra inputs are not permitted"),
        ({"profile": "smoke", "execution": {"threads": 0}}, 2, "execution.threads: input should be greater"),
        ({"profile": "pythia-160m-transcoder"}, 3, "cannot be run yet"),
    ],
)
def test_settings_are_checked_before_anything_starts(
    parameters: dict[str, Any], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert launch.main([json.dumps(parameters)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "nonsense", "[1]"])
def test_parameters_that_are_no_object_are_told(text: str) -> None:
    with pytest.raises(SettingError, match="the parameters"):
        launch.parse(text)


def test_a_failure_in_a_task_is_one_line(api: str, place: dict[str, str]) -> None:
    spec = filled(settled("smoke", Overrides()), Execution(**place))
    manifest = Path(place["store"]) / "manifests" / f"{steps.name('corpus', spec.text, {})}.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("no manifest")
    done = run({"profile": "smoke", "execution": place}, PREFECT_API_URL=api)
    assert done.returncode == 5, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the manifest of corpus/" in errors[0]
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_one_line(place: dict[str, str]) -> None:
    done = run({"profile": "smoke", "execution": place}, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 6
    assert done.stderr.startswith("error: the Prefect server that PREFECT_API_URL names does not answer")
    assert done.stderr.count("\n") == 1


def test_prints_json_when_asked_to(api: str, place: dict[str, str]) -> None:
    done = run({"profile": "smoke", "execution": place}, PREFECT_API_URL=api, NLREWRITE_OUTPUT="json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["headline"]["gap_closed"] == 0.75
    assert len(told["steps"]) == STEPS
    assert done.stderr == ""
