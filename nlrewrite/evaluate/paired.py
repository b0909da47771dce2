"""Figures of the paired differences context by context: what a mean hides.

In: per window (a context) the mean difference of an arm's loss over its measured positions, and the window's document
group. Out: standard errors, shares of contexts, and figures that single contexts cannot move far. Invariant: a context
counts once however long it is, and every error knows that the contexts of a document resemble each other.
"""

from dataclasses import dataclass

import numpy as np

from nlrewrite.evaluate.bootstrap import Draws, Interval, equal_groups, interval
from nlrewrite.evaluate.power import TEST

TRIMMED = 0.1
"""Share of the contexts that the trimmed mean leaves out at either end."""
GRID = 128


@dataclass(frozen=True)
class Spread:
    """Standard errors of a mean per position: by document groups, and as if contexts were independent."""

    clustered: float
    independent: float

    @property
    def design_effect(self) -> float:
        """How many times larger than with independent contexts the variance is."""
        return (self.clustered / self.independent) ** 2 if self.independent > 0 else 1.0


def spread(sums_W: np.ndarray, counts_W: np.ndarray, group_W: np.ndarray) -> Spread:
    """Of sum(sums) / sum(counts), linearised; with one position a window `independent` is sd / sqrt(n)."""
    kept = counts_W > 0
    sums_W, counts_W, group_W = sums_W[kept], counts_W[kept], group_W[kept]
    total = counts_W.sum()
    residual_W = sums_W - sums_W.sum() / total * counts_W
    _, of_window = np.unique(group_W, return_inverse=True)
    residual_G = np.bincount(of_window, residual_W)

    def error(residual: np.ndarray) -> float:
        units = len(residual)
        return float(np.sqrt(np.square(residual).sum() * units / max(1, units - 1)) / total)

    return Spread(error(residual_G), error(residual_W))


def wilson(share: float, size: float) -> tuple[float, float]:
    """95% interval of a share of `size` independent cases (Wilson): inside 0 to 1, and never of no width."""
    assert 0 <= share <= 1 and size > 0
    z = TEST**2 / size
    middle, reach = share + z / 2, np.sqrt(z * share * (1 - share) + z**2 / 4)
    return float(max(0.0, (middle - reach) / (1 + z))), float(min(1.0, (middle + reach) / (1 + z)))


def share_of_contexts(wins_W: np.ndarray, group_W: np.ndarray) -> Interval:
    """The share of contexts that `wins` (1, a tie 0.5, else 0), with Wilson's interval at the effective size.

    That size is the number of independent contexts with the same error as these, which come in groups; where every
    context says the same there is no error to compare, and the size is the number of groups.
    """
    share, size = float(wins_W.mean()), len(wins_W)
    even = share * (1 - share)
    error = spread(wins_W, np.ones(size), group_W).clustered
    effective = min(float(size), even / error**2) if error > 0 and even > 0 else float(len(np.unique(group_W)))
    return Interval(share, *wilson(min(1.0, max(0.0, share)), effective))


def trimmed_mean(sorted_W: np.ndarray) -> float:
    """The mean without the lowest and the highest tenth."""
    cut = int(TRIMMED * len(sorted_W))
    return float(sorted_W[cut : len(sorted_W) - cut].mean())


def hodges_lehmann(sorted_W: np.ndarray) -> float:
    """The median of the means of all pairs of contexts, each with itself included; n log n, by bisection."""
    count = len(sorted_W)
    pairs = count * (count + 1) // 2
    low, high = _pair(sorted_W, (pairs + 1) // 2), _pair(sorted_W, pairs // 2 + 1)
    return (low + high) / 4


def median_interval(values_W: np.ndarray, group_W: np.ndarray, draws: Draws, of_group: np.ndarray) -> Interval:
    """The median with its bootstrap interval over document groups; `of_group` names the groups that `draws` draws.

    Of each resample the median is looked up among `GRID` of the values around the measured one, within five standard
    errors of its rank: steps far smaller than the interval.
    """
    ordered = np.sort(values_W)
    below_W = (values_W <= np.median(values_W)).astype(np.float64)
    error = max(spread(below_W, np.ones(len(values_W)), group_W).clustered, 1 / len(values_W))
    levels = np.clip(np.linspace(0.5 - 5 * error, 0.5 + 5 * error, GRID), 0, 1)
    grid = np.unique(np.quantile(ordered, levels, method="inverted_cdf"))
    place = np.searchsorted(grid, values_W)
    column = np.searchsorted(of_group, group_W)
    table_GT = np.zeros((len(of_group), len(grid) + 1))
    np.add.at(table_GT, (column, place), 1.0)
    up_to_GT = table_GT.cumsum(1)
    totals_RT = draws.totals(up_to_GT)
    with np.errstate(divide="ignore", invalid="ignore"):
        reached_RT = totals_RT[:, :-1] >= totals_RT[:, -1:] / 2
    first = np.where(reached_RT.any(1), reached_RT.argmax(1), len(grid) - 1)
    resampled = np.where(totals_RT[:, -1] > 0, grid[first], np.nan)
    sizes = np.bincount(column, minlength=len(of_group)).astype(np.float64)
    return interval(float(np.median(values_W)), resampled, np.zeros(0), equal_groups(sizes))


def _pair(sorted_W: np.ndarray, rank: int) -> float:
    """The rank-th smallest sum of two, counted once a pair."""
    low, high = 2 * sorted_W[0], 2 * sorted_W[-1]
    enough = 1e-9 * max(abs(low), abs(high))
    own = np.arange(len(sorted_W))
    while high - low > enough:
        middle = (low + high) / 2
        partners = np.searchsorted(sorted_W, middle - sorted_W, side="right")
        if np.maximum(partners - own, 0).sum() >= rank:
            high = middle
        else:
            low = middle
    return float(high)
