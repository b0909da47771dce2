"""Evaluate a rewriting on the report split: patch every arm, measure, and put intervals on it.

In: everything upstream. Out: `losses.parquet` (sums of every arm per window), `results.json` (a row per arm with its
intervals, and the headline), `latents.parquet` (what simulation and calibration did to each latent) and `spread.json`
(predicted against true activations). Invariant: the arms are chosen before the report split is looked at, and every
figure can be computed again from `losses.parquet`.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.codes import Codes, constant_codes, oracle_codes, true_codes
from nlrewrite.activations.pairs import read
from nlrewrite.activations.statistics import read_latents, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.cells import cells
from nlrewrite.calibrate.fit import ON_PROMPT, Calibrated, fit, fitting_on, read_calibrated
from nlrewrite.coders import topk
from nlrewrite.errors import SettingError
from nlrewrite.evaluate import bootstrap, equivalent, lookup
from nlrewrite.evaluate.arms import Arm, Sources, arms
from nlrewrite.evaluate.losses import Losses, Where, Write, losses
from nlrewrite.score import measures
from nlrewrite.score.build import read_scores
from nlrewrite.seeds import generator
from nlrewrite.simulate import rules as simulation
from nlrewrite.specs import EvaluateSpec
from nlrewrite.subject import load, sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import Windows, read_windows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlrewrite.steps import Running

ON_PROMPT_CALIBRATOR = f"quantile-6{ON_PROMPT}"


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
    measured = losses(model, located, windows, writes, batch_tokens, running.progress)
    sums, rows = summarise(spec, planned, measured, where, windows)
    write_table(sums, out / "losses.parquet")
    weights = equivalent.checkpoints(inputs["subject"])
    trained = _as_training(spec, planned, measured, where, sources.chosen, model, weights, windows, running)
    results = {"headline": headline(rows, sources.chosen), "arms": rows, "equivalent_training": trained}
    (out / "results.json").write_text(json.dumps(results, indent=1))
    _write_latents(inputs, sources, coder.dec_LE.numpy(), out)


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
    on_report = fitting_on(inputs["simulation"], inputs["report"], inputs["report"], latents)
    for name in {ON_PROMPT_CALIBRATOR, *(name for name in calibrators if name.endswith(ON_PROMPT))}:
        calibrators[name] = fit(name, on_report, np.zeros(count, dtype=np.int64))
    shuffled, best_for_shuffled = read_calibrated(inputs["calibration-shuffled"])
    control = shuffled[best_for_shuffled]  # its own best, so that no control is weak for the want of a fit
    misled = simulation.read(inputs["simulation-shuffled"])
    active = read(inputs["report"])
    return Sources(
        truth=true_codes(active, latents),
        mean=constant_codes(mean_L, count),
        zero=constant_codes(np.zeros(latents), count),
        oracle=oracle_codes(active, total / np.maximum(often, 1)),
        token_lookup=lookup.token_lookup(fitted, where, vocabulary, token),
        bigram_lookup=lookup.bigram_lookup(fitted, where, vocabulary, bigram, token),
        rewritten={
            name: (each, with_means(each.codes(simulated, count), simulated.explained, mean_L))
            for name, each in calibrators.items()
        },
        shuffled=(control, with_means(control.codes(misled, count), misled.explained, mean_L)),
        lengths={most: _of_length(inputs, most, chosen, count, mean_L) for most in _lengths(inputs)},
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


def _of_length(
    inputs: dict[str, Folder], most: int, chosen: str, count: int, mean_L: np.ndarray
) -> tuple[Calibrated, Codes]:
    simulated = simulation.read(inputs[f"simulation-{most}"])
    calibrated = read_calibrated(inputs[f"calibration-{most}"])[0][chosen]
    return calibrated, with_means(calibrated.codes(simulated, count), simulated.explained, mean_L)


def with_means(codes: Codes, explained_L: np.ndarray, mean_L: np.ndarray) -> Codes:
    """The codes with every unexplained latent at its mean, as in mean ablation."""
    return Codes(np.where(explained_L, codes.constant_L, mean_L).astype(np.float32), codes.extra_PL)


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


def summarise(
    spec: EvaluateSpec,
    planned: list[Arm],
    measured: dict[str, Losses],
    where: Positions,
    windows: Windows,
) -> tuple[dict[str, np.ndarray], list[dict[str, object]]]:
    """Sums per arm and window, and a row of figures per arm."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("arm", "window", "group", "positions", "ce", "kl")}
    rows: list[dict[str, object]] = []
    for position in spec.positions:
        of_position = [index for index, arm in enumerate(planned) if arm.key.position == position]
        base = next(index for index in of_position if planned[index].key.arm == "original")
        kept = measured[str(base)].ce >= spec.least_base_loss
        if not kept.any():
            raise SettingError(
                f"some prompt must have a base loss of evaluate.least_base_loss: it is {spec.least_base_loss:g}, and "
                f"the highest is {measured[str(base)].ce.max():.3g}. Lower --set evaluate.least_base_loss"
            )
        window = (where.window if position == "all" else np.arange(len(windows)))[kept]
        counts = np.bincount(window, minlength=len(windows))
        ce, kl = (
            np.stack(
                [
                    np.bincount(window, getattr(measured[str(index)], name)[kept], minlength=len(windows))
                    for index in of_position
                ]
            )
            for name in ("ce", "kl")
        )
        for place, index in enumerate(of_position):
            columns["arm"].append(np.full(len(windows), index, dtype=np.int32))
            columns["window"].append(np.arange(len(windows), dtype=np.int32))
            columns["group"].append(windows.group)
            columns["positions"].append(counts.astype(np.int32))
            columns["ce"].append(ce[place])
            columns["kl"].append(kl[place])
        groups, of_window = np.unique(windows.group, return_inverse=True)
        gather_GW = np.zeros((len(groups), len(windows)))
        gather_GW[of_window, np.arange(len(windows))] = 1
        in_ce, in_kl = (
            bootstrap.resample(
                gather_GW @ sums.T,
                gather_GW @ counts,
                spec.resamples,
                generator(spec.seed, "evaluate", "bootstrap", position),  # the same documents for both figures
            )
            for sums in (ce, kl)
        )
        rows += _figures(planned, of_position, in_ce, in_kl, counts, windows)
    return {name: np.concatenate(parts) for name, parts in columns.items()}, rows


