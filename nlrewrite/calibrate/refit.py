"""A decoder fitted anew to predictions ("retuned"): sentences keep their meaning, directions move.

In: predictions of all latents in the calibrate split's contexts, and the true activations. Out: a decoder [L, E], with
which latents write mean @ D + (predicted - mean) @ decoder, D being the coder's own. Invariant: with the decoder at 0
that is mean ablation, and at gamma * D the output gain, which the ridge draws it towards: in its own contexts it is at
least as near to what the true latents wrote as the output gain is.

The ridge weighs as much as `strength` contexts of an average latent, and the strength is the one with which each half
of the folds best predicts the other. Predictions and truths are read by blocks of contexts; memory is that of four
matrices [L, L] of 8 bytes a number.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from nlrewrite.activations.codes import Values
from nlrewrite.errors import SettingError

MOST_LATENTS = 20_000
BLOCK = 1024
STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
"""Contexts of an average latent that the ridge weighs as much as."""


@dataclass(frozen=True)
class Refit:
    """A decoder for predictions less their means, and what was chosen on the way."""

    decoder_LE: np.ndarray
    gamma: float
    strength: float


@dataclass(frozen=True)
class Products:
    """Sums over contexts of predictions X less the mean, and of what true latents wrote, Y, less the mean's part."""

    square_LL: np.ndarray
    product_LE: np.ndarray

    def __add__(self, other: "Products") -> "Products":
        return Products(self.square_LL + other.square_LL, self.product_LE + other.product_LE)

    def error(self, decoder_LE: np.ndarray) -> float:
        """Summed squared error of the decoder, less that of the mean."""
        return float(np.sum(decoder_LE * (self.square_LL @ decoder_LE - 2 * self.product_LE)))


def fit(
    predicted: Values, mean_L: np.ndarray, truth_PL: sparse.csr_matrix, dec_LE: np.ndarray, folds_P: np.ndarray
) -> Refit:
    """The decoder with which `predicted` writes best what the true latents write through `dec_LE`."""
    latents = len(dec_LE)
    if latents > MOST_LATENTS:
        raise SettingError(
            f"a decoder is refitted to at most {MOST_LATENTS} latents, for all pairs of them are held in memory: "
            f"there are {latents}. Leave +refit out of --set calibrate.calibrators"
        )
    first = _first_half(folds_P)
    halves = [products(predicted, mean_L, truth_PL, dec_LE, np.flatnonzero(rows)) for rows in (first, ~first)]
    whole = halves[0] + halves[1]
    unit = float(np.trace(whole.square_LL)) / (latents * len(folds_P))
    if unit <= 0:  # nothing but means is predicted
        return Refit(np.zeros_like(dec_LE), 0.0, STRENGTHS[-1])
    pairs = (halves, halves[::-1])
    errors = [sum(held.error(ridge(seen, dec_LE, each * unit)) for seen, held in pairs) for each in STRENGTHS]
    strength = STRENGTHS[int(np.argmin(errors))]
    return Refit(ridge(whole, dec_LE, strength * unit).astype(dec_LE.dtype), gamma(whole, dec_LE), strength)


def products(
    predicted: Values, mean_L: np.ndarray, truth_PL: sparse.csr_matrix, dec_LE: np.ndarray, rows: np.ndarray
) -> Products:
    """Of some contexts."""
    latents, width = dec_LE.shape
    square, product = np.zeros((latents, latents)), np.zeros((latents, width))
    mean_part = mean_L @ dec_LE
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        away = predicted.dense(block) - mean_L.astype(np.float32)
        square += away.T @ away
        product += away.T @ (truth_PL[block] @ dec_LE - mean_part)
    return Products(square, product)


def gamma(found: Products, dec_LE: np.ndarray) -> float:
    """The output gain: the share of the way from the mean, one for all latents, that is nearest to what is wanted."""
    towards = float(np.sum(dec_LE * (found.square_LL @ dec_LE)))
    return float(np.clip(np.sum(dec_LE * found.product_LE) / towards, 0, 1)) if towards > 0 else 0.0


def ridge(found: Products, dec_LE: np.ndarray, pull: float) -> np.ndarray:
    """Least squares drawn towards the output gain."""
    prior = gamma(found, dec_LE) * dec_LE.astype(np.float64)
    drawn = found.square_LL.copy()
    drawn[np.diag_indices_from(drawn)] += pull
    wanted = found.product_LE + pull * prior
    return linalg.solve(drawn, wanted, assume_a="pos", overwrite_a=True, overwrite_b=True)


def _first_half(folds_P: np.ndarray) -> np.ndarray:
    """Half of the folds, whole ones; a single one is halved in the order of its contexts."""
    folds = np.unique(folds_P)
    if len(folds) == 1:
        return np.arange(len(folds_P)) < len(folds_P) / 2
    return np.isin(folds_P, folds[::2])
