"""What a simulator of a given quality can explain of a latent, in closed form.

In: a base rate, a coefficient of variation of the magnitudes, and how good the simulator is. Out: errors as shares of
the latent's variance, which is the error of mean ablation. Invariant: nothing here is sampled; integrals are sums over
a fine grid, right to more digits than any table prints.

The model: a latent is active with chance `rate`; where it is, its magnitude is lognormal with mean 1 and coefficient of
variation `cv`, and says nothing of the simulator's answer. A flag is right with chances `sensitivity` and
`specificity`. A score is Normal(0, 1) where the latent is inactive, Normal(d', 1) where it is active.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from nlrewrite.errors import SettingError

REACH = 12.0
STEPS = 200_001


def d_prime(auc: float) -> float:
    """Distance between the two normal distributions of a score that has this area under its curve."""
    return sqrt(2) * float(ndtri(auc))


def auc(distance: float) -> float:
    return float(ndtr(distance / sqrt(2)))


def variance(rate: float, cv: float) -> float:
    """Of the activation; the error of mean ablation."""
    return rate * (1 + cv**2) - rate**2


def zero_ablation(rate: float, cv: float) -> float:
    """Error of zero ablation against mean ablation: 1 + mean^2 / variance, nearly 1 + rate."""
    return 1 + rate**2 / variance(rate, cv)


def explained_by_activity(share: float, rate: float, cv: float) -> float:
    """Share of the activation's variance, where `share` of the variance of being active is explained."""
    return share / (1 + cv**2 / (1 - rate))


def flagged(rate: float, sensitivity: float, specificity: float) -> float:
    """Share of the contexts that are flagged."""
    return sensitivity * rate + (1 - specificity) * (1 - rate)


def precision(rate: float, sensitivity: float, specificity: float) -> float:
    """Share of the flagged contexts in which the latent is active."""
    return sensitivity * rate / flagged(rate, sensitivity, specificity)


def phi(rate: float, sensitivity: float, specificity: float) -> float:
    """Correlation of flag and activity: Matthews' coefficient."""
    share = flagged(rate, sensitivity, specificity)
    return (sensitivity + specificity - 1) * sqrt(rate * (1 - rate) / (share * (1 - share)))


def explained_by_flags(rate: float, sensitivity: float, specificity: float, cv: float) -> float:
    """Share of the variance that the best use of a flag explains: phi^2, less what magnitudes keep to themselves."""
    return explained_by_activity(phi(rate, sensitivity, specificity) ** 2, rate, cv)


def flags_at_face_value(rate: float, sensitivity: float, specificity: float, cv: float) -> float:
    """Error, against mean ablation, of giving every flagged context the latent's mean magnitude."""
    error = flagged(rate, sensitivity, specificity) - 2 * sensitivity * rate + rate * (1 + cv**2)
    return error / variance(rate, cv)


def break_even_specificity(rate: float, sensitivity: float) -> float:
    """Specificity from which flags at face value are no worse than the mean: nearly as many false flags as true."""
    if sensitivity < rate:
        raise SettingError(
            f"flags at face value never break even below a sensitivity of the base rate: sensitivity={sensitivity:g}, "
            f"rate={rate:g}. Raise the sensitivity"
        )
    return 1 - rate * (sensitivity - rate) / (1 - rate)


def explained_by_score(rate: float, distance: float, cv: float) -> float:
    """The most of the variance that any calibrator of a score explains: that of the conditional mean."""
    return explained_by_gated_score(rate, distance, cv, passed=1.0, keep=1.0)


def explained_by_gated_score(rate: float, distance: float, cv: float, passed: float, keep: float = 0.95) -> float:
    """The same with a gate in front that passes `passed` of the inactive and `keep` of the active contexts.

    Outside the gate the estimate is the mean activation there; with a distance of 0 the gate is alone.
    """
    score = _grid(distance)
    active, inactive = rate * keep * norm.pdf(score, distance), (1 - rate) * passed * norm.pdf(score)
    inside = _integral(_share(active**2, active + inactive), score)
    missed, outside = rate * (1 - keep), rate * (1 - keep) + (1 - rate) * (1 - passed)
    square = inside + (missed**2 / outside if outside else 0.0)
    return explained_by_activity((square - rate**2) / (rate * (1 - rate)), rate, cv)


@dataclass(frozen=True)
class Matched:
    """A score carried onto the distribution of the activations (quantile matching), of unlimited data."""

    correlation: float
    """Of prediction and activation."""
    sensitivity: float
    """Share of the active contexts with a prediction above 0: as many contexts as are active have one."""
    threshold: float
    """Score from which on the prediction is above 0."""

    @property
    def error(self) -> float:
        """Against mean ablation: equal marginals leave 2 (1 - correlation)."""
        return 2 * (1 - self.correlation)

    @property
    def best_gain(self) -> float:
        """How far to go from the mean towards the prediction; then 1 - correlation^2 of the variance is left."""
        return self.correlation


def matched(rate: float, distance: float, cv: float) -> Matched:
    threshold = float(brentq(lambda score: _tail(score, rate, distance) - rate, -REACH, REACH + distance))  # type: ignore[arg-type]
    score = np.linspace(threshold, REACH + distance, STEPS)
    product = rate * _integral(matched_value(score, rate, distance, cv) * norm.pdf(score, distance), score)
    return Matched((product - rate**2) / variance(rate, cv), float(ndtr(distance - threshold)), threshold)


def matched_value(score: np.ndarray, rate: float, distance: float, cv: float) -> np.ndarray:
    """What quantile matching makes of a score: the activation that is exceeded as often."""
    width = sqrt(np.log1p(cv**2))
    above = np.minimum(_tail(score, rate, distance) / rate, 1.0)
    with np.errstate(over="ignore"):
        return np.where(above < 1, np.exp(-(width**2) / 2 - width * ndtri(np.maximum(above, 1e-300))), 0.0)


def matched_break_even_auc(rate: float, cv: float) -> float:
    """AUC from which quantile matching is no worse than the mean: where its correlation is a half."""
    distance = brentq(lambda distance: matched(rate, distance, cv).correlation - 0.5, 0.5, 8.0)
    return auc(float(distance))  # type: ignore[arg-type]


def conditional_mean(score: np.ndarray, rate: float, distance: float) -> np.ndarray:
    """The best estimate of the activation given its score: the chance of being active, as magnitudes have mean 1."""
    odds = rate / (1 - rate) * np.exp(distance * score - distance**2 / 2)
    return odds / (1 + odds)


def _tail(score: np.ndarray | float, rate: float, distance: float) -> np.ndarray:
    """Share of the contexts with a higher score."""
    return rate * ndtr(distance - score) + (1 - rate) * ndtr(-np.asarray(score))


def _grid(distance: float) -> np.ndarray:
    return np.linspace(-REACH, REACH + distance, STEPS)


def _integral(values: np.ndarray, at: np.ndarray) -> float:
    step = at[1] - at[0]
    return float((values.sum() - (values[0] + values[-1]) / 2) * step)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
