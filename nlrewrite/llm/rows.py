"""Questions as rows of a training batch: a prefix once, and behind it the suffixes that share it.

In: prefixes and, for each, its suffixes. Out: ids, positions and who sees whom; of a model, the logits behind each
suffix. Invariant: a suffix sees its prefix and itself and nothing else, so that the logits are those of the prompt that
prefix and suffix make alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

PREFIX, NOBODY = -1, -2


@dataclass(frozen=True)
class Rows:
    """N questions in B rows of T places."""

    ids_BT: torch.Tensor
    position_BT: torch.Tensor
    sees_B1TT: torch.Tensor
    row_N: torch.Tensor
    last_N: torch.Tensor
    """Where each suffix ends, in the order given."""


def rows(prefixes: Sequence[Sequence[int]], suffixes: Sequence[Sequence[Sequence[int]]]) -> Rows:
    longest = max(len(prefix) for prefix in prefixes)
    width = longest + max(sum(len(suffix) for suffix in each) for each in suffixes)
    shape = len(prefixes), width
    ids_BT, position_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    owner_BT = np.full(shape, NOBODY)
    row_N: list[int] = []
    last_N: list[int] = []
    for row, (prefix, each) in enumerate(zip(prefixes, suffixes, strict=True)):
        ids_BT[row, : len(prefix)] = prefix
        position_BT[row, : len(prefix)] = np.arange(len(prefix))
        owner_BT[row, : len(prefix)] = PREFIX
        at = longest
        for number, suffix in enumerate(each):
            end = at + len(suffix)
            ids_BT[row, at:end] = suffix
            position_BT[row, at:end] = len(prefix) + np.arange(len(suffix))
            owner_BT[row, at:end] = number
            at = end
            row_N.append(row)
            last_N.append(end - 1)
    one_BTT = owner_BT[:, :, None] == owner_BT[:, None, :]
    of_prefix_BTT = (owner_BT[:, None, :] == PREFIX) & (owner_BT[:, :, None] != NOBODY)
    sees_BTT = (one_BTT | of_prefix_BTT) & np.tri(width, dtype=bool)
    sees_BTT |= np.eye(width, dtype=bool)  # a place nobody uses must still see something
    return Rows(
        torch.from_numpy(ids_BT),
        torch.from_numpy(position_BT),
        torch.from_numpy(sees_BTT)[:, None],
        torch.tensor(row_N),
        torch.tensor(last_N),
    )


def last_logits(model: Any, rows: Rows) -> torch.Tensor:
    """[N, vocabulary]: what the model says behind each suffix. `model` must attend by "sdpa"."""
    device = next(model.parameters()).device
    hidden_BTE = model.base_model(
        input_ids=rows.ids_BT.to(device),
        position_ids=rows.position_BT.to(device),
        attention_mask=rows.sees_B1TT.to(device),
        use_cache=False,
    ).last_hidden_state
    return model.get_output_embeddings()(hidden_BTE[rows.row_N, rows.last_N])
