"""Intervals over document groups: every figure of every arm resampled with the same documents.

In: sums of losses per group and arm. Out: means, differences and ratios with percentile intervals. Invariant: arms are
always paired, a ratio resamples numerator and denominator together, and a ratio whose denominator may be zero or
negative is not given.
"""

from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resampled:
    """Per-position means of A arms: as measured [A], and over the resamples [R, A]."""

    measured_A: np.ndarray
    resampled_RA: np.ndarray

    def difference(self, arm: int, other: int) -> Interval:
        return _interval(
            self.measured_A[arm] - self.measured_A[other], self.resampled_RA[:, arm] - self.resampled_RA[:, other]
        )

    def share(self, floor: int, ceiling: int, arm: int) -> Interval | None:
        """How much of the way from `floor` to `ceiling` an arm goes; None where there is no way to speak of."""
        if not self.difference(floor, ceiling).low > 0:
            return None
        return _interval(
            *(_share(values, floor, ceiling, arm) for values in (self.measured_A[None], self.resampled_RA))
        )

    def share_difference(self, floor: int, ceiling: int, arm: int, other: int) -> Interval | None:
        """The difference of two arms' shares."""
        if not self.difference(floor, ceiling).low > 0:
            return None
        return _interval(
            *(
                _share(values, floor, ceiling, arm) - _share(values, floor, ceiling, other)
                for values in (self.measured_A[None], self.resampled_RA)
            )
        )


def resample(sums_GA: np.ndarray, counts_G: np.ndarray, resamples: int, draws: np.random.Generator) -> Resampled:
    """Groups drawn with replacement; each resample's mean is its summed loss over its summed positions.

    Groups without positions are left out: there is nothing of them to draw.
    """
    sums_GA, counts_G = sums_GA[counts_G > 0], counts_G[counts_G > 0]
    groups = len(counts_G)
    weights_RG = draws.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.float64)
    means_RA = (weights_RG @ sums_GA) / (weights_RG @ counts_G)[:, None]
    return Resampled(sums_GA.sum(0) / counts_G.sum(), means_RA)


def _share(values_RA: np.ndarray, floor: int, ceiling: int, arm: int) -> np.ndarray:
    return (values_RA[:, floor] - values_RA[:, arm]) / (values_RA[:, floor] - values_RA[:, ceiling])


def _interval(measured: float | np.ndarray, resampled_R: np.ndarray) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled_R, [tail, 1 - tail])
    return Interval(float(np.squeeze(measured)), float(low), float(high))
