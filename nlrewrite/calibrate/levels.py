"""Levels: P(active | level) times E[activation | active, level], both drawn towards what all latents share.

In: evidence whose scores are a few whole numbers, the levels. Out: a value per latent and level. Invariant: it
estimates the conditional mean, so without information in the levels it returns the latent's mean, however often or
rarely the latent is active.

What latents share is what a level adds to their log-odds: logit P(active | latent, level) = logit P(active | latent) +
shift(level); and how large an active one is at a level, as a multiple of the latent's mean magnitude. Both are fitted
to a sample of the latents. A latent's own rate at a level counts as so many observations against `strength` of the
shared one, and magnitudes likewise. The strength is chosen by predicting each fold of documents from the others.
"""

import numpy as np

from nlrewrite.calibrate.cells import Cells
from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Part
from nlrewrite.errors import SettingError

WIDEST_SHIFT = 20.0
HIGHEST_RATE = 1 - 1e-9
BISECTIONS = 50
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
UNTRIED = 8.0
"""The strength where there is but one fold to choose it by."""
MOST_LEVELS = 64

Shared = dict[str, np.ndarray]


def share(evidence: Evidence, known: Known) -> Shared:
    """What the levels say of all latents alike, and how strongly a latent is drawn towards it."""
    levels = level_count(evidence)
    folds = [tabled(evidence.where(evidence.fold == fold), levels) for fold in np.unique(evidence.fold)]
    whole = sum(folds[1:], folds[0])
    return {**shared(whole), "strength": np.array(best_strength(folds) if len(folds) > 1 else UNTRIED)}


def fit(evidence: Evidence, known: Known, shared: Shared) -> Part:
    table = tabled(evidence, len(shared["shift"]))
    return Part("levels", {"value": values(table, shared, float(shared["strength"]))})


def level_count(evidence: Evidence) -> int:
    """The levels that there are: whole numbers from 0."""
    score = evidence.answers.score_BS
    if score.min() < 0 or score.max() >= MOST_LEVELS or not np.array_equal(score, np.rint(score)):
        wrong = score[(score < 0) | (score >= MOST_LEVELS) | (score != np.rint(score))][0]
        raise SettingError(
            f"the calibrator 'levels' takes answers that are whole numbers from 0 to {MOST_LEVELS - 1}: there is "
            f"{wrong:g}. Use hurdle, which takes any number, in --set calibrate.calibrators"
        )
    return int(score.max()) + 1


def tabled(evidence: Evidence, levels: int) -> Cells:
    """The evidence counted by level."""
    score = np.minimum(np.rint(evidence.answers.score_BS).astype(np.int64), levels - 1)  # none seen: the highest
    found = np.zeros((3, evidence.latents, levels))
    for level in range(levels):
        there = score == level
        for array, source in zip(found, (evidence.weight, evidence.active, evidence.total), strict=True):
            array[:, level] = np.where(there, source, 0).sum(1)
    return Cells(*found)


def shared(cells: Cells) -> Shared:
    """The shift of each level, its relative magnitude, and the mean magnitude over all latents."""
    overall = cells.total.sum() / max(cells.active.sum(), 1)
    magnitude = _magnitude(cells, overall)
    expected_Z = (cells.active * magnitude[:, None]).sum(0)
    relative = (cells.total.sum(0) + 1e-9) / (expected_Z + 1e-9)
    return {"shift": _shift(cells), "relative": relative, "overall": np.array(overall)}


def values(cells: Cells, shared: Shared, strength: float) -> np.ndarray:
    """Values [L, Z]."""
    rate = (cells.active + strength * _shifted(_odds(cells), shared["shift"])) / (cells.said + strength)
    expected = _magnitude(cells, float(shared["overall"]))[:, None] * shared["relative"]
    magnitude = (cells.total + strength * expected) / (cells.active + strength)
    return rate * magnitude


def best_strength(folds: list[Cells]) -> float:
    """The strength that best predicts each fold from the others, in squared error over all latents."""
    rests = [sum((fold for at, fold in enumerate(folds) if at != held), _none(folds[0])) for held in range(len(folds))]
    alike = [shared(rest) for rest in rests]

    def error(strength: float) -> float:
        total = 0.0
        for held, rest, common in zip(folds, rests, alike, strict=True):
            fitted = values(rest, common, strength)
            total += float((held.said * fitted**2 - 2 * held.total * fitted).sum())
        return total

    return min(STRENGTHS, key=error)


def _none(like: Cells) -> Cells:
    nothing = np.zeros_like(like.said)
    return Cells(nothing, nothing, nothing)


def _odds(cells: Cells) -> np.ndarray:
    """Each latent's overall odds of being active: [L, 1]."""
    rate_L = np.minimum(cells.active.sum(1) / np.maximum(cells.said.sum(1), 1), HIGHEST_RATE)
    return (rate_L / (1 - rate_L))[:, None]


def _shift(cells: Cells) -> np.ndarray:
    """What each level adds to the log-odds of all latents, such that as many are expected active as are."""
    odds = _odds(cells)
    low, high = np.full(cells.said.shape[1], -WIDEST_SHIFT), np.full(cells.said.shape[1], WIDEST_SHIFT)
    for _ in range(BISECTIONS):  # the expected number of active cases rises with the shift
        middle = (low + high) / 2
        too_many = (cells.said * _shifted(odds, middle)).sum(0) > cells.active.sum(0)
        low, high = np.where(too_many, low, middle), np.where(too_many, middle, high)
    return np.where(cells.said.sum(0) > 0, (low + high) / 2, 0.0)


def _shifted(odds: np.ndarray, shift_Z: np.ndarray) -> np.ndarray:
    moved = odds * np.exp(shift_Z)
    return moved / (1 + moved)


def _magnitude(cells: Cells, overall: float) -> np.ndarray:
    """Mean magnitude of each latent, drawn towards the one of all latents with the weight of one case."""
    return (cells.total.sum(1) + overall) / (cells.active.sum(1) + 1)
