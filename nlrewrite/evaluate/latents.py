"""What simulation and calibration did to each latent on the report split.

In: simulated answers, fitted calibrators, true activations. Out: `latents.parquet` (sensitivity and specificity as read
and after quantile normalisation, the share of its variance that is explained), `spread.json` (histograms of predicted
against true activations) and `diagnostics.json` (how good the predictions are as probabilities, how many latents they
say are active, R2 weighted by energy). Invariant: nothing here is used to choose anything.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import At, Codes, Values, constant_codes
from nlrewrite.activations.statistics import read_latents, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.cells import cells
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.pairing import level_answers
from nlrewrite.evaluate.arms import Rewritten, Sources
from nlrewrite.score import diagnostics, measures
from nlrewrite.score.build import read_scores
from nlrewrite.score.diagnostics import CELLS, Diagnosis
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.heard import heard, levels
from nlrewrite.simulate.said import Answers, Said, Spoken, answers, blocks, centre

if TYPE_CHECKING:
    import pandas as pd

RAW = ("none", "published")
EDGES = np.concatenate([[0.0], np.geomspace(1e-4, 2.0, 44)])
"""Of the histograms, in shares of a latent's largest activation; what lies above counts in the last bin."""
QUANTILE = re.compile(r"quantile-\d(-tenth)?")


def write_latents(inputs: dict[str, Folder], sources: Sources, dec_LE: np.ndarray, out: Path) -> None:
    """The three files."""
    said: Said = heard(inputs["simulation"], sources.truth.extra_PL.get_shape()[0])
    if isinstance(said, Answered):
        said, sources = said.at_rows(), _at(sources, said.rows)
    simulated = levels(said)
    counted = cells(simulated, sources.truth.extra_PL)
    explain, calibrate = read_latents(inputs["explain"]), read_latents(inputs["calibrate"])
    lengths = np.square(dec_LE).sum(1)
    mean_errors = diagnostics.errors(sources.mean, sources.truth)
    truth, contexts = sources.truth, sources.truth.extra_PL.get_shape()[0]
    shown = shown_calibrators(sources)
    r2 = {
        role: diagnostics.explained(diagnostics.errors(sources.rewritten[name][1], truth), mean_errors)
        for role, name in shown.items()
    }
    nothing = np.full(len(dec_LE), np.nan)
    after = shown.get("quantile")
    sensitivity, specificity = calls(sources.rewritten[after][1], truth) if after else (nothing, nothing)
    columns = {
        "latent": np.arange(len(dec_LE), dtype=np.int32),
        "explained": simulated.explained,
        "energy": explain["mean_square"].to_numpy() * lengths,
        "energy_of_deviations": mean_errors / max(contexts, 1) * lengths,
        "sensitivity_raw": measures.sensitivity(counted.active),
        "specificity_raw": measures.specificity(counted.said, counted.active),
        "sensitivity_quantile": sensitivity,
        "specificity_quantile": specificity,
        **{f"r2_{role}": r2.get(role, nothing).astype(np.float32) for role in ("chosen", "raw", "quantile")},
    }
    write_table(columns, out / "latents.parquet")
    histograms = _spread(sources, list(dict.fromkeys(shown.values())), explain["max"].to_numpy())
    (out / "spread.json").write_text(json.dumps(histograms))

    count = explain["count"].to_numpy() + calibrate["count"].to_numpy()
    totals = sum(each["count"].to_numpy() * each["mean_active"].to_numpy() for each in (explain, calibrate))
    magnitude = totals / np.maximum(count, 1)
    rate = sources.mean.constant_L / np.maximum(magnitude, 1e-12)
    found = {
        name: {
            "role": role,
            **_diagnosed(*sources.rewritten[name], said, truth, rate, magnitude),
            "r2": diagnostics.weighted(r2[role], columns["energy_of_deviations"]),
        }
        for role, name in shown.items()
    }
    summary = {
        "k": int(inputs["coder"].manifest.spec["k"]),
        "truly_active": diagnostics.spread(np.diff(truth.extra_PL.indptr)),
        "chosen": sources.chosen,
        "calibrators": found,
        "by_score": list(_by_score(columns, read_scores(inputs["scores"]))),
    }
    (out / "diagnostics.json").write_text(json.dumps(summary, indent=1, allow_nan=False))


def _at(sources: Sources, rows: np.ndarray) -> Sources:
    """The truth and what was rewritten where a language model was asked, those positions numbered anew."""
    truth = Codes(sources.truth.constant_L, sources.truth.extra_PL[rows])
    rewritten: dict[str, Rewritten] = {
        name: (fitted, At(values, rows)) for name, (fitted, values) in sources.rewritten.items()
    }
    mean = constant_codes(sources.mean.constant_L, len(rows))
    return replace(sources, truth=truth, mean=mean, rewritten=rewritten)


