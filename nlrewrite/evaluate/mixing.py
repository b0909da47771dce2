"""Predicted and true values of latents in one vector, where that is more than adding up what each of them writes.

In: predicted and true values, and at each position the latents that are predicted. Out: values in the same form.
Invariant: a predicted latent's true value is never used, and memory follows the chunk of positions, not their number.

`Mixture` takes another set of latents wherever it is asked to. `Contested` keeps the k largest by signed value of the
mixture and sets the rest to zero, as the published program does: there a prediction can push out a true value that
nobody predicted, and `eviction_rate` says how often. `instead` replaces some latents everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Codes, Retuned, Values, largest

CELLS = 4_000_000
"""Values of a chunk."""

Dense = Callable[[np.ndarray], np.ndarray]
"""Positions [n] -> values [n, L]."""
Inside = Callable[[np.ndarray], np.ndarray]
"""Positions [n] -> the latents that are predicted there: [n, L], or [L] where it is always the same ones."""


@dataclass(frozen=True)
class Mixture:
    """`values` of the latents inside, `truth` of the others."""

    values: Values
    truth: Values
    inside: Inside

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return np.where(self.inside(rows), self.values.dense(rows), self.truth.dense(rows))

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self.written(self.dense, rows, dec_LE)

    def written(self, dense: Dense, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        """What the vectors that `dense` gives write: predicted values as their form does, where it is retuned."""
        out = [np.zeros((0, dec_LE.shape[1]), dtype=np.float32)]
        for part in chunks(rows, len(dec_LE)):
            values = dense(part)
            if isinstance(self.values, Retuned):
                inside, mean_L = self.inside(part), self.values.mean_L
                away = np.where(inside, values - mean_L, 0)
                out.append(away @ self.values.decoder_LE + np.where(inside, mean_L, values) @ dec_LE)
            else:
                out.append(values @ dec_LE)
        return np.concatenate(out)


@dataclass(frozen=True)
class Contested:
    """Of a mixture the k largest by signed value, first ones first; zero for the rest."""

    mixture: Mixture
    k: int

    def dense(self, rows: np.ndarray) -> np.ndarray:
        values = self.mixture.dense(rows)
        return np.where(largest(values, self.k), values, 0).astype(np.float32)

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self.mixture.written(self.dense, rows, dec_LE)

    def eviction_rate(self, rows: np.ndarray) -> float:
        """Share of the true activations of latents that nobody predicts that lose their place."""
        theirs, lost = 0, 0
        latents = self.mixture.dense(rows[:1]).shape[1]
        for part in chunks(rows, latents):
            values = self.mixture.dense(part)
            true = ~self.mixture.inside(part) & (self.mixture.truth.dense(part) > 0)
            theirs += int(true.sum())
            lost += int((true & ~largest(values, self.k)).sum())
        return lost / theirs if theirs else 0.0


@dataclass(frozen=True)
class Replaced:
    """`values`, but for the latents of a mask, which have those of `other`."""

    values: Values
    other: Values
    mask_L: np.ndarray

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return np.where(self.mask_L, self.other.dense(rows), self.values.dense(rows))

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        mask = self.mask_L[:, None]
        return self.values.output(rows, dec_LE * ~mask) + self.other.output(rows, dec_LE * mask)


def instead(values: Values, other: Values, mask_L: np.ndarray) -> Values:
    """`values` with those of `other` for the latents of the mask; as codes where both are."""
    if not mask_L.any():
        return values
    if not (isinstance(values, Codes) and isinstance(other, Codes)):
        return Replaced(values, other, mask_L)
    constant = np.where(mask_L, other.constant_L, values.constant_L).astype(np.float32)
    extra = _columns(values.extra_PL, ~mask_L) + _columns(other.extra_PL, mask_L)
    return Codes(constant, sparse.csr_matrix(extra))


def chunks(rows: np.ndarray, latents: int) -> Iterator[np.ndarray]:
    size = max(1, CELLS // max(latents, 1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _columns(extra_PL: sparse.csr_matrix, mask_L: np.ndarray) -> sparse.csr_matrix:
    kept = extra_PL.copy()
    kept.data = kept.data * mask_L[kept.indices]
    kept.eliminate_zeros()
    return kept
