"""Weights and data of one training step, drawn from a seed, for comparing its loss and gradients across trainers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlrewrite.coders.learned import Learned
from nlrewrite.specs import CoderSpec, Site

Kind = Literal["skip transcoder", "transcoder", "sae"]
KINDS: tuple[Kind, ...] = ("skip transcoder", "transcoder", "sae")
ROWS, D, LATENTS, K = 48, 16, 64, 4
"""Of the golden step: small, and every one of a row's k largest is above zero."""


@dataclass(frozen=True)
class Drawn:
    """A coder as it is trained: an SAE subtracts `dec_bias` from what it reads."""

    kind: Kind
    k: int
    x_ND: Tensor
    y_ND: Tensor
    weights: dict[str, Tensor]
    """enc [L, D], enc_bias [L], dec [L, D], dec_bias [D] and perhaps skip [D, D]."""


def drawn(kind: Kind, rows: int = ROWS, d: int = D, latents: int = LATENTS, k: int = K) -> Drawn:
    """Normal data away from zero; the decoder of an SAE has rows of unit length."""
    draws = torch.Generator().manual_seed(20)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=draws)

    x_ND, y_ND = 0.5 + normal(rows, d), normal(rows, d) - 0.25
    weights = {
        "enc": normal(latents, d, scale=d**-0.5),
        "enc_bias": normal(latents, scale=0.1),
        "dec": normal(latents, d, scale=d**-0.5),
        "dec_bias": normal(d, scale=0.1),
    }
    skip = normal(d, d, scale=1 / d)
    if kind == "skip transcoder":
        weights["skip"] = skip
    if kind == "sae":
        y_ND = x_ND
        weights["dec"] = torch.nn.functional.normalize(weights["dec"], dim=-1)
    return Drawn(kind, k, x_ND, y_ND, weights)


def summary(loss: float, gradients: dict[str, Tensor]) -> dict[str, object]:
    """What a golden file keeps of a step; `some` are the gradient's first numbers, row by row."""
    return {
        "loss": loss,
        "gradients": {
            name: {
                "norm": float(each.double().norm()),
                "sum": float(each.double().sum()),
                "some": [float(f"{number:.9g}") for number in each.flatten()[:24].tolist()],
            }
            for name, each in gradients.items()
        },
    }


def ours(made: Drawn, **changed: object) -> Learned:
    """Our coder that learns, with the weights of `made` and the loss of the published trainer."""
    sae = made.kind == "sae"
    latents, _ = made.weights["enc"].shape
    spec = CoderSpec(
        site=Site(kind="residual" if sae else "mlp"),
        width=latents,
        k=made.k,
        skip="skip" in made.weights,
        batch=len(made.x_ND),
        loss="fvu",
        init="tied" if sae else "uniform",
        unit_decoder=sae,
        tied_bias=sae,
    )
    return Learned(CoderSpec.model_validate(spec.model_dump() | changed), made.weights)


def taught(learned: Learned, made: Drawn) -> tuple[float, dict[str, Tensor]]:
    """The loss, and gradients as the optimizer is given them."""
    loss = learned.loss(made.x_ND, made.y_ND, 0).total
    loss.backward()
    learned.project()
    return float(loss.detach()), {name: weight.grad for name, weight in learned.weights.items()}
