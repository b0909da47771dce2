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
from nlrewrite.calibrate.knots import Scored, ascending, part

if TYPE_CHECKING:
    from nlrewrite.calibrate.evidence import Evidence, Known

Line = tuple[np.ndarray, np.ndarray]
Shared = dict[str, np.ndarray]
STRENGTHS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10_000.0)


def fit(evidence: "Evidence", known: "Known", shared: Shared) -> Part:
    """The monotone map of least squares."""
    return part(_pooled(each) for each in ascending(evidence.checked()))


def share(evidence: "Evidence", known: "Known") -> Shared:
    """The slope of all latents together, and how strongly each one's own is drawn towards it."""
    return _shared(held_up(evidence.checked()))


def fit_shrunk(evidence: "Evidence", known: "Known", shared: Shared) -> Part:
    """The same map, to be gone as far as it holds up in folds that it was not fitted on."""
    gain = gains(held_up(evidence.checked()), shared)
    return part((_pooled(each) for each in ascending(evidence)), gain)


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
    _, fold_S = np.unique(two_folds_at_least(evidence.fold), return_inverse=True)
    folds = range(int(fold_S.max()) + 1)
    active = np.stack([evidence.active[:, fold_S == fold].sum(1, dtype=np.float64) for fold in folds], axis=1)
    total = np.stack([evidence.total[:, fold_S == fold].sum(1, dtype=np.float64) for fold in folds], axis=1)
    elsewhere, truth = (each.sum(1, keepdims=True) - each for each in (active, total))
    sizes = _ratio(truth, elsewhere)
    sums = np.zeros((3, evidence.latents, len(folds)))
    for latent, cases in enumerate(ascending(replace(evidence, fold=fold_S))):
        if not active[latent].any():
            continue
        stretches = Stretches.of(cases.weighty(), len(folds))
        for fold in np.flatnonzero(elsewhere[latent]).tolist():  # without activations elsewhere there is no map
            held = cases.where(cases.fold == fold)
            sums[:, latent, fold] = _against(*stretches.without(fold), held, sizes[latent, fold])
    return HeldUp(*sums)


@dataclass(frozen=True)
class Stretches:
    """A latent's K stretches of scores that no fit to some of the F folds would part.

    Neighbouring scores without an activation get one value, so that there are about twice as many stretches as
    activations, and a fit to any folds costs next to nothing.
    """

    weight: np.ndarray
    total: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    """All [K, F]; the scores are infinite where a fold has none."""

    @staticmethod
    def of(cases: Scored, folds: int) -> "Stretches":
        starts = cases.starts()
        active = np.add.reduceat(cases.total, starts) > 0
        begins = np.zeros(len(cases.score), dtype=np.int64)
        begins[starts[1:][active[1:] | active[:-1]]] = 1
        stretch = np.cumsum(begins)
        cell, shape = stretch * folds + cases.fold, (int(stretch[-1]) + 1, folds)
        weight, total = (
            np.bincount(cell, each, shape[0] * folds).reshape(shape) for each in (cases.weight, cases.total)
        )
        lowest, highest = np.full(shape, np.inf), np.full(shape, -np.inf)
        highest.reshape(-1)[cell] = cases.score  # the last one stays: they ascend
        lowest.reshape(-1)[cell[::-1]] = cases.score[::-1]
        return Stretches(weight, total, lowest, highest)

    def without(self, fold: int) -> tuple[Line, float]:
        """The map fitted to the other folds, and their mean."""
        rest = [each for each in range(self.weight.shape[1]) if each != fold]
        weight, total = self.weight[:, rest].sum(1), self.total[:, rest].sum(1)
        there = weight > 0
        ends = self.lowest[:, rest].min(1), self.highest[:, rest].max(1)
        value = _least_squares(weight[there], total[there])
        score = np.stack([each[there] for each in ends], axis=1).ravel()
        return (score, np.repeat(value, 2)), float(total.sum() / weight.sum())


def _against(line: Line, mean: float, held: Scored, size: float) -> tuple[np.ndarray, ...]:
    """The three sums over the cases of a fold, by a map from folds in which an active latent is `size` on average."""
    predicted = np.interp(held.score, *line)
    ahead = predicted - mean
    weighted = held.weight * ahead**2
    # a value that is expected to be v is either about the size or 0: its variance is about v * size
    return weighted.sum(), ahead @ (held.total - held.weight * mean), weighted @ predicted * size


def two_folds_at_least(fold_S: np.ndarray) -> np.ndarray:
    """The folds; a single one is halved in the order of its cases, which is that of documents."""
    if (fold_S == fold_S[0]).all():
        return (np.arange(len(fold_S)) >= len(fold_S) / 2).astype(np.int64)
    return fold_S


def _pooled(cases: Scored) -> Line:
    """Least squares among the non-decreasing functions of the score."""
    distinct = cases.merged()
    return distinct.score, _least_squares(distinct.weight, distinct.total)


def _least_squares(weight: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The best non-decreasing values for cases in order."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(total / weight, weights=weight).x
