"""Latents whose levels inform, or not, about their activations; and as dense arrays what the cells count."""

import numpy as np
from scipy import sparse

from nlrewrite.activations.pairs import ByLatent
from nlrewrite.calibrate.fit import Fitting
from nlrewrite.seeds import generator
from nlrewrite.simulate.rules import Simulated

LEVELS = np.arange(10.0)


def fitting(level_PL: np.ndarray, truth_PL: np.ndarray, explained_L: np.ndarray | None = None) -> Fitting:
    latent, position = np.nonzero(level_PL.T)
    explained = np.ones(level_PL.shape[1], dtype=bool) if explained_L is None else explained_L
    simulated = Simulated(latent, position, level_PL[position, latent], LEVELS, explained)
    rows, columns = np.nonzero(truth_PL.T)
    bounds = np.searchsorted(rows, np.arange(truth_PL.shape[1] + 1))
    corpus = ByLatent(columns.astype(np.int32), truth_PL[columns, rows].astype(np.float32), bounds)
    truth = sparse.csr_matrix(truth_PL.astype(np.float32))
    return Fitting(simulated, truth, corpus, len(truth_PL), truth_PL.max(0))


def informative(positions: int = 4000, latents: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Levels, and activations whose rate and size grow with them."""
    draws = generator(seed, "planted calibration")
    level = np.where(draws.random((positions, latents)) < 0.9, 0, draws.integers(1, 10, (positions, latents)))
    active = draws.random(level.shape) < 0.01 + 0.09 * level
    return level, np.where(active, draws.gamma(4.0, 0.05 + 0.02 * level), 0.0)


def shuffled(level_PL: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.stack(
        [generator(seed, "shuffle", latent).permutation(column) for latent, column in enumerate(level_PL.T)], 1
    )
