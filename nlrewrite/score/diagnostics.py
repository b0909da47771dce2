"""How good predictions are at natural prevalence: as probabilities, and as activations.

In: blocks of predicted P(active) with what was true, and predicted activations of a latent against the true ones. Out:
a reliability table on log-spaced bins, expected active latents per context, Brier skill and log loss against each
latent's base rate, and R2 per latent. Invariant: blocks are added up, so that memory follows the block; a case may
stand for any number of contexts (`weight`), and the numbers cannot tell.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Codes, Values

LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 for the log loss, and the lowest bin starts here."""
PER_DECADE = 4
BINS = round(-np.log10(LEAST)) * PER_DECADE
CELLS = 4_000_000
"""Values of a block."""
LEAST_IN_BIN = 3
NORMAL = 1.96
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Diagnosis:
    """Sums over the cases seen so far. Bin 0 holds what is predicted below LEAST."""

    cases: float = 0.0
    active: float = 0.0
    squared: float = 0.0
    squared_base: float = 0.0
    log_loss: float = 0.0
    log_loss_base: float = 0.0
    count_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 1))
    predicted_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 1))
    active_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 1))

    def add(self, chance: np.ndarray, active: np.ndarray, rate: np.ndarray, weight: np.ndarray | float = 1.0) -> None:
        """Cases of one shape (or broadcast to it): predicted chance, weight of the truly active part, base rate."""
        weight = np.broadcast_to(np.asarray(weight, dtype=np.float64), active.shape)
        chance = np.clip(np.broadcast_to(chance, active.shape).astype(np.float64), 0.0, 1.0)
        rate = np.broadcast_to(rate, active.shape)
        silent = weight - active
        self.cases += float(weight.sum())
        self.active += float(active.sum())
        self.squared += _squared(chance, active, silent)
        self.squared_base += _squared(rate, active, silent)
        self.log_loss += _log_loss(chance, active, silent)
        self.log_loss_base += _log_loss(rate, active, silent)
        place = bins(chance).ravel()
        self.count_B += np.bincount(place, weight.ravel(), minlength=BINS + 1)
        self.predicted_B += np.bincount(place, (weight * chance).ravel(), minlength=BINS + 1)
        self.active_B += np.bincount(place, active.ravel().astype(np.float64), minlength=BINS + 1)

    def summary(self) -> dict[str, object]:
        """Skill (1: all known; 0: as good as the base rate; below: worse) and the table of filled bins."""
        filled = np.flatnonzero(self.count_B > 0)
        edges = edges_of_bins()
        table = [
            {
                "from": float(edges[at]),
                "to": float(edges[at + 1]),
                "predicted": float(self.predicted_B[at] / self.count_B[at]),
                "observed": float(self.active_B[at] / self.count_B[at]),
                "n": float(self.count_B[at]),
            }
            for at in filled.tolist()
        ]
        cases = max(self.cases, 1.0)
        return {
            "cases": self.cases,
            "base_rate": self.active / cases,
            "brier": self.squared / cases,
            "brier_base": self.squared_base / cases,
            "brier_skill": _skill(self.squared, self.squared_base),
            "log_loss": self.log_loss / cases,
            "log_loss_base": self.log_loss_base / cases,
            "log_loss_skill": _skill(self.log_loss, self.log_loss_base),
            "reliability": table,
        }


def bins(chance: np.ndarray) -> np.ndarray:
    """The bin of each probability: 0 below LEAST, then PER_DECADE to a power of ten."""
    place = np.floor(np.log10(np.maximum(chance, LEAST / 10)) * PER_DECADE + 1e-9).astype(np.int64) + BINS + 1
    return np.clip(np.where(chance < LEAST, 0, place), 0, BINS)


def edges_of_bins() -> np.ndarray:
    return np.concatenate([[0.0], 10.0 ** (np.arange(BINS + 1) / PER_DECADE + np.log10(LEAST))])


def spread(count_P: np.ndarray) -> dict[str, float]:
    """Mean and quantiles of active latents per context."""
    found = np.quantile(count_P, QUANTILES)
    named = {f"q{round(100 * at):02d}": float(value) for at, value in zip(QUANTILES, found, strict=True)}
    return {"mean": float(count_P.mean()), **named}


def errors(values: Values, truth: Codes) -> np.ndarray:
    """Sum over contexts of the squared error of each latent: [L]."""
    if isinstance(values, Codes):
        apart = sparse.csr_matrix(truth.extra_PL - values.extra_PL, dtype=np.float64)
        shift = values.constant_L.astype(np.float64) - truth.constant_L
        squares = np.asarray(apart.multiply(apart).sum(0)).ravel()
        return squares - 2 * shift * np.asarray(apart.sum(0)).ravel() + apart.get_shape()[0] * shift**2
    total = np.zeros(len(truth.constant_L))
    count = truth.extra_PL.get_shape()[0]
    size = max(1, CELLS // max(len(total), 1))
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        total += np.square(values.dense(rows).astype(np.float64) - truth.dense(rows)).sum(0)
    return total


def explained(errors_L: np.ndarray, baseline_L: np.ndarray) -> np.ndarray:
    """R2 against a baseline's errors; NaN for a latent on which the baseline makes none."""
    return np.where(baseline_L > 0, 1 - errors_L / np.where(baseline_L > 0, baseline_L, 1), np.nan)


def weighted(r2_L: np.ndarray, energy_L: np.ndarray) -> dict[str, float | None]:
    """R2 over latents weighted by energy sigma^2 |d|^2, and the quantiles of its distribution, weighted and not."""
    known = np.isfinite(r2_L) & (energy_L > 0)
    if not known.any():
        return {"mean": None}
    r2, energy = r2_L[known].astype(np.float64), energy_L[known].astype(np.float64)
    order = np.argsort(r2, kind="stable")
    share = np.cumsum(energy[order]) / energy.sum()
    found: dict[str, float | None] = {
        "mean": float(r2 @ energy / energy.sum()),
        "unweighted_mean": float(r2.mean()),
        "share_of_energy_above_0": float(energy[r2 > 0].sum() / energy.sum()),
    }
    for at in QUANTILES:
        found[f"q{round(100 * at):02d}"] = float(np.quantile(r2, at))
        place = min(int(np.searchsorted(share, at)), len(r2) - 1)
        found[f"q{round(100 * at):02d}_of_energy"] = float(r2[order][place])
    return found


def binned(score: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per bin of 0.1 of `score` with enough latents: centre, mean value, half of the mean's 95% interval, latents."""
    known = np.isfinite(score) & np.isfinite(value)
    place = np.clip((score[known] * 10).astype(int), 0, 9)
    rows = []
    for number in range(10):
        inside = value[known][place == number]
        if len(inside) >= LEAST_IN_BIN:
            half = NORMAL * inside.std(ddof=1) / np.sqrt(len(inside))
            rows.append((number / 10 + 0.05, inside.mean(), half, len(inside)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _squared(chance: np.ndarray, active: np.ndarray, silent: np.ndarray) -> float:
    return float((active * (1 - chance) ** 2 + silent * chance**2).sum())


def _log_loss(chance: np.ndarray, active: np.ndarray, silent: np.ndarray) -> float:
    kept = np.clip(chance, LEAST, 1 - LEAST)
    return -float((active * np.log(kept) + silent * np.log1p(-kept)).sum())


def _skill(reached: float, base: float) -> float | None:
    return 1 - reached / base if base > 0 else None
