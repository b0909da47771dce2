"""How well a coder fits a site of the subject: the variance it leaves, the latents it uses, what it costs in loss.

In: a coder from anywhere, the subject, and windows of ids. Out: a few numbers. Invariant: the same windows for all of
them; the first position of every window counts in no variance, for there the residual stream of many models is larger
than elsewhere by orders of magnitude, and a coder trained without it would look like one that does not fit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlrewrite.coders import replaced
from nlrewrite.coders.form import Coder
from nlrewrite.subject import sites
from nlrewrite.subject.sites import Located

LIVE = 1e-4  # a latent is live when it is active on more than one token in ten thousand


@dataclass(frozen=True)
class Fit:
    """What was measured, on how many tokens."""

    tokens: int
    fvu: float
    """Fraction of variance unexplained."""
    l0: float
    """Mean latents active on a token."""
    live_share: float
    """Share of the latents that are active on more than one in ten thousand of these tokens."""
    ce: dict[str, float | None]
    """Next-token losses with the coder in place and others, as `replaced` has them."""


@torch.no_grad()
def measured(
    coder: Coder, model: nn.Module, located: Located, ids_BT: Tensor, batch_tokens: int, centred: bool = False
) -> Fit:
    """`centred`: the coder writes without the mean over the width, which no reader of this subject sees."""
    parts = ids_BT.split(max(1, batch_tokens // ids_BT.shape[1]))
    records = [sites.activations_upto(model, located, part) for part in parts]
    x_ND = torch.cat([each.x[:, 1:].flatten(0, 1) for each in records])
    y_NE = torch.cat([each.y[:, 1:].flatten(0, 1) for each in records])
    del records
    mean_E = y_NE.mean(0)
    error = variance = active = 0.0
    fired_L = torch.zeros(coder.latents, dtype=torch.int64)
    for x, y in zip(x_ND.split(batch_tokens), y_NE.split(batch_tokens), strict=True):
        code = coder.encode(x)
        off, spread = coder.decode(code) + coder.beside(x) - y, y - mean_E
        if centred:
            off, spread = off - off.mean(-1, keepdim=True), spread - spread.mean(-1, keepdim=True)
        error += float(off.square().sum(dtype=torch.float64))
        variance += float(spread.square().sum(dtype=torch.float64))
        kept = code.values > 0
        active += float(kept.sum())
        fired_L += torch.bincount(code.indices[kept], minlength=coder.latents)
    return Fit(
        tokens=len(x_ND),
        fvu=error / variance if variance else float("inf"),
        l0=active / len(x_ND),
        live_share=float((fired_L > LIVE * len(x_ND)).double().mean()),
        ce=replaced.costs(model, [(located, coder)], {located: mean_E}, ids_BT)[0],
    )
