"""Do the intervals hold what they promise? Planted losses in documents of unequal size, with known truth.

In: numbers of repetitions and of document groups. Out: how often 95% intervals of the paired difference, of the gap
closed, and of a mean over random subsets of latents held the truth. Invariant: the intervals are those of `bootstrap`,
by the calls that an evaluation makes.

The losses are skewed like differences of cross-entropy: an ablation adds 0.32 nats on average with a spread of 0.82
(the published ones: 0.31 and 0.9), most contexts much less and some far more. Harm is a gamma variate with a heavy
right tail, shared in part by the contexts of a document, and noise of either sign is added to every arm.
"""

from dataclasses import dataclass, replace

import numpy as np

from nlrewrite.evaluate import bootstrap
from nlrewrite.seeds import generator

ORIGINAL, CODER, MEAN, REWRITTEN = range(4)
GAP, SHARE = 0.287, 0.3
"""What the ablation adds to the coder's loss, in nats, and how much of that the planted rewriting closes."""
LONGEST, TYPICAL = 32, 6
"""Contexts in a document: at most, and on average about."""
TOGETHER = 50
"""Repetitions that share one set of draws; their data are independent."""


@dataclass(frozen=True)
class Covered:
    """One interval's record over the repetitions."""

    figure: str
    method: bootstrap.Method
    groups: int
    repetitions: int
    covered: float
    below: float
    """Share of the repetitions in which the truth lay below the interval."""
    above: float
    width: float
    given: float
    """Share of the repetitions in which there was an interval at all."""


def coverage(
    repetitions: int = 1000,
    groups: int = 60,
    resamples: int = 2000,
    seed: int = 0,
    methods: tuple[bootstrap.Method, ...] = ("percentile", "bca"),
) -> list[Covered]:
    """How often the intervals of both figures hold the truth, by either method."""
    truths = {"over mean": -SHARE * GAP, "gap closed": SHARE}
    found: dict[tuple[str, bootstrap.Method], list[bootstrap.Interval | None]] = {
        (figure, method): [] for figure in truths for method in methods
    }
    weights = np.empty((0, 0))
    for repetition in range(repetitions):
        if repetition % TOGETHER == 0:
            draws = generator(seed, "coverage", "resamples", groups, repetition)
            weights = bootstrap.draw(groups, resamples, draws).weights_RG
        sums_GA, counts_G = planted(groups, generator(seed, "coverage", "data", groups, repetition))
        means = bootstrap.Draws(weights).means(sums_GA, counts_G)
        for method in methods:
            drawn = replace(means, method=method)
            found["over mean", method].append(drawn.difference(REWRITTEN, MEAN))
            found["gap closed", method].append(drawn.share(MEAN, CODER, REWRITTEN))
    return [
        _covered(figure, method, groups, truths[figure], intervals) for (figure, method), intervals in found.items()
    ]


def coverage_over_subsets(
    repetitions: int = 1000,
    groups: int = 60,
    subsets: int = 4,
    between: float = 0.02,
    resamples: int = 2000,
    seed: int = 0,
) -> Covered:
    """The same for the paired difference as a mean over random subsets of latents, which differ by `between` nats."""
    found: list[bootstrap.Interval | None] = []
    weights = bootstrap.Draws(np.empty((0, 0)))
    for repetition in range(repetitions):
        if repetition % TOGETHER == 0:
            weights = bootstrap.draw(groups, resamples, generator(seed, "coverage", "subset resamples", repetition))
        data = generator(seed, "coverage", "subset data", groups, subsets, repetition)
        sums_GA, counts_G = planted(groups, data)
        effects = data.normal(0, between, subsets)
        noise = data.normal(0, 0.2, (groups, subsets)) * np.sqrt(counts_G)[:, None]
        arms = sums_GA[:, [REWRITTEN]] + effects * counts_G[:, None] + noise
        drawn = weights.means(np.concatenate([sums_GA[:, [MEAN]], arms], axis=1), counts_G)
        of_subsets = bootstrap.subset_weights(subsets, resamples, generator(seed, "coverage", "subsets", repetition))
        pooled = drawn.with_means([range(1, 1 + subsets)], of_subsets)
        found.append(pooled.difference(1 + subsets, 0))
    return _covered("over subsets", "percentile", groups, -SHARE * GAP, found)


def planted(groups: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses [G, 4] of the original, the coder, mean ablation and a rewriting; contexts of each group [G]."""
    counts_G = np.minimum(draws.geometric(1 / TYPICAL, groups), LONGEST)
    group = np.repeat(np.arange(groups), counts_G)
    size = len(group)

    def harm() -> np.ndarray:
        """Of mean 1: half its log-free spread shared by a document, the tail a context's own."""
        return draws.gamma(4.0, 0.25, groups)[group] * draws.gamma(0.3, 1 / 0.3, size)

    def noise(spread: float) -> np.ndarray:
        return draws.normal(0, spread, size)

    shared, own = harm(), harm()
    original = draws.gamma(1.2, 2.5, groups)[group] * draws.gamma(2.0, 0.5, size)
    coder = original + 0.026 + noise(0.25)
    mean = coder + GAP * shared + noise(0.5)
    rewritten = coder + GAP * (1 - SHARE) * (0.8 * shared + 0.2 * own) + noise(0.4)
    losses = np.stack([original, coder, mean, rewritten], axis=1)
    sums_GA = np.stack([np.bincount(group, column, minlength=groups) for column in losses.T], axis=1)
    return sums_GA, counts_G.astype(np.float64)


def _covered(
    figure: str, method: bootstrap.Method, groups: int, truth: float, intervals: list[bootstrap.Interval | None]
) -> Covered:
    ends = np.array([(each.low, each.high) for each in intervals if each is not None])
    assert len(ends), "no repetition gave an interval"
    below, above = (truth < ends[:, 0]).mean(), (truth > ends[:, 1]).mean()
    return Covered(
        figure=figure,
        method=method,
        groups=groups,
        repetitions=len(intervals),
        covered=float(1 - below - above),
        below=float(below),
        above=float(above),
        width=float((ends[:, 1] - ends[:, 0]).mean()),
        given=len(ends) / len(intervals),
    )
