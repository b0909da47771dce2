"""The sparse algebra of coders: what latents write, what writing teaches them, and which of them are the largest.

In: pairs (value, latent) of N rows as a `Code` has them (row n's are `offsets[n]:offsets[n + 1]`), and tables. Out:
dense rows, tables or one number a pair. Invariant: `bag`, `unbag` and `dots` are the three derivatives of one form,
sum over pairs p of values[p] * <g[row of p], W[latent of p]>, so that each is differentiated by the other two, to any
order; every sum is taken in a fixed order, in float32 or wider; nothing of the size pairs x width exists.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

DENSE = 1 / 8
"""Share of all latents from which on pairs cost more one by one than all latents by a dense product (CPU). Measured:
a pair takes 11 (bag) to 33 ns (dots) at width 256, an entry of a dense product 2.2 to 5."""
DENSE_ENTRIES = 1 << 21  # entries of a dense chunk
AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Entries of one chunk of rows x latents: in a processor's cache, or a part of a GPU's memory."""
LEAST_ROWS = 64  # in a chunk, for a product of fewer waits for the weights
GROUPED = (32, 16, 8, 4)  # sizes of group to try in `topk`, the best first
SERIAL_THREADS = 4  # up to so many threads `topk` by groups, of which a part runs on one, beats that of torch


def bag(values_P: Tensor, indices_P: Tensor, offsets: Tensor, W_LD: Tensor) -> Tensor:
    """[N, D]: for every row the sum of values[p] W[latent of p] over its pairs."""
    return _Bag.apply(values_P, indices_P, offsets, W_LD)  # type: ignore[no-any-return]


def unbag(values_P: Tensor, indices_P: Tensor, offsets: Tensor, g_ND: Tensor, L: int) -> Tensor:
    """[L, D]: for every latent the sum of values[p] g[row of p] over the pairs that name it."""
    return _Unbag.apply(values_P, indices_P, offsets, g_ND, L)  # type: ignore[no-any-return]


def dots(indices_P: Tensor, offsets: Tensor, g_ND: Tensor, W_LD: Tensor) -> Tensor:
    """[P]: the inner product <g[row of p], W[latent of p]> of every pair."""
    return _Dots.apply(indices_P, offsets, g_ND, W_LD)  # type: ignore[no-any-return]


