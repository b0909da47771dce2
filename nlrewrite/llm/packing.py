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


@dataclass(frozen=True)
class Map:
    """One packed row: token t belongs to suffix `seq[t]`, at place `off[t]` of it, and to row `slot[t]` when padded."""

    lengths_N: np.ndarray
    off_S: Tensor
    slot_S: Tensor
    last_N: Tensor
    """Where in the row each suffix ends."""

    @classmethod
    def of(cls, lengths_N: np.ndarray, device: torch.device) -> "Map":
        ends_N = np.cumsum(lengths_N)
        seq_S = np.repeat(np.arange(len(lengths_N)), lengths_N)
        off_S = np.arange(int(ends_N[-1])) - np.repeat(ends_N - lengths_N, lengths_N)
        slot_S = seq_S * int(lengths_N.max()) + off_S
        off, slot, last = (torch.from_numpy(each).to(device) for each in (off_S, slot_S, ends_N - 1))
        return cls(lengths_N, off, slot, last)

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def longest(self) -> int:
        return int(self.lengths_N.max())

    def padded(self, row_SHD: Tensor) -> Tensor:
        """[N, M, H, D] of a row [S, H, D], zeros behind the end of each suffix."""
        result = row_SHD.new_zeros((len(self) * self.longest, *row_SHD.shape[1:]))
        result[self.slot_S] = row_SHD
        return result.view(len(self), self.longest, *row_SHD.shape[1:])

    def packed(self, padded_NMX: Tensor) -> Tensor:
        """The row [S, ...] of a padded [N, M, ...]."""
        return padded_NMX.reshape(len(self) * self.longest, *padded_NMX.shape[2:])[self.slot_S]


def tokens_of(lengths_N: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the tokens of the `chosen` suffixes stand in a row of all of them, in the order of `chosen`."""
    starts_N = np.cumsum(lengths_N) - lengths_N
    lengths = lengths_N[chosen]
    new_starts = np.cumsum(lengths) - lengths
    return np.repeat(starts_N[chosen] - new_starts, lengths) + np.arange(int(lengths.sum()))
