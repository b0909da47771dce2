"""Scores from counts: F1 from a balanced quiz, and what holds at natural prevalence.

In: counts per latent. Out: scores per latent, NaN where a score has no meaning (no active case, no inactive one).
Invariant: pure functions of counts.

A quiz asks about as many active cases as inactive ones, text does not: at a base rate of 0.001 a reader that is right
in 80% of either kind is right in 0.4% of the cases that it calls active. `precision_at` says so. Of the scores here
MCC squared is the one that tells how much of a latent's variance its flags can explain (`explained_by_flags`).
"""

import numpy as np


def f1(true_positives: np.ndarray, false_positives: np.ndarray, false_negatives: np.ndarray) -> np.ndarray:
    """2 / (1/precision + 1/recall); 0 when nothing is found."""
    return _ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives)


def sensitivity(active_LZ: np.ndarray, least: int = 1) -> np.ndarray:
    """Share of truly active cases at a level of at least `least`."""
    return _ratio(active_LZ[:, least:].sum(1), active_LZ.sum(1))


def specificity(said_LZ: np.ndarray, active_LZ: np.ndarray, least: int = 1) -> np.ndarray:
    inactive = said_LZ - active_LZ
    return _ratio(inactive[:, :least].sum(1), inactive.sum(1))


def matthews(said_LZ: np.ndarray, active_LZ: np.ndarray, least: int = 1) -> np.ndarray:
    """Correlation of "said at least `least`" with "active"; 0 when one of the two never varies."""
    found, missed = active_LZ[:, least:].sum(1), active_LZ[:, :least].sum(1)
    wrong = said_LZ[:, least:].sum(1) - found
    right = said_LZ[:, :least].sum(1) - missed
    product = (found + wrong) * (found + missed) * (right + wrong) * (right + missed)
    return np.where(product > 0, (found * right - wrong * missed) / np.sqrt(np.maximum(product, 1)), 0.0)


def balanced_accuracy(hits: np.ndarray, false_alarms: np.ndarray, misses: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean of sensitivity and specificity."""
    return (_ratio(hits, hits + misses) + _ratio(right, right + false_alarms)) / 2


def precision_at(
    rate: np.ndarray, hits: np.ndarray, false_alarms: np.ndarray, misses: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Share of the called cases that are active, where a share `rate` of all cases is; NaN if none would be called."""
    found = _ratio(hits, hits + misses) * rate
    return _ratio(found, found + _ratio(false_alarms, right + false_alarms) * (1 - rate))


def explained_by_flags(matthews: np.ndarray, rate: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Share of a latent's variance that the best estimate from its flags explains: MCC^2 / (1 + CV^2 / (1 - rate)).

    `spread` is the coefficient of variation CV of the activations above 0, which flags say nothing of.
    """
    return matthews**2 / (1 + spread**2 / np.maximum(1 - rate, 1e-9))


def average_precision(said_LZ: np.ndarray, active_LZ: np.ndarray) -> np.ndarray:
    """Area under precision and recall, thresholds falling from the highest level; ties stand together."""
    found = np.cumsum(active_LZ[:, ::-1], axis=1)
    said = np.cumsum(said_LZ[:, ::-1], axis=1)
    precision = _ratio(found, said, empty=1.0)
    return _ratio((precision * active_LZ[:, ::-1]).sum(1), active_LZ.sum(1))


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), empty)
