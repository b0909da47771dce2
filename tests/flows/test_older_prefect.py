"""The versions that fit beside vLLM: an older Prefect and fastapi, another transformers; in their own environment."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-377" / "bin" / "python"

pytestmark = pytest.mark.system


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    assert PYTHON.exists(), "make test-all makes this environment"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "PYTEST"))}
    command = [str(PYTHON), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True)


def test_is_the_older_one() -> None:
    code = "from importlib.metadata import version as v; import json; print(json.dumps([v('prefect'), v('fastapi')]))"
    assert json.loads(run("-c", code).stdout) == ["3.7.7", "0.136.3"]


def test_the_tests_of_the_flow_pass_there() -> None:
    done = run("-m", "pytest", "tests/flows", "tests/tasks", "-m", "not system")
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout.splitlines()[-1]


def test_runs_for_real_there_and_finds_everything_again(tmp_path: Path) -> None:
    places = {"NLREWRITE_STORE": str(tmp_path / "store"), "NLREWRITE_RUNS": str(tmp_path / "runs")}
    states = []
    for _ in range(2):
        done = run("-m", "nlrewrite", "run", "--profile", "smoke", PREFECT_HOME=str(tmp_path / "prefect"), **places)
        assert done.returncode == 0, done.stderr
        steps = json.loads((tmp_path / "runs" / "smoke" / "results.json").read_text())["steps"]
        states.append({step["state"] for step in steps})
    assert states == [{"built"}, {"hit"}]
