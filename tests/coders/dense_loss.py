"""Losses of a coder written out densely in float64, and how fast they rise along a direction, by finite differences."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tests.coders.one_step import Drawn

Weights = dict[str, Tensor]
STEP = 1e-6


def fvu(made: Drawn, weights: Weights, k: int) -> float:
    """Unexplained share of the variance with the k largest latents of a row, those below zero silent."""
    return float(error(made, weights, k).square().sum() / variance(made))


def auxk(made: Drawn, weights: Weights) -> float:
    """sparsify's: what the largest d / 2 dead latents leave of the error, over the variance; the error stands still.

    Fewer dead latents than that count for less.
    """
    most, some = made.y_ND.shape[1] // 2, int(dead(made).sum())
    return float(min(some / most, 1.0) * _left(made, weights, min(most, some)).square().sum() / variance(made))


def auxk_of_error(made: Drawn, weights: Weights, count: int) -> float:
    """Ours: what the largest `count` dead latents leave of the error, over the error's own variance."""
    still = error(made, made.weights, made.k)
    return float(_left(made, weights, count).square().sum() / (still - still.mean(0)).square().sum())


def error(made: Drawn, weights: Weights, k: int) -> Tensor:
    written = _kept(preactivations(made, weights), k) @ weights["dec"].double() + weights["dec_bias"].double()
    if "skip" in weights:
        written = written + made.x_ND.double() @ weights["skip"].double().T
    return made.y_ND.double() - written


def preactivations(made: Drawn, weights: Weights) -> Tensor:
    x_ND = made.x_ND.double() - (weights["dec_bias"].double() if made.kind == "sae" else 0)
    return x_ND @ weights["enc"].double().T + weights["enc_bias"].double()


def variance(made: Drawn) -> Tensor:
    y_ND = made.y_ND.double()
    return (y_ND - y_ND.mean(0)).square().sum()


def slope(loss: Callable[[Weights], float], weights: Weights, name: str, seed: int = 0) -> float:
    """Central difference of `loss` along `direction` of one weight."""
    along = STEP * direction(weights[name], seed)
    return (loss(weights | {name: weights[name] + along}) - loss(weights | {name: weights[name] - along})) / (2 * STEP)


def direction(weight: Tensor, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(100 + seed)
    drawn = torch.randn(weight.shape, generator=draws, dtype=torch.float64)
    return drawn / drawn.norm()


def dead(made: Drawn) -> Tensor:
    """The second half of the latents."""
    return torch.arange(len(made.weights["enc"])) >= len(made.weights["enc"]) // 2


def with_dead(made: Drawn) -> Drawn:
    """The second half of the latents is above zero on every row, and never among the k largest."""
    bias = made.weights["enc_bias"].clone()
    half = len(bias) // 2
    bias[:half] += 20.0
    bias[half:] += 5.0
    return replace(made, weights=made.weights | {"enc_bias": bias})


def silent(made: Drawn, bias: float = -100.0) -> Drawn:
    """No latent is above zero on any row, or with less bias fewer than k are."""
    return replace(made, weights=made.weights | {"enc_bias": torch.full_like(made.weights["enc_bias"], bias)})


def _kept(before_NL: Tensor, k: int) -> Tensor:
    top = before_NL.topk(k, dim=-1)
    return torch.zeros_like(before_NL).scatter(-1, top.indices, top.values.clamp_min(0.0))


def _left(made: Drawn, weights: Weights, count: int) -> Tensor:
    before_NL = preactivations(made, weights).masked_fill(~dead(made), -torch.inf)
    return error(made, made.weights, made.k) - _kept(before_NL, count) @ weights["dec"].double()
