"""The hurdle: P(active | level) times E[activation | active, level], with both drawn towards what all latents share.

In: cells of the calibrate split. Out: a value per latent and level. Invariant: it estimates the conditional mean, so
without information in the levels it returns the latent's mean, however often or rarely the latent is active.

What latents share is what a level adds to their log-odds: logit P(active | latent, level) = logit P(active | latent) +
shift(level), the shifts fitted to all latents together; and how large an active one is at a level, as a multiple of the
latent's mean magnitude. A latent's own rate at a level counts as `said` observations against `strength` of the shared
one, and magnitudes likewise. The strength is chosen by predicting one fold of documents from the others.
"""

import numpy as np

from nlrewrite.calibrate.cells import Cells

WIDEST_SHIFT = 20.0
HIGHEST_RATE = 1 - 1e-9
BISECTIONS = 50
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def fit(cells: Cells, strength: float) -> np.ndarray:
    """Values [L, 10]."""
    rate = (cells.active + strength * _shared_rate(cells)) / (cells.said + strength)
    magnitude_L, relative_Z = _magnitudes(cells)
    expected = magnitude_L[:, None] * relative_Z
    magnitude = (cells.total + strength * expected) / (cells.active + strength)
    return rate * magnitude


def best_strength(folds: list[Cells]) -> float:
    """The strength that best predicts each fold from the others, in squared error over all latents."""

    def error(strength: float) -> float:
        total = 0.0
        for held in range(len(folds)):
            rest = [fold for index, fold in enumerate(folds) if index != held]
            fitted = fit(sum(rest[1:], rest[0]), strength)
            total += float((folds[held].said * fitted**2 - 2 * folds[held].total * fitted).sum())
        return total

    return min(STRENGTHS, key=error)


def _shared_rate(cells: Cells) -> np.ndarray:
    """Each latent's overall rate, its log-odds shifted by what the level says of all latents."""
    rate_L = np.minimum(cells.active.sum(1) / np.maximum(cells.said.sum(1), 1), HIGHEST_RATE)
    odds_L = rate_L / (1 - rate_L)
    low, high = np.full(cells.said.shape[1], -WIDEST_SHIFT), np.full(cells.said.shape[1], WIDEST_SHIFT)
    for _ in range(BISECTIONS):  # the expected number of active cases rises with the shift
        middle = (low + high) / 2
        rate = _shifted(odds_L, middle)
        too_many = (cells.said * rate).sum(0) > cells.active.sum(0)
        low, high = np.where(too_many, low, middle), np.where(too_many, middle, high)
    shift = np.where(cells.said.sum(0) > 0, (low + high) / 2, 0.0)
    return _shifted(odds_L, shift)


def _shifted(odds_L: np.ndarray, shift_Z: np.ndarray) -> np.ndarray:
    odds = odds_L[:, None] * np.exp(shift_Z)
    return odds / (1 + odds)


def _magnitudes(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Mean magnitude of each latent, and of each level as a multiple of it."""
    active_L = cells.active.sum(1)
    overall = cells.total.sum() / max(cells.active.sum(), 1)
    magnitude_L = (cells.total.sum(1) + overall) / (active_L + 1)
    expected_Z = (cells.active * magnitude_L[:, None]).sum(0)
    return magnitude_L, (cells.total.sum(0) + 1e-9) / (expected_Z + 1e-9)
