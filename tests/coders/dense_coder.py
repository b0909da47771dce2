"""A coder's loss with all latents of all tokens, in float64 and by ordinary autograd: what to compare with."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlrewrite.specs import CoderSpec


@dataclass
class Dense:
    total: Tensor
    error: Tensor
    variance: Tensor
    active: Tensor
    penalty: Tensor
    auxk: Tensor
    values_NL: Tensor
    gradients: dict[str, Tensor]


class Step(torch.autograd.Function):
    """One above the threshold; the threshold learns in a window about it."""

    @staticmethod
    def forward(ctx: Any, p_NL: Tensor, threshold_L: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(p_NL, threshold_L)
        ctx.bandwidth = bandwidth
        return (p_NL > threshold_L).to(p_NL.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        p_NL, threshold_L = ctx.saved_tensors
        near_NL = ((p_NL - threshold_L).abs() < ctx.bandwidth / 2).to(p_NL.dtype)
        return None, -(grads[0] * near_NL / ctx.bandwidth).sum(0), None


def top(p_NL: Tensor, k: int) -> Tensor:
    """The k largest of each row, negative ones and the rest zero."""
    kept = p_NL.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.relu(p_NL * torch.zeros_like(p_NL).scatter(1, kept, 1.0))


def dense(
    spec: CoderSpec, weights: dict[str, Tensor], x_ND: Tensor, y_NE: Tensor, step: int = 0, dead: Tensor | None = None
) -> Dense:
    own = {name: tensor.detach().double().requires_grad_(True) for name, tensor in weights.items()}
    x_ND, y_NE = x_ND.double(), y_NE.double()
    seen_ND = x_ND - own["dec_bias"] if spec.tied_bias else x_ND
    p_NL = seen_ND @ own["enc"].T + own["enc_bias"]
    if spec.activation == "topk":
        values_NL = top(p_NL, spec.k)
    elif spec.activation == "batchtopk":
        values_NL = top(p_NL.reshape(1, -1), spec.k * len(x_ND)).reshape(p_NL.shape)
    elif spec.activation == "relu":
        values_NL = torch.relu(p_NL)
    else:
        on_NL = Step.apply(p_NL, own["threshold"], spec.bandwidth)
        # the derivative of p H(p - theta) in theta is that of theta H(p - theta): the window stands where p = theta
        values_NL = p_NL * on_NL.detach() + own["threshold"].detach() * (on_NL - on_NL.detach())
    output_NE = values_NL @ own["dec"] + own["dec_bias"]
    if "skip" in own:
        output_NE = output_NE + x_ND @ own["skip"].T
    error_NE = output_NE - y_NE
    centred_NE = y_NE - y_NE.mean(0)
    variance = centred_NE.square().sum()

    def of(error: Tensor) -> Tensor:
        if spec.loss == "squared":
            return error.square().sum(-1).mean()
        if spec.loss == "fvu":
            return error.square().sum() / variance
        return (error.square() / y_NE.norm(dim=-1, keepdim=True)).mean()

    warm = min(1.0, (step + 1) / spec.penalty_warm_up) if spec.penalty_warm_up else 1.0
    penalty = torch.zeros((), dtype=torch.float64)
    if spec.activation == "relu":
        penalty = spec.penalty * warm * values_NL.sum(-1).mean()
    elif spec.activation == "jumprelu":
        penalty = spec.penalty * warm * Step.apply(p_NL, own["threshold"], spec.bandwidth).sum(-1).mean()
    auxk = torch.zeros((), dtype=torch.float64)
    if spec.auxk and dead is not None and dead.any():
        left_NE = error_NE.detach() + top(p_NL[:, dead], min(spec.auxk, int(dead.sum()))) @ own["dec"][dead]
        auxk = left_NE.square().sum() / (error_NE - error_NE.mean(0)).detach().square().sum()
    total = of(error_NE) + penalty + spec.auxk_weight * of(centred_NE).detach() * auxk
    total.backward()
    gradients = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in own.items()}
    active = (values_NL > 0).sum(1).double().mean()
    return Dense(total, error_NE.square().sum(), variance, active, penalty, auxk, values_NL, gradients)
