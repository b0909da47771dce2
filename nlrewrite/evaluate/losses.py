"""The subject's next-token loss with something written at the coder's site, for many arms over the same windows.

In: the subject, windows, and per arm a function that gives the site's output. Out: cross-entropy and KL to the original
model at every position. Invariant: all arms of a batch share one pass below the site, all sums are in float32, and
memory does not grow with the number of windows but for the two numbers kept per position and arm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from nlrewrite.activations.collect import batches, inside, padded
from nlrewrite.subject import sites
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlrewrite.progress import Progress

Where = Literal["all", "last"]
Write = Callable[[slice, "Tensor", "Tensor"], "Tensor"]
"""(positions, x [n, D], true y [n, E]) -> what is written there [n, E]."""


@dataclass(frozen=True)
class Losses:
    """Loss and KL divergence from the original model, in nats, at each of P positions (or W last positions)."""

    ce: np.ndarray
    kl: np.ndarray


def losses(
    model: "nn.Module",
    located: sites.Located,
    windows: Windows,
    arms: Mapping[str, tuple[Where, Write | None]],
    batch_tokens: int,
    progress: "Progress",
) -> dict[str, Losses]:
    """Losses of every arm. `all`: written and measured at every position; `last`: at each window's last one alone."""
    import torch

    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in arms}
    at = 0
    with progress.stage("patched losses", len(windows)) as advance:
        for rows in batches(windows, batch_tokens):
            part = windows[rows]
            ids, valid = padded(part), inside(part)
            count = int(valid.sum())
            span = slice(at, at + count)
            at += count
            tail = sites.Tail(model, located, ids)
            labels = torch.from_numpy(part.tokens[:, 1 : 1 + ids.shape[1]].astype(np.int64))
            x_ND, y_NE = tail.x[valid], tail.y[valid]
            last = torch.from_numpy(np.cumsum(part.lengths) - 1).long()
            original = torch.log_softmax(tail.original[valid], dim=-1)
            for name, (where, write) in arms.items():
                if write is None:
                    patched = original
                else:
                    written = y_NE.clone()
                    new = write(span, x_ND, y_NE)
                    if where == "all":
                        written = new
                    else:
                        written[last] = new[last]
                    full = tail.y.clone()
                    full[valid] = written
                    patched = torch.log_softmax(tail.logits(lambda x, y, full=full: full)[valid], dim=-1)
                parts[name].append(_measure(original, patched, labels[valid], None if where == "all" else last))
            advance(len(part))
    return {name: Losses(*(np.concatenate(column) for column in zip(*kept, strict=True))) for name, kept in parts.items()}


def _measure(
    original: "Tensor", patched: "Tensor", labels: "Tensor", rows: "Tensor | None"
) -> tuple[np.ndarray, np.ndarray]:
    if rows is not None:
        original, patched, labels = original[rows], patched[rows], labels[rows]
    ce = -patched.gather(1, labels[:, None]).squeeze(1)
    kl = (original.exp() * (original - patched)).sum(-1)
    return ce.numpy(), kl.numpy()
