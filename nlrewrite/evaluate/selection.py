"""Which latents are replaced: the best by a score, the most useful on held-out documents, random ones, the safe ones.

In: scores and the calibrate split. Out: orders and subsets of latents, and each latent's held-out gain. Invariant: a
latent is selected by the calibrate split alone; the report split is never read here.

| selection | which latents                                                                                            |
|-----------|----------------------------------------------------------------------------------------------------------|
| top       | those with the highest score come first (`rank_by`), ties by number; without a score a latent is last    |
| gain      | those with the highest held-out gain come first                                                          |
| sampled   | a random order, another one for each subset seed                                                         |
| harmless  | those whose held-out gain is positive for sure; the others are given their mean                          |

A latent's gain is what its prediction takes off the squared error of its mean, times the squared length of its decoder
row: each fold of document groups is predicted by a calibrator and a mean that were fitted on the other folds. Its lower
bound is one-sided, 95%, by the spread between document groups (Student's t).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from nlrewrite.calibrate import apply
from nlrewrite.calibrate.fit import fit_on
from nlrewrite.calibrate.known import KnownOf
from nlrewrite.calibrate.pairing import Pairing
from nlrewrite.evaluate.mixing import Inside
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Subset:
    """The latents that are replaced; `fresh`: only as many, and which ones is drawn anew each time."""

    selection: str
    fraction: float
    seed: int
    mask_L: np.ndarray
    fresh: bool = False
    floor: tuple[str, float, int] | None = None
    """Selection, fraction and seed of the mean ablation it is measured against, if not the one of the same latents."""

    @property
    def size(self) -> int:
        return int(self.mask_L.sum())

    @property
    def compared(self) -> tuple[str, float, int]:
        return self.floor or (self.selection, self.fraction, self.seed)


@dataclass(frozen=True)
class Gain:
    """Held-out gain of each latent per context, in squared units of the site's output, and its lower bound: [L]."""

    mean: np.ndarray
    lower: np.ndarray

    @property
    def harmless(self) -> np.ndarray:
        return self.lower > 0


def orders(spec: EvaluateSpec, ranked: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Selection, seed, and latents in the order in which they are replaced. `ranked`: figures for "top" and "gain"."""
    latents = len(ranked["top"])
    for selection in ("top", "gain"):
        if selection in spec.selections:
            figure = ranked[selection].astype(np.float64)
            yield selection, 0, np.lexsort((np.arange(latents), -np.where(np.isnan(figure), -np.inf, figure)))
    if "sampled" in spec.selections:
        for seed in range(spec.subsets):
            yield "sampled", seed, generator(spec.seed, "evaluate", "subset", seed).permutation(latents)


def subsets(spec: EvaluateSpec, ranked: Mapping[str, np.ndarray]) -> Iterator[Subset]:
    """Nested subsets below fraction 1; of drawn ones only their size counts where draws are fresh."""
    for selection, seed, order in orders(spec, ranked):
        for fraction in sorted(fraction for fraction in spec.fractions if fraction < 1):
            mask = np.zeros(len(order), dtype=bool)
            mask[order[: max(1, round(fraction * len(order)))]] = True
            yield Subset(selection, fraction, seed, mask, spec.draw == "fresh" and selection == "sampled")


def always(mask_L: np.ndarray) -> Inside:
    """The same latents everywhere."""
    return lambda rows: mask_L


def fresh(size: int, latents: int, window_P: np.ndarray, seed: int, *path: str | int) -> Inside:
    """Other latents in every window: `size` of them, drawn for (seed, path, window) and for nobody else."""

    def inside(rows: np.ndarray) -> np.ndarray:
        windows, of_row = np.unique(window_P[rows], return_inverse=True)
        mask = np.zeros((len(windows), latents), dtype=bool)
        for place, window in enumerate(windows.tolist()):
            drawn = generator(seed, "evaluate", "fresh", *path, window).choice(latents, size, replace=False)
            mask[place, drawn] = True
        return mask[of_row]

    return inside


class GainSums:
    """Gains summed by document group, one block of latents and one held-out fold after another."""

    def __init__(self, latents: int, group_P: np.ndarray) -> None:
        groups, self._of_position = np.unique(group_P, return_inverse=True)
        self._gain_GL = np.zeros((len(groups), latents))
        self._count_G = np.bincount(self._of_position, minlength=len(groups)).astype(np.float64)

    def add(
        self, latents: slice, held: np.ndarray, predicted_BS: np.ndarray, mean_B: np.ndarray, truth_BS: np.ndarray
    ) -> None:
        """Gains of a block at the positions `held`, whose mean and prediction were fitted elsewhere."""
        mean = mean_B[:, None]
        gain = (mean - predicted_BS) * (mean + predicted_BS - 2 * truth_BS)
        of_position = self._of_position[held]
        shape = (len(held), len(self._count_G))
        gather = sparse.csr_matrix((np.ones(len(held)), (np.arange(len(held)), of_position)), shape=shape)
        self._gain_GL[:, latents] += np.asarray(gain @ gather).T

    def result(self, explained_L: np.ndarray, dec_LE: np.ndarray) -> Gain:
        """Means and lower bounds; nothing is gained where nothing can be said, and nothing is sure by one group."""
        groups, total = len(self._count_G), self._count_G.sum()
        mean = self._gain_GL.sum(0) / total
        residual = self._gain_GL - self._count_G[:, None] * mean
        error = np.sqrt(groups / max(groups - 1, 1) * np.square(residual).sum(0)) / total
        lower = mean - stats.t.ppf(CONFIDENCE, groups - 1) * error if groups > 1 else np.full(len(mean), -np.inf)
        length = np.square(dec_LE).sum(1)
        mean, lower = mean * length, lower * length
        return Gain(np.where(explained_L, mean, 0.0), np.where(explained_L, lower, -np.inf))


def held_out(
    name: str, pairing: Pairing, known_without: Callable[[int], KnownOf], group_P: np.ndarray, dec_LE: np.ndarray
) -> Gain:
    """The gain of the calibrator called `name` on each fold, fitted on the others."""
    sums = GainSums(pairing.latents, group_P)
    truth_LP = sparse.csr_matrix(pairing.truth_PL.T)
    for fold in pairing.folds.tolist():
        fitted = fit_on(name, pairing, known_without(fold), dec_LE, without=(fold,))
        held = np.flatnonzero(pairing.folds_P == fold)
        for block, predicted in apply.predictions(fitted, pairing.said, held):
            sums.add(block, held, predicted, fitted.mean[block], truth_LP[block][:, held].toarray())
    return sums.result(pairing.said.explained, dec_LE)
