"""How well digits tell a level above 0, at the prevalence that the text has.

In: for each sentence, the probabilities of the digits, the true digits and what share of the text each question stands
for. Out: `Judgement`: AUC with an interval over sentences, and whether the probabilities are right on average.
Invariant: the shares undo the way in which questions were drawn; a sentence counts once, however many questions it has.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nlrewrite.seeds import generator

RESAMPLES = 1000


@dataclass(frozen=True)
class Answered:
    """One sentence's questions."""

    p_CZ: np.ndarray
    digit_C: np.ndarray
    weight_C: np.ndarray
    """Share of the text that each question stands for."""
    named_C: np.ndarray
    """Whether the sentence names the context's last token as one that it fires on."""


@dataclass(frozen=True)
class Judgement:
    """Means over sentences, at natural prevalence."""

    sentences: int
    questions: int
    auc: float
    auc_interval: tuple[float, float]
    """95%, over sentences."""
    auc_named: float
    """Among contexts whose last token the sentence names: whether what stands before it is read."""
    explained: float
    """Median share of the level's variance that the expected digit explains."""
    said_active: float
    """Mean probability of a digit above 0."""
    truly_active: float

    def fields(self) -> dict[str, object]:
        """As JSON has it: what is no number is nothing."""
        told: dict[str, object] = {}
        for name, value in asdict(self).items():
            parts = [
                None if isinstance(each, float) and np.isnan(each) else each for each in np.atleast_1d(value).tolist()
            ]
            told[name] = parts if isinstance(value, tuple) else parts[0]
        return told


def judge(answered: Sequence[Answered], seed: int = 0) -> Judgement:
    """Sentences without a context of either kind are left out of an AUC."""
    said = [1 - each.p_CZ[:, 0] for each in answered]
    active = [each.digit_C > 0 for each in answered]
    aucs = np.array([auc(s, y, each.weight_C) for s, y, each in zip(said, active, answered, strict=True)])
    named = np.array(
        [
            auc(s[each.named_C], y[each.named_C], each.weight_C[each.named_C])
            for s, y, each in zip(said, active, answered, strict=True)
        ]
    )
    return Judgement(
        sentences=len(answered),
        questions=sum(len(each.digit_C) for each in answered),
        auc=_mean(aucs),
        auc_interval=interval(aucs, seed),
        auc_named=_mean(named),
        explained=float(np.median([_explained(each) for each in answered])),
        said_active=float(np.mean([np.average(s, weights=e.weight_C) for s, e in zip(said, answered, strict=True)])),
        truly_active=float(np.mean([np.average(y, weights=e.weight_C) for y, e in zip(active, answered, strict=True)])),
    )


def auc(score_C: np.ndarray, positive_C: np.ndarray, weight_C: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half, by weight; NaN without either."""
    above = float((weight_C * positive_C).sum()), float((weight_C * ~positive_C).sum())
    if not above[0] or not above[1]:
        return float("nan")
    _, place = np.unique(score_C, return_inverse=True)
    positive = np.bincount(place, weight_C * positive_C)
    negative = np.bincount(place, weight_C * ~positive_C)
    return float((positive * (np.cumsum(negative) - negative / 2)).sum() / above[0] / above[1])


def interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95% of the means of resampled values, those that are not a number left out."""
    there = values[~np.isnan(values)]
    if not len(there):
        return float("nan"), float("nan")
    rows = generator(seed, "judge", "bootstrap").integers(0, len(there), (RESAMPLES, len(there)))
    low, high = np.quantile(there[rows].mean(1), (0.025, 0.975))
    return float(low), float(high)


def _explained(each: Answered) -> float:
    expected = each.p_CZ @ np.arange(each.p_CZ.shape[1])
    mean = np.average(each.digit_C, weights=each.weight_C)
    spread = (each.weight_C * np.square(each.digit_C - mean)).sum()
    return float(1 - (each.weight_C * np.square(each.digit_C - expected)).sum() / max(spread, 1e-30))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