def shown_calibrators(sources: Sources) -> dict[str, str]:
    """Whose predictions are looked at: uncalibrated, quantile-normalised, on the prompts themselves, chosen."""
    names = list(sources.rewritten)
    found = {
        "raw": next((name for name in RAW if name in names), None),
        "quantile": next((name for name in names if QUANTILE.fullmatch(name)), None),
        "on-prompt": next((name for name in names if re.fullmatch(r"quantile-\d-on-prompt", name)), None),
        "chosen": sources.chosen,
    }
    return {role: name for role, name in found.items() if name is not None}


def calls(values: Values, truth: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and specificity [L] of "the value is above 0"."""
    contexts, latents = truth.extra_PL.get_shape()
    hits, called = np.zeros(latents), np.zeros(latents)
    active = truth.extra_PL.getnnz(axis=0).astype(np.float64)
    if isinstance(values, Codes):
        extra = values.extra_PL.tocoo()
        above = values.constant_L[extra.col] + extra.data > 0
        true = _true_at(truth, extra.row, extra.col)
        always = values.constant_L > 0

        def of(chosen: np.ndarray) -> np.ndarray:
            return np.bincount(extra.col[chosen], minlength=latents)

        called = of(above) + always * (contexts - of(np.ones_like(above)))
        hits = of(above & true) + always * (active - of(true))
    else:
        for rows in _rows(contexts, latents):
            above = values.dense(rows) > 0
            called += above.sum(0)
            hits += (above & (truth.dense(rows) > 0)).sum(0)
    silent = contexts - active
    sensitivity = np.where(active > 0, hits / np.maximum(active, 1), np.nan)
    return sensitivity, np.where(silent > 0, 1 - (called - hits) / np.maximum(silent, 1), np.nan)


# -- predictions as probabilities -------------------------------------------------------------------------------------


def _diagnosed(
    fitted: Fitted, values: Values, said: Said, truth: Codes, rate: np.ndarray, magnitude: np.ndarray
) -> dict[str, object]:
    """A calibrator's own P(active) where it has one; else its activations in units of the mean magnitude."""
    own = has_chance(fitted)
    if isinstance(values, Codes) and isinstance(said, Spoken):
        chance = _chance_codes(fitted, said, rate) if own else _in_magnitudes(values, magnitude)
        diagnosis, expected = diagnose(chance, truth, rate)
    elif own:
        diagnosis, expected = _by_latents(fitted, said, truth, rate)
    else:
        diagnosis, expected = _by_contexts(values, truth, rate, magnitude)
    probability = "predicted" if own else "activation / mean magnitude"
    return {"probability": probability, "expected_active": diagnostics.spread(expected), **diagnosis.summary()}


def has_chance(fitted: Fitted) -> bool:
    return fitted.map in ("logistic", "beta")


def diagnose(chance: Codes, truth: Codes, rate: np.ndarray) -> tuple[Diagnosis, np.ndarray]:
    """Chances kept as pairs: what is not named has the latent's constant. Also the expected count per context."""
    contexts, latents = truth.extra_PL.get_shape()
    named = chance.extra_PL.tocoo()
    true = _true_at(truth, named.row, named.col)
    found = Diagnosis()
    found.add(chance.constant_L[named.col] + named.data, true.astype(np.float64), rate[named.col])
    rest = contexts - np.bincount(named.col, minlength=latents)
    active = truth.extra_PL.getnnz(axis=0) - np.bincount(named.col[true], minlength=latents)
    found.add(chance.constant_L, active.astype(np.float64), rate, rest)
    extra = np.bincount(named.row, named.data.astype(np.float64), minlength=contexts)
    return found, extra + float(chance.constant_L.sum(dtype=np.float64))


def _chance_codes(fitted: Fitted, said: Spoken, rate: np.ndarray) -> Codes:
    """P(active) of a calibrator whose answers are levels, in the form of codes."""
    level = level_answers(said, fitted.reading)
    every = Answers(np.broadcast_to(level.score_BS, (len(rate), level.score_BS.shape[1])), level.digits_BSZ)
    chance_LZ = fitted.active(every)
    assert chance_LZ is not None
    chance_LZ = np.where(said.explained[:, None], chance_LZ, rate[:, None])
    pairs = said.simulated
    extra = chance_LZ[pairs.latent, pairs.level] - chance_LZ[pairs.latent, 0]
    shape = (said.contexts, len(rate))
    return Codes(chance_LZ[:, 0], sparse.csr_matrix((extra, (pairs.position, pairs.latent)), shape=shape))


def _in_magnitudes(values: Codes, magnitude: np.ndarray) -> Codes:
    unit = np.maximum(magnitude, 1e-12)
    silent = np.clip(values.constant_L / unit, 0, 1)
    extra = sparse.csr_matrix(values.extra_PL, dtype=np.float64, copy=True)
    column = extra.indices
    extra.data = np.clip((values.constant_L[column] + extra.data) / unit[column], 0, 1) - silent[column]
    return Codes(silent, extra)


def _by_latents(fitted: Fitted, said: Said, truth: Codes, rate: np.ndarray) -> tuple[Diagnosis, np.ndarray]:
    contexts, latents = truth.extra_PL.get_shape()
    middle = centre(said, fitted.reading) if fitted.reading.centred else None
    columns = truth.extra_PL.tocsc()
    found, expected = Diagnosis(), np.zeros(contexts)
    for block in blocks(latents, max(1, CELLS // max(contexts, 1))):
        chance = fitted.active(answers(said, block, fitted.reading, middle), block)
        assert chance is not None
        chance = np.where(said.explained[block, None] & ~np.isnan(chance), chance, rate[block, None])
        found.add(chance, (columns[:, block].toarray().T > 0).astype(np.float64), rate[block, None])
        expected += chance.sum(0)
    return found, expected


def _by_contexts(values: Values, truth: Codes, rate: np.ndarray, magnitude: np.ndarray) -> tuple[Diagnosis, np.ndarray]:
    contexts, latents = truth.extra_PL.get_shape()
    found, expected = Diagnosis(), np.zeros(contexts)
    unit = np.maximum(magnitude, 1e-12)
    for rows in _rows(contexts, latents):
        chance = np.clip(values.dense(rows) / unit, 0, 1)
        found.add(chance, (truth.dense(rows) > 0).astype(np.float64), rate)
        expected[rows] = chance.sum(1)
    return found, expected


def _rows(contexts: int, latents: int) -> Iterator[np.ndarray]:
    size = max(1, CELLS // max(latents, 1))
    for start in range(0, contexts, size):
        yield np.arange(start, min(start + size, contexts))


def _true_at(truth: Codes, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    if not len(rows):
        return np.zeros(0, dtype=bool)
    return np.asarray(truth.extra_PL[rows, columns]).ravel() > 0


def _by_score(columns: dict[str, np.ndarray], scores: "pd.DataFrame") -> Iterator[dict[str, object]]:
    """Sensitivity and specificity, as read and quantile-normalised, by detection and by fuzzing score."""
    for score in ("detection_f1", "fuzzing_f1"):
        by = scores[score].to_numpy()
        for measure in ("sensitivity", "specificity"):
            for after in ("raw", "quantile"):
                for centre_of, mean, half, count in zip(
                    *diagnostics.binned(by, columns[f"{measure}_{after}"]), strict=True
                ):
                    yield {
                        "score": score,
                        "measure": measure,
                        "after": after,
                        "centre": float(centre_of),
                        "mean": float(mean),
                        "low": float(mean - half),
                        "high": float(mean + half),
                        "latents": int(count),
                    }


# -- histograms -------------------------------------------------------------------------------------------------------


def _spread(sources: Sources, names: list[str], largest_L: np.ndarray) -> dict[str, object]:
    """Histograms over all pairs (latent, position) of activations as shares of the latent's largest one."""
    unit = np.maximum(largest_L, 1e-9)
    contexts = sources.truth.extra_PL.get_shape()[0]
    counts = {"true": histogram(sources.truth, unit, contexts)}
    for name in names:
        counts[name] = histogram(sources.rewritten[name][1], unit, contexts)
    return {
        "edges": EDGES.tolist(),
        "chosen": sources.chosen,
        "counts": {name: each.tolist() for name, each in counts.items()},
    }


def histogram(values: Values, unit_L: np.ndarray, contexts: int) -> np.ndarray:
    """How many values lie between one edge and the next; values below 0 count as 0."""
    if isinstance(values, Codes):
        column = values.extra_PL.indices
        rest = contexts - np.bincount(column, minlength=len(unit_L))
        named = values.constant_L[column] + values.extra_PL.data
        return _counted(named / unit_L[column]) + _counted(values.constant_L / unit_L, rest)
    total = np.zeros(len(EDGES) - 1)
    for rows in _rows(contexts, len(unit_L)):
        total += _counted(values.dense(rows) / unit_L)
    return total


def _counted(shares: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    place = np.clip(np.searchsorted(EDGES, shares, side="right") - 1, 0, len(EDGES) - 2)
    return np.bincount(place.ravel(), weights, minlength=len(EDGES) - 1).astype(np.float64)
