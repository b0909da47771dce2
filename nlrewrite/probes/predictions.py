"""Predictions of simulators on the rungs of the ladder, a block of latents at a time.

In: what is heard of a simulator, calibrators, gates. Out: `Predictions`: pairs (block of latents, values [B, P]).
Invariant: a latent of which nothing is heard has its mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.special import expit

from nlrewrite.calibrate import apply
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.probes import upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.simulate.said import Said, answers

Predictions = Iterator[tuple[slice, np.ndarray]]

KEPT = 0.95
"""Share of a latent's activations that a gate is expected to pass: where one pseudo-activation goes."""


def raw(
    digits: Heard, largest_L: np.ndarray, mean_L: np.ndarray, *, failed: str = "missing", nine: bool = True
) -> Predictions:
    """The expected digit in ninths of the latent's largest activation."""
    for block in upstream.in_blocks(len(largest_L), digits.contexts):
        digit_BP = digits.scores(block)
        values = largest_L[block, None] * (digit_BP if nine else np.where(digit_BP > 9 - 1e-5, 0, digit_BP)) / 9
        lost = largest_L if failed == "largest" else mean_L
        values = np.where(np.isfinite(digit_BP), values, lost[block, None])
        yield block, np.where(digits.explained[block, None], values, mean_L[block, None]).astype(np.float32)


@dataclass(frozen=True)
class Behind:
    """A logistic calibrator with an intercept inside the latent's gate and another outside."""

    inside: Fitted
    outside: Fitted


def behind_gate(fitted: Fitted, said: Said, gate: Said, truth_SL: sparse.csr_matrix) -> Behind:
    """Intercepts with which the expected number of activations is right on either side of the gate.

    One pseudo-activation is laid where a gate lets pass what it was made to, so that no side is impossible.
    """
    truth = sparse.csc_matrix(truth_SL)
    centre_S = upstream.centre_of(said, fitted.reading)
    slope, intercept = fitted.arrays["slope"], np.asarray(fitted.arrays["intercept"], dtype=np.float64)
    sides = np.stack([intercept, intercept])
    for block in upstream.in_blocks(len(intercept), said.contexts):
        score = answers(said, block, fitted.reading, centre_S, digits=False).score_BS
        heard = slope[block, None] * np.where(said.explained[block, None], score, 0)
        open_, active = gate.scores(block) > 0, truth[:, block].toarray().T > 0
        for side, (where, extra) in enumerate(((open_, KEPT), (~open_, 1 - KEPT))):
            wanted = (active & where).sum(1) + extra
            room = where.sum(1)
            sides[side, block] = _solved(heard, where, np.minimum(wanted, 0.9 * np.maximum(room, 1)), intercept[block])
    return Behind(*(replace(fitted, arrays={**fitted.arrays, "intercept": each}) for each in sides))


def _solved(heard_BS: np.ndarray, where_BS: np.ndarray, wanted_B: np.ndarray, start_B: np.ndarray) -> np.ndarray:
    """Intercepts with which the chances inside `where` add up to what is wanted; where there is no room, the old."""
    at = start_B.copy()
    for _ in range(40):
        chance = expit(heard_BS + at[:, None]) * where_BS
        total, steep = chance.sum(1), (chance * (1 - chance)).sum(1)
        at += np.clip(np.divide(wanted_B - total, steep, out=np.sign(wanted_B - total), where=steep > 1e-12), -1, 1)
    return np.where(where_BS.any(1), at, start_B)


def gated(behind: Behind, said: Said, gate: Said) -> Predictions:
    pairs = zip(apply.predictions(behind.inside, said), apply.predictions(behind.outside, said), strict=True)
    for (block, inside), (_, outside) in pairs:
        yield block, np.where(gate.scores(block) > 0, inside, outside)


def output_gain(predicted: Predictions, mean_L: np.ndarray, truth_SL: sparse.csr_matrix, dec_LE: np.ndarray) -> float:
    """How far from the mean to go so that what all latents write is nearest to what they should: in 0..1."""
    wanted = np.asarray(truth_SL @ dec_LE) - mean_L @ dec_LE
    written = np.zeros(wanted.shape)
    for block, values in predicted:
        written += (values - mean_L[block, None]).T @ dec_LE[block]
    power = float(np.square(written).sum())
    return float(np.clip((written * wanted).sum() / power, 0, 1)) if power > 0 else 0.0


def drawn_in(predicted: Predictions, mean_L: np.ndarray, gain: float) -> Predictions:
    for block, values in predicted:
        mean = mean_L[block, None].astype(np.float32)
        yield block, mean + np.float32(gain) * (values - mean)
