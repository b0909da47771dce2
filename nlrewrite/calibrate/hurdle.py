"""The hurdle: P(active | score) times E[activation | active, score], with what latents share drawn from all of them.

In: evidence, what is known of each latent. Out: a logistic chance and a magnitude that is linear in the score, both
never falling with it. Invariant: it estimates the conditional mean, so that without information in the score the
latent's mean comes out; and it can be fitted to a handful of active cases, for slopes are drawn to those of others.

| pooling                  | slope                            | magnitude                                             |
|--------------------------|----------------------------------|-------------------------------------------------------|
| none (`hurdle-none`)     | its own, drawn weakly to 0       | its own mean and growth                               |
| partial (`hurdle`)       | prior Normal(mean of all, 1)     | the known mean; growth drawn to that of all           |
| full (`hurdle-full`)     | that of all                      | the known mean; growth that of all                    |

Growth is told as a multiple of the latent's mean magnitude, so that loud and quiet latents can share it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Part
from nlrewrite.calibrate.logistic import WEAK, Counts, Shared, counted, own_magnitude, solve, there

Pooling = Literal["none", "partial", "full"]

PRECISION = {"partial": 1.0, "full": 1e9}
ROUNDS = 20
CLOSE = 1e-3
CASES = 10.0
"""Active cases of its own that count for a latent's growth as much as what all share."""
FEWEST = 3
"""Active cases, at least, for a growth of its own without pooling."""


@dataclass(frozen=True)
class Active:
    """Moments of the active cases of B latents, counted as they were drawn."""

    count: np.ndarray
    mean_score: np.ndarray
    spread: np.ndarray
    """Sum of squared scores about their mean."""
    product: np.ndarray
    """Sum of activations times scores about their mean."""
    magnitude: np.ndarray
    """Mean activation."""


def share(pooling: Literal["partial", "full"]) -> Callable[[Evidence, Known], Shared]:
    """What latents share: the mean slope, the relative growth, and how far scores of active cases spread."""

    def shared(evidence: Evidence, known: Known) -> Shared:
        counts = counted(evidence, known)
        active = _active(evidence, counts)
        some = (active.count > 0) & (active.magnitude > 0)
        relative = active.product[some] / active.magnitude[some]
        spread = max(float(active.spread[some].sum()), 0.0)
        return {
            "slope": np.array(_pooled_slope(evidence, counts, PRECISION[pooling])),
            "growth": np.array(max(float(relative.sum()), 0.0) / spread if spread > 0 else 0.0),
            "spread": np.array(spread / max(float(active.count.sum()), 1.0)),
        }

    return shared


def fit(pooling: Pooling) -> Callable[[Evidence, Known, Shared], Part]:
    def part(evidence: Evidence, known: Known, shared: Shared) -> Part:
        counts = counted(evidence, known)
        mean, precision = (0.0, WEAK) if pooling == "none" else (float(shared["slope"]), PRECISION[pooling])
        found = solve([evidence.answers.score_BS], counts, mean=mean, precision=precision, lower=0.0).coefficient
        active = _active(evidence, counts)
        if pooling == "none":
            magnitude = own_magnitude(evidence, known)
            enough = (active.count >= FEWEST) & (active.spread > 0)
            growth = np.where(enough, active.product / np.where(enough, active.spread, 1), 0)
        else:
            magnitude = np.where(known.magnitude > 0, known.magnitude, active.magnitude)
            growth = magnitude * _relative_growth(active, shared, pooling)
        growth = np.maximum(growth, 0)
        arrays = {
            "intercept": found[:, 0] - counts.offset,
            "slope": found[:, 1],
            "size": magnitude - growth * active.mean_score,
            "growth": growth,
        }
        return Part("logistic", arrays, there(counts))

    return part


def _relative_growth(active: Active, shared: Shared, pooling: Pooling) -> np.ndarray:
    growth = float(shared["growth"])
    if pooling == "full":
        return np.full(len(active.count), growth)
    prior = CASES * float(shared["spread"])
    own = active.product / np.where(active.magnitude > 0, active.magnitude, 1)
    weight = active.spread + prior
    return np.where(weight > 0, (own + prior * growth) / np.where(weight > 0, weight, 1), growth)


def _pooled_slope(evidence: Evidence, counts: Counts, precision: float) -> float:
    """The mean that the slopes of all latents are drawn to, such that it is their mean."""
    score = evidence.answers.score_BS
    reach = max(float(np.abs(score).max()), 1e-9)
    pool, start = 0.0, None
    for _ in range(ROUNDS):
        found = solve([score], counts, mean=pool, precision=precision, lower=-np.inf, start=start)
        start = found.coefficient.copy()
        known = found.curvature > 0
        weight = precision * found.curvature[known] / (found.curvature[known] + precision)
        if not weight.sum() > 0:
            return 0.0
        step = float((precision * (found.coefficient[known, 1] - pool)).sum() / weight.sum())
        step = float(np.clip(step, -4 / reach, 4 / reach))
        pool += step
        start[known, 1] += step
        if abs(step) * reach < CLOSE:
            break
    return max(pool, 0.0)


def _active(evidence: Evidence, counts: Counts) -> Active:
    row, case = np.nonzero(counts.positive)
    score = np.broadcast_to(evidence.answers.score_BS, counts.positive.shape)[row, case].astype(np.float64)
    count = counts.positive[row, case].astype(np.float64)
    drawn = 1.0 if evidence.drawn is None else evidence.drawn[row, 1]
    total = evidence.total[row, case] * drawn

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, values, minlength=evidence.latents)

    every = summed(count)
    some = np.where(every > 0, every, 1)
    mean = summed(count * score) / some
    away = score - mean[row]
    return Active(every, mean, summed(count * away**2), summed(total * away), summed(total) / some)
