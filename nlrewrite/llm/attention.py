"""Attention of many suffixes to one shared prefix and each to itself, in two parts that are merged exactly.

A suffix token sees two sets of keys: the prefix's, which are the same for all, and those of its own suffix. Softmax
over both is the mean of the softmaxes over each, weighted by their partition functions, so that each part needs only
its output and the logarithm of its sum. The prefix part is one matrix product for all suffixes, with the queries of a
group of heads as further rows, so that keys and values are never copied; the own part is a small causal batch.

The function is registered with transformers under NAME and does this where the keyword `packing` is given, by which
the prefix and the map of the row arrive; without it the model attends as under `sdpa`. Invariant: what is returned is
attention over [prefix; own suffix] with the layer's own scaling, to rounding; no state is global.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from nlrewrite.llm.packing import Map

NAME = "nlrewrite_two_part"


# -- keys and values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyValues:
    """Of a text that came before, for each layer [1, KVH, P, D]; keys are rotated to their positions."""

    keys: list[Tensor]
    values: list[Tensor]

    def __len__(self) -> int:
        return int(self.keys[0].shape[2])

    @classmethod
    def empty(cls, layers: int, heads: int, length: int, size: int, like: Tensor) -> "KeyValues":
        keys, values = ([like.new_empty(1, heads, length, size) for _ in range(layers)] for _ in range(2))
        return cls(keys, values)

    def cropped(self, length: int) -> "KeyValues":
        """Those of the text's first tokens, without a copy."""
        return KeyValues([each[:, :, :length] for each in self.keys], [each[:, :, :length] for each in self.values])


