"""The subject's next-token loss with something written at the coder's site, for many arms over the same windows.

In: the subject, windows, and per arm a function that gives the site's output. Out: cross-entropy and KL to the original
model at every position. Invariant: all arms of a batch share one pass below the site, all sums are in float32, and
memory does not grow with the number of windows but for the two numbers kept per position and arm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from nlrewrite.subject import sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlrewrite.progress import Progress

Where = Literal["all", "last"]
Write = Callable[[np.ndarray, "Tensor", "Tensor"], "Tensor"]
"""(positions [n], x [n, D], true y [n, E]) -> what is written there [n, E]."""


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
            span = np.arange(at, at + count)
            at += count
            tail = sites.Tail(model, located, ids)
            flat = valid.flatten().nonzero().squeeze(1)
            labels = torch.from_numpy(part.tokens[:, 1 : 1 + ids.shape[1]].astype(np.int64)).flatten()
            batch = _Batch(tail, flat, labels, span)
            last = np.cumsum(part.lengths) - 1
            chosen = {"all": np.arange(count), "last": last}
            original = {where: batch.log_probabilities(None, rows) for where, rows in chosen.items()}
            for name, (where, write) in arms.items():
                rows = chosen[where]
                patched = original[where] if write is None else batch.log_probabilities(write, rows)
                parts[name].append(_measure(original[where], patched, labels[flat[rows]]))
            advance(len(part))
    return {
        name: Losses(*(np.concatenate(column) for column in zip(*kept, strict=True))) for name, kept in parts.items()
    }


@dataclass(frozen=True)
class _Batch:
    """One batch of windows: the subject above the site, and where in the padded batch its positions lie."""

    tail: sites.Tail
    flat: "Tensor"
    labels: "Tensor"
    span: np.ndarray

    def log_probabilities(self, write: "Write | None", rows: np.ndarray) -> "Tensor":
        """Of the next token at `rows` (places among the batch's positions), with `write` in force there alone."""
        import torch

        at = self.flat[torch.from_numpy(rows)]
        if write is None:
            logits = self.tail.original
        else:
            x_ND, y_NE = self.tail.x.flatten(0, 1)[at], self.tail.y.flatten(0, 1)[at]
            full = self.tail.y.flatten(0, 1).clone()
            full[at] = write(self.span[rows], x_ND, y_NE)
            replaced = full.view_as(self.tail.y)
            logits = self.tail.logits(lambda x, y: replaced)
        return torch.log_softmax(logits.flatten(0, 1)[at], dim=-1)


def _measure(original: "Tensor", patched: "Tensor", labels: "Tensor") -> tuple[np.ndarray, np.ndarray]:
    ce = -patched.gather(1, labels[:, None]).squeeze(1)
    kl = (original.exp() * (original - patched)).sum(-1)
    return ce.numpy(), kl.numpy()
