"""The last step: `results.json` for programs, `report.html` for people, `figures/` for papers.

In: every artifact of a rewriting, the evaluation's numbers among them, and what probes found, where any were asked for.
Out: the two files, and for every figure `figures/<name>.svg` with what it draws in `figures/<name>.parquet`. Invariant:
they hold nothing that differs between two equal runs on one machine: no times, no attempts, no paths.
"""

import importlib.metadata
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite import steps
from nlrewrite.artifacts import Folder
from nlrewrite.report import asked as questions
from nlrewrite.report import facts, figure, figures, latents, page, papers, probes, reliability
from nlrewrite.report.figure import Figure
from nlrewrite.score.build import read_scores
from nlrewrite.specs import ReportSpec, Spec

if TYPE_CHECKING:
    from nlrewrite.steps import Running

log = logging.getLogger(__name__)


def build(spec: ReportSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    import pandas as pd

    evaluation = inputs["evaluation"]
    measured = json.loads(evaluation.path("results.json").read_text(encoding="utf-8"))
    asked = probes.gather(inputs)
    results = {**measured, "probes": {each.name: each.told() for each in asked}, "provenance": provenance(spec, inputs)}
    if not asked:
        del results["probes"]
    if (models := questions.gather(inputs)) is not None:
        results["asked"] = models.told()
    (out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    told = facts.gather(inputs)
    with running.progress.stage("report", 3) as advance:
        scores, of_latents = read_scores(inputs["scores"]), pd.read_parquet(evaluation.path("latents.parquet"))
        spread = json.loads(evaluation.path("spread.json").read_text(encoding="utf-8"))
        diagnosed = json.loads(evaluation.path("diagnostics.json").read_text(encoding="utf-8"))
        rows = [*measured["arms"], *measured.get("over_subsets", ())]
        drawn = figures.figures(rows, measured["headline"], spread, of_latents, scores, told)
        more = (reliability.diagnosed(diagnosed), reliability.explained(of_latents, scores, diagnosed))
        last = [each for each in drawn if each.name == "training"]
        drawn = [
            *(each for each in drawn if each.name != "training"),
            *(each for each in more if each is not None),
            *last,
        ]
        found = probes.figures(asked)
        own: dict[str, Figure] = {each.name: each for each in drawn}
        of_papers = papers.entries(papers.Run(results, told, found.get("sample-size"), own))
        advance(1, "figures")
        listed = latents.dossiers(spec, inputs)
        advance(1, "latents")
        probed = [(found[each.name], probes.tables(each)) for each in asked]
        content = page.page(results, told, drawn, listed, of_papers, probed, models)
        advance(1, "page")
    (out / "report.html").write_text(content, encoding="utf-8")
    written = [*drawn, *found.values(), *(entry.figure for entry in of_papers if entry.figure is not None)]
    figure.write(written, out / figure.FOLDER)
    log.info("report: %d figures, %d latents, %d characters", len(written), len(listed), len(content))


def provenance(spec: Spec, inputs: dict[str, Folder], kind: str = "report") -> dict[str, Any]:
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
        "report": {"version": steps.STEPS[kind].version, "spec": spec.model_dump(mode="json")},
        "commit": commit,
        "edited_since_commit": edited,
        "packages": {**steps.packages(), "matplotlib": importlib.metadata.version("matplotlib")},
    }