def _figures(
    planned: list[Arm],
    indices: list[int],
    ce: bootstrap.Resampled,
    kl: bootstrap.Resampled,
    counts_W: np.ndarray,
    windows: Windows,
) -> list[dict[str, object]]:
    place = {index: at for at, index in enumerate(indices)}
    named = {planned[index].key.arm: place[index] for index in indices if planned[index].key.selection == "all"}
    means = {planned[index].compared: place[index] for index in indices if planned[index].key.arm == "mean"}
    original, coder, token = named["original"], named["coder"], named["token_lookup"]
    rows = []
    for index in indices:
        arm, at = planned[index], place[index]
        floor = means[arm.compared]
        delta, divergence = ce.difference(at, original), kl.difference(at, original)
        gap = ce.share(floor, coder, at)
        gap_kl = kl.share(floor, coder, at)
        over = ce.share_difference(floor, coder, at, token) if arm.compared == ("all", 1.0, 0) else None
        over_bigram = (
            ce.share_difference(floor, coder, at, named["bigram_lookup"]) if arm.compared == ("all", 1.0, 0) else None
        )
        rows.append(
            {
                **asdict(arm.key),
                "n_latents": arm.n_latents,
                "n_unexplained": arm.n_unexplained,
                "n_contexts": int(counts_W.sum()),
                "n_documents": len(np.unique(windows.document[counts_W > 0])),
                "n_groups": len(np.unique(windows.group[counts_W > 0])),
                "ce": float(ce.measured_A[at]),
                "delta_ce": delta.mean,
                "delta_ce_low": delta.low,
                "delta_ce_high": delta.high,
                "kl": divergence.mean,
                "kl_low": divergence.low,
                "kl_high": divergence.high,
                "gap_closed": gap and gap.mean,
                "gap_closed_low": gap and gap.low,
                "gap_closed_high": gap and gap.high,
                "gap_closed_kl": gap_kl and gap_kl.mean,
                "over_token_lookup": over and asdict(over),
                "over_bigram_lookup": over_bigram and asdict(over_bigram),
                "eviction_rate": 0.0,
            }
        )
    return rows


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


