"""What each of several coders costs in the subject's loss: mean active latents against cross-entropy, and their front.

In: the subject, windows of the report split, one coder for each value of what was varied (`coder-<value>`). Out:
`frontier.json`: per coder L0, variance unexplained, silent latents, loss, KL, and the share of the way from mean
ablation to the original model that it recovers; the ablations themselves; paired differences to the next coder.
Invariant: every coder, ablation and the original model see the same windows and resamples; the mean output is taken on
the explain split, so that nothing here is fitted on what it is measured on.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nlrewrite.artifacts import Folder
from nlrewrite.coders import form
from nlrewrite.coders.form import Coder, site_of
from nlrewrite.evaluate.patching import (
    MEAN_WINDOWS,
    ORIGINAL,
    Arm,
    Measured,
    Reading,
    constant,
    drawn,
    means,
    measure,
    named,
)
from nlrewrite.specs import MeasureSpec
from nlrewrite.subject import load, sites
from nlrewrite.subject.sites import Located
from nlrewrite.text.tokens import Windows, read_windows

if TYPE_CHECKING:
    from nlrewrite.progress import Progress
    from nlrewrite.steps import Running

log = logging.getLogger(__name__)

FILE = "frontier.json"
CODER = "coder-"
VARIED = ("k", "penalty", "seed", "layer", "width")
"""What a sweep may vary; the label of a coder is its value."""


def build(spec: MeasureSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    folders = {label: folder for label, folder in inputs.items() if label.startswith(CODER)}
    model = load.model(inputs["subject"], running.execution)
    coders = {label: (sites.locate(model, site_of(folder)), form.read(folder)) for label, folder in folders.items()}
    windows = drawn(read_windows(inputs["tokens"], "report"), spec.windows, spec.seed, "report")
    explain = drawn(read_windows(inputs["tokens"], "explain"), MEAN_WINDOWS, spec.seed, "explain")
    batch_tokens = running.execution.batch_tokens
    with torch.no_grad():
        found = frontier(model, coders, windows, explain, spec, batch_tokens, running.progress)
    specs = {label: folder.manifest.spec for label, folder in folders.items()}
    told = {"over": varied(specs), **found}
    (out / FILE).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    log.info("frontier: %d coders on %d windows", len(coders), len(windows))


def frontier(
    model: torch.nn.Module,
    coders: Mapping[str, tuple[Located, Coder]],
    windows: Windows,
    explain: Windows,
    spec: MeasureSpec,
    batch_tokens: int,
    progress: "Progress",
) -> dict[str, Any]:
    """Everything in `frontier.json` that is measured."""
    located = sorted({each for each, _ in coders.values()}, key=lambda each: each.depth)
    mean_of = means(model, located, explain, batch_tokens, progress)
    readings = {label: Reading(coder, windows) for label, (_, coder) in coders.items()}
    arms: dict[str, Arm] = {ORIGINAL: {}}
    for each in located:
        arms[f"mean {each.name}"] = {each: constant(mean_of[each])}
        arms[f"zero {each.name}"] = {each: constant(torch.zeros_like(mean_of[each]))}
    arms |= {label: {each: readings[label]} for label, (each, _) in coders.items()}
    measured = measure(model, windows, arms, spec, batch_tokens, progress)

    rows = [_coder(label, *coders[label], readings[label], measured) for label in coders]
    for each in located:  # coders at several places have no common front
        _compare([row for row in rows if row["site"] == each.name], readings, measured)
    return {
        **described(windows, explain, spec),
        "original": measured.row(ORIGINAL),
        "ablations": [
            {"arm": arm, **place(each), **measured.row(f"{arm} {each.name}")}
            for each in located
            for arm in ("mean", "zero")
        ],
        "coders": rows,
    }


def described(windows: Windows, explain: Windows, spec: MeasureSpec) -> dict[str, Any]:
    """On how much text it was measured."""
    return {
        "windows": len(windows),
        "tokens": int(windows.lengths.sum()),
        "documents": len(np.unique(windows.document)),
        "groups": len(np.unique(windows.group)),
        "mean_tokens": int(explain.lengths.sum()),
        "resamples": spec.resamples,
    }


def place(located: Located) -> dict[str, Any]:
    return {"site": located.name, "kind": located.site.kind, "layer": located.site.layer}


def about(coder: Coder) -> dict[str, Any]:
    return {
        "activation": coder.activation,
        "latents": coder.latents,
        "k": coder.k,
        "skip": coder.skip_ED is not None,
    }


def varied(specs: Mapping[str, Mapping[str, Any]]) -> str:
    """The setting of which the coders' labels are the values; nothing where there is none."""
    for name in VARIED:
        found = {label: spec["site"]["layer"] if name == "layer" else spec.get(name) for label, spec in specs.items()}
        if all(each is not None and f"{CODER}{float(each):g}" == label for label, each in found.items()):
            return name
    return ""


def front(l0_C: Sequence[float], ce_C: Sequence[float]) -> list[bool]:
    """Which coders no other one beats: none has at most their L0 and at most their loss, and less of one of the two."""
    l0, ce = np.asarray(l0_C), np.asarray(ce_C)
    no_more = (l0[None, :] <= l0[:, None]) & (ce[None, :] <= ce[:, None])
    less = (l0[None, :] < l0[:, None]) | (ce[None, :] < ce[:, None])
    return [not beaten for beaten in np.any(no_more & less, axis=1).tolist()]


def _coder(label: str, located: Located, coder: Coder, reading: Reading, measured: Measured) -> dict[str, Any]:
    mean = f"mean {located.name}"
    return {
        "label": label,
        "value": label.removeprefix(CODER),
        **place(located),
        **about(coder),
        **reading.row(measured),
        **measured.row(label),
        **named("recovered", measured.recovered(label, mean)),
        **named("over_mean", measured.difference(label, mean)),
    }


def _compare(rows: list[dict[str, Any]], readings: Mapping[str, Reading], measured: Measured) -> None:
    """Who lies on the front, how often among the resamples, and by how much the next coder's loss differs."""
    labels = [row["label"] for row in rows]
    l0_RC = np.stack([readings[label].l0(measured).resampled_RA[:, 0] for label in labels], axis=1)
    ce_RC = measured.ce.resampled_RA[:, [measured.at(label) for label in labels]]
    on_front = front([row["l0"] for row in rows], [row["ce"] for row in rows])
    often = np.mean([front(l0, ce) for l0, ce in zip(l0_RC, ce_RC, strict=True)], axis=0)
    for row, on, share in zip(rows, on_front, often.tolist(), strict=True):
        row |= {"front": on, "front_share": share, "next": None}
    ordered = sorted(rows, key=lambda row: row["l0"])
    for row, other in pairwise(ordered):
        difference = measured.difference(other["label"], row["label"])
        row["next"] = {"label": other["label"], **named("delta_ce", difference)}