def topk(p_NL: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and where they are, [N, K] both, in no order; no gradient.

    The k-th largest of the maxima of groups of columns is no more than the k-th largest of all, so whatever reaches it
    is enough to choose from: little more than k. Rows for which that fails (ties, NaN) are chosen from whole.
    """
    p_NL = p_NL.detach()
    if p_NL.is_cuda:
        from nlrewrite.coders import kernels

        return kernels.topk(p_NL, k)
    group = next((size for size in GROUPED if p_NL.shape[1] // size >= 2 * k), 0)
    if group == 0 or torch.get_num_threads() > SERIAL_THREADS:
        return _plain_topk(p_NL, k)
    if p_NL.dtype not in (torch.float32, torch.float64):
        values, indices = topk(p_NL.float(), k)
        return values.to(p_NL.dtype), indices
    rows, latents = p_NL.shape
    groups = latents // group
    top = p_NL[:, : groups * group].unflatten(1, (group, groups)).amax(1).numpy()
    p = p_NL.contiguous().numpy()
    found = np.flatnonzero(p >= np.partition(top, groups - k, -1)[:, groups - k, None])
    row = found // latents
    counts = np.bincount(row, minlength=rows)
    most = int(counts.max(initial=k))
    if counts.min(initial=k) < k or most > 8 * k + 64:
        return _plain_topk(p_NL, k)
    place = np.arange(len(found)) + np.repeat(np.arange(rows) * most - (np.cumsum(counts) - counts), counts)
    values, indices = np.full(rows * most, -np.inf, p.dtype), np.zeros(rows * most, np.int64)
    values[place], indices[place] = p.reshape(-1)[found], found - row * latents
    values, indices = values.reshape(rows, most), indices.reshape(rows, most)
    kept = np.argpartition(values, most - k, -1)[:, most - k :]
    return tuple(torch.from_numpy(np.take_along_axis(each, kept, 1)) for each in (values, indices))  # type: ignore


def above(p_NL: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Where p exceeds what `bound` (of a shape that goes with it) says: rows and columns [P] both, row after row."""
    latents = p_NL.shape[1]
    if p_NL.is_cuda or p_NL.dtype not in (torch.float32, torch.float64):
        found = (p_NL > bound).view(-1).nonzero().view(-1)
    else:
        found = torch.from_numpy(np.flatnonzero(p_NL.detach().numpy() > bound.detach().numpy()))
    rows = found // latents
    return rows, found - rows * latents


def tally(values_P: Tensor, indices_P: Tensor, offsets: Tensor, L: int) -> Tensor:
    """[L]: for every latent the sum of the values of the pairs that name it; no gradient."""
    if values_P.is_cuda:  # index_add is not deterministic there
        return unbag(values_P, indices_P, offsets, values_P.new_ones(len(offsets) - 1, 1), L).view(-1)
    return values_P.new_zeros(L).index_add_(0, indices_P, values_P)


def chunk_rows(latents: int, device: torch.device) -> int:
    """How many rows are encoded at a time."""
    return max(LEAST_ROWS, AT_ONCE[device.type] // latents)


def encoded(x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The pre-activations x W' + b of some rows at a time; each chunk overwrites the one before it."""
    at_once = min(chunk_rows(len(enc_LD), x_ND.device), max(1, len(x_ND)))
    buffer = enc_LD.new_empty(at_once, len(enc_LD))
    for start in range(0, len(x_ND), at_once):
        rows = slice(start, min(start + at_once, len(x_ND)))
        p_NL = buffer[: rows.stop - start]
        with torch.no_grad():  # not over the yield, or the caller would compute without gradients as well
            part_ND = x_ND[rows].to(enc_LD.dtype)
            if p_NL.is_cuda or p_NL.dtype == torch.bfloat16:
                torch.addmm(bias_L, part_ND, enc_LD.T, out=p_NL)
            else:  # a tenth faster on a CPU, which would spread the bias over the chunk first
                torch.mm(part_ND, enc_LD.T, out=p_NL).add_(bias_L)
        yield rows, p_NL


def rows_of(offsets: Tensor) -> Tensor:
    """[P]: the row of each pair."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets[1:] - offsets[:-1])


def dense(pairs: int, rows: int, latents: int) -> bool:
    """Whether so many pairs are better multiplied as if all latents had a value (CPU)."""
    return pairs > DENSE * rows * latents


def _plain_topk(p_NL: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = torch.topk(p_NL, k, dim=-1, sorted=False)
    return found.values, found.indices


# -- the three, as they are computed ----------------------------------------------------------------------------------


def _bag(values_P: Tensor, indices_P: Tensor, offsets: Tensor, W_LD: Tensor) -> Tensor:
    if values_P.is_cuda:
        from nlrewrite.coders import kernels

        return kernels.bag(values_P, indices_P, offsets, W_LD)
    wide = _wide(W_LD)
    values_P = values_P.to(wide.dtype)
    if dense(len(values_P), len(offsets) - 1, len(W_LD)):
        out = torch.cat([chunk @ wide for chunk, _ in _chunks(values_P, indices_P, offsets, len(W_LD))])
    else:
        out = _summed(indices_P, wide, offsets, values_P)
    return out.to(W_LD.dtype)


def _unbag(values_P: Tensor, indices_P: Tensor, offsets: Tensor, g_ND: Tensor, L: int) -> Tensor:
    if values_P.is_cuda:
        from nlrewrite.coders import kernels

        return kernels.unbag(values_P, indices_P, offsets, g_ND, L)
    wide = _wide(g_ND)
    values_P = values_P.to(wide.dtype)
    if dense(len(values_P), len(offsets) - 1, L):
        out = wide.new_zeros(L, g_ND.shape[1])
        for chunk, rows in _chunks(values_P, indices_P, offsets, L):
            out.addmm_(chunk.T, wide[rows])
    else:  # the same sum as bag's, seen from the latents
        order = torch.argsort(indices_P, stable=True)
        ends = torch.cumsum(torch.bincount(indices_P, minlength=L), 0)
        latent_offsets = torch.cat([ends.new_zeros(1), ends])
        out = _summed(rows_of(offsets)[order], wide, latent_offsets, values_P[order])
    return out.to(g_ND.dtype)


def _dots(indices_P: Tensor, offsets: Tensor, g_ND: Tensor, W_LD: Tensor) -> Tensor:
    if g_ND.is_cuda:
        from nlrewrite.coders import kernels

        return kernels.dots(indices_P, offsets, g_ND, W_LD)
    g, W = _wide(g_ND), _wide(W_LD)
    rows = rows_of(offsets)
    if dense(len(indices_P), len(g), len(W)):
        at_once = max(1, DENSE_ENTRIES // len(W))
        parts: list[Tensor] = []
        for start in range(0, len(g), at_once):
            stop = min(start + at_once, len(g))
            pairs = slice(int(offsets[start]), int(offsets[stop]))
            parts.append((g[start:stop] @ W.T)[rows[pairs] - start, indices_P[pairs]])
        out = torch.cat(parts)
    elif len(indices_P) == 0:
        out = g.new_zeros(0)
    else:
        out = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            g.contiguous(), W.contiguous(), indices_P, offsets, rows, 0, -1
        )
    return out.to(g_ND.dtype)


def _summed(indices_P: Tensor, table: Tensor, offsets: Tensor, values_P: Tensor) -> Tensor:
    if len(indices_P) == 0:
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    return torch.nn.functional.embedding_bag(
        indices_P, table, offsets, mode="sum", per_sample_weights=values_P, include_last_offset=True
    )


def _chunks(values_P: Tensor, indices_P: Tensor, offsets: Tensor, latents: int) -> Iterator[tuple[Tensor, slice]]:
    """Some rows at a time, each with the values of all latents."""
    rows, count, at_once = rows_of(offsets), len(offsets) - 1, max(1, DENSE_ENTRIES // latents)
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        pairs = slice(int(offsets[start]), int(offsets[stop]))
        chunk = values_P.new_zeros(stop - start, latents)
        chunk.index_put_((rows[pairs] - start, indices_P[pairs]), values_P[pairs], accumulate=True)
        yield chunk, slice(start, stop)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


# -- and as they are differentiated -----------------------------------------------------------------------------------


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_P: Tensor, indices_P: Tensor, offsets: Tensor, W_LD: Tensor) -> Tensor:
        ctx.save_for_backward(values_P, indices_P, offsets, W_LD)
        return _bag(values_P, indices_P, offsets, W_LD)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        values_P, indices_P, offsets, W_LD = ctx.saved_tensors
        (g_ND,) = grads
        values = dots(indices_P, offsets, g_ND, W_LD) if ctx.needs_input_grad[0] else None
        table = unbag(values_P, indices_P, offsets, g_ND, len(W_LD)) if ctx.needs_input_grad[3] else None
        return values, None, None, table


class _Unbag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_P: Tensor, indices_P: Tensor, offsets: Tensor, g_ND: Tensor, L: int) -> Tensor:
        ctx.save_for_backward(values_P, indices_P, offsets, g_ND)
        return _unbag(values_P, indices_P, offsets, g_ND, L)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        values_P, indices_P, offsets, g_ND = ctx.saved_tensors
        (table_LD,) = grads
        values = dots(indices_P, offsets, g_ND, table_LD) if ctx.needs_input_grad[0] else None
        rows = bag(values_P, indices_P, offsets, table_LD) if ctx.needs_input_grad[3] else None
        return values, None, None, rows, None


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices_P: Tensor, offsets: Tensor, g_ND: Tensor, W_LD: Tensor) -> Tensor:
        ctx.save_for_backward(indices_P, offsets, g_ND, W_LD)
        return _dots(indices_P, offsets, g_ND, W_LD)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        indices_P, offsets, g_ND, W_LD = ctx.saved_tensors
        (values_P,) = grads
        rows = bag(values_P, indices_P, offsets, W_LD) if ctx.needs_input_grad[2] else None
        table = unbag(values_P, indices_P, offsets, g_ND, len(W_LD)) if ctx.needs_input_grad[3] else None
        return None, None, rows, table
