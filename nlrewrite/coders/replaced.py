"""What a coder in its site's place costs the subject in next-token loss, beside mean and zero ablation of the site.

In: the subject, coders and windows that none was trained on. Out: mean losses in nats over all labels in the windows,
and the KL divergence from the original's predictions. Invariant: every arm sees the same windows and labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlrewrite.coders.curve import written
from nlrewrite.coders.form import Coder
from nlrewrite.subject.sites import Located, Replace, Tail

MEASURED = ("original", "coder", "mean", "zero", "kl")
LOGITS_AT_ONCE = 1 << 26
"""Logits of one pass: windows x tokens x vocabulary."""


@torch.no_grad()
def costs(
    model: nn.Module, coders: Sequence[tuple[Located, Coder]], means: Mapping[Located, Tensor], ids_BT: Tensor
) -> list[dict[str, float | None]]:
    """Of each coder: original, coder, mean, zero (losses), kl, and the share recovered of what mean ablation costs."""
    config: Any = model.config
    sums: list[dict[str, float]] = [dict.fromkeys(MEASURED, 0.0) for _ in coders]
    for part_BT in ids_BT.split(max(1, LOGITS_AT_ONCE // (config.vocab_size * ids_BT.shape[1]))):
        for located in dict.fromkeys(where for where, _ in coders):
            tail = Tail(model, located, part_BT)
            shared = {
                "original": loss(tail.original, part_BT),
                "mean": loss(tail.logits(constant(means[located])), part_BT),
                "zero": loss(tail.logits(constant(torch.zeros_like(means[located]))), part_BT),
            }
            for total, (where, coder) in zip(sums, coders, strict=True):
                if where == located:
                    logits_BTV = tail.logits(reconstructed(coder))
                    own = {"coder": loss(logits_BTV, part_BT), "kl": divergence(tail.original, logits_BTV)}
                    for name, each in (shared | own).items():
                        total[name] += each
    labels = ids_BT[:, 1:].numel()
    return [recovered({name: each / labels for name, each in total.items()}) for total in sums]


def recovered(means: dict[str, float]) -> dict[str, float | None]:
    """With the share of the way from mean ablation back to the original; None where mean ablation costs nothing."""
    way = means["mean"] - means["original"]
    return {**means, "recovered": (means["mean"] - means["coder"]) / way if way > 0 else None}


def reconstructed(coder: Coder) -> Replace:
    def replace(x_BTD: Tensor, y_BTE: Tensor) -> Tensor:
        return written(coder, x_BTD.flatten(0, -2)).view_as(y_BTE)

    return replace


def constant(value_E: Tensor) -> Replace:
    def replace(x_BTD: Tensor, y_BTE: Tensor) -> Tensor:
        return value_E.to(y_BTE).expand_as(y_BTE)

    return replace


def loss(logits_BTV: Tensor, ids_BT: Tensor) -> float:
    """Next-token loss, summed over the labels in the windows."""
    predicted = logits_BTV[:, :-1].flatten(0, 1)
    return float(nn.functional.cross_entropy(predicted, ids_BT[:, 1:].flatten(), reduction="sum"))


def divergence(original_BTV: Tensor, logits_BTV: Tensor) -> float:
    """KL(original || patched), summed over the places that have a label."""
    given, other = (each[:, :-1].log_softmax(-1) for each in (original_BTV, logits_BTV))
    return float(nn.functional.kl_div(other, given, reduction="sum", log_target=True))
