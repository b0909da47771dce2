"""What a coder writes, computed the long way: every latent of every row, without codes or kernels."""

import torch
from torch import Tensor

from nlrewrite.coders.form import Coder


def active(coder: Coder, x_ND: Tensor) -> Tensor:
    """Values of all latents, [N, L]; zero where one is not active."""
    p_NL = x_ND @ coder.enc_LD.T + coder.enc_bias_L
    if coder.activation == "topk":
        kept = torch.zeros_like(p_NL, dtype=torch.bool).scatter_(1, p_NL.topk(coder.k, dim=1).indices, True)
    else:
        kept = p_NL > (0 if coder.threshold_L is None else coder.threshold_L)
    return p_NL.relu() * kept


def written(coder: Coder, x_ND: Tensor) -> Tensor:
    y_NE = active(coder, x_ND) @ coder.dec_LE + coder.dec_bias_E
    return y_NE if coder.skip_ED is None else y_NE + x_ND @ coder.skip_ED.T


def clear_of_thresholds(coder: Coder, x_ND: Tensor) -> float:
    """How near a pre-activation comes to where it would be decided by the last place."""
    p_NL = x_ND @ coder.enc_LD.T + coder.enc_bias_L
    if coder.activation == "topk":
        top_NK = p_NL.topk(coder.k + 1, dim=1).values
        return float((top_NK[:, -2] - top_NK[:, -1]).min())
    return float((p_NL - (0 if coder.threshold_L is None else coder.threshold_L)).abs().min())
