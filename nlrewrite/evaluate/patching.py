"""The subject's next-token loss with something written at one site or at several, for many arms over the same windows.

In: the subject, windows, and per arm what is written at which sites. Out: cross-entropy, KL from the original model and
agreement with its first choice, summed per window and resampled over document groups; what a coder did at the tokens it
was used on. Invariant: all arms see the same windows and the same resamples; what a later site of an arm reads, the
arm's patches below have changed; nothing is kept per position.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nlrewrite.coders.code import Code
from nlrewrite.coders.form import Coder
from nlrewrite.errors import SettingError
from nlrewrite.evaluate.bootstrap import Draws, Interval, Resampled, draw
from nlrewrite.evaluate.losses import CHUNK
from nlrewrite.seeds import generator
from nlrewrite.specs import MeasureSpec, Split
from nlrewrite.subject import sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.subject.sites import Located
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from nlrewrite.progress import Progress

MEAN_WINDOWS = 1024
"""Windows of the explain split over which the mean output of a site is taken, at most."""
ORIGINAL = "original"
QUANTITIES = ("ce", "kl", "agrees")


class Write(Protocol):
    def __call__(self, window_N: Tensor, x_ND: Tensor, y_NE: Tensor) -> Tensor:
        """What stands in y's place [N, E]; `window_N` says of which window each row is."""
        ...


Arm = Mapping[Located, Write]
"""What is written where; nothing is the original model."""


@dataclass(frozen=True)
class Measured:
    """Per-position means of the arms with everything that resampling says of them."""

    arms: tuple[str, ...]
    ce: Resampled
    kl: Resampled
    agrees: Resampled
    draws: Draws
    group_W: np.ndarray
    counts_G: np.ndarray
    """Positions of each group."""

    def at(self, arm: str) -> int:
        return self.arms.index(arm)

    def row(self, arm: str) -> dict[str, Any]:
        """The arm's own numbers, and what it adds to the original model's loss."""
        at = self.at(arm)
        return {
            **named("ce", self.ce.figure(lambda means: means[..., at])),
            **named("delta_ce", self.ce.difference(at, self.at(ORIGINAL))),
            **named("kl", self.kl.figure(lambda means: means[..., at])),
            "agrees": float(self.agrees.measured_A[at]),
        }

    def difference(self, arm: str, other: str) -> Interval:
        """How much higher the loss of an arm is."""
        return self.ce.difference(self.at(arm), self.at(other))

    def recovered(self, arm: str, floor: str) -> Interval | None:
        """How much of the way from `floor` to the original model's loss an arm goes; None where there is no way."""
        return self.ce.share(self.at(floor), self.at(ORIGINAL), self.at(arm))

    def per_group(self, sums_W: np.ndarray) -> np.ndarray:
        """Sums of windows [..., W] as sums of groups [G, ...]."""
        groups = len(self.counts_G)
        flat = sums_W.reshape(-1, sums_W.shape[-1])
        rows = [np.bincount(self.group_W, each, minlength=groups) for each in flat]
        return np.stack(rows, axis=-1).reshape(groups, *sums_W.shape[:-1])


def named(name: str, interval: Interval | None) -> dict[str, float | None]:
    """An interval as three numbers of a row."""
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


# -- what is written --------------------------------------------------------------------------------------------------


def constant(y_E: Tensor) -> Write:
    """The same output at every token."""
    return lambda window_N, x_ND, y_NE: y_E.expand_as(y_NE)


def coded(coder: Coder, x_ND: Tensor) -> tuple[Code, Tensor]:
    """The active latents and what they, the skip term and the bias write, float32 whatever the coder's weights are."""
    x_ND = x_ND.to(coder.enc_LD.dtype)
    code = coder.encode(x_ND)
    return code, (coder.decode(code) + coder.beside(x_ND)).float()


def in_place(coder: Coder) -> Write:
    """A coder in place of its site, without anything being noted of it."""
    return lambda window_N, x_ND, y_NE: coded(coder, x_ND)[1]


