"""Isotonic regression of activations on the score, as it is and drawn towards the mean as far as it does not hold up.

In: evidence. Out: knots, one level stretch a block of pooled cases, and for the shrunk kind a gain per latent.
Invariant: within its cases the plain kind is the best monotone map there is, so it never does worse than a constant;
tied scores get one value, and cases without weight count for nothing.

With few activations the top block follows chance: out of sample plain isotonic regression can lose to the mean. The
shrunk kind asks how much of a map fitted to the other folds is found again in each: the gain of a latent is the slope
of truths y on such predictions p, both less the mean of the folds fitted on, sum(p y) / sum(p^2), between 0 and 1. For
a rare latent that slope is itself mostly chance, so it is drawn towards the slope of all latents together, as if that
had been seen in `strength` more cases of the latent's noise. The strength is the one with which the slopes of all
folds but one best predict that one.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.calibrate.fitted import Part
from nlrewrite.calibrate.knots import Scored, needed, part, scored
from nlrewrite.simulate.said import Answers

if TYPE_CHECKING:
    from nlrewrite.calibrate.evidence import Evidence, Known

Line = tuple[np.ndarray, np.ndarray]
Shared = dict[str, np.ndarray]
STRENGTHS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10_000.0)


def fit(evidence: "Evidence", known: "Known", shared: Shared) -> Part:
    """The monotone map of least squares."""
    return part(_pooled(each) for each in scored(evidence.checked()))


def share(evidence: "Evidence", known: "Known") -> Shared:
    """The slope of all latents together, and how strongly each one's own is drawn towards it."""
    return _shared(held_up(evidence.checked()))


def fit_shrunk(evidence: "Evidence", known: "Known", shared: Shared) -> Part:
    """The same map, to be gone as far as it holds up in folds that it was not fitted on."""
    gain = gains(held_up(evidence.checked()), shared)
    return part((_pooled(each) for each in scored(evidence)), gain)


@dataclass(frozen=True)
class HeldUp:
    """Of predictions made for each fold from the others: sums of B latents by fold, [B, F]."""

    square: np.ndarray
    """sum(p^2) of the predictions less the mean."""
    product: np.ndarray
    """sum(p y) with the truths less the mean."""
    noise: np.ndarray
    """Variance of the product given the predictions, up to a factor that latents share."""

    def of(self, folds: list[int]) -> "HeldUp":
        return HeldUp(self.square[:, folds], self.product[:, folds], self.noise[:, folds])


def gains(found: HeldUp, shared: Shared) -> np.ndarray:
    """How far each latent's map is to be gone: its slope, drawn towards the shared one as noise demands."""
    square, product, noise = found.square.sum(1), found.product.sum(1), found.noise.sum(1)
    pull = shared["strength"] * _ratio(noise, square)
    return np.clip(_ratio(product + pull * shared["slope"], square + pull), 0.0, 1.0)


def _shared(found: HeldUp) -> Shared:
    """The common slope, and the strength with which slopes of all folds but one, drawn to theirs, best predict it."""
    folds = range(found.square.shape[1])
    rest = [found.of([each for each in folds if each != fold]) for fold in folds]
    slopes = [_slope(each) for each in rest]

    def error(strength: float) -> float:
        total = 0.0
        for fold in folds:
            gain = gains(rest[fold], _as_shared(slopes[fold], strength))
            total += float((gain**2 * found.square[:, fold] - 2 * gain * found.product[:, fold]).sum())
        return total

    return _as_shared(_slope(found), min(STRENGTHS, key=error))


def _as_shared(slope: float, strength: float) -> Shared:
    return {"slope": np.array(slope), "strength": np.array(strength)}


def _slope(found: HeldUp) -> float:
    return float(np.clip(_ratio(found.product.sum(), found.square.sum()), 0.0, 1.0))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def held_up(evidence: "Evidence") -> HeldUp:
    """Predictions of each fold from the others, against what was true there."""
    evidence = replace(evidence, answers=Answers(evidence.answers.score_BS))
    fold_S = _two_at_least(evidence.fold)
    sums = [_of_fold(evidence, fold_S == fold) for fold in np.unique(fold_S)]
    square, product, noise = np.stack(sums, axis=-1)
    return HeldUp(square, product, noise)


def _of_fold(evidence: "Evidence", held_S: np.ndarray) -> np.ndarray:
    """The three sums over the cases of a fold: [3, B]."""
    fitted, truth = evidence.where(~held_S), evidence.where(held_S)
    sums = np.zeros((3, evidence.latents))
    size = fitted.total.sum(1) / np.maximum(fitted.active.sum(1), np.finfo(float).tiny)
    for latent, (seen, met, mean) in enumerate(zip(scored(fitted), scored(truth), fitted.mean(), strict=True)):
        if not len(seen.score) or not len(met.score):
            continue
        score, value = _pooled(seen)
        kept = needed(value)
        predicted = np.interp(met.score, score[kept], value[kept])
        ahead = predicted - mean
        weighted = met.weight * ahead**2
        sums[0, latent] = weighted.sum()
        sums[1, latent] = ahead @ (met.total - met.weight * mean)
        sums[2, latent] = weighted @ predicted * size[latent]  # a value predicted as v is size or 0: variance v * size
    return sums


def _two_at_least(fold_S: np.ndarray) -> np.ndarray:
    """The folds; a single one is halved in the order of its cases, which is that of documents."""
    if (fold_S == fold_S[0]).all():
        return (np.arange(len(fold_S)) >= len(fold_S) / 2).astype(np.int64)
    return fold_S


def _pooled(cases: Scored) -> Line:
    """Least squares among the non-decreasing functions of the score."""
    from scipy.optimize import isotonic_regression

    if not len(cases.score):
        return np.zeros(1), np.zeros(1)
    return cases.score, isotonic_regression(cases.total / cases.weight, weights=cases.weight).x
