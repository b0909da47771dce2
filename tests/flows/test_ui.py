"""Prefect's pages about our runs, in a real browser: the hits, the tables, the form."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from flows import server
from flows.launch import Parameters
from flows.launch import run as run_flow
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from tests import small_steps
from tests.flows.test_launch import STEPS, ask

pytestmark = pytest.mark.system


class Browser:
    """Headless Chromium; a page is what it holds once its scripts have run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def page(self, url: str) -> str:
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        command = ["chromium", *options.split(), "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={self.folder}", "--window-size=1500,1400", "--virtual-time-budget=20000"]
        done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path / "chromium")


@pytest.fixture
def runs(api: str, place: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two runs of the flow: the first builds, the second finds."""
    small_steps.install(monkeypatch)
    parameters = Parameters(profile="smoke", execution=Execution(**place))
    for _ in range(2):
        run_flow(parameters, Progress())
    found = ask(api, "/flow_runs/filter", sort="START_TIME_DESC", limit=2)
    return [each["id"] for each in reversed(found)]


def test_hits_are_seen_as_hits(api: str, browser: Browser, runs: list[str]) -> None:
    shown = min(STEPS, 20)  # runs on the first page of the table
    for run, cached in zip(runs, (0, shown), strict=True):
        page = browser.page(f"{api.removesuffix('/api')}/v2/runs/flow-run/{run}?tab=TaskRuns")
        assert f"{STEPS} Task runs" in page
        texts = [text.strip() for text in re.findall(r">([^<]+)<", page)]
        assert texts.count("Cached") == cached
        assert sum(text.startswith("simulation/") for text in texts) > 2


def test_tables_are_drawn(api: str, browser: Browser, runs: list[str]) -> None:
    mine = {"flow_runs": {"id": {"any_": [runs[1]]}}}
    address = api.removesuffix("/api")
    seen = {}
    for each in ask(api, "/artifacts/filter", **mine):
        seen[each["key"]] = browser.page(f"{address}/v2/artifacts/artifact/{each['id']}")
    assert set(seen) == {"steps", "results", "report"}
    assert "simulation-calibrate" in seen["steps"]
    assert "Rewritten in sentences" in seen["results"]
    assert "report.html" in seen["report"]


def test_the_form_offers_the_profiles(
    api: str, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.rewrite import rewrite

    deployment = rewrite.to_deployment(name="form").apply()
    page = browser.page(f"{api.removesuffix('/api')}/v2/deployments/deployment/{deployment}/run")
    for said in ("Named starting point", "Settings that replace", "Steps to rebuild", "Where and how to compute"):
        assert said in page
    with urllib.request.urlopen(f"{api}/deployments/{deployment}") as answer:
        assert json.load(answer)["parameter_openapi_schema"]["properties"]["profile"]["enum"][0] == "tiny"
    assert server.healthy(api)
