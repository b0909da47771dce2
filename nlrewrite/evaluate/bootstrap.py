"""Intervals over document groups: every figure of every arm resampled with the same documents.

In: sums of losses per group and arm. Out: means, differences, ratios and any other function of the arms' means, with
percentile or BCa intervals. Invariant: arms are always paired, a ratio resamples numerator and denominator together,
and a ratio whose denominator may be zero or negative is not given.

A resample of G groups varies less than a sample does, by (G - 1) / G, and has normal tails where a mean of few groups
has those of Student's t. Both kinds of interval are therefore read off at levels moved outwards by as much
(`widened`), G being the number of equal groups that are worth as much as the unequal ones: (sum n)^2 / sum n^2. With
many groups the levels are 2.5% and 97.5%.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import special, stats

from nlrewrite.errors import SettingError

LEVEL = 0.95
BLOCK = 1 << 24
"""Weights drawn or multiplied at a time."""

Method = Literal["percentile", "bca"]
Figure = Callable[[np.ndarray], np.ndarray]
"""A function of the arms' means: [..., A] -> [...]."""


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Per-position means of A arms: as measured [A], over the resamples [R, A], and without each group [G, A].

    A resample that holds no position of an arm has NaN there, and counts for none of its figures.
    """

    measured_A: np.ndarray
    resampled_RA: np.ndarray
    left_out_GA: np.ndarray
    groups: float
    """How many groups of equal size the G are worth."""
    method: Method = "percentile"
    subsets: int = 0
    """The fewest random subsets that an arm is the mean of; 0 where none is."""

    def figure(self, of: Figure) -> Interval:
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled, left_out = of(self.resampled_RA), of(self.left_out_GA)
        free = freedom(resampled, left_out, self.groups, self.subsets)
        return interval(float(of(self.measured_A)), resampled, left_out, self.groups, self.method, freedom=free)

    def ratio(self, over: Figure, under: Figure) -> Interval | None:
        """`over` / `under`, resampled together; None where `under` may be zero or less."""
        if not self.figure(under).low > 0:
            return None
        return self.figure(lambda means: over(means) / under(means))

    def difference(self, arm: int, other: int) -> Interval:
        return self.figure(_difference(arm, other))

    def share(self, floor: int, ceiling: int, arm: int) -> Interval | None:
        """How much of the way from `floor` to `ceiling` an arm goes; None where there is no way to speak of."""
        return self.ratio(_difference(floor, arm), _difference(floor, ceiling))

    def share_difference(self, floor: int, ceiling: int, arm: int, other: int) -> Interval | None:
        """The difference of two arms' shares."""
        return self.ratio(_difference(other, arm), _difference(floor, ceiling))

    def with_means(self, members: Sequence[Sequence[int]], weights_RS: np.ndarray) -> "Resampled":
        """Further arms behind the A: for each list of S arms their mean, weighted in resample r by `weights_RS[r]`.

        With `subset_weights` this is the two-way bootstrap over documents and random subsets of latents.
        """
        if not members:
            return self
        measured, drawn, left_out = (
            np.stack([values[..., list(each)] for each in members], axis=-2)
            for values in (self.measured_A, self.resampled_RA, self.left_out_GA)
        )
        return Resampled(
            np.append(self.measured_A, measured.mean(-1)),
            np.concatenate([self.resampled_RA, np.einsum("rks,rs->rk", drawn, weights_RS)], axis=1),
            np.concatenate([self.left_out_GA, left_out.mean(-1)], axis=1),
            self.groups,
            self.method,
            min(weights_RS.shape[1], self.subsets or weights_RS.shape[1]),
        )


