"""The hurdle: P(active | level) times E[activation | active, level], with both drawn towards what all latents share.

In: cells of the calibrate split. Out: a value per latent and level. Invariant: it estimates the conditional mean, so
without information in the levels it returns the latent's mean, and a level never seen gets the pooled value.

A latent's own rate at a level counts as `said` observations against `strength` of the pooled rate; magnitudes likewise,
as multiples of the latent's mean magnitude. The strength is chosen by predicting one fold of documents from the others.
"""

import numpy as np

from nlrewrite.calibrate.cells import Cells

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def fit(cells: Cells, strength: float) -> np.ndarray:
    """Values [L, 10]."""
    rate = (cells.active + strength * _pooled_rate(cells)) / (cells.said + strength)
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


def _pooled_rate(cells: Cells) -> np.ndarray:
    """Rate at each level over all latents; at level 0 each latent's own overall rate is the better guess."""
    pooled = np.broadcast_to(cells.active.sum(0) / np.maximum(cells.said.sum(0), 1), cells.said.shape).copy()
    pooled[:, 0] = cells.active.sum(1) / np.maximum(cells.said.sum(1), 1)
    return pooled


def _magnitudes(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Mean magnitude of each latent, and of each level as a multiple of it."""
    active_L = cells.active.sum(1)
    overall = cells.total.sum() / max(cells.active.sum(), 1)
    magnitude_L = (cells.total.sum(1) + overall) / (active_L + 1)
    expected_Z = (cells.active * magnitude_L[:, None]).sum(0)
    return magnitude_L, (cells.total.sum(0) + 1e-9) / (expected_Z + 1e-9)
