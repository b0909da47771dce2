"""What is known of latents without any simulator, from the splits that may be fitted on.

In: activations of the explain split and of the calibrate split. Out: `Known` of a block of latents, and the samples
that quantile maps carry predictions onto. Invariant: a fold that is held out to try a calibrator on is left out of what
is known as well.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import Active, ByLatent
from nlrewrite.calibrate import quantile
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.methods import Target

KnownOf = Callable[[slice], Known]


class Statistics:
    """Sums over the explain split and over each fold of the calibrate split."""

    def __init__(
        self, explain: Active, truth_PL: sparse.csr_matrix, folds_P: np.ndarray, latents: int, seed: int
    ) -> None:
        self._explain, self._latents, self._seed = explain, latents, seed
        truth = true_codes(explain, latents).extra_PL
        self.largest = np.zeros(latents)
        np.maximum.at(self.largest, truth.indices, truth.data)
        folds = np.unique(folds_P)
        parts = [truth, *(sparse.csr_matrix(truth_PL[folds_P == fold]) for fold in folds)]
        self._positions = np.array([part.get_shape()[0] for part in parts])
        self._active = np.stack([np.asarray(part.getnnz(axis=0)) for part in parts])
        self._total = np.stack([np.asarray(part.sum(0)).ravel() for part in parts])
        self._place = {int(fold): place for place, fold in enumerate(folds, 1)}

    def known_of(self, target: Target | None, held: int | None = None) -> KnownOf:
        """Known, with the samples that `target` names, as if the fold `held` did not exist."""
        kept = np.ones(len(self._positions), dtype=bool)
        if held is not None:
            kept[self._place[held]] = False
        positions, active, total = self._positions[kept].sum(), self._active[kept].sum(0), self._total[kept].sum(0)
        chosen = quantile.tenth(len(self._explain.values), self._seed) if target == "tenth" else None

        def known_of(latents: slice) -> Known:
            targets = quantile.samples(self._pairs, len(self._explain.values), latents, chosen) if target else ()
            magnitude = total[latents] / np.maximum(active[latents], 1)
            return Known(self.largest[latents], active[latents] / positions, magnitude, targets)

        return known_of

    @cached_property
    def _pairs(self) -> ByLatent:
        return self._explain.by_latent(self._latents)


def aimed_at(known_of: KnownOf, active: Active, latents: int) -> KnownOf:
    """The same, but for the samples that predictions are carried onto: all of `active`, whichever split that is."""
    pairs = active.by_latent(latents)

    def known_there(block: slice) -> Known:
        return replace(known_of(block), targets=quantile.samples(pairs, len(active.values), block))

    return known_there