@dataclass(frozen=True)
class Own:
    """Keys and values of N suffixes that are being continued, for each layer [N, KVH, room, D], padded on the right."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, layers: int, suffixes: int, heads: int, room: int, size: int, like: Tensor) -> "Own":
        keys, values = ([like.new_zeros(suffixes, heads, room, size) for _ in range(layers)] for _ in range(2))
        return cls(keys, values)

    def at(self, chosen: Tensor) -> "Own":
        return Own([each[chosen] for each in self.keys], [each[chosen] for each in self.values])


# -- what a row attends to --------------------------------------------------------------------------------------------


class Packing(Protocol):
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """[1, S, H, D] for q [1, H, S, D] and k, v [1, KVH, S, D]."""
        ...


@dataclass(frozen=True)
class Growing:
    """The part of one text from token `start`, behind what came before it; `whole` has room for its keys and values."""

    whole: KeyValues
    start: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        out, lse = attention(q, _repeated(k, groups), _repeated(v, groups), scaling, causal=True)
        out_SHD, lse_SH = out[0].transpose(0, 1), lse[0].T
        keys, values = self.whole.keys[layer], self.whole.values[layer]
        if self.start:
            before = over_prefix(q, keys[:, :, : self.start], values[:, :, : self.start], scaling)
            out_SHD = merged(*before, out_SHD, lse_SH)
        keys[:, :, self.start : self.start + k.shape[2]] = k
        values[:, :, self.start : self.start + v.shape[2]] = v
        return out_SHD[None]


@dataclass(frozen=True)
class Suffixes:
    """A packed row of suffixes of one prefix; if they go on, `own` holds their keys and values, from row `first`."""

    map: Map
    prefix: KeyValues | None
    own: Own | None = None
    first: int = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k_NMKD, v_NMKD = self.map.padded(k[0].transpose(0, 1)), self.map.padded(v[0].transpose(0, 1))
        q_NHMD = self.map.padded(q[0].transpose(0, 1)).transpose(1, 2)
        k_NKMD, v_NKMD = k_NMKD.transpose(1, 2), v_NMKD.transpose(1, 2)
        if self.own is not None:
            rows = slice(self.first, self.first + len(self.map))
            longest = int(self.map.lengths_N.max())
            self.own.keys[layer][rows, :, :longest] = k_NKMD[:, :, :longest]
            self.own.values[layer][rows, :, :longest] = v_NKMD[:, :, :longest]
        # padding is on the right, where causal attention of a token that counts never looks
        out, lse = attention(q_NHMD, _repeated(k_NKMD, groups), _repeated(v_NKMD, groups), scaling, causal=True)
        out_SHD = self.map.packed(out.transpose(1, 2))
        if self.prefix is None:
            return out_SHD[None]
        before = over_prefix(q, self.prefix.keys[layer], self.prefix.values[layer], scaling)
        return merged(*before, out_SHD, self.map.packed(lse.transpose(1, 2)))[None]


@dataclass(frozen=True)
class Step:
    """One more token of each of N suffixes: behind the prefix and `before[n]` tokens of its own, fewer than `room`."""

    prefix: KeyValues | None
    own: Own
    before_N: Tensor
    room: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        suffix_N = torch.arange(len(self.before_N), device=q.device)
        keys, values = self.own.keys[layer], self.own.values[layer]
        keys[suffix_N, :, self.before_N] = k[0].transpose(0, 1)
        values[suffix_N, :, self.before_N] = v[0].transpose(0, 1)
        seen_NM = torch.arange(self.room, device=q.device) <= self.before_N[:, None]
        q_NKGD = q[0].transpose(0, 1).unflatten(1, (keys.shape[1], -1))
        out, lse = _in_full(q_NKGD, keys[:, :, : self.room], values[:, :, : self.room], scaling, seen_NM[:, None, None])
        out_NHD, lse_NH = out.flatten(1, 2), lse.flatten(1, 2)
        if self.prefix is None:
            return out_NHD[None]
        before = over_prefix(q, self.prefix.keys[layer], self.prefix.values[layer], scaling)
        return merged(*before, out_NHD, lse_NH)[None]


def over_prefix(q: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of q [1, H, S, D] to all of a prefix: output [S, H, D] and log-sum [S, H]."""
    _, heads, length, size = q.shape
    key_heads = keys.shape[1]
    rows = q.reshape(1, key_heads, heads // key_heads * length, size)  # heads of a group are neighbours
    out, lse = attention(rows, keys, values, scaling, causal=False)
    return out.reshape(heads, length, size).transpose(0, 1), lse.reshape(heads, length).T


def merged(out_SHD: Tensor, lse_SH: Tensor, other_SHD: Tensor, other_lse_SH: Tensor) -> Tensor:
    """Attention over the union of two sets of keys, from what each set alone gives."""
    share_SH = torch.sigmoid(other_lse_SH - lse_SH)  # float32, and so is the sum: a rounded share would cost accuracy
    return torch.lerp(out_SHD.float(), other_SHD.float(), share_SH[..., None]).to(out_SHD.dtype)


def _repeated(heads_first: Tensor, groups: int) -> Tensor:
    return heads_first if groups == 1 else heads_first.repeat_interleave(groups, dim=1)


# -- kernels ----------------------------------------------------------------------------------------------------------


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """What `attention` runs there, in words, for provenance."""
    if device.type == "cpu":
        return "aten flash attention for the CPU"
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "aten flash attention for CUDA"
    return "matrix products and softmax"


def attention(q: Tensor, k: Tensor, v: Tensor, scaling: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Output [B, H, Q, D] and log of the sum of exponentials of the scaled scores, float32 [B, H, Q]."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scaling)
    elif q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16):
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scaling)
        out, lse = found[0], found[1]
    else:
        causal_QM = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril() if causal else None
        out, lse = _in_full(q, k, v, scaling, causal_QM)
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32
    return out, lse


def _in_full(q: Tensor, k: Tensor, v: Tensor, scaling: float, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same by plain products, over the keys that are `seen`."""
    scores = (q.float() @ k.float().transpose(-1, -2)) * scaling
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return (torch.exp(scores - lse[..., None]) @ v.float()).to(q.dtype), lse


# -- transformers' registry -------------------------------------------------------------------------------------------


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """What a layer calls."""
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **given)
    assert attention_mask is None and not module.training
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packing.attend(cast(int, module.layer_idx), query, key, value, scale), None


def register() -> None:
    """Make NAME known to transformers, which finds attention functions and their masks by name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
