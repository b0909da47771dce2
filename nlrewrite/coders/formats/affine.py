"""What others do to a coder's input and output by a constant, taken into its weights.

In: canonical weights, and a bias that is subtracted from what is read, or a factor it is multiplied by. Out: weights
that do the same to what is read as it stands. Invariant: sums are made in double precision, so that folding and
unfolding agree to the last place or the one before; no whole matrix is held twice.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nlrewrite.coders.form import Coder

AT_ONCE = 1 << 20


def projected(enc_LD: Tensor, shift_D: Tensor) -> Tensor:
    """W_enc c in double precision, some rows at a time."""
    rows, shift_D = max(1, AT_ONCE // max(1, enc_LD.shape[1])), shift_D.double()
    # One buffer and one result: what is allocated by turns leaves holes that the allocator does not always fill.
    found_L = torch.empty(len(enc_LD), dtype=torch.float64)
    buffer = torch.empty(min(rows, len(enc_LD)), enc_LD.shape[1], dtype=torch.float64)
    for part_RD, found_R in zip(enc_LD.split(rows), found_L.split(rows), strict=True):
        torch.mv(buffer[: len(part_RD)].copy_(part_RD), shift_D, out=found_R)
    return found_L


def reading_less(coder: Coder, shift_D: Tensor) -> Coder:
    """The coder that reads x, from one that reads x - c: b_enc - W_enc c."""
    bias_L = coder.enc_bias_L.double() - projected(coder.enc_LD, shift_D)
    return replace(coder, enc_bias_L=bias_L.to(coder.enc_bias_L.dtype))


def reading_more(coder: Coder, shift_D: Tensor) -> Coder:
    """The coder that reads x - c, from one that reads x."""
    return reading_less(coder, -shift_D)


def scaled_input(coder: Coder, factor: float) -> Coder:
    """The coder of x, from an autoencoder of `factor` x whose output is divided by the factor again.

    A skip term stays as it is. Changes the weights it is given.
    """
    coder.enc_LD.mul_(factor)
    coder.dec_LE.div_(factor)
    coder.dec_bias_E.div_(factor)
    return coder


def scaled_latents(coder: Coder, factor_L: Tensor) -> Coder:
    """The same map with latents of other sizes: each pre-activation times its factor, each decoder row divided by it.

    What is chosen among the latents is chosen by the new sizes. A latent of factor 0 is silent. Changes the weights.
    """
    coder.enc_LD.mul_(factor_L[:, None])
    coder.enc_bias_L.mul_(factor_L)
    coder.dec_LE.div_(torch.where(factor_L == 0, 1, factor_L)[:, None])
    return coder
