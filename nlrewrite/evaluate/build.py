"""Evaluate a rewriting on the report split: patch every arm, measure, and put intervals on it.

In: everything upstream. Out: `losses.parquet` (sums of every arm per window), `results.json` (a row per arm with its
intervals, and the headline), `latents.parquet` (what simulation and calibration did to each latent) and `spread.json`
(predicted against true activations). Invariant: the arms are chosen before the report split is looked at, and every
figure can be computed again from `losses.parquet`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nlrewrite.activations.statistics import write_table
from nlrewrite.artifacts import Folder
from nlrewrite.coders import form
from nlrewrite.evaluate import equivalent, latents
from nlrewrite.evaluate.arms import arms
from nlrewrite.evaluate.gather import gather
from nlrewrite.evaluate.losses import Where, Write, losses
from nlrewrite.evaluate.summarise import headline, summarise
from nlrewrite.protocols import PROTOCOLS, Protocol
from nlrewrite.score.build import read_scores
from nlrewrite.specs import EvaluateSpec
from nlrewrite.subject import load, sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.subject.checkpoints import checkpoints as of_subject
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import Windows, read_windows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlrewrite.steps import Running


def build(spec: EvaluateSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    coder = form.read(inputs["coder"])
    windows = read_windows(inputs["tokens"], "report")
    where = positions(windows)
    model = load.model(inputs["subject"], running.execution)
    checkpoints = of_subject(inputs["subject"], spec.checkpoints)
    located = sites.locate(model, form.site_of(inputs["coder"]))
    batch_tokens = running.execution.batch_tokens
    vocabulary = json.loads(inputs["tokens"].path("tokens.json").read_text())["vocabulary"]
    protocol = PROTOCOLS[spec.protocol]
    with running.progress.stage("gather what arms write", 1) as advance:
        sources = gather(inputs, where, coder.dec_LE.numpy(), vocabulary, spec)
        advance(1)
    score_L = read_scores(inputs["scores"])[spec.rank_by].to_numpy()
    x_mean, y_mean = site_means(model, located, read_windows(inputs["tokens"], "calibrate"), batch_tokens)
    planned = arms(spec, sources, coder, located.name, score_L, x_mean, y_mean)
    writes: dict[str, tuple[Where, Write | None]] = {
        str(index): (arm.key.position, arm.write) for index, arm in enumerate(planned)
    }
    compared: dict[Where, str] = {
        arm.key.position: str(index) for index, arm in enumerate(planned) if arm.key.arm == "coder"
    }
    measured = losses(model, located, windows, writes, batch_tokens, running.progress, compared)
    summary = summarise(spec, planned, measured, where, windows)
    write_table(summary.sums, out / "losses.parquet")
    trained = equivalent.as_training(
        spec,
        planned,
        measured,
        where,
        sources.chosen,
        model,
        checkpoints,
        windows,
        running.execution,
        running.progress,
    )
    results = {
        "protocol": protocol.told(spec.protocol),
        "headline": headline(summary.rows, sources.chosen, spec.topk[0], _chosen_on(protocol, sources.chosen)),
        "arms": summary.rows,
        "over_subsets": summary.over_subsets,
        "curves": summary.curves,
        "statistics": summary.notes,
        "equivalent_training": trained,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    latents.write_latents(inputs, sources, coder.dec_LE.numpy(), out)


def _chosen_on(protocol: Protocol, chosen: str) -> str:
    return "protocol" if protocol.calibrator == chosen else "calibrate"


def site_means(
    model: "nn.Module", located: sites.Located, windows: Windows, batch_tokens: int
) -> "tuple[Tensor, Tensor]":
    """Mean input and mean output of the site over all positions."""
    import torch

    sums: list[tuple[Tensor, Tensor]] = []
    for rows in batches(windows, batch_tokens):
        part = windows[rows]
        record = sites.activations_upto(model, located, padded(part))
        sums.append((record.x[inside(part)].sum(0), record.y[inside(part)].sum(0)))
    count = int(windows.lengths.sum())
    x_sum, y_sum = (torch.stack(each).sum(0) for each in zip(*sums, strict=True))
    return x_sum / count, y_sum / count
