"""What it costs to replace several layers by their coders at once, beside each alone and all but each.

In: the subject, windows of the report split, a coder for every layer named (`coder-<layer>`). Out: `replacement.json`:
the loss of each of these arms, of mean and of zero ablation of all the layers, their paired differences, and what each
coder leaves unexplained in the model as it is and in the one where all are replaced. Invariant: every arm sees the same
windows and resamples; a coder above others reads what they have written, and stands for what its layer makes of that.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nlrewrite.artifacts import Folder
from nlrewrite.coders import form
from nlrewrite.coders.form import Coder, site_of
from nlrewrite.evaluate.frontier import CODER, about, described, place
from nlrewrite.evaluate.patching import (
    MEAN_WINDOWS,
    ORIGINAL,
    Arm,
    Measured,
    Reading,
    constant,
    drawn,
    in_place,
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

FILE = "replacement.json"
ALL, MEAN, ZERO = "all", "mean", "zero"


def build(spec: MeasureSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    folders = [folder for label, folder in inputs.items() if label.startswith(CODER)]
    model = load.model(inputs["subject"], running.execution)
    coders = {sites.locate(model, site_of(folder)): form.read(folder) for folder in folders}
    windows = drawn(read_windows(inputs["tokens"], "report"), spec.windows, spec.seed, "report")
    explain = drawn(read_windows(inputs["tokens"], "explain"), MEAN_WINDOWS, spec.seed, "explain")
    batch_tokens = running.execution.batch_tokens
    with torch.no_grad():
        found = replacement(model, coders, windows, explain, spec, batch_tokens, running.progress)
    (out / FILE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    log.info("replacement: %d layers on %d windows", len(coders), len(windows))


def replacement(
    model: torch.nn.Module,
    coders: Mapping[Located, Coder],
    windows: Windows,
    explain: Windows,
    spec: MeasureSpec,
    batch_tokens: int,
    progress: "Progress",
) -> dict[str, Any]:
    """Everything in `replacement.json`."""
    located = sorted(coders, key=lambda each: each.depth)
    several = len(located) > 1
    mean_of = means(model, located, explain, batch_tokens, progress)
    patched = {each: Reading(coders[each], windows) for each in located}
    clean = {each: Reading(coders[each], windows) for each in located} if several else patched
    arms: dict[str, Arm] = {
        ORIGINAL: {},
        ALL: patched,
        MEAN: {each: constant(mean_of[each]) for each in located},
        ZERO: {each: constant(torch.zeros_like(mean_of[each])) for each in located},
    }
    if several:  # what is left out is not read: a coder's reading is of one arm alone
        arms |= {_alone(each): {each: clean[each]} for each in located}
        silent = {each: in_place(coders[each]) for each in located}
        arms |= {_without(each): {one: silent[one] for one in located if one != each} for each in located}
    measured = measure(model, windows, arms, spec, batch_tokens, progress)
    return {
        **described(windows, explain, spec),
        "original": measured.row(ORIGINAL),
        "all": {
            **measured.row(ALL),
            **named("recovered", measured.recovered(ALL, MEAN)),
            **named("over_mean", measured.difference(ALL, MEAN)),
        },
        "mean": measured.row(MEAN),
        "zero": measured.row(ZERO),
        "together": _together(located, measured) if several else None,
        "layers": [
            {
                **place(each),
                **about(coders[each]),
                "clean": clean[each].row(measured),
                "patched": patched[each].row(measured),
                "alone": measured.row(_alone(each) if several else ALL),
                "all_but": _left_out(each, measured) if several else None,
            }
            for each in located
        ],
    }


def _alone(located: Located) -> str:
    return f"alone {located.name}"


def _without(located: Located) -> str:
    return f"all but {located.name}"


def _left_out(located: Located, measured: Measured) -> dict[str, Any]:
    """The loss with every other layer replaced, and how much of that of all it saves to leave this one as it is."""
    arm = _without(located)
    return {**measured.row(arm), **named("saved", measured.difference(ALL, arm))}


def _together(located: list[Located], measured: Measured) -> dict[str, Any]:
    """What the layers add to the loss one by one, summed, and how much more or less they add at the same time."""
    every, original = measured.at(ALL), measured.at(ORIGINAL)
    alone = [measured.at(_alone(each)) for each in located]

    def added(means: np.ndarray) -> np.ndarray:
        return (means[..., alone] - means[..., [original]]).sum(-1)

    return {
        **named("summed", measured.ce.figure(added)),
        **named("beyond", measured.ce.figure(lambda means: means[..., every] - means[..., original] - added(means))),
    }
