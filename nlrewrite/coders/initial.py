"""Where a coder's training starts.

In: the spec and the first activations. Out: the weights. Invariant: a function of (spec, activations) alone; the bias
starts as the mean of y, and latents are centred on the mean of x (or, with a tied bias, on that of y).

    constant   encoder rows of unit length over the data's scale; nothing decoded, no skip: the mean alone
    uniform    encoder entries uniform within 1 / root of the width; otherwise the same (the published transcoders)
    tied       the encoder of uniform; the decoder is the encoder with rows of unit length (the published SAEs)
    random     encoder entries uniform within root (6 / latents), as the published ReLU transcoders start; decoder rows
               of unit length, drawn apart
"""

import torch
from torch import Tensor

from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec


def weights(spec: CoderSpec, x_ND: Tensor, y_NE: Tensor) -> dict[str, Tensor]:
    """enc [L, D], enc_bias [L], dec [L, E], dec_bias [E] and, as the spec says, skip [E, D] and threshold [L]."""
    x_ND, y_NE = x_ND.flatten(0, -2).float(), y_NE.flatten(0, -2).float()
    latents, width = spec.width, x_ND.shape[1]
    draws = torch_generator(spec.seed, "coder", "weights")
    if spec.init == "constant":
        enc_LD = torch.nn.functional.normalize(torch.randn(latents, width, generator=draws), dim=-1).to(x_ND.device)
        enc_LD = enc_LD / x_ND.std(0).mean()
    else:
        bound = (6 / latents if spec.init == "random" else 1 / width) ** 0.5
        enc_LD = ((torch.rand(latents, width, generator=draws) * 2 - 1) * bound).to(x_ND.device)
    if spec.init == "tied":
        assert x_ND.shape[1] == y_NE.shape[1], "the spec ties only what has one width"
        dec_LE = torch.nn.functional.normalize(enc_LD, dim=-1)
    elif spec.init == "random":
        dec_LE = torch.randn(latents, y_NE.shape[1], generator=draws).to(x_ND.device)
        dec_LE = torch.nn.functional.normalize(dec_LE, dim=-1)
    else:
        dec_LE = x_ND.new_zeros(latents, y_NE.shape[1])
    named = {
        "enc": enc_LD,
        "enc_bias": x_ND.new_zeros(latents) if spec.tied_bias else -(enc_LD @ x_ND.mean(0)),
        "dec": dec_LE,
        "dec_bias": y_NE.mean(0),
    }
    if spec.skip:
        named["skip"] = x_ND.new_zeros(y_NE.shape[1], width)
    if spec.activation == "jumprelu":
        named["threshold"] = x_ND.new_full((latents,), spec.threshold)
    return named
