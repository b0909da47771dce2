"""What piloted latents get wrong: predictions for the contexts asked about, each by a calibrator fitted on others.

In: pairs of latents and contexts, what was said in them, and what is true. Out: `Errors` [L, S]: of the predictions,
and of the mean that an ablation would put there. Invariant: a context is predicted by a calibrator that has seen none
of its documents; an answer that is missing is predicted by the mean, as it is in a rewriting.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nlrewrite.calibrate import apply, methods
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.fit import fit_on
from nlrewrite.calibrate.known import KnownOf
from nlrewrite.calibrate.pairing import Pairing
from nlrewrite.errors import SettingError
from nlrewrite.probes.pilot_pairs import Pairs
from nlrewrite.simulate.said import Said


@dataclass(frozen=True)
class Errors:
    """Of L latents in S columns; 0 where nothing was asked."""

    wrong_LS: np.ndarray
    """Prediction less truth."""
    off_LS: np.ndarray
    """Mean less truth."""


def errors(pairs: Pairs, said: Said, truth_PL: sparse.csr_matrix, known: Known, calibrator: str) -> Errors:
    """`said` is about the pairs' latents, with their columns as contexts; `known` is of all latents of the coder."""
    name = methods.parse(calibrator)
    reading = methods.reading(name)
    if (reading and reading.centred) or name.output_gain or name.refit or methods.method(name).target is not None:
        raise SettingError(
            f"{calibrator} needs all latents, or all contexts, and a pilot has some. Choose another, for instance "
            f"--set pilot.calibrator=hurdle"
        )
    truth_LS = truths(pairs, truth_PL)
    mean_L = known.mean[pairs.latent_L].astype(np.float32)
    truth_SL = sparse.csr_matrix(truth_LS.T)
    pairing = Pairing(said, truth_SL, pairs.fold_S, cases=pairs.drawn().evidence(said, truth_SL))
    value_LS = np.broadcast_to(mean_L[:, None], truth_LS.shape).copy()
    for fold in np.unique(pairs.fold_S).tolist():
        fitted = fit_on(calibrator, pairing, _known_of(known, pairs.latent_L), without=(fold,))
        columns = np.flatnonzero(pairs.fold_S == fold)
        for block, predicted in apply.predictions(fitted, said, columns):
            value_LS[block, columns] = predicted
    asked = pairs.asked_LS
    wrong, off = value_LS - truth_LS, mean_L[:, None] - truth_LS
    return Errors(np.where(asked, wrong, 0).astype(np.float32), np.where(asked, off, 0).astype(np.float32))


def truths(pairs: Pairs, truth_PL: sparse.csr_matrix) -> np.ndarray:
    """True activations [L, S]; 0 where nothing is asked."""
    truth_LP = sparse.csr_matrix(sparse.csc_matrix(truth_PL)[:, pairs.latent_L].T)
    rows = [
        truth_LP[number].toarray()[0][np.maximum(context_S, 0)] for number, context_S in enumerate(pairs.context_LS)
    ]
    return np.where(pairs.asked_LS, np.stack(rows), 0).astype(np.float32)


def _known_of(known: Known, latent_L: np.ndarray) -> KnownOf:
    def of(block: slice) -> Known:
        chosen = latent_L[block]
        return Known(known.largest[chosen], known.rate[chosen], known.magnitude[chosen])

    return of