class Reading:
    """A coder in place of its site, and what it did there: active latents, error, and how y varied."""

    def __init__(self, coder: Coder, windows: Windows) -> None:
        self.coder = coder
        _, self._group_W = (torch.from_numpy(each) for each in np.unique(windows.group, return_inverse=True))
        groups = int(self._group_W.max()) + 1
        self._windows = len(windows)
        self.active_W = torch.zeros(self._windows, dtype=torch.float64)
        self._error_G = torch.zeros(groups, dtype=torch.float64)
        self._square_G = torch.zeros(groups, dtype=torch.float64)
        self._count_G = torch.zeros(groups, dtype=torch.float64)
        self._sum_GE: Tensor | None = None
        self._about_E: Tensor | None = None
        self._fired_L = torch.zeros(coder.latents, dtype=torch.int64)

    def __call__(self, window_N: Tensor, x_ND: Tensor, y_NE: Tensor) -> Tensor:
        code, written = coded(self.coder, x_ND)
        on = code.values > 0
        self.active_W.index_add_(0, window_N[code.rows()[on]], torch.ones(int(on.sum()), dtype=torch.float64))
        self._fired_L += torch.bincount(code.indices[on], minlength=self.coder.latents)
        group_N = self._group_W[window_N]
        if self._about_E is None or self._sum_GE is None:  # any fixed point near the mean keeps the sums exact
            self._about_E = y_NE.mean(0)
            self._sum_GE = torch.zeros(len(self._count_G), y_NE.shape[1], dtype=torch.float64)
        from_about = (y_NE - self._about_E).double()
        self._error_G.index_add_(0, group_N, (written - y_NE).double().square().sum(-1))
        self._square_G.index_add_(0, group_N, from_about.square().sum(-1))
        self._sum_GE.index_add_(0, group_N, from_about)
        self._count_G.index_add_(0, group_N, torch.ones(len(y_NE), dtype=torch.float64))
        return written

    def row(self, measured: Measured) -> dict[str, Any]:
        """Mean active latents, variance unexplained about the mean over all these tokens, and latents never active."""
        assert self._sum_GE is not None, "the coder has not been used"
        mean_E = self._sum_GE.sum(0) / self._count_G.sum()
        variance_G = self._square_G - 2 * self._sum_GE @ mean_E + self._count_G * mean_E.square().sum()
        l0 = self.l0(measured).figure(lambda means: means[..., 0])
        if float(variance_G.sum()) > 0:
            error = measured.draws.means(self._error_G.numpy()[:, None], variance_G.clamp_min(0).numpy())
            fvu = error.figure(lambda means: means[..., 0])
        else:
            fvu = None
        return {
            **named("l0", l0),
            **named("fvu", fvu),
            "dead_share": float((self._fired_L == 0).double().mean()),
        }

    def l0(self, measured: Measured) -> Resampled:
        """Mean latents active on a token."""
        return measured.draws.means(measured.per_group(self.active_W.numpy()[None]), measured.counts_G)


# -- measuring --------------------------------------------------------------------------------------------------------


def drawn(windows: Windows, most: int, seed: int, split: Split) -> Windows:
    """The windows, or so many of them drawn by the seed, in their order."""
    if len(windows) <= most:
        return windows
    chosen = generator(seed, "measure", split).choice(len(windows), size=most, replace=False)
    return windows[np.sort(chosen)]


def means(
    model: nn.Module, located: Sequence[Located], windows: Windows, batch_tokens: int, progress: "Progress"
) -> dict[Located, Tensor]:
    """The mean output of every site [E] over the windows' positions, by one pass that stops at the highest site."""
    highest = max(located, key=lambda each: each.depth)
    totals: dict[Located, Tensor] = {}
    with progress.stage("mean outputs", len(windows)) as advance:
        for rows in batches(windows, batch_tokens):
            part = windows[rows]
            at = inside(part)
            with ExitStack() as stack:
                records = {each: stack.enter_context(sites.recorded(model, each)) for each in located}
                sites.activations_upto(model, highest, padded(part))
            for each, record in records.items():
                total = record.y[at].double().sum(0)
                totals[each] = totals[each] + total if each in totals else total
            advance(len(part))
    count = int(windows.lengths.sum())
    return {each: (total / count).float() for each, total in totals.items()}


