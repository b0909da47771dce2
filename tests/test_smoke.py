"""The whole program, for real and as small as it goes: every step once, then hits, then the same bytes again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nlrewrite import pipeline, profiles
from nlrewrite.artifacts import Store

ROOT = Path(__file__).parents[1]
LABELS = list(pipeline.labels(profiles.settled("smoke", profiles.Overrides())))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="module")
def first(place: Path) -> dict[str, Any]:
    return run(place)


def run(place: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "nlrewrite", "run", "--local", "--profile", "smoke", "--json", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def hashes(place: Path) -> dict[str, dict[str, str]]:
    """The content of every artifact but the report, which names the commit it was made at."""
    store = Store(str(place / "store"))
    manifests = [store.folder(artifact).manifest for artifact in store.listed() if artifact.kind != "report"]
    return {str(each.artifact): {entry.path: entry.sha256 for entry in each.files} for each in manifests}


def told(place: Path, outcome: dict[str, Any]) -> dict[str, Any]:
    results = json.loads((place / outcome["results"]).read_text())
    return {name: value for name, value in results.items() if name not in ("steps", "provenance")}


def test_every_step_is_built_once_and_the_page_is_there(place: Path, first: dict[str, Any]):
    assert [(row["step"], row["state"]) for row in first["steps"]] == [(label, "built") for label in LABELS]
    results = json.loads((place / first["results"]).read_text())
    assert set(results) >= {"headline", "arms", "steps", "provenance"}
    assert {"original", "coder", "rewritten", "shuffled", "token_lookup"} <= {arm["arm"] for arm in results["arms"]}
    assert (place / first["report"]).read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_second_run_is_hits_in_a_moment(place: Path, first: dict[str, Any]):
    page = (place / first["report"]).read_bytes()
    started = time.monotonic()
    second = run(place)
    assert time.monotonic() - started < 5
    assert {row["state"] for row in second["steps"]} == {"hit"}
    assert [row["artifact"] for row in second["steps"]] == [row["artifact"] for row in first["steps"]]
    assert (place / second["report"]).read_bytes() == page


def test_rebuilding_gives_the_same_bytes(place: Path, first: dict[str, Any]):
    before, results = hashes(place), told(place, first)
    again = run(place, "--refresh", "subject")
    assert [row["step"] for row in again["steps"] if row["state"] == "hit"] == ["corpus"]
    assert len(before) == len(LABELS) - 1
    assert hashes(place) == before
    assert told(place, again) == results
