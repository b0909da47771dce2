"""A report made by the real pipeline from hostile text, once for all tests of this folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nlrewrite import pipeline, profiles
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from nlrewrite.report import facts, latents
from nlrewrite.report.build import build
from nlrewrite.report.facts import Facts
from nlrewrite.report.latents import Dossier
from nlrewrite.specs import ReportSpec, Spec
from nlrewrite.steps import Running
from tests.report.hostile import write_folder

SETTINGS = (
    "text.source.kind=folder",
    'text.shares={"train": 0.4, "explain": 0.2, "calibrate": 0.2, "report": 0.2}',
    'tokens.limits={"train": 2000, "explain": 200, "calibrate": 150, "report": 150}',
    "subject.steps=250",
    "subject.vocabulary=400",
    "coder.steps=300",
    "report.latents=12",
    "report.examples=4",
)


@dataclass(frozen=True)
class Made:
    """What the pipeline left behind, and the inputs of its last step."""

    inputs: dict[str, Folder]
    spec: ReportSpec
    execution: Execution
    published: Path
    report: Artifact

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.published / "results.json").read_text(encoding="utf-8"))

    @property
    def html(self) -> str:
        return (self.published / "report.html").read_text(encoding="utf-8")

    def build(self, out: Path, spec: ReportSpec | None = None) -> None:
        build(spec or self.spec, self.inputs, out, Running(self.execution, Progress()))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("report")
    (root / "text").mkdir()
    write_folder(root / "text")
    execution = Execution(store=str(root / "store"), runs=str(root / "runs"), text_folder=str(root / "text"))
    spec = profiles.resolve("smoke", Overrides(settings=SETTINGS), execution)
    outcome = pipeline.run_local(spec, "smoke", (), execution, Progress())
    store = Store(execution.store)
    found: dict[str, Folder] = {}

    def step(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        if kind == "report":
            found.update({name: store.folder(each) for name, each in inputs.items()})
        return pipeline.decide(store, label, kind, spec, inputs)[0]

    report = rewrite(spec, step).report
    return Made(found, spec.report, execution, outcome.report_path.parent, report)


@pytest.fixture(scope="session")
def told(made: Made) -> Facts:
    return facts.gather(made.inputs)


@pytest.fixture(scope="session")
def listed(made: Made) -> list[Dossier]:
    return latents.dossiers(made.spec, made.inputs)


@pytest.fixture
def with_gap(made: Made) -> dict[str, Any]:
    """The results with the gap that the published example has: shares of all arms are set to known numbers."""
    results = made.results
    results["headline"]["worst_over_mean"] = None
    controls = {"shuffled": 0.006, "token_lookup": 0.21, "oracle": 0.86, "bigram_lookup": 0.94}
    shares = {**controls, "original": 1.1, "coder": 1.0, "rewritten": 0.72}
    for row in results["arms"]:
        share = shares.get(row["arm"], 0.0)
        row.update(gap_closed=share, gap_closed_low=share - 0.02, gap_closed_high=share + 0.02, gap_closed_kl=share)
    results["headline"].update(gap_closed=0.72, low=0.7, high=0.74, coder_share=0.77, **controls)
    results["headline"]["over_token_lookup"] = {"mean": 0.51, "low": 0.48, "high": 0.54}
    results["headline"]["over_bigram_lookup"] = {"mean": -0.22, "low": -0.24, "high": -0.2}
    return results
