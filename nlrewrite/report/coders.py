"""The page about coders, how they learned, what they cost, what they are: `report.html`, `results.json`, `figures/`.

In: one coder or several, and what a sweep (`frontier`) or the replacement of layers (`replacement`) measured of them,
where either was made. Out: the files of a report. Invariant: nothing is measured here; the files hold no time, no
attempt and no path, and nothing from outside reaches the page unescaped.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite.artifacts import Folder
from nlrewrite.report import coder_facts, coder_figures, coder_page, figure, layer_figures
from nlrewrite.report.build import provenance
from nlrewrite.report.coder_facts import CoderFacts
from nlrewrite.report.figure import Figure
from nlrewrite.specs import Spec

if TYPE_CHECKING:
    from nlrewrite.steps import Running

log = logging.getLogger(__name__)

KIND = "coders-report"
MEASURED = ("frontier", "replacement")


def build(spec: Spec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    measured: dict[str, Any] = {
        kind: json.loads(folder.path(f"{kind}.json").read_text(encoding="utf-8"))
        for folder in inputs.values()
        if (kind := folder.manifest.artifact.kind) in MEASURED
    }
    frontier, replacement = (measured.get(kind) for kind in MEASURED)
    over = frontier["over"] if frontier is not None else "layer" if replacement is not None else ""
    coders = coder_facts.gather(inputs, over)
    assert coders, "a report on coders has at least one"
    made = provenance(spec, inputs, KIND)
    results = {**measured, "coders": [_told(coder) for coder in coders], "provenance": made}
    (out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    with running.progress.stage("report", 2) as advance:
        drawn = figures(coders, frontier, replacement)
        advance(1, "figures")
        content = coder_page.coders_page(coders, frontier, replacement, drawn, made)
        advance(1, "page")
    (out / "report.html").write_text(content, encoding="utf-8")
    figure.write(drawn, out / figure.FOLDER)
    log.info("report: coders %d, figures %d, characters %d", len(coders), len(drawn), len(content))


def figures(
    coders: list[CoderFacts], frontier: dict[str, Any] | None, replacement: dict[str, Any] | None
) -> list[Figure]:
    """All that the data allow, in the order of the page."""
    drawn: list[Figure | None] = []
    if frontier is not None:
        drawn += [coder_figures.frontier(frontier, coders), layer_figures.by_value(frontier, coders)]
    if replacement is not None:
        drawn += [layer_figures.replaced(replacement), layer_figures.layers(replacement)]
    return [each for each in (*drawn, coder_figures.training(coders)) if each is not None]


def _told(coder: CoderFacts) -> dict[str, Any]:
    """For results.json."""
    return {
        "label": coder.label,
        "value": coder.value,
        "artifact": coder.artifact,
        "spec": coder.spec,
        "training": coder.training,
        "record": coder.record,
    }