def headline(rows: list[dict[str, object]], chosen: str) -> dict[str, object]:
    """The one number, its row, and the controls it must stand beside: all latents, patched at all positions."""
    position = "all" if any(row["position"] == "all" for row in rows) else "last"
    whole = [row for row in rows if row["position"] == position and row["selection"] == "all" and row["topk"] == "none"]
    by_arm = {row["arm"]: row for row in whole if row["arm"] != "rewritten"}
    quoted = next(row for row in whole if row["explanation"] == "rules" and row["calibrator"] == chosen)
    key = ("arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "subset_seed")

    def loss(arm: str) -> float:
        value = by_arm[arm]["delta_ce"]
        assert isinstance(value, float)
        return value

    return {
        "position": position,
        "fraction": 1,
        **{name: quoted[name] for name in key},
        "chosen_on": "calibrate",
        "gap_closed": quoted["gap_closed"],
        "low": quoted["gap_closed_low"],
        "high": quoted["gap_closed_high"],
        "token_lookup": by_arm["token_lookup"]["gap_closed"],
        "bigram_lookup": by_arm["bigram_lookup"]["gap_closed"],
        "shuffled": by_arm["shuffled"]["gap_closed"],
        "oracle": by_arm["oracle"]["gap_closed"],
        "coder_share": (loss("mean") - loss("coder")) / loss("mlp_mean"),
        "over_token_lookup": quoted["over_token_lookup"],
        "over_bigram_lookup": quoted["over_bigram_lookup"],
        "n_latents": quoted["n_latents"],
        "n_unexplained": quoted["n_unexplained"],
    }


def _write_latents(inputs: dict[str, Folder], sources: Sources, dec_LE: np.ndarray, out: Path) -> None:
    """Per latent: what the reader and the calibrators made of it on the report split."""
    simulated = simulation.read(inputs["simulation"])
    counted = cells(simulated, sources.truth.extra_PL)
    known = read_latents(inputs["explain"])
    energy = known["mean_square"].to_numpy() * np.square(dec_LE).sum(1)
    chosen, _ = sources.rewritten[sources.chosen]
    by_quantiles = [each for name, (each, _) in sources.rewritten.items() if re.fullmatch(r"quantile-\d", name)]
    normalised = by_quantiles[0] if by_quantiles else None
    audible = np.zeros(counted.said.shape, dtype=bool) if normalised is None else normalised.values_LZ > 0
    found = np.where(audible, counted.active, 0).sum(1) if normalised else np.full(len(dec_LE), np.nan)
    silent = counted.said - counted.active
    refused = np.where(audible, 0, silent).sum(1) if normalised else np.full(len(dec_LE), np.nan)
    columns = {
        "latent": np.arange(len(dec_LE), dtype=np.int32),
        "explained": simulated.explained,
        "energy": energy,
        "sensitivity_raw": measures.sensitivity(counted.active),
        "specificity_raw": measures.specificity(counted.said, counted.active),
        "sensitivity_quantile": np.where(
            counted.active.sum(1) > 0, found / np.maximum(counted.active.sum(1), 1), np.nan
        ),
        "specificity_quantile": refused / np.maximum(silent.sum(1), 1),
    }
    write_table(columns, out / "latents.parquet")
    drawn: dict[str, Calibrated] = {name: each for name, (each, _) in sources.rewritten.items()}
    (out / "spread.json").write_text(
        json.dumps(_spread(drawn, chosen.name, counted.said, sources, known["max"].to_numpy()))
    )


def _spread(
    drawn: dict[str, Calibrated], chosen: str, said_LZ: np.ndarray, sources: Sources, largest_L: np.ndarray
) -> dict[str, object]:
    """Histograms over all pairs (latent, position) of activations as shares of the latent's largest one."""
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 2.0, 44)])  # what lies above counts in the last bin
    unit = np.maximum(largest_L, 1e-9)
    truth = sources.truth.extra_PL
    true_counts = np.histogram(np.minimum(truth.data / unit[truth.indices], edges[-1]), edges)[0]
    shares = {"true": true_counts.tolist()}
    for name, each in drawn.items():
        shares[name] = np.histogram(
            np.clip(each.values_LZ / unit[:, None], 0, edges[-1]).ravel(), edges, weights=said_LZ.ravel()
        )[0].tolist()
    shares["true"][0] = float(np.prod(truth.get_shape()) - sum(shares["true"][1:]))
    return {"edges": edges.tolist(), "chosen": chosen, "counts": shares}
