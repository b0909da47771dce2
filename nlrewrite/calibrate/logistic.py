"""Logistic calibrators: P(active | score) = 1 / (1 + exp(-(intercept + slope * score))), times a magnitude.

In: evidence of a block of latents. Out: intercepts and slopes of all of them at once. Invariants: what comes out is
finite, whatever the evidence; without information in the score the latent's mean comes out; a latent without one active
case has its mean everywhere.

- platt: own intercept and own slope, the slope drawn weakly to 0, so that separable cases have a finite one.
- beta (Kull, Silva Filho and Flach 2017): two slopes, neither below 0, one for how far a score says "active" and one
  for how far it says "not", so that answers near 0 and 1 may be worth less than they claim.
- prior-shift: needs no pairs. The score is taken for log-odds that are right but for the base rate; one number is added
  to them such that the mean probability is the known rate.

Cases drawn by whether the latent is active are fitted as they were drawn, and the drawing is undone in the intercept
(King and Zeng 2001): less log(drawn odds), plus the log-odds of the known rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_expit

from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Part

Shared = dict[str, np.ndarray]

STEPS = 25
FARTHEST = 4.0
"""The most that one step may move the log-odds of a case."""
CONVERGED = 1e-3
WEAK = 0.01
"""Precision of a prior that is there to keep separable cases finite."""
CERTAIN = 30.0
LARGEST = 80.0
"""exp of it is still a number in single precision."""
CHUNK = 1 << 17
"""Numbers of one array that are worked on at a time, so that they stay in the cache."""
SMALL = 1 << 12
"""Fewer cases than that are worked on in double precision."""


@dataclass(frozen=True)
class Solution:
    """Coefficients of B latents: of a constant, then of each feature."""

    coefficient: np.ndarray
    """[B, 1 + K]"""
    curvature: np.ndarray
    """[B]: how well the evidence alone determines the first feature's coefficient."""


@dataclass(frozen=True)
class Counts:
    """Cases as they were drawn, and what to take off the intercept for it."""

    positive: np.ndarray
    total: np.ndarray
    offset: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        return self.positive.sum(1, dtype=np.float64)

    @property
    def negatives(self) -> np.ndarray:
        return np.broadcast_to(self.total, self.positive.shape).sum(1, dtype=np.float64) - self.positives


def platt(evidence: Evidence, known: Known, shared: Shared) -> Part:
    counts = counted(evidence, known)
    found = solve([evidence.answers.score_BS], counts).coefficient
    constant = own_magnitude(evidence, known)
    arrays = {"intercept": found[:, 0] - counts.offset, "slope": found[:, 1]}
    return Part("logistic", {**arrays, "size": constant, "growth": np.zeros_like(constant)}, there(counts))


def beta(evidence: Evidence, known: Known, shared: Shared) -> Part:
    counts, score = counted(evidence, known), evidence.answers.score_BS
    found = solve([log_expit(score), -log_expit(-score)], counts, mean=1.0, lower=0.0).coefficient
    constant = own_magnitude(evidence, known)
    arrays = {"intercept": found[:, 0] - counts.offset, "rise": found[:, 1], "fall": found[:, 2]}
    return Part("beta", {**arrays, "size": constant, "growth": np.zeros_like(constant)}, there(counts))


def prior_shift(evidence: Evidence, known: Known, shared: Shared) -> Part:
    score, weight = evidence.answers.score_BS, evidence.weight
    intercept = np.empty(evidence.latents)
    for rows in _chunks(score.shape):
        intercept[rows] = _shift(score[rows], weight if len(weight) == 1 else weight[rows], known.rate[rows])
    return Part(
        "logistic",
        {
            "intercept": intercept,
            "slope": np.ones_like(intercept),
            "size": known.magnitude,
            "growth": np.zeros_like(intercept),
        },
    )


def counted(evidence: Evidence, known: Known) -> Counts:
    """The evidence as cases that were drawn."""
    if evidence.drawn is None:
        return Counts(evidence.active, evidence.weight, np.zeros(evidence.latents))
    positive = evidence.active * evidence.drawn[:, 1:]
    total = positive + (evidence.weight - evidence.active) * evidence.drawn[:, :1]
    drawn = Counts(positive, total, np.zeros(evidence.latents))
    sure = (known.rate <= 0) | (known.rate >= 1) | ~(there(drawn) > 0) | ~(drawn.negatives > 0)
    rate = np.where(sure, 0.5, known.rate)
    odds = np.where(sure, 1.0, drawn.positives) / np.where(sure, 1.0, drawn.negatives)
    by_rate = np.log(odds) - np.log(rate / (1 - rate))
    return Counts(positive, total, np.where(sure, np.log(evidence.drawn[:, 1] / evidence.drawn[:, 0]), by_rate))


