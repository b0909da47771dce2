"""What coders are trained on: the subject's activations at their sites, step by step, from one pass for all of them.

In: the subject, the sites, the rows of a token stream and their order. Out: for every step and site the batch (x, y).
Invariant: a batch is a function of the step alone; a forward pass stops at the last site, and each window passes once,
however many sites are read; how many windows pass at a time changes nothing but rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlrewrite.artifacts import Folder
from nlrewrite.coders import order as orders
from nlrewrite.coders.order import Order, Rows
from nlrewrite.coders.ranks import ALONE, Ranks
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import CoderSpec
from nlrewrite.subject import load, sites
from nlrewrite.subject.sites import Located

FUSED_FROM = 256
"""Tokens in a window from which on, on a CPU, fused attention is the faster: measured 1.8 times at 512, and slower by
up to a half at 64, where heads are small."""
Batch = tuple[Tensor, Tensor]
"""x_ND and y_NE, the same tensor where a coder reads what it writes."""


def subject(folder: Folder, spec: CoderSpec, execution: Execution, device: str, window: int) -> nn.Module:
    """The subject as training runs it: on the training's device, attending to so many tokens the fastest way."""
    if device != "cpu" and not torch.cuda.is_available():
        raise SettingError(f"there is no GPU here for execution.device={device}. Use --device cpu")
    model: Any = load.model(folder, execution)
    fused = model.config.model_type != "gemma2"  # whose soft-capping is beyond the fused formula
    if fused and (device != "cpu" or window >= FUSED_FROM):
        model.set_attn_implementation("sdpa")
    if device != "cpu":
        model.to(device, torch.bfloat16 if spec.precision == "bfloat16" else None)
    return model


def longest(model: nn.Module) -> int:
    """Tokens the subject can be given at a time; where positions are rotations, the published rows have one more."""
    config: Any = model.config
    return config.max_position_embeddings + (config.model_type != "gpt2")


class Activity:
    """The activations of the subject at some sites, in an order."""

    def __init__(
        self,
        model: nn.Module,
        located: Sequence[Located],
        rows: Rows,
        order: Order,
        batch_tokens: int,
        ranks: Ranks = ALONE,
    ) -> None:
        if order.length > longest(model):
            raise SettingError(
                f"the subject reads at most {longest(model)} tokens at a time: a window to train the coder on has "
                f"{order.length}. Lower --set coder.window"
            )
        if order.windows_in_block < ranks.world:
            name, what = ("mix", "mixed block") if order.mixes else ("batch", "batch")
            raise SettingError(
                f"every process needs a window of every {what}: with this coder.{name} it has "
                f"{order.windows_in_block}, and there are {ranks.world} processes. Raise --set coder.{name}, or start "
                f"fewer"
            )
        self.model, self._rows, self.order, self._ranks = model, rows, order, ranks
        self._located = sorted(set(located), key=lambda each: each.depth)
        self.at_once = max(1, batch_tokens // order.length)
        self.device = next(model.parameters()).device
        self._blocks: dict[int, dict[Located, Batch]] = {}

    def batch(self, step: int) -> dict[Located, Batch]:
        """This process's share of the step's batch, at every site."""
        if not self.order.mixes:
            windows = self.order.windows(step)
            return self.windows(windows[self._ranks.share(len(windows))])
        pieces = self.order.pieces(step)
        needed = [piece.block for piece in pieces]
        self._blocks = {number: block for number, block in self._blocks.items() if number in needed}
        for number in needed:
            if number not in self._blocks:
                self._blocks[number] = self._mixed(number)
        share = self._ranks.share(self.order.batch)

        def batch(located: Located) -> Batch:
            parts = [tuple(each[piece.tokens] for each in self._blocks[piece.block][located]) for piece in pieces]
            x_ND, y_NE = (joined(some) for some in zip(*parts, strict=True))
            return x_ND[share], y_NE[share]

        return {located: batch(located) for located in self._located}

    def windows(self, windows: np.ndarray) -> dict[Located, Batch]:
        """The activations of some windows of the order."""
        return self.of(orders.read(self._rows, self.order, windows))

    def held_out(self) -> np.ndarray:
        """Token ids [B, T] of the rows that are not trained on."""
        return self._rows.read(orders.held_out(self._rows))[:, : longest(self.model)]

    def of(self, ids_BT: np.ndarray) -> dict[Located, Batch]:
        """The activations of token ids, window after window."""
        ids = torch.from_numpy(np.ascontiguousarray(ids_BT))
        passes = [recorded(self.model, self._located, part.to(self.device)) for part in ids.split(self.at_once)]
        whole: dict[Located, Batch] = {}
        for located in self._located:
            y_NE = joined([each[located][1] for each in passes])
            x_ND = joined([each[located][0] for each in passes]) if located.reads_input else y_NE
            whole[located] = x_ND, y_NE
        return whole

    def _mixed(self, block: int) -> dict[Located, Batch]:
        """A block; several processes each compute their windows of it, and all have all of it."""
        windows = self.order.windows(block)
        whole = self.windows(windows[self._ranks.share(len(windows))])
        mixing = self.order.mixing(block).to(self.device)

        def mixed(located: Located) -> Batch:
            x_ND, y_NE = whole.pop(located)
            mixed_y = self._ranks.gathered(y_NE)[mixing]
            return (self._ranks.gathered(x_ND)[mixing] if located.reads_input else mixed_y), mixed_y

        return {located: mixed(located) for located in self._located}


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after another; one part is itself, not a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def recorded(model: nn.Module, located: Sequence[Located], ids_BT: Tensor) -> dict[Located, Batch]:
    """What passes the sites in one pass that ends at the last of them; rows of tokens, in the model's dtype."""
    last = max(located, key=lambda each: each.depth)
    dtype = next(model.parameters()).dtype

    with ExitStack() as hooks, torch.no_grad():
        records = {each: hooks.enter_context(sites.recorded(model, each)) for each in located}
        hooks.enter_context(sites.ending(model, last))
        run: Callable[..., Any] = model
        try:
            run(input_ids=ids_BT, use_cache=False)
        except sites.Reached:
            return {
                each: (record.x.flatten(0, 1).to(dtype), record.y.flatten(0, 1).to(dtype))
                for each, record in records.items()
            }
    raise AssertionError(f"a forward pass never reached {last.name}")
