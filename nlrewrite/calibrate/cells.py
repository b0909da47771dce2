"""What a calibrator is fitted on: for each latent and level, how often it was said and how active the latent then was.

In: simulated pairs and true activations. Out: counts and sums [L, Z], Z the levels there are. Invariant: the cells of a
latent partition the positions: what was not said counts as level 0, so nothing is lost by keeping pairs sparse.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nlrewrite.simulate.rules import Simulated


@dataclass(frozen=True)
class Cells:
    """Counts over L latents and Z levels."""

    said: np.ndarray
    """Positions at which the level was said."""
    active: np.ndarray
    """Of those, where the latent is truly active."""
    total: np.ndarray
    """Sum of the true activations there."""

    @property
    def positions(self) -> int:
        return int(self.said[0].sum())

    def __add__(self, other: "Cells") -> "Cells":
        return Cells(self.said + other.said, self.active + other.active, self.total + other.total)


def cells(simulated: Simulated, truth_PL: sparse.csr_matrix, rows_P: np.ndarray | None = None) -> Cells:
    """Cells over the positions of `rows_P` (a mask), or over all."""
    if rows_P is not None:
        simulated = simulated.at(rows_P)
        kept = sparse.diags(rows_P.astype(np.float32)) @ truth_PL
        truth_PL, count = sparse.csr_matrix(kept), int(rows_P.sum())
        truth_PL.eliminate_zeros()
    else:
        count = truth_PL.get_shape()[0]
    latents = truth_PL.get_shape()[1]
    pairs = simulated.position, simulated.latent
    true = np.asarray(truth_PL[pairs]).ravel() if len(simulated.position) else np.zeros(0, dtype=np.float32)
    levels = simulated.levels
    cell = simulated.latent.astype(np.int64) * levels + simulated.level

    def table(weights: np.ndarray | None) -> np.ndarray:
        return np.bincount(cell, weights, minlength=latents * levels).reshape(latents, levels).astype(np.float64)

    said, active, total = table(None), table((true > 0).astype(np.float64)), table(true)
    said[:, 0] = count - said[:, 1:].sum(1)
    active[:, 0] = truth_PL.getnnz(axis=0) - active[:, 1:].sum(1)
    total[:, 0] = np.maximum(np.asarray(truth_PL.sum(0)).ravel() - total[:, 1:].sum(1), 0)
    return Cells(said, active, total)