@dataclass(frozen=True)
class Draws:
    """How often each of R resamples holds each of G groups; all figures of an evaluation share one."""

    weights_RG: np.ndarray
    method: Method = "percentile"

    def totals(self, sums_GX: np.ndarray) -> np.ndarray:
        """Sums over each resample's groups: [R, X]."""
        rows = max(1, BLOCK // max(1, self.weights_RG.shape[1]))
        parts = [
            self.weights_RG[start : start + rows].astype(np.float64) @ sums_GX
            for start in range(0, len(self.weights_RG), rows)
        ]
        return np.concatenate(parts)

    def means(self, sums_GA: np.ndarray, counts_G: np.ndarray) -> Resampled:
        """Means per position: summed losses over summed positions, the groups' counts for all arms or [G, A]."""
        counts_GC = counts_G[:, None] if counts_G.ndim == 1 else counts_G
        sums_A, counts_C = sums_GA.sum(0), counts_GC.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Resampled(
                sums_A / counts_C,
                self.totals(sums_GA) / self.totals(counts_GC),
                (sums_A - sums_GA) / (counts_C - counts_GC),
                equal_groups(counts_GC.mean(1)),
                self.method,
            )


def draw(groups: int, resamples: int, draws: np.random.Generator, method: Method = "percentile") -> Draws:
    """Groups drawn with replacement, as many as there are."""
    if groups < 2:
        raise SettingError(
            f"an interval takes at least 2 document groups: the report split has {groups} with a position to measure. "
            f"Raise --set text.shares.report or give more documents"
        )
    rows = max(1, BLOCK // groups)
    even = np.full(groups, 1 / groups)
    parts = [
        draws.multinomial(groups, even, size=min(rows, resamples - start)).astype(np.uint16)
        for start in range(0, resamples, rows)
    ]
    return Draws(np.concatenate(parts), method)


def resample(
    sums_GA: np.ndarray,
    counts_G: np.ndarray,
    resamples: int,
    draws: np.random.Generator,
    method: Method = "percentile",
) -> Resampled:
    """Groups drawn with replacement; each resample's mean is its summed loss over its summed positions.

    Groups without positions are left out: there is nothing of them to draw.
    """
    sums_GA, counts_G = sums_GA[counts_G > 0], counts_G[counts_G > 0]
    return draw(len(counts_G), resamples, draws, method).means(sums_GA, counts_G)


def subset_weights(subsets: int, resamples: int, draws: np.random.Generator) -> np.ndarray:
    """[R, S], rows that add up to 1: what each random subset of latents weighs in each resample.

    A mean over the S is moved normally, by its standard error s / sqrt(S). To draw so few with replacement would give
    only a handful of means, and say too little of the subsets that were not drawn; one alone shows no spread.
    """
    if subsets == 1:
        return np.ones((resamples, 1))
    noise_RS = draws.normal(size=(resamples, subsets))
    noise_RS -= noise_RS.mean(axis=1, keepdims=True)
    return 1 / subsets + noise_RS / np.sqrt(subsets * (subsets - 1))


def interval(
    measured: float,
    resampled_R: np.ndarray,
    left_out_G: np.ndarray,
    groups: float,
    method: Method = "percentile",
    level: float = LEVEL,
    freedom: float | None = None,
) -> Interval:
    """The interval of one figure; `left_out_G` is the figure without each group, `groups` what they are worth."""
    resampled_R = resampled_R[np.isfinite(resampled_R)]
    assert len(resampled_R) and np.isfinite(measured), "a figure to put an interval on must be a number"
    ends = np.array([-1.0, 1.0]) * widened(float(special.ndtri((1 + level) / 2)), groups, freedom)
    if method == "bca":
        bias, acceleration = _bias(measured, resampled_R), _acceleration(left_out_G[np.isfinite(left_out_G)])
        ends = bias + (bias + ends) / np.maximum(1 - acceleration * (bias + ends), 1e-3)
    low, high = np.quantile(resampled_R, special.ndtr(ends))
    return Interval(measured, float(low), float(high))


def equal_groups(counts_G: np.ndarray) -> float:
    """How many groups of equal size are worth as much as those of these sizes; a little over one at the least."""
    return max(1.01, float(counts_G.sum() ** 2 / np.square(counts_G).sum()))


def levels(groups: float, level: float = LEVEL) -> np.ndarray:
    """Where among the resamples the ends of a percentile interval lie: [low, high]."""
    return special.ndtr(np.array([-1.0, 1.0]) * widened(float(special.ndtri((1 + level) / 2)), groups))


@lru_cache(maxsize=4096)
def widened(critical: float, groups: float, freedom: float | None = None) -> float:
    """A normal critical value, moved outwards to what the mean of `groups` groups takes: sqrt(G / (G - 1)) t.

    `freedom` is Student's, G - 1 unless the figure is a mean over random subsets as well.
    """
    return float(np.sqrt(groups / (groups - 1)) * stats.t.isf(special.ndtr(-critical), freedom or groups - 1))


def freedom(resampled_R: np.ndarray, left_out_G: np.ndarray, groups: float, subsets: int) -> float | None:
    """Degrees of freedom of a figure whose variance comes from documents and from `subsets` random subsets.

    Welch and Satterthwaite's: what documents contribute is the jackknife's variance, the rest is the subsets'. Without
    subsets None, which means those of the groups.
    """
    resampled_R, left_out_G = resampled_R[np.isfinite(resampled_R)], left_out_G[np.isfinite(left_out_G)]
    total = resampled_R.var() if subsets > 1 and len(resampled_R) else 0.0
    if not total > 0:
        return None
    size = max(2, len(left_out_G))
    of_documents = min(1.0, float(np.square(left_out_G - left_out_G.mean()).sum() * ((size - 1) / size) ** 2 / total))
    return round(1 / (of_documents**2 / (groups - 1) + (1 - of_documents) ** 2 / (subsets - 1)), 3)


def _difference(arm: int, other: int) -> Figure:
    return lambda means: means[..., arm] - means[..., other]


def _bias(measured: float, resampled_R: np.ndarray) -> float:
    """Where the measured figure lies among the resampled ones, as a normal deviate; ties count half."""
    below = ((resampled_R < measured).mean() + (resampled_R <= measured).mean()) / 2
    edge = 0.5 / len(resampled_R)
    return float(special.ndtri(np.clip(below, edge, 1 - edge)))


def _acceleration(left_out_G: np.ndarray) -> float:
    """The skewness of the jackknife's influences, over 6."""
    if not len(left_out_G):
        return 0.0
    influence = left_out_G.mean() - left_out_G
    spread = np.square(influence).sum() ** 1.5
    return float((influence**3).sum() / (6 * spread)) if spread > 0 else 0.0
