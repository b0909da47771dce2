"""The last step: `results.json` for programs, `report.html` for people.

In: every artifact of a rewriting, the evaluation's numbers among them. Out: the two files. Invariant: they hold nothing
that differs between two equal runs on one machine: no times, no attempts, no paths.
"""

import importlib.metadata
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite import steps
from nlrewrite.artifacts import Folder
from nlrewrite.report import facts, figures, latents, page
from nlrewrite.score.build import read_scores
from nlrewrite.specs import ReportSpec

if TYPE_CHECKING:
    from nlrewrite.steps import Running

log = logging.getLogger(__name__)


def build(spec: ReportSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    import pandas as pd

    evaluation = inputs["evaluation"]
    measured = json.loads(evaluation.path("results.json").read_text(encoding="utf-8"))
    results = {**measured, "provenance": provenance(spec, inputs)}
    (out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    told = facts.gather(inputs)
    with running.progress.stage("report", 3) as advance:
        drawn = figures.figures(
            measured["arms"],
            measured["headline"],
            json.loads(evaluation.path("spread.json").read_text(encoding="utf-8")),
            pd.read_parquet(evaluation.path("latents.parquet")),
            read_scores(inputs["scores"]),
            told,
        )
        advance(1, "figures")
        listed = latents.dossiers(spec, inputs)
        advance(1, "latents")
        content = page.page(results, told, drawn, listed)
        advance(1, "page")
    (out / "report.html").write_text(content, encoding="utf-8")
    log.info("report: %d figures, %d latents, %d characters", len(drawn), len(listed), len(content))


def provenance(spec: ReportSpec, inputs: dict[str, Folder]) -> dict[str, Any]:
    """What the numbers were made of: every input's name and spec, the code and the packages."""
    commit, edited = steps.checkout()
    artifacts = {
        label: {
            "artifact": str(folder.manifest.artifact),
            "version": folder.manifest.version,
            "spec": folder.manifest.spec,
        }
        for label, folder in sorted(inputs.items())
    }
    return {
        "artifacts": artifacts,
        "report": {"version": steps.STEPS["report"].version, "spec": spec.model_dump(mode="json")},
        "commit": commit,
        "edited_since_commit": edited,
        "packages": {**steps.packages(), "matplotlib": importlib.metadata.version("matplotlib")},
    }
