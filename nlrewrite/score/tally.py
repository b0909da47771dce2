"""Scores of one latent from what was answered: counts at a threshold, and what needs no threshold.

In: answers, NaN where one is missing, and the truth. Out: named scores, with how many questions were asked and how many
of them failed. Invariant: a missing answer is neither right nor wrong; it is left out of a score and counted beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nlrewrite.llm.engine import Outcome
from nlrewrite.score import measures

THRESHOLD = 0.5
"""A probability above it is a yes."""
BALANCED = ("f1", "balanced_accuracy", "precision", "auc")
COUNTED = ("asked", "failed")

Scores = dict[str, float]


@dataclass(frozen=True)
class Answers:
    """One number for each question: a probability, 0 or 1, a similarity; NaN if there is no answer."""

    score: np.ndarray
    outcome: np.ndarray
    """int8 of `Outcome`."""

    @classmethod
    def known(cls, score: Sequence[float] | np.ndarray) -> "Answers":
        return cls(np.asarray(score, dtype=np.float64), np.zeros(len(score), dtype=np.int8))

    @property
    def there(self) -> np.ndarray:
        return self.outcome == Outcome.OK


def counted(answers: Answers) -> Scores:
    """How many questions were asked, and how many have no answer."""
    return {"asked": float(len(answers.score)), "failed": float((~answers.there).sum())}


def confusion(answers: Answers, truth: np.ndarray) -> np.ndarray:
    """Hits, false alarms, misses and right rejections among what was answered."""
    yes, active = answers.score[answers.there] > THRESHOLD, truth[answers.there] > 0
    return np.array([(yes & active).sum(), (yes & ~active).sum(), (~yes & active).sum(), (~yes & ~active).sum()], float)


def balanced(answers: Answers, truth: np.ndarray, rate: float) -> Scores:
    """Of yes and no questions; precision as it would be where a share `rate` of all cases is active."""
    table = confusion(answers, truth)[:, None]
    values = {
        "f1": measures.f1(*table[:3])[0],
        "balanced_accuracy": measures.balanced_accuracy(*table)[0],
        "precision": measures.precision_at(np.array([rate]), *table)[0],
        "auc": auc(answers.score[answers.there], truth[answers.there] > 0),
    }
    return {**{name: float(value) for name, value in values.items()}, **counted(answers)}


def ranked(answers: Answers, truth: np.ndarray) -> Scores:
    """Of scores that have no threshold."""
    return {"auc": auc(answers.score[answers.there], truth[answers.there] > 0), **counted(answers)}


def natural(answers: Answers, truth: np.ndarray, rate: float, spread: float) -> Scores:
    """What a balanced quiz says about all text, where a share `rate` of the cases is active."""
    hits, alarms, misses, right = confusion(answers, truth)
    sensitivity = hits / (hits + misses) if hits + misses else np.nan
    specificity = right / (right + alarms) if right + alarms else np.nan
    called = sensitivity * rate + (1 - specificity) * (1 - rate)
    varies = rate * (1 - rate) * called * (1 - called)
    mcc = rate * (1 - rate) * (sensitivity + specificity - 1) / np.sqrt(varies) if varies > 0 else 0.0 * called
    explained = measures.explained_by_flags(np.array([mcc]), np.array([rate]), np.array([spread]))[0]
    there = answers.there
    return {
        "sensitivity": float(sensitivity),
        "specificity": float(specificity),
        "mcc": float(mcc),
        "mcc2": float(mcc**2),
        "explained_by_flags": float(explained),
        "auprc": average_precision(answers.score[there], truth[there] > 0, rate),
    }


def auc(score: np.ndarray, active: np.ndarray) -> float:
    """Chance that an active case has the higher score; ties count half; NaN where there is one kind alone."""
    yes, no = int(active.sum()), int((~active).sum())
    if not yes or not no:
        return float("nan")
    return float((stats.rankdata(score)[active].sum() - yes * (yes + 1) / 2) / (yes * no))


def average_precision(score: np.ndarray, active: np.ndarray, rate: float) -> float:
    """Area under precision and recall at a base rate; tied scores stand together; NaN where there is one kind alone."""
    if not active.any() or active.all():
        return float("nan")
    _, place = np.unique(-score, return_inverse=True)
    found = np.bincount(place, active) / active.sum()
    wrong = np.bincount(place, ~active) / (~active).sum()
    true, false = np.cumsum(found) * rate, np.cumsum(wrong) * (1 - rate)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    return float((precision * found).sum())
