"""Laying many ragged suffixes out as a few rows of tokens, and finding each of them again.

In: the lengths of the suffixes. Out: chunks of them of about equal lengths, and for each chunk a map between its two
layouts: the packed row [S], where suffixes stand one behind the other, and the padded one [N, M], where each has a row.
Invariant: every suffix is in exactly one chunk, and a chunk is longer than the budget only if it is a single suffix.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def chunks(lengths_N: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Indices of the suffixes by length, shortest first, cut so that a chunk has at most `tokens` tokens."""
    order_N = np.argsort(lengths_N, kind="stable")
    ends_N = np.cumsum(lengths_N[order_N])
    result: list[np.ndarray] = []
    start, spent = 0, 0
    while start < len(order_N):
        stop = max(int(np.searchsorted(ends_N, spent + tokens, side="right")), start + 1)
        result.append(order_N[start:stop])
        start, spent = stop, int(ends_N[stop - 1])
    return result


EVEN, WIDE = 32, 16
"""Packed rows have a multiple of EVEN tokens and padded ones a multiple of WIDE places, so that libraries take the same
steps for a suffix in every chunk: the ends of their loops, and products of a few rows, are rounded otherwise."""


@dataclass(frozen=True)
class Map:
    """One packed row of T tokens, rounded up to S: token t is at place `off[t]` of its suffix, and at `slot[t]` of the
    padded layout."""

    lengths_N: np.ndarray
    tokens: int
    """T."""
    width: int
    """M, at least the longest."""
    off_S: Tensor
    slot_S: Tensor
    last_N: Tensor
    """Where in the row each suffix ends."""

    @classmethod
    def of(cls, lengths_N: np.ndarray, device: torch.device) -> "Map":
        ends_N = np.cumsum(lengths_N)
        tokens, width = int(ends_N[-1]), _up(int(lengths_N.max()), WIDE)
        seq_T = np.repeat(np.arange(len(lengths_N)), lengths_N)
        off_S, slot_S = np.zeros((2, _up(tokens, EVEN)), dtype=np.int64)
        off_S[:tokens] = np.arange(tokens) - np.repeat(ends_N - lengths_N, lengths_N)
        slot_S[:tokens] = seq_T * width + off_S[:tokens]
        off, slot, last = (torch.from_numpy(each).to(device) for each in (off_S, slot_S, ends_N - 1))
        return cls(lengths_N, tokens, width, off, slot, last)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def even(self, row_TX: Tensor) -> Tensor:
        """[S, ...] of [T, ...]: the last token again where there is none."""
        missing = len(self.off_S) - self.tokens
        return torch.cat([row_TX, row_TX[-1:].expand(missing, *row_TX.shape[1:])]) if missing else row_TX

    def padded(self, row_SHD: Tensor) -> Tensor:
        """[N, M, H, D] of a row [S, H, D], zeros behind the end of each suffix."""
        result = row_SHD.new_zeros((len(self) * self.width, *row_SHD.shape[1:]))
        result[self.slot_S[: self.tokens]] = row_SHD[: self.tokens]
        return result.view(len(self), self.width, *row_SHD.shape[1:])

    def packed(self, padded_NMX: Tensor) -> Tensor:
        """The row [S, ...] of a padded [N, M, ...]."""
        return padded_NMX.reshape(len(self) * self.width, *padded_NMX.shape[2:])[self.slot_S]


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def tokens_of(lengths_N: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the tokens of the `chosen` suffixes stand in a row of all of them, in the order of `chosen`."""
    starts_N = np.cumsum(lengths_N) - lengths_N
    lengths = lengths_N[chosen]
    new_starts = np.cumsum(lengths) - lengths
    return np.repeat(starts_N[chosen] - new_starts, lengths) + np.arange(int(lengths.sum()))
