"""Values of all latents at all positions, in the forms in which they cost little: what an arm writes.

In: true activations, simulated ones, or a table to look them up in. Out: what the decoder makes of them, for some
positions. Invariant: every form is linear in the decoder's rows, so "only these latents" is "these rows, the others
zero", and predicted and true latents mix by adding two outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy import sparse

from nlrewrite.activations.pairs import Active


class Values(Protocol):
    """Values of L latents at P positions."""

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        """What the latents write at `rows`: [rows, E]."""
        ...

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """The values themselves: [rows, L]."""
        ...


@dataclass(frozen=True)
class Codes:
    """A value per latent that holds everywhere, and what is added to it here and there."""

    constant_L: np.ndarray
    extra_PL: sparse.csr_matrix

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return (self.extra_PL[rows] @ dec_LE) + self.constant_L @ dec_LE

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self.extra_PL[rows].toarray() + self.constant_L


@dataclass(frozen=True)
class Dense:
    """Every value, held as it is."""

    values_PL: np.ndarray

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self.values_PL[rows] @ dec_LE

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self.values_PL[rows]


@dataclass(frozen=True)
class Retuned:
    """Values that write through a decoder of their own: mean @ dec + (value - mean) @ own.

    Of latents whose rows of `dec` are zero nothing is written, as in every other form.
    """

    values: Values
    mean_L: np.ndarray
    decoder_LE: np.ndarray

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        own = self.decoder_LE * dec_LE.any(1, keepdims=True)
        return self.values.output(rows, own) + self.mean_L @ (dec_LE - own)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self.values.dense(rows)


@dataclass(frozen=True)
class At:
    """Values at some positions alone, numbered anew."""

    values: Values
    chosen: np.ndarray

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self.values.output(self.chosen[rows], dec_LE)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self.values.dense(self.chosen[rows])


@dataclass(frozen=True)
class Placed:
    """Values that there are at some positions alone; they are asked for by the numbers that positions have."""

    values: Values
    place_P: np.ndarray
    """Where each position's values stand; -1 where there are none."""

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self.values.output(self._placed(rows), dec_LE)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self.values.dense(self._placed(rows))

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        place = self.place_P[rows]
        assert (place >= 0).all(), "values were asked for at a position that has none"
        return place


def placed(values: Values, rows: np.ndarray, count: int) -> Values:
    """Values at `rows`, ascending, as values of a split with `count` positions."""
    if isinstance(values, Retuned):
        return replace(values, values=placed(values.values, rows, count))
    place_P = np.full(count, -1, dtype=np.int64)
    place_P[rows] = np.arange(len(rows))
    return Placed(values, place_P)


@dataclass(frozen=True)
class Lookup:
    """Values that depend on a key of each position alone: row `key_P` of a table, which may be a product of tables.

    With `sums_UL` and `back_UV`, the row of key u is `(sums[u] + back[u] @ table) / weight[u]`: a mean over what was
    seen under u, drawn towards the table's row of a coarser key.
    """

    table_VL: np.ndarray
    key_P: np.ndarray
    sums_UL: sparse.csr_matrix | None = None
    back_UV: sparse.csr_matrix | None = None
    weight_U: np.ndarray | None = None

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self._rows(self.table_VL @ dec_LE, lambda sums: sums @ dec_LE, rows)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self._rows(self.table_VL, lambda sums: sums.toarray(), rows)

    def _rows(
        self, table: np.ndarray, write: Callable[[sparse.csr_matrix], np.ndarray], rows: np.ndarray
    ) -> np.ndarray:
        keys = self.key_P[rows]
        if self.sums_UL is None or self.back_UV is None or self.weight_U is None:
            return table[keys]
        unique, inverse = np.unique(keys, return_inverse=True)
        merged = write(self.sums_UL[unique]) + self.back_UV[unique] @ table
        return (merged / self.weight_U[unique, None]).astype(np.float32)[inverse]


@dataclass(frozen=True)
class Kept:
    """The k values that a TopK keeps at each position, first ones first; the others become what it compares with."""

    values: Values
    k: int
    rest_L: np.ndarray

    def dense(self, rows: np.ndarray) -> np.ndarray:
        values = self.values.dense(rows)
        stays = largest(np.abs(values - self.rest_L), self.k)
        return np.where(stays, values, self.rest_L).astype(np.float32)

    def output(self, rows: np.ndarray, dec_LE: np.ndarray) -> np.ndarray:
        return self.dense(rows) @ dec_LE


def kept(values: Values, k: int, rest_L: np.ndarray) -> Values:
    """The k values farthest from `rest`, written as `values` are."""
    if isinstance(values, Retuned):
        return replace(values, values=kept(values.values, k, rest_L))
    return Kept(values, k, rest_L)


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, first ones first."""
    if k >= values.shape[1]:
        return np.ones(values.shape, dtype=bool)
    least = np.partition(values, -k, axis=1)[:, -k, None]
    above, tied = values > least, values == least
    return above | (tied & (np.cumsum(tied, axis=1) <= k - above.sum(1, keepdims=True)))


def true_codes(active: Active, latents: int) -> Codes:
    """The activations themselves."""
    count, k = active.values.shape
    starts = np.arange(0, count * k + 1, k)
    pairs = active.values.ravel(), active.latents.ravel(), starts
    extra = sparse.csr_matrix(pairs, shape=(count, latents), copy=True)  # eliminate_zeros works in place
    extra.eliminate_zeros()
    return Codes(np.zeros(latents, dtype=np.float32), extra)


def constant_codes(value_L: np.ndarray, count: int) -> Codes:
    """The same value of a latent everywhere."""
    return Codes(value_L.astype(np.float32), sparse.csr_matrix((count, len(value_L)), dtype=np.float32))


def oracle_codes(active: Active, mean_active_L: np.ndarray) -> Codes:
    """Truly active where it is active, with the latent's mean magnitude."""
    truth = true_codes(active, len(mean_active_L))
    extra = truth.extra_PL.copy()
    extra.data = mean_active_L[extra.indices].astype(np.float32)
    return Codes(truth.constant_L, extra)
