"""What is measured of a coder while it learns and when it has: the points of its curve, and what it costs the subject.

In: losses as they come, held-out activations, held-out windows. Out: plain numbers. Invariant: nothing is read from the
device between two points, so that measuring never makes a step wait; nothing measured here was trained on; a coder
that is active all over is read a chunk of rows at a time.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nlrewrite.coders import ops
from nlrewrite.coders.form import Coder


class Measured(Protocol):
    """A loss as far as it is measured: scalars on the device, of the whole batch."""

    @property
    def error(self) -> Tensor: ...

    @property
    def variance(self) -> Tensor: ...

    @property
    def active(self) -> Tensor: ...

    @property
    def penalty(self) -> Tensor: ...

    @property
    def auxk(self) -> Tensor: ...


class Meter:
    """Sums over the steps since the latest point, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self._one = torch.ones((), dtype=torch.float64, device=device)

    def add(self, loss: Measured) -> None:
        each = (loss.error, loss.variance, loss.active, loss.penalty, loss.auxk)
        self.sums += torch.stack([*(one.detach().double() for one in each), self._one])

    def read(self) -> dict[str, float]:
        """Means of a step, and from here on anew."""
        error, variance, active, penalty, auxk, steps = self.sums.tolist()
        self.sums.zero_()
        return {
            "batch_fvu": error / variance if variance else 0.0,
            "l0": active / steps,
            "penalty": penalty / steps,
            "auxk": auxk / steps,
        }


@torch.no_grad()
def fvu(coder: Coder, x_ND: Tensor, y_NE: Tensor) -> float:
    """Fraction of variance unexplained."""
    x_ND, y_NE = x_ND.to(coder.enc_LD.dtype), y_NE.to(coder.dec_LE.dtype)
    error = (written(coder, x_ND) - y_NE).square().sum(dtype=torch.float64)
    return float(error / (y_NE - y_NE.mean(0)).square().sum(dtype=torch.float64))


def written(coder: Coder, x_ND: Tensor) -> Tensor:
    """The coder's reconstruction [N, E]."""
    parts = [coder.decode(coder.encode(part)) for part in _parts(coder, x_ND)]
    return torch.cat(parts).add_(coder.beside(x_ND))


@torch.no_grad()
def fired(coder: Coder, x_ND: Tensor) -> Tensor:
    """[L]: on how many of the tokens each latent is active."""
    counts_L = torch.zeros(coder.latents, dtype=torch.int64, device=x_ND.device)
    for part in _parts(coder, x_ND.to(coder.enc_LD.dtype)):
        code = coder.encode(part)
        counts_L += torch.bincount(code.indices[code.values > 0], minlength=coder.latents)
    return counts_L


def _parts(coder: Coder, x_ND: Tensor) -> Sequence[Tensor]:
    """Some rows at a time, unless it is known that few latents are active on each."""
    if coder.activation == "topk":
        return [x_ND]
    return x_ND.split(ops.chunk_rows(coder.latents, x_ND.device))
