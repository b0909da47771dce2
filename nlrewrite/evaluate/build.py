"""Evaluate a rewriting on the report split: patch every arm, measure, and put intervals on it.

In: everything upstream. Out: `losses.parquet` (sums of every arm per window), `results.json` (a row per arm with its
intervals, and the headline), `latents.parquet` (what simulation and calibration did to each latent) and `spread.json`
(predicted against true activations). Invariant: the arms are chosen before the report split is looked at, and every
figure can be computed again from `losses.parquet`.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.codes import Values, constant_codes, oracle_codes, true_codes
from nlrewrite.activations.pairs import read
from nlrewrite.activations.statistics import write_table
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply, lookup, methods
from nlrewrite.calibrate.fit import fit, read_calibrated
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.known import Statistics, aimed_at
from nlrewrite.coders import topk
from nlrewrite.evaluate import bootstrap, equivalent, latents
from nlrewrite.evaluate.arms import Arm, Sources, arms
from nlrewrite.evaluate.losses import Losses, Where, Write, losses
from nlrewrite.evaluate.summarise import headline, summarise
from nlrewrite.score.build import read_scores
from nlrewrite.seeds import generator
from nlrewrite.simulate import rules as simulation
from nlrewrite.simulate.said import Spoken
from nlrewrite.specs import EvaluateSpec
from nlrewrite.subject import load, sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import Windows, read_windows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlrewrite.steps import Running

ON_PROMPT_CALIBRATOR = f"quantile-6{methods.ON_PROMPT}"


def build(spec: EvaluateSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    coder = topk.read(inputs["coder"])
    windows = read_windows(inputs["tokens"], "report")
    where = positions(windows)
    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, topk.site_of(inputs["coder"]))
    batch_tokens = running.execution.batch_tokens
    vocabulary = json.loads(inputs["tokens"].path("tokens.json").read_text())["vocabulary"]
    sources = gather(inputs, where, coder.dec_LE.numpy(), vocabulary)
    score_L = read_scores(inputs["scores"])["detection_f1"].to_numpy()
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
    weights = equivalent.checkpoints(inputs["subject"])
    trained = _as_training(spec, planned, measured, where, sources.chosen, model, weights, windows, running)
    results = {
        "headline": headline(summary.rows, sources.chosen),
        "arms": summary.rows,
        "over_subsets": summary.over_subsets,
        "curves": summary.curves,
        "statistics": summary.notes,
        "equivalent_training": trained,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    latents.write_latents(inputs, sources, coder.dec_LE.numpy(), out)


def gather(inputs: dict[str, Folder], where: Positions, dec_LE: np.ndarray, vocabulary: int) -> Sources:
    """The values that arms write, each fitted on the splits that it may see."""
    latents = len(dec_LE)
    seen = {
        split: lookup.Seen(positions(read_windows(inputs["tokens"], split)), true_codes(read(inputs[split]), latents))
        for split in ("explain", "calibrate")
    }
    fitted = list(seen.values())
    total = np.sum([np.asarray(each.truth.extra_PL.sum(0)).ravel() for each in fitted], axis=0)
    often = np.sum([each.truth.extra_PL.getnnz(axis=0) for each in fitted], axis=0)
    mean_L = total / sum(len(each.where) for each in fitted)
    token, bigram = lookup.best_strengths(seen["explain"], seen["calibrate"], vocabulary, dec_LE)

    count = len(where)
    simulated = simulation.read(inputs["simulation"])
    calibrators, chosen = read_calibrated(inputs["calibration"])
    active = read(inputs["report"])
    truth, spoken, together = true_codes(active, latents), Spoken(simulated, count), np.zeros(count, dtype=np.int64)
    earlier = seen["calibrate"].truth.extra_PL
    known = Statistics(read(inputs["explain"]), earlier, np.zeros(len(seen["calibrate"].where)), latents, seed=0)
    peeking = aimed_at(known.known_of(None), active, latents)
    for name in [ON_PROMPT_CALIBRATOR, *calibrators]:
        if methods.method(methods.parse(name)).target == "on-prompt":
            calibrators[name] = fit(name, spoken, truth.extra_PL, peeking, together, dec_LE=dec_LE)
    shuffled, best_for_shuffled = read_calibrated(inputs["calibration-shuffled"])
    control = shuffled[best_for_shuffled]  # its own best, so that no control is weak for the want of a fit
    misled = simulation.read(inputs["simulation-shuffled"])
    return Sources(
        truth=truth,
        mean=constant_codes(mean_L, count),
        zero=constant_codes(np.zeros(latents), count),
        oracle=oracle_codes(active, total / np.maximum(often, 1)),
        token_lookup=lookup.token_lookup(fitted, where, vocabulary, token),
        bigram_lookup=lookup.bigram_lookup(fitted, where, vocabulary, bigram, token),
        rewritten={name: (each, apply.values(each, spoken)) for name, each in calibrators.items()},
        shuffled=(control, apply.values(control, Spoken(misled, count))),
        lengths={most: _of_length(inputs, most, chosen, count) for most in _lengths(inputs)},
        chosen=chosen,
        silent={
            "rules": ~simulated.explained,
            "shuffled": ~misled.explained,
            **{f"rules-{most}": ~simulation.read(inputs[f"simulation-{most}"]).explained for most in _lengths(inputs)},
        },
    )


def _lengths(inputs: dict[str, Folder]) -> list[int]:
    """The limits of quoted tokens for which there are simulations beside the main one."""
    return sorted(int(name.rpartition("-")[2]) for name in inputs if re.fullmatch(r"simulation-\d+", name))


def _of_length(inputs: dict[str, Folder], most: int, chosen: str, count: int) -> tuple[Fitted, Values]:
    fitted = read_calibrated(inputs[f"calibration-{most}"])[0][chosen]
    return fitted, apply.values(fitted, Spoken(simulation.read(inputs[f"simulation-{most}"]), count))


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


def _as_training(
    spec: EvaluateSpec,
    planned: list[Arm],
    measured: dict[str, Losses],
    where: Positions,
    chosen: str,
    model: "nn.Module",
    weights: dict[int, Path],
    windows: Windows,
    running: "Running",
) -> list[dict[str, object]]:
    """The whole-site arms told as shares of the subject's training; none for a subject that was not trained here."""
    told = [
        index
        for index, arm in enumerate(planned)
        if (arm.key.position, arm.key.selection, arm.key.topk) == ("all", "all", "none")
        and (arm.key.arm in ("original", "coder", "mean", "mlp_mean") or _quoted(arm, chosen))
    ]
    if not weights or not told:
        return []
    batch_tokens = running.execution.batch_tokens
    of_checkpoints = equivalent.checkpoint_losses(model, weights, windows, batch_tokens, running.progress)
    together = np.concatenate([of_checkpoints, np.stack([measured[str(index)].ce for index in told], axis=1)], axis=1)
    groups, of_position = np.unique(where.group, return_inverse=True)
    sums = np.zeros((len(groups), together.shape[1]))
    np.add.at(sums, of_position, together)
    draws = generator(spec.seed, "evaluate", "bootstrap", "training")
    drawn = bootstrap.resample(sums, np.bincount(of_position).astype(np.float64), spec.resamples, draws)
    steps = np.array(sorted(weights))
    shares = equivalent.equivalent(steps, drawn.measured_A, drawn.resampled_RA)
    return [{"arm": planned[index].key.arm, **share} for index, share in zip(told, shares, strict=True)]


def _quoted(arm: Arm, chosen: str) -> bool:
    return arm.key.arm == "rewritten" and arm.key.explanation == "rules" and arm.key.calibrator == chosen
