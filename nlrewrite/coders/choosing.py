"""Which latents of a batch a coder that learns looks at: the pairs to compute with, without gradients.

In: rows of x and an encoder. Out: `Pairs`: latents and their pre-activations, row after row. Invariant: tokens x
latents never exists, only a chunk of rows at a time; a choice over the whole batch is exact, over all processes too,
and ties fall to the earlier row. The encoder may multiply in bfloat16: then it only chooses, from x about its mean
(few bits would else go into what all rows share), and what was chosen is computed again in float32.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nlrewrite.coders import ops
from nlrewrite.coders.ranks import Ranks

DENSE = {"cpu": ops.DENSE, "cuda": 1 / 100}
"""Share of all latents from which on a batch is better computed whole than pair by pair. Measured on a CPU: 0.16 to
0.27; for a GPU computed from the bytes of a row and the operations of a product."""
PAIRS = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Pairs of one batch at most, of some 60 bytes each on the way to the gradients; more are computed whole as well."""


@dataclass(frozen=True)
class Pairs:
    """Latents of N rows and their pre-activations; those of row n are `offsets[n]:offsets[n + 1]`."""

    indices: Tensor
    """[P] int64"""
    before_P: Tensor
    offsets: Tensor
    """[N + 1] int64"""


def largest(x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor, k: int, dtype: torch.dtype) -> Pairs:
    """The k largest of every row."""
    values_NK = x_ND.new_empty(len(x_ND), k)
    indices_NK = torch.empty(len(x_ND), k, dtype=torch.int64, device=x_ND.device)
    for rows, p_NL in ops.encoded(*_rounded(x_ND, enc_LD, bias_L, dtype)):
        values_NK[rows], indices_NK[rows] = ops.topk(p_NL, k)
    offsets = torch.arange(0, len(x_ND) * k + 1, k, device=x_ND.device)
    return _exact(x_ND, enc_LD, bias_L, Pairs(indices_NK.view(-1), values_NK.view(-1), offsets), dtype)


def above(x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor, bound_L: Tensor, dtype: torch.dtype) -> Pairs | None:
    """Those above their bound; nothing where they are so many that a product of all is quicker, or smaller."""
    kind, found = x_ND.device.type, [_none(x_ND)]
    share = min(DENSE[kind], PAIRS[kind] / max(1, len(x_ND) * len(enc_LD)))
    for rows, p_NL in ops.encoded(*_rounded(x_ND, enc_LD, bias_L, dtype)):
        row, latent = ops.above(p_NL, bound_L)
        if rows.start == 0 and len(row) > share * p_NL.numel():
            return None
        found.append((row + rows.start, latent, p_NL[row, latent]))
    return _exact(x_ND, enc_LD, bias_L, _pairs(found, x_ND), dtype)


def batch_largest(
    x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor, most: int, dtype: torch.dtype, ranks: Ranks, guess: float = 0.0
) -> Pairs:
    """The positive ones among the `most` largest of the batch over all processes.

    What is found does not depend on `guess`: if more than `most` exceed it, no other needs to be looked at.
    """
    rounded = _rounded(x_ND, enc_LD, bias_L, dtype)
    pairs = _candidates(*rounded, most, guess)
    if guess > 0 and int(ranks.total(torch.tensor(len(pairs.indices), device=x_ND.device))) < most:
        pairs = _candidates(*rounded, most, 0.0)
    return _exact(x_ND, enc_LD, bias_L, _only(pairs, _batch_mask(pairs.before_P, most, ranks)), dtype)


def _rounded(x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, encoder and bias with the same pre-activations, as they are multiplied in a lower precision."""
    if dtype == enc_LD.dtype:
        return x_ND, enc_LD, bias_L
    mean_D = x_ND.mean(0)
    return x_ND - mean_D, enc_LD.to(dtype), (bias_L + enc_LD @ mean_D).to(dtype)


def _candidates(x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor, most: int, bound: float) -> Pairs:
    """Those above the bound that can be among the `most` largest."""
    found, held, bound_1 = [_none(x_ND)], 0, x_ND.new_full((1,), bound)
    for rows, p_NL in ops.encoded(x_ND, enc_LD, bias_L):
        row, latent = ops.above(p_NL, bound_1)
        found.append((row + rows.start, latent, p_NL[row, latent]))
        held += len(row)
        if held > 2 * most:
            found = [_kept(found, _least(torch.cat([value for _, _, value in found]), most))]
            held = len(found[0][0])
            bound_1 = torch.nextafter(found[0][2].min().float(), x_ND.new_zeros((), dtype=torch.float32)).view(1)
    return _pairs(found, x_ND)


def _none(x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none = x_ND.new_empty(0, dtype=torch.int64)
    return none, none, x_ND.new_empty(0)


def _batch_mask(values_P: Tensor, most: int, ranks: Ranks) -> Tensor:
    """Which are among the `most` largest positive values of all processes; of equal ones those of earlier ranks."""
    bits = values_P.float().view(torch.int32)  # positive floats are ordered as their bits
    low, high = bits.new_zeros((), dtype=torch.int64), bits.new_full((), 0x7F800000, dtype=torch.int64)
    for _ in range(32):  # the least bound that at most `most` exceed
        middle = (low + high) // 2
        fits = ranks.total((bits > middle).sum()) <= most
        low, high = torch.where(fits, low, middle + 1).minimum(high), torch.where(fits, middle, high)
    larger, equal = bits > high, bits == high
    before = torch.zeros_like(high)
    if ranks.world > 1:
        before = ranks.gathered(equal.sum().view(1))[: ranks.rank].sum()
    room = most - ranks.total(larger.sum()) - before
    return larger | (equal & (equal.cumsum(0) <= room))


def _least(values_P: Tensor, most: int) -> Tensor:
    """The `most`-th largest."""
    if values_P.is_cuda or values_P.dtype != torch.float32:
        return torch.topk(values_P.float(), most, sorted=False).values.min().to(values_P.dtype)
    place = len(values_P) - most
    return torch.from_numpy(np.partition(values_P.numpy(), place)[place : place + 1])[0]


def _kept(found: list[tuple[Tensor, Tensor, Tensor]], least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row, latent, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = value >= least
    return row[kept], latent[kept], value[kept]


def _pairs(found: list[tuple[Tensor, Tensor, Tensor]], x_ND: Tensor) -> Pairs:
    row, latent, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Pairs(latent, value, _offsets(row, len(x_ND)))


def _only(pairs: Pairs, mask_P: Tensor) -> Pairs:
    row = ops.rows_of(pairs.offsets)[mask_P]
    return Pairs(pairs.indices[mask_P], pairs.before_P[mask_P], _offsets(row, len(pairs.offsets) - 1))


def _offsets(row_P: Tensor, rows: int) -> Tensor:
    ends = torch.searchsorted(row_P, torch.arange(rows, device=row_P.device), right=True)
    return torch.cat([ends.new_zeros(1), ends])


def _exact(x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor, pairs: Pairs, dtype: torch.dtype) -> Pairs:
    """The same pairs with values in the precision of the weights."""
    if dtype == enc_LD.dtype:
        return pairs
    with torch.no_grad():
        before_P = ops.dots(pairs.indices, pairs.offsets, x_ND, enc_LD) + bias_L[pairs.indices]
    return Pairs(pairs.indices, before_P, pairs.offsets)
