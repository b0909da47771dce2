"""The subject's next-token loss with something written at the coder's site, for many arms over the same windows.

In: the subject, windows, and per arm a function that gives the site's output. Out: cross-entropy, KL to the original
model and to the coder, and agreement with the original's first choice, at every position. Invariant: all arms of a
batch share one pass below the site, all sums are in float32, and memory does not grow with the number of windows but
for the few numbers kept per position and arm.
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
CHUNK = 1 << 22
"""Log probabilities compared at a time."""
Write = Callable[[np.ndarray, "Tensor", "Tensor"], "Tensor"]
"""(positions [n], x [n, D], true y [n, E]) -> what is written there [n, E]."""


@dataclass(frozen=True)
class Losses:
    """At each of P positions (or W last positions): loss, and KL divergence from the original model, in nats."""

    ce: np.ndarray
    kl: np.ndarray
    kl_coder: np.ndarray | None = None
    """KL divergence from the model with the coder in place: what simulation alone changes. None without a coder."""
    agrees: np.ndarray | None = None
    """Whether the likeliest next token is the original model's."""


def losses(
    model: "nn.Module",
    located: sites.Located,
    windows: Windows,
    arms: Mapping[str, tuple[Where, Write | None]],
    batch_tokens: int,
    progress: "Progress",
    coder: Mapping[Where, str] | None = None,
) -> dict[str, Losses]:
    """Losses of every arm. `all`: written and measured at every position; `last`: at each window's last one alone.

    `coder` names the arm of each position that every other is compared with beside the original.
    """
    import torch

    count = {"all": int(windows.lengths.sum()), "last": len(windows)}
    kept = {name: _Kept(count[where], coder is not None and where in coder) for name, (where, _) in arms.items()}
    at = 0
    with progress.stage("patched losses", len(windows)) as advance:
        for rows in batches(windows, batch_tokens):
            part = windows[rows]
            ids, valid = padded(part), inside(part)
            span = np.arange(at, at + int(valid.sum()))
            at += len(span)
            tail = sites.Tail(model, located, ids)
            flat = valid.flatten().nonzero().squeeze(1)
            labels = torch.from_numpy(part.tokens[:, 1 : 1 + ids.shape[1]].astype(np.int64)).flatten()
            batch = _Batch(tail, flat, labels, span)
            chosen: dict[Where, np.ndarray] = {"all": np.arange(len(span)), "last": np.cumsum(part.lengths) - 1}
            for where, rows in chosen.items():  # one position after the other: two references are held at a time
                named = {name: write for name, (position, write) in arms.items() if position == where}
                if not named:
                    continue
                original = batch.log_probabilities(None, rows)
                reference = batch.log_probabilities(named[coder[where]], rows) if coder and where in coder else None
                first = original.argmax(-1)
                for name, write in named.items():
                    if write is None:
                        patched = original
                    elif reference is not None and coder and coder[where] == name:
                        patched = reference
                    else:
                        patched = batch.log_probabilities(write, rows)
                    kept[name].add(_measure(original, reference, patched, first, labels[flat[rows]]))
            advance(len(part))
    return {name: each.losses() for name, each in kept.items()}


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


def _measure(
    original: "Tensor", coder: "Tensor | None", patched: "Tensor", first: "Tensor", labels: "Tensor"
) -> "tuple[Tensor, ...]":
    """Loss, KL from the original, agreement with its first choice and, with a coder, KL from that: per position."""
    ce = -patched.gather(1, labels[:, None]).squeeze(1)
    columns = [ce, _divergence(original, patched), patched.argmax(-1) == first]
    if coder is not None:
        columns.append(_divergence(coder, patched))
    return tuple(columns)


def _divergence(reference: "Tensor", patched: "Tensor") -> "Tensor":
    """KL(reference || patched) per position, without a second array of the vocabulary's size for all of them."""
    import torch

    rows = max(1, CHUNK // reference.shape[1])
    parts = zip(reference.split(rows), patched.split(rows), strict=True)
    return torch.cat([(told.exp() * (told - found)).sum(-1) for told, found in parts])


class _Kept:
    """The numbers of one arm, in arrays that are there from the start.

    Small arrays that outlive a batch, made between large ones that do not, would keep the memory of all of them.
    """

    def __init__(self, count: int, with_coder: bool) -> None:
        types = [np.float32, np.float32, np.bool_, *([np.float32] if with_coder else [])]
        self._columns = [np.empty(count, dtype=each) for each in types]
        self._filled = 0

    def add(self, found: "tuple[Tensor, ...]") -> None:
        upto = self._filled + len(found[0])
        for column, part in zip(self._columns, found, strict=True):
            column[self._filled : upto] = part.numpy()
        self._filled = upto

    def losses(self) -> Losses:
        assert self._filled == len(self._columns[0]), "every position is measured once"
        ce, kl, agrees, *kl_coder = self._columns
        return Losses(ce, kl, kl_coder[0] if kl_coder else None, agrees)
