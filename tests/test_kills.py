"""Killed at any moment, a run leaves nothing half-made that the next one takes for whole; what a change rebuilds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlrewrite import pipeline, planning, profiles
from nlrewrite.artifacts import Store
from nlrewrite.execution import Execution
from nlrewrite.pipeline import Outcome
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress

ROOT = Path(__file__).parents[1]
KILLS = 10


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Execution, Outcome]:
    return run_in(tmp_path_factory.mktemp("unbroken"))


def run_in(place: Path, *settings: str, refresh: tuple[str, ...] = (), threads: int = 1) -> tuple[Execution, Outcome]:
    execution = Execution(store=str(place / "store"), runs=str(place / "runs"), threads=threads)
    spec = profiles.resolve("smoke", Overrides(settings=settings), execution)
    return execution, pipeline.run_local(spec, "smoke", refresh, execution, Progress())


def hashes(execution: Execution) -> dict[str, dict[str, str]]:
    store = Store(execution.store)
    manifests = [store.folder(artifact).manifest for artifact in store.listed()]
    return {str(each.artifact): {entry.path: entry.sha256 for entry in each.files} for each in manifests}


def test_killed_at_ten_moments_the_next_run_completes_with_the_same_bytes(
    tmp_path: Path, unbroken: tuple[Execution, Outcome]
):
    reference, _ = unbroken
    draws = random.Random(20)
    command = [sys.executable, "-m", "nlrewrite", "run", "--local", "--profile", "smoke", "-q"]
    survived = 0
    for _ in range(KILLS):
        running = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(draws.uniform(0.5, 6.0))
        survived += running.poll() is not None
        os.killpg(running.pid, signal.SIGKILL) if running.poll() is None else None
        running.wait()
    assert survived < KILLS, "no run was killed: the moments lie too late"
    execution, _ = run_in(tmp_path)
    store = Store(execution.store)
    assert [problem for artifact in store.listed() for problem in store.verify(artifact)] == []
    assert hashes(execution) == hashes(reference)


def test_an_evaluation_setting_rebuilds_evaluation_and_report_alone(unbroken: tuple[Execution, Outcome]):
    execution, _ = unbroken
    _, again = run_in(Path(execution.store).parent, "evaluate.resamples=300")
    assert [row.step for row in again.rows if row.state == "built"] == ["evaluation", "report"]


def test_a_coder_refreshed_with_other_threads_rebuilds_what_follows_and_the_plan_says_why(
    tmp_path: Path, unbroken: tuple[Execution, Outcome]
):
    place = tmp_path / "copied"
    shutil.copytree(Path(unbroken[0].store).parent, place)
    execution, before = run_in(place)
    assert {row.state for row in before.rows} == {"hit"}
    spec = profiles.resolve("smoke", Overrides(), execution)
    planned = planning.plan("smoke", spec, ("coder",), execution)
    states = {row.step: (row.state, row.why) for row in planned.rows}
    _, after = run_in(place, refresh=("coder",), threads=2)
    labels = [row.step for row in before.rows]
    follows = labels[labels.index("coder") :]
    assert [row.step for row in after.rows if row.state == "built"] == follows
    assert [row.artifact for row in after.rows] == [row.artifact for row in before.rows]
    assert states["coder"] == ("refresh", pipeline.REFRESH)
    assert all(states[label][0] == "downstream" and "will be rebuilt" in states[label][1] for label in follows[1:])
    assert (
        Store(execution.store).folder(after.rows[labels.index("coder")].artifact).manifest.made.execution["threads"]
        == 2
    )
