"""How far to go from the mean towards a map: for each latent by its own activations, or for all by what they write.

In: maps, and evidence of what they predict. Out: gains in 0..1. Invariant: with the gain of a latent the squared error
on the evidence it was fitted on is never above that of the mean; where there is more than one fold, the gain is what
proves right on folds that the map was not fitted on, if that is less.
"""

import numpy as np

from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Fitted, Part
from nlrewrite.calibrate.methods import Fit, Shared


def per_latent(fit: Fit, evidence: Evidence, known: Known, shared: Shared) -> Part:
    """The part that `fit` makes, with a gain for each latent: [B]."""
    part = fit(evidence, known, shared)
    gain = ratio(*_products(part, evidence, known))
    folds = np.unique(evidence.fold)
    if len(folds) > 1:
        products = np.zeros((2, evidence.latents))
        for fold in folds:
            held = evidence.fold == fold
            rest = evidence.where(~held)
            tried = _products(fit(rest.with_a_case(), known, shared), evidence.where(held), known)
            products += np.where(rest.silent(), 0.0, tried)
        gain = np.minimum(gain, ratio(*products))
    return Part(part.map, part.arrays, gain if part.gain is None else gain * part.gain)


def ratio(covariance: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The best share of the way, in 0..1; none where there is no way."""
    return np.clip(covariance / np.where(variance > 0, variance, 1), 0, 1)


def of_outputs(residual_PE: np.ndarray, towards_PE: np.ndarray) -> float:
    """The one share of `towards`, what all latents write less their means' part, that is nearest to `residual`."""
    towards = towards_PE.astype(np.float64)
    return float(ratio(np.array([np.sum(residual_PE * towards)]), np.array([np.sum(towards * towards)]))[0])


def _products(part: Part, evidence: Evidence, known: Known) -> np.ndarray:
    """Of (prediction - mean) with (truth - mean), and with itself, summed by weight: [2, B]."""
    every = Fitted("", "", part.map, part.arrays, known.mean, np.ones(evidence.latents))
    if part.gain is not None:
        every = every.with_gain(part.gain)
    away = every.predict(evidence.answers) - known.mean[:, None].astype(np.float32)
    truth = evidence.total - evidence.weight * known.mean[:, None]
    covariance = np.einsum("bs,bs->b", truth, away, dtype=np.float64)
    return np.stack([covariance, np.einsum("bs,bs,bs->b", *np.broadcast_arrays(evidence.weight, away, away))])