def there(counts: Counts) -> np.ndarray:
    """1 where there is an active case, 0 where there is none: [B]."""
    return (counts.positives > 0).astype(np.float64)


def own_magnitude(evidence: Evidence, known: Known) -> np.ndarray:
    """Mean activation where active; what is known of it where cases were drawn for being active, or where none is."""
    active = evidence.active.sum(1, dtype=np.float64)
    own = evidence.total.sum(1, dtype=np.float64) / np.where(active > 0, active, 1)
    return np.where((active > 0) & (evidence.drawn is None or known.magnitude <= 0), own, known.magnitude)


def solve(
    features: Sequence[np.ndarray],
    counts: Counts,
    *,
    mean: float = 0.0,
    precision: float = WEAK,
    lower: float = -np.inf,
    start: np.ndarray | None = None,
) -> Solution:
    """Logistic regression of all latents, each by itself: coefficients with a Normal(mean, 1 / precision) prior.

    Newton's steps, shortened where they would move a case too far and halved where they make the fit worse.
    """
    rows_, cases = counts.positive.shape
    dtype = np.float64 if cases <= SMALL else np.float32
    coefficient, curvature = np.empty((rows_, 1 + len(features))), np.empty(rows_)
    for rows in _chunks((rows_, cases)):
        total = counts.total if len(counts.total) == 1 else counts.total[rows]
        one = _Rows(
            [feature[rows].astype(dtype) for feature in features],
            counts.positive[rows].astype(dtype),
            total.astype(dtype),
            mean,
            precision,
            lower,
        )
        coefficient[rows], curvature[rows] = one.solved(None if start is None else start[rows])
    return Solution(coefficient, curvature)


