"""Quantile normalisation: the map that carries the distribution of predictions onto that of true activations.

In: what was said in each case, and for each latent the true activations of a target sample. Out: knots of a monotone
map from the score to an activation. Invariant: the map is never decreasing and never leaves the target's range; the
zeros of a sparse sample are counted, never stored, and the knots are about as many as the values above zero.

Rules, for all nine plotting positions of Hyndman and Fan (1996):
- ties: cases with equal scores share the position of their middle rank;
- weights: a case of weight n is n cases with its score, so the count of cases is the sum of the weights;
- the atom at zero: it takes the ranks below the target's positive values. A target of which a share `rate` is above
  zero makes the top `rate` of the predictions positive, to within a rank and the ties there;
- between two scores the map is linear; below the smallest and above the largest score it is level, so that a new
  extreme gets the value of the extreme of the calibration;
- a latent never active in the target sample is silent everywhere.

The sources' targets: the whole corpus, a random tenth of it (`tenth`), or the very contexts that are reported on.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.calibrate.fitted import Part
from nlrewrite.calibrate.knots import Scored, ascending, part
from nlrewrite.seeds import generator

if TYPE_CHECKING:
    from nlrewrite.activations.pairs import ByLatent
    from nlrewrite.calibrate.evidence import Evidence, Known

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

    @property
    def zeros(self) -> int:
        return self.count - len(self.positive)

    def order_statistic(self, rank: np.ndarray) -> np.ndarray:
        """The value of rank 1..count, zeros first; ranks outside are clipped."""
        index = np.clip(rank, 1, self.count) - self.zeros - 1
        if not len(self.positive):
            return np.zeros(len(index))
        return np.where(index >= 0, self.positive[np.maximum(index, 0)], 0.0)


def fit(evidence: "Evidence", known: "Known", shared: dict[str, np.ndarray], type_: int = 6) -> Part:
    """Knots that carry the scores of each latent onto its target in `known.targets`, by plotting position `type_`."""
    both = zip(ascending(evidence.checked()), known.targets, strict=True)
    return part(matched(cases.merged(), target, type_) for cases, target in both)


def matched(cases: Scored, target: Sample, type_: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct scores that matter, and their values."""
    upto = np.cumsum(cases.weight)
    position = plotting_position(upto - (cases.weight - 1) / 2, float(upto[-1]), type_)
    silent = np.searchsorted(position, (target.zeros - 2) / (target.count + 1))  # below it every type says zero
    first = max(int(silent) - 1, 0)
    values = quantile(target, position[first:], type_)
    return cases.score[first:], np.maximum.accumulate(values)


def samples(
    pairs: "ByLatent", positions: int, latents: slice, chosen_P: np.ndarray | None = None
) -> tuple[Sample, ...]:
    """The target samples of a block of latents: all `positions`, or those of the mask `chosen_P`."""
    found = []
    for latent in range(*latents.indices(len(pairs.bounds) - 1)):
        position, value = pairs.of(latent)
        found.append(np.sort(value if chosen_P is None else value[chosen_P[position]]))
    count = positions if chosen_P is None else int(chosen_P.sum())
    return tuple(Sample(positive, count) for positive in found)


def tenth(positions: int, seed: int) -> np.ndarray:
    """A mask of a random tenth of the positions, at least one."""
    drawn = generator(seed, "calibrate", "tenth").permutation(positions)[: max(round(positions / 10), 1)]
    mask = np.zeros(positions, dtype=bool)
    mask[drawn] = True
    return mask


def plotting_position(rank: np.ndarray, count: float, type_: int) -> np.ndarray:
    """Where in 0..1 a rank stands, such that the quantile of the position of a whole rank is that rank's value.

    Types 1 to 3 are steps of the empirical distribution: they are read where it is that value, at rank / count or, as
    type 2 takes the middle there, half a rank before. A single case stands in the middle where a type leaves it open.
    """
    alpha, beta = _ALPHA_BETA[type_]
    span = count + 1 - alpha - beta
    if span <= 0:
        return np.full(np.shape(rank), 0.5)
    return np.clip((rank - alpha) / span, 0.0, 1.0)


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
    below, above = sample.order_statistic(low), sample.order_statistic(low + 1)
    return np.minimum(below + weight * (above - below), above)  # never beyond, not even by rounding