def measure(
    model: nn.Module,
    windows: Windows,
    arms: Mapping[str, Arm],
    spec: MeasureSpec,
    batch_tokens: int,
    progress: "Progress",
) -> Measured:
    """Every arm over the same windows; the arm called original writes nothing."""
    assert not arms[ORIGINAL], "the original model is not patched"
    located = list(dict.fromkeys(each for arm in arms.values() for each in arm))
    compare = _Comparison()
    sums_QAW = np.zeros((len(QUANTITIES), len(arms), len(windows)))
    with progress.stage("patched losses", len(windows) * len(arms)) as advance:
        for rows in batches(windows, batch_tokens):
            part = windows[rows]
            batch = _Batch(model, located, part, rows.start, compare)
            for place, (name, arm) in enumerate(arms.items()):
                found = batch.sums(arm)
                if not np.isfinite(found).all():
                    raise SettingError(
                        f"a loss must be a number: with {name} in place it is none in windows {rows.start} to "
                        f"{rows.stop - 1}. Its coder writes what is no number; build or choose another"
                    )
                sums_QAW[:, place, rows] = found
                advance(len(part), name)
    group_of, group_W = np.unique(windows.group, return_inverse=True)
    counts_G = np.bincount(group_W, windows.lengths, minlength=len(group_of)).astype(np.float64)
    draws = draw(len(counts_G), spec.resamples, generator(spec.seed, "measure", "bootstrap"))
    resampled = []
    for sums_AW in sums_QAW:
        sums_GA = np.stack([np.bincount(group_W, each, minlength=len(counts_G)) for each in sums_AW], axis=1)
        resampled.append(draws.means(sums_GA, counts_G))
    ce, kl, agrees = resampled
    return Measured(tuple(arms), ce, kl, agrees, draws, group_W, counts_G)


class _Batch:
    """One batch of windows: the subject as it is, kept at every site, and where in the padded batch positions lie."""

    def __init__(
        self, model: nn.Module, located: Sequence[Located], part: Windows, first: int, compare: "_Comparison"
    ) -> None:
        ids, valid = padded(part), inside(part)
        self._stem = sites.Stem(model, located, ids)
        self._at = valid.flatten().nonzero().squeeze(1)
        self._row = torch.arange(len(part)).repeat_interleave(torch.from_numpy(part.lengths.astype(np.int64)))
        self._size, self._first, self._compare = len(part), first, compare
        labels = torch.from_numpy(part.tokens[:, 1 : 1 + ids.shape[1]].astype(np.int64))
        self._labels = labels.flatten()[self._at]
        self._original = self._stem.original.flatten(0, 1)[self._at].log_softmax(-1)
        self._choice = self._original.argmax(-1)

    def sums(self, arm: Arm) -> np.ndarray:
        """Loss, KL and agreement summed per window: [3, W]."""
        patches = [(located, partial(self._written, write)) for located, write in arm.items()]
        logits = self._stem.logits(patches).flatten(0, 1)
        columns = self._compare(self._original, self._choice, logits, self._at, self._labels).double()
        return torch.zeros(len(columns), self._size, dtype=torch.float64).index_add_(1, self._row, columns).numpy()

    def _written(self, write: Write, x_BTD: Tensor, y_BTE: Tensor) -> Tensor:
        """y with the positions' rows replaced; what stands on padding is nobody's."""
        y_NE = y_BTE.flatten(0, 1)
        full = y_NE.clone()
        full[self._at] = write(self._first + self._row, x_BTD.flatten(0, 1)[self._at], y_NE[self._at])
        return full.view_as(y_BTE)


class _Comparison:
    """Logits held against the original model's, some rows at a time in memory that is there from the start.

    Arrays of the vocabulary's size that are made anew for every arm would cost more than what is computed in them.
    """

    def __init__(self) -> None:
        self._rooms: list[Tensor] = []

    def __call__(self, original: Tensor, choice: Tensor, logits: Tensor, at: Tensor, labels: Tensor) -> Tensor:
        """[3, n]: loss, KL from the original model, and whether the likeliest next token is its own."""
        count, vocabulary = original.shape
        rows = max(1, CHUNK // vocabulary)
        if not self._rooms or self._rooms[0].shape[1] != vocabulary:
            self._rooms = [torch.empty(rows, vocabulary) for _ in range(3)]
        found = torch.empty(3, count)
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            known = original[part]
            raw, told, weight = (room[: len(known)] for room in self._rooms)
            torch.index_select(logits, 0, at[part], out=raw)
            torch.log_softmax(raw, -1, out=told)
            found[0, part] = -told.gather(1, labels[part, None])[:, 0]
            found[2, part] = (told.argmax(-1) == choice[part]).float()
            torch.exp(known, out=weight)
            torch.sub(known, told, out=raw)
            found[1, part] = torch.bmm(weight[:, None], raw[:, :, None])[:, 0, 0]
        return found
