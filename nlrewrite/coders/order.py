"""The order in which a coder sees its data: a function of the step, so that nothing has to be kept to go on.

In: a spec of a coder and the rows of a token stream. Out: for every block its windows and how their tokens are mixed,
and for every step the pieces of blocks that make its batch. Invariant: what a step reads depends on the spec, the rows
and the step alone, never on what was read before; no window of it reaches into the rows that are held out.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.specs import CoderSpec

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

HELD_OUT_TOKENS = 1 << 13
HELD_OUT_SHARE = 8  # at most one row in so many is held out, of a stream that is short


class Rows(Protocol):
    """Token ids in rows of equal length."""

    @property
    def count(self) -> int: ...

    @property
    def length(self) -> int:
        """Ids in a row."""
        ...

    @property
    def ids(self) -> int:
        """Ids in all."""
        ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Rows by their numbers: int64 [B, length]."""
        ...

    def windows(self, starts: np.ndarray) -> np.ndarray:
        """Windows that start anywhere in the stream: int64 [B, T]."""
        ...

    def held_out(self, tokens: int) -> np.ndarray:
        """Numbers of the last rows, which hold so many tokens."""
        ...


@dataclass(frozen=True)
class Piece:
    """Tokens of one block that go into a batch."""

    block: int
    tokens: slice


@dataclass(frozen=True)
class Order:
    """Blocks of windows, one after another without end; inside a block the tokens are mixed, or stay as they come."""

    kind: Literal["drawn", "shuffled", "sequential"]
    seed: int
    batch: int
    """Tokens in a step."""
    length: int
    """Tokens in a window."""
    trained: int
    """Rows that are trained on: all before those held out."""
    row: int
    """Ids in a row; of drawn windows it may differ from `length`."""
    windows_in_block: int
    mixes: bool

    @property
    def block(self) -> int:
        """Tokens in a block."""
        return self.windows_in_block * self.length

    def windows(self, block: int) -> np.ndarray:
        """The block's windows: where they start in the stream (drawn), or the numbers of their rows."""
        if self.kind == "drawn":
            draws = generator(self.seed, "coder", "windows", block)
            return draws.integers(0, self.trained * self.row - self.length, self.windows_in_block, endpoint=True)
        places = np.arange(self.windows_in_block, dtype=np.int64) + block * self.windows_in_block
        if self.kind == "sequential":
            return places % self.trained
        epochs = places // self.trained
        return np.concatenate(
            [
                shuffled(self.seed, int(epoch), self.trained)[places[epochs == epoch] % self.trained]
                for epoch in np.unique(epochs)
            ]
        )

    def opening(self, tokens: int, after: int = 0) -> np.ndarray:
        """The first windows, unmixed, that hold at least so many tokens, of blocks behind the first `after` tokens."""
        wanted, first = -(-tokens // self.length), -(-after // self.block)
        blocks = range(first, first - (-wanted // self.windows_in_block))
        return np.concatenate([self.windows(block) for block in blocks])[:wanted]

    def mixing(self, block: int) -> "Tensor":
        """The permutation of the block's tokens."""
        import torch

        return torch.randperm(self.block, generator=torch_generator(self.seed, "coder", "mixing", block))

    def pieces(self, step: int) -> list[Piece]:
        """What the batch of `step` is made of."""
        start, end = step * self.batch, (step + 1) * self.batch
        pieces: list[Piece] = []
        while start < end:
            block, at = divmod(start, self.block)
            until = min(self.block, at + end - start)
            pieces.append(Piece(block, slice(at, until)))
            start += until - at
        return pieces


def order(spec: CoderSpec, rows: Rows) -> Order:
    """The order that `spec` asks for over `rows`; a SettingError where there can be none."""
    length = spec.window if spec.order == "drawn" else rows.length
    trained = rows.count - len(held_out(rows)) if rows.count else 0
    if trained < 1 or trained * rows.length < length:
        raise SettingError(
            f"the text is too short to train a coder on: it has {rows.ids} tokens, a window has {length}, and some are "
            f"held out. Give more text, or lower --set coder.window"
        )
    if not spec.mix and spec.batch % length:
        raise SettingError(
            f"a batch that is not mixed holds whole windows: coder.batch={spec.batch}, {length} tokens in a window. "
            f"Use --set coder.batch={max(1, round(spec.batch / length)) * length}, or mix with --set coder.mix=65536"
        )
    if trained * rows.length < spec.batch:
        log.warning(
            "the text is short: %d tokens to train on, and coder.batch=%d, so that a step reads some of them more than "
            "once. Give more text, or lower --set coder.batch",
            trained * rows.length,
            spec.batch,
        )
    return Order(
        kind=spec.order,
        seed=spec.seed if spec.order_seed is None else spec.order_seed,
        batch=spec.batch,
        length=length,
        trained=trained,
        row=rows.length,
        windows_in_block=-(-(spec.mix or spec.batch) // length),
        mixes=bool(spec.mix),
    )


@lru_cache(maxsize=2)
def shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of `count` rows in which an epoch reads them."""
    return generator(seed, "order", epoch).permutation(count)


def held_out(rows: Rows) -> np.ndarray:
    """Numbers of the rows that no coder of these rows is ever trained on."""
    return rows.held_out(max(rows.length, min(HELD_OUT_TOKENS, rows.ids // HELD_OUT_SHARE)))


def read(rows: Rows, order: Order, windows: np.ndarray) -> np.ndarray:
    """Token ids [B, T] of windows of the order."""
    ids_BT: np.ndarray[Any, np.dtype[np.int64]] = rows.windows(windows) if order.kind == "drawn" else rows.read(windows)
    return ids_BT
