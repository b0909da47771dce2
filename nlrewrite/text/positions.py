"""The input positions of a split's windows in one row: what every array over positions is aligned with.

In: windows. Out: for each of the P positions its window, its place in it, its token and its document group.
Invariant: positions stand in window order and only hold input positions, never padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlrewrite.text.tokens import Windows

NOTHING = -1


@dataclass(frozen=True)
class Positions:
    """P positions; all arrays are int32 of length P."""

    window: np.ndarray
    offset: np.ndarray
    token: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.token)

    def back(self, steps: int) -> np.ndarray:
        """The token `steps` before each position; NOTHING where the window starts later."""
        before = np.full(len(self), NOTHING, dtype=np.int32)
        if steps < len(self):
            inside = self.offset[steps:] >= steps
            before[steps:][inside] = self.token[: len(self) - steps][inside]
        return before


def positions(windows: Windows) -> Positions:
    window = np.repeat(np.arange(len(windows), dtype=np.int32), windows.lengths)
    starts = np.cumsum(windows.lengths) - windows.lengths
    offset = (np.arange(len(window)) - np.repeat(starts, windows.lengths)).astype(np.int32)
    return Positions(window, offset, windows.tokens[window, offset], windows.group[window])


def last_tokens(where: Positions, texts: Sequence[bytes], position: int, window: int) -> list[bytes]:
    """Of the context that ends at `position` the last tokens of its window, itself included."""
    first = position - min(int(where.offset[position]), window - 1)
    return [texts[token] for token in where.token[first : position + 1].tolist()]
