"""What a coder that learns is asked to make small: the error of what it writes, on one of three scales.

In: y and what was written for it, or sums over a batch. Out: scalars. Invariant: everything is normalised by the whole
batch over all processes, so that the losses of its parts, and their gradients, add up to those of the batch.

    squared    sum over tokens of |y_hat - y|^2 / tokens
    fvu        sum over tokens of |y_hat - y|^2 / sum over tokens of |y - mean y|^2
    relative   sum over tokens of |y_hat - y|^2 / |y| / (tokens x width)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlrewrite.coders.ranks import Ranks

Kind = Literal["squared", "fvu", "relative"]
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Loss:
    """Of one batch. All but `total` are detached and of the batch over all processes."""

    total: Tensor
    """What to differentiate: this process's part; the gradients of all parts add up."""
    error: Tensor
    """Sum of squares of y_hat - y."""
    variance: Tensor
    """Sum of squares of y about its mean."""
    active: Tensor
    """Mean number of latents active on a token."""
    penalty: Tensor
    """L1 norm (relu) or number (jumprelu) of the active latents of a token, weighted; zero for the others."""
    auxk: Tensor
    """Share of the error's variance that the dead latents leave; zero without AuxK or dead latents."""


@dataclass(frozen=True)
class Scale:
    """What a squared error of one of this process's tokens counts."""

    weights: Tensor
    """[N], or [1] for all."""
    variance: Tensor
    """Sum of squares of y about the mean, of all processes."""
    of_mean: Tensor
    """The loss of a coder that writes the mean: one unit of what there is to explain."""


def scale(kind: Kind, y_NE: Tensor, count: int, ranks: Ranks) -> Scale:
    """The scale of a batch of `count` tokens over all processes; y are those of this one."""
    centred_NE, variance = centred(y_NE, count, ranks)
    if kind == "relative":
        norm_N = y_NE.norm(dim=1)
        weights_N = torch.where(norm_N > 0, 1 / (norm_N * (count * y_NE.shape[1])), 0.0)  # y = 0 has no scale
        return Scale(weights_N, variance, ranks.total((centred_NE.square().sum(1) * weights_N).sum()))
    weight = variance.new_tensor(1 / count) if kind == "squared" else 1 / variance.clamp_min(TINY)
    return Scale(weight.view(1), variance, variance * weight)


def centred(y_NE: Tensor, count: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """y less its mean over all processes, and the sum of its squares."""
    centred_NE = y_NE - ranks.total(y_NE.sum(0)) / count
    return centred_NE, ranks.total(centred_NE.square().sum())


def warm(step: int, warm_up: int) -> float:
    """The share of its weight that a penalty has at a step."""
    return min(1.0, (step + 1) / warm_up) if warm_up else 1.0
