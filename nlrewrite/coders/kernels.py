"""The sparse primitives of a coder on a GPU: bag, dots and unbag in Triton, and an exact top-k in two stages.

In: a ragged code (pairs of a latent and its value, row after row) and matrices, on the GPU. Out: the same as the
operations of the CPU, summed in float32. Invariant: nothing is left to chance or to the order in which programs run (no
atomics), so that equal calls give equal bits, and nothing waits for the GPU. This module is imported only where a
tensor is on a GPU; that Triton could be imported decides nothing.
"""
# pyright: reportMissingParameterType=false

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 256
"""Columns of a row that one program takes: any width is a number of such blocks, where one block of the whole row would
be padded to a power of two (a quarter of the lanes idle at 768)."""
PAIRS = 8
"""Pairs whose rows one program reads at the same time; their sums are joined once, behind the last of them."""
WARPS = 4
PIECE = 128
"""Pairs of one latent that one program sums. A latent that is active on every token is cut into many pieces, not left
to one program: the tail of a kernel that gives each latent to one."""


# -- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def bag_kernel(values, indices, offsets, weight, out, width, COLUMNS: tl.constexpr, PAIRS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    total = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for at in range(first, last, PAIRS):
        pairs = at + tl.arange(0, PAIRS)
        there = pairs < last
        latents = tl.load(indices + pairs, mask=there, other=0).to(tl.int64)
        shares = tl.load(values + pairs, mask=there, other=0.0).to(tl.float32)
        mask = there[:, None] & inside[None, :]
        rows = tl.load(weight + latents[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        total += shares[:, None] * rows
    tl.store(out + row * width + columns, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def dots_kernel(indices, offsets, given, weight, out, width, COLUMNS: tl.constexpr, PAIRS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    for at in range(first, last, PAIRS):
        pairs = at + tl.arange(0, PAIRS)
        there = pairs < last
        latents = tl.load(indices + pairs, mask=there, other=0).to(tl.int64)
        total = tl.zeros([PAIRS, COLUMNS], tl.float32)
        for start in range(0, width, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < width
            mask = there[:, None] & inside[None, :]
            rows = tl.load(weight + latents[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            total += rows * tl.load(given + row * width + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        tl.store(out + pairs, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=there)


@triton.jit
def pieces_kernel(
    values,
    given,
    order,
    rows,
    starts,
    owners,
    firsts,
    out,
    partial,
    width,
    latents,
    PIECE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    latent = tl.load(owners + piece)
    if latent < latents:
        begin, end = tl.load(starts + latent), tl.load(starts + latent + 1)
        first = begin + (piece - tl.load(firsts + latent)) * PIECE
        last = tl.minimum(first + PIECE, end)
        total = tl.zeros([PAIRS, COLUMNS], tl.float32)
        for at in range(first, last, PAIRS):
            places = at + tl.arange(0, PAIRS)
            there = places < last
            pairs = tl.load(order + places, mask=there, other=0)
            shares = tl.load(values + pairs, mask=there, other=0.0).to(tl.float32)
            tokens = tl.load(rows + pairs, mask=there, other=0).to(tl.int64)
            mask = there[:, None] & inside[None, :]
            read = tl.load(given + tokens[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            total += shares[:, None] * read
        whole = tl.sum(total, axis=0)
        if end - begin > PIECE:
            tl.store(partial + piece * width + columns, whole, mask=inside)
        else:
            tl.store(out + latent * width + columns, whole.to(out.dtype.element_ty), mask=inside)


@triton.jit
def join_kernel(starts, firsts, partial, out, width, PIECE: tl.constexpr, COLUMNS: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    count = tl.load(starts + latent + 1) - tl.load(starts + latent)
    if count > PIECE:
        first = tl.load(firsts + latent)
        total = tl.zeros([COLUMNS], tl.float32)
        for piece in range(first, first + (count + PIECE - 1) // PIECE):
            total += tl.load(partial + piece * width + columns, mask=inside, other=0.0)
        tl.store(out + latent * width + columns, total.to(out.dtype.element_ty), mask=inside)


# -- operations -------------------------------------------------------------------------------------------------------


def bag(values_P: "Tensor", indices_P: "Tensor", offsets: "Tensor", weight_LD: "Tensor") -> "Tensor":
    """[N, D]: the rows of `weight_LD` that each row's pairs name, times their values, summed."""
    count, width = len(offsets) - 1, weight_LD.shape[1]
    out_ND = weight_LD.new_empty(count, width)
    if out_ND.numel():
        arguments = (values_P.contiguous(), indices_P.contiguous(), offsets.contiguous(), weight_LD.contiguous())
        _start(bag_kernel, (count, _blocks(width)), *arguments, out_ND, width, COLUMNS=COLUMNS, PAIRS=PAIRS)
    return out_ND


def dots(indices_P: "Tensor", offsets: "Tensor", given_ND: "Tensor", weight_LD: "Tensor") -> "Tensor":
    """[P]: for each pair the product of its row of `given_ND` and its latent's row of `weight_LD`."""
    count, width = given_ND.shape
    out_P = given_ND.new_empty(len(indices_P))
    if out_P.numel():
        arguments = (indices_P.contiguous(), offsets.contiguous(), given_ND.contiguous(), weight_LD.contiguous())
        _start(dots_kernel, (count,), *arguments, out_P, width, COLUMNS=COLUMNS, PAIRS=PAIRS)
    return out_P


@dataclass(frozen=True)
class Sorted:
    """Pairs by latent, and inside a latent by row; cut into pieces of which each is one program's. S pieces at most."""

    order_P: "Tensor"
    rows_P: "Tensor"
    """The row of each pair, in the code's own order."""
    starts: "Tensor"
    """[L + 1]: where each latent's pairs start in `order_P`."""
    owners_S: "Tensor"
    """The latent of each piece; L where there is no such piece."""
    firsts_L: "Tensor"
    """The first piece of each latent."""
    piece: int


def by_latent(indices_P: "Tensor", offsets: "Tensor", latents: int, piece: int = PIECE) -> Sorted:
    """What `unbag` needs to know of a code. Nothing here waits for the GPU."""
    device, pairs = indices_P.device, len(indices_P)
    sorted_P, order_P = torch.sort(indices_P.to(torch.int32), stable=True)
    starts = torch.searchsorted(sorted_P, torch.arange(latents + 1, dtype=torch.int32, device=device))
    last_L = ((starts.diff() + piece - 1) // piece).cumsum(0)
    firsts_L = torch.cat([last_L.new_zeros(1), last_L[:-1]])
    most = pairs // piece + min(latents, pairs)  # how many there are is known to the GPU alone
    owners_S = torch.searchsorted(last_L, torch.arange(most, device=device), right=True)
    rows = torch.arange(len(offsets) - 1, device=device)
    rows_P = torch.repeat_interleave(rows, offsets.diff(), output_size=pairs)
    return Sorted(order_P, rows_P, starts, owners_S, firsts_L, piece)


def unbag(
    values_P: "Tensor",
    indices_P: "Tensor",
    offsets: "Tensor",
    given_ND: "Tensor",
    latents: int,
    by: Sorted | None = None,
) -> "Tensor":
    """[L, D]: for each latent the rows of `given_ND` on which it is active, times its values there, summed."""
    width = given_ND.shape[1]
    out_LD = given_ND.new_zeros(latents, width)
    if not len(indices_P) or not width:
        return out_LD
    by = by or _sorted_once(indices_P, offsets, latents)
    partial_SD = given_ND.new_empty(len(by.owners_S), width, dtype=torch.float32)
    blocks = _blocks(width)
    pieces, joined = (len(by.owners_S), blocks), (latents, blocks)
    arguments = (
        values_P.contiguous(),
        given_ND.contiguous(),
        by.order_P,
        by.rows_P,
        by.starts,
        by.owners_S,
        by.firsts_L,
    )
    sizes = {"PIECE": by.piece, "COLUMNS": COLUMNS}
    _start(pieces_kernel, pieces, *arguments, out_LD, partial_SD, width, latents, PAIRS=PAIRS, **sizes)
    _start(join_kernel, joined, by.starts, by.firsts_L, partial_SD, out_LD, width, **sizes)
    return out_LD


_latest: "tuple[Tensor, Tensor, int, int, Sorted] | None" = None


def _sorted_once(indices_P: "Tensor", offsets: "Tensor", latents: int) -> Sorted:
    """The two matrices of a coder are taught by one code, one after the other: its pairs are sorted for both."""
    global _latest
    if indices_P.is_inference():  # which count no changes
        return by_latent(indices_P, offsets, latents)
    if _latest is not None:
        indices, rows, version, width, by = _latest  # held on to, so that their memory can be no other tensor's
        same = indices.data_ptr() == indices_P.data_ptr() and rows.data_ptr() == offsets.data_ptr()
        if same and indices.shape == indices_P.shape and width == latents and version == indices_P._version:
            return by
    by = by_latent(indices_P, offsets, latents)
    _latest = indices_P.detach(), offsets, indices_P._version, latents, by
    return by


def topk(p_NL: "Tensor", k: int) -> "tuple[Tensor, Tensor]":
    """The k largest of each row and where they are, in no order.

    In two stages, each entry of a row is read once: an entry outside the k groups with the largest maxima is no larger
    than k entries inside them.
    """
    latents = p_NL.shape[1]
    size = group(latents, k)
    if size == 1:
        found = torch.topk(p_NL, k, dim=-1, sorted=False)
        return found.values, found.indices
    groups = latents // size  # latent l belongs to group l mod groups, so that neighbours are compared side by side
    maxima = p_NL.unflatten(1, (size, groups)).amax(1)
    chosen_NK = torch.topk(maxima, k, dim=-1, sorted=False).indices
    members = torch.arange(size, device=p_NL.device) * groups
    candidates = (chosen_NK[:, :, None] + members).flatten(1)
    found = torch.topk(p_NL.gather(1, candidates), k, dim=-1, sorted=False)
    return found.values, candidates.gather(1, found.indices)


@cache
def group(latents: int, k: int) -> int:
    """Latents in a group of the first stage: near the root of latents / k, where both stages sort as few; 1: no groups.

    Only a divisor of the number of latents that leaves at least k groups is one.
    """
    best = (latents / k) ** 0.5
    possible = [size for size in range(2, int(4 * best) + 1) if latents % size == 0 and latents // size >= k]
    return min(possible, key=lambda size: max(size / best, best / size), default=1)


def _blocks(width: int) -> int:
    return -(-width // COLUMNS)


def _start(kernel: Any, grid: tuple[int, ...], first: "Tensor", *arguments: Any, **sizes: int) -> None:
    """Run a kernel on the GPU of its tensors, which need not be the one that is current."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *arguments, **sizes, num_warps=WARPS)