class _Rows:
    """Some latents whose arrays fit into the cache."""

    def __init__(
        self,
        features: list[np.ndarray],
        positive: np.ndarray,
        total: np.ndarray,
        mean: float,
        precision: float,
        lower: float,
    ) -> None:
        self.total = None if (total == 1).all() else np.broadcast_to(total, positive.shape)
        every = np.broadcast_to(total, positive.shape).sum(1, dtype=np.float64)
        self.middle = [_dot(self._weighted(each), None) / every for each in features]
        pairs = zip(features, self.middle, strict=True)
        self.features = [each - middle[:, None].astype(each.dtype) for each, middle in pairs]
        self.widest = np.stack([np.ones(len(every)), *(np.abs(each).max(1) for each in self.features)], axis=1)
        self.wanted = np.stack([_dot(positive, each) for each in [None, *self.features]], axis=1)
        self.prior = np.array([0.0, *[precision] * len(features)])
        self.mean, self.lower = mean, np.array([-np.inf, *[lower] * len(features)])
        self.rate = self.wanted[:, 0] / every
        self.decided = (self.rate <= 0) | (self.rate >= 1)

    def solved(self, start: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        rate = np.clip(self.rate, 1e-12, 1 - 1e-12)
        at = np.zeros(self.wanted.shape)
        at[:, 0] = np.log(rate / (1 - rate))
        if start is not None:
            at = self._moved(start, 1)
        best, loss, step = at, np.full(len(at), np.inf), np.zeros_like(at)
        for _ in range(STEPS):
            gradient, hessian, worth = self._derivatives(at)
            better = worth <= loss + 1e-6 * np.abs(worth)
            best, loss = np.where(better[:, None], at, best), np.where(better, worth, loss)
            fresh = self._step(best, gradient, hessian)
            step = np.where(better[:, None], fresh, step / 2)
            if (np.abs(step) * self.widest).sum(1)[~self.decided].max(initial=0) < CONVERGED:
                at = np.maximum(best + step, self.lower)
                break
            at = np.maximum(best + step, self.lower)
        _, hessian, _ = self._derivatives(at)
        own = hessian - np.diag(self.prior)
        curvature = own[:, 1, 1] - own[:, 0, 1] ** 2 / np.maximum(own[:, 0, 0], 1e-30)
        at[self.decided] = 0
        at[self.decided, 0] = np.where(self.rate[self.decided] <= 0, -CERTAIN, CERTAIN)
        return self._moved(at, -1), np.where(self.decided, 0, np.maximum(curvature, 0))

    def _moved(self, at: np.ndarray, way: int) -> np.ndarray:
        """The constant to or from features whose means were taken off."""
        constant = at[:, 0] + way * sum(at[:, place] * middle for place, middle in enumerate(self.middle, 1))
        return np.concatenate([constant[:, None], at[:, 1:]], axis=1)

    def _derivatives(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the negative log posterior: its descent direction, its second derivatives, and itself."""
        dtype = self.features[0].dtype
        chance = self.features[0] * at[:, 1, None].astype(dtype)
        for place, feature in enumerate(self.features[1:], 2):
            chance += feature * at[:, place, None].astype(dtype)
        chance += at[:, 0, None].astype(dtype)
        np.clip(chance, -LARGEST, LARGEST, out=chance)
        worth = _dot(self._weighted(chance), None) - (at * self.wanted).sum(1)
        np.negative(chance, out=chance)
        np.exp(chance, out=chance)
        chance += 1
        np.reciprocal(chance, out=chance)
        away = at - self.mean
        worth += (self.prior * away**2).sum(1) / 2 - _dot(self._weighted(np.log(chance)), None)
        expected = self._weighted(chance)
        gradient = self.wanted - np.stack([_dot(expected, each) for each in [None, *self.features]], axis=1)
        gradient -= self.prior * away
        spread = expected - expected * chance
        size = self.wanted.shape[1]
        hessian = np.empty((len(at), size, size))
        weighted = [spread, *(spread * each for each in self.features)]
        for first in range(size):
            for second in range(first, size):
                other = None if first == 0 else self.features[first - 1]
                hessian[:, first, second] = hessian[:, second, first] = _dot(weighted[second], other)
        return gradient, hessian + np.diag(self.prior), worth

    def _step(self, at: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        held = (at <= self.lower) & (gradient < 0)
        gradient = np.where(held, 0, gradient)
        hessian = np.where(held[:, :, None] | held[:, None, :], 0, hessian)
        diagonal = np.arange(hessian.shape[1])
        scale = 1 / np.sqrt(np.maximum(hessian[:, diagonal, diagonal], 1e-20))
        conditioned = hessian * scale[:, :, None] * scale[:, None, :]
        conditioned[:, diagonal, diagonal] = 1 + 1e-9
        step = np.linalg.solve(conditioned, (gradient * scale)[..., None])[..., 0] * scale
        reach = (np.abs(step) * self.widest).sum(1)
        return step * np.minimum(1, FARTHEST / np.maximum(reach, 1e-30))[:, None]

    def _weighted(self, values: np.ndarray) -> np.ndarray:
        return values if self.total is None else values * self.total


def _dot(values: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    """Sums of products over cases."""
    found = values.sum(1) if other is None else np.einsum("bs,bs->b", values, other)
    return found.astype(np.float64)


def _chunks(shape: tuple[int, ...]) -> list[slice]:
    rows, cases = shape
    size = max(CHUNK // max(cases, 1), 1)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _shift(score: np.ndarray, weight: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """What to add to log-odds such that their mean probability is `rate`."""
    share = np.broadcast_to(weight, score.shape) / np.broadcast_to(weight, score.shape).sum(1, keepdims=True)
    share = share.astype(score.dtype)
    inside = np.clip(rate, 1e-9, 1 - 1e-9)
    there = np.log(inside / (1 - inside))
    low, high = there - score.max(1), there - score.min(1)  # no case is likelier, none less likely than the rate
    shift = (low + high) / 2
    for _ in range(60):
        chance = 1 / (1 + np.exp(-np.clip(score + shift[:, None].astype(score.dtype), -LARGEST, LARGEST)))
        mean = np.einsum("bs,bs->b", chance, share).astype(np.float64)
        slope = np.einsum("bs,bs,bs->b", chance, 1 - chance, share) / np.maximum(mean, 1e-30)
        low, high = np.where(mean < inside, shift, low), np.where(mean < inside, high, shift)
        step = (np.log(inside) - np.log(np.maximum(mean, 1e-30))) / np.maximum(slope, 1e-30)
        if (np.abs(step) < 1e-5).all():
            break
        tried = shift + step
        shift = np.where((tried > low) & (tried < high), tried, (low + high) / 2)
    return np.where(rate <= 0, -CERTAIN - score.max(1), np.where(rate >= 1, CERTAIN - score.min(1), shift))
