"""Quantile normalisation: the map that carries the distribution of predictions onto that of true activations.

In: how often each level was said, and the true activations of a target sample. Out: a value per latent and level.
Invariant: monotone in the level, with all nine plotting positions of Hyndman and Fan (1996); tied predictions share the
position of their middle rank, and the zeros of a sparse sample are counted, never stored.
"""

from dataclasses import dataclass

import numpy as np

TYPES = tuple(range(1, 10))
_ALPHA_BETA = {
    1: (0.0, 1.0),
    2: (0.5, 0.5),
    3: (0.0, 1.0),
    4: (0.0, 1.0),
    5: (0.5, 0.5),
    6: (0.0, 0.0),
    7: (1.0, 1.0),
    8: (1 / 3, 1 / 3),
    9: (3 / 8, 3 / 8),
}


@dataclass(frozen=True)
class Sample:
    """A latent's true activations: those above zero, ascending, among `count`."""

    positive: np.ndarray
    count: int

    def order_statistic(self, rank: np.ndarray) -> np.ndarray:
        """The value of rank 1..count, zeros first; ranks outside are clipped."""
        zeros = self.count - len(self.positive)
        index = np.clip(rank, 1, self.count) - zeros - 1
        if not len(self.positive):
            return np.zeros(len(index))
        return np.where(index >= 0, self.positive[np.maximum(index, 0)], 0.0)


def fit(said_Z: np.ndarray, target: Sample, type_: int) -> np.ndarray:
    """Value at each level: the target's quantile at the middle rank of the level among what was said."""
    below = np.cumsum(said_Z) - said_Z
    middle = below + (said_Z + 1) / 2
    values = quantile(target, plotting_position(middle, float(said_Z.sum()), type_), type_)
    return np.maximum.accumulate(np.where(said_Z > 0, values, 0.0))


def plotting_position(rank: np.ndarray, count: float, type_: int) -> np.ndarray:
    """Where in 0..1 a rank stands, such that the quantile of the position of a whole rank is that rank's value.

    Types 1 to 3 are steps of the empirical distribution: they are read where it is that value, at rank / count or, as
    type 2 takes the middle there, half a rank before.
    """
    alpha, beta = _ALPHA_BETA[type_]
    return np.clip((rank - alpha) / (count + 1 - alpha - beta), 0.0, 1.0)


def quantile(sample: Sample, share: np.ndarray, type_: int) -> np.ndarray:
    """Quantiles of `sample` at `share`, by one of the nine definitions."""
    count = sample.count
    if type_ in (1, 2, 3):
        place = count * share - (0.5 if type_ == 3 else 0.0)
        low = np.floor(place + 4 * np.finfo(float).eps * count).astype(int)
        between = place - low > 4 * np.finfo(float).eps * count
        if type_ == 3:
            return sample.order_statistic(np.where(~between & (low % 2 == 0), low, low + 1))
        upper = sample.order_statistic(low + 1)
        at_step = sample.order_statistic(low)
        return np.where(between, upper, at_step if type_ == 1 else (at_step + upper) / 2)
    alpha, beta = _ALPHA_BETA[type_]
    place = alpha + share * (count + 1 - alpha - beta)
    low = np.floor(place + 4 * np.finfo(float).eps).astype(int)
    weight = np.clip(place - low, 0.0, 1.0)
    return (1 - weight) * sample.order_statistic(low) + weight * sample.order_statistic(low + 1)
