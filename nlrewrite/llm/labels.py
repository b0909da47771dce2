"""Labels among the tokens that an endpoint lists: their log-probabilities, and what is left unsaid.

In: the tokens of one position by name, with their log-probabilities. Out: `Heard`, and `Scores` of many questions.
Invariants: a name is compared whole; nothing is made up for a label that was not told: its log-probability is -inf and
its probability has a bound; a number that is no log-probability makes the position unusable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlrewrite.llm.engine import TOP, Outcome, Scores
from nlrewrite.llm.requests import Garbled

NOTHING = -9999.0
"""Servers write this for the logarithm of zero, which JSON does not have."""
SLACK = 1e-3
"""A log-probability above zero by this much is rounding; more is no log-probability."""

Entries = list[tuple[str, float]]
"""Tokens of one position and their log-probabilities: those that were listed, and the one that was drawn."""


@dataclass(frozen=True)
class Heard:
    """One question's labels."""

    logp: np.ndarray
    """float64 [K], renormalised over the labels that were told; -inf for the others."""
    logmass: float
    """Log of the total probability of the labels that were told: a lower bound if any is missing."""
    missing: float
    """Upper bound of the probability of the labels that were not told."""
    top: np.ndarray
    """bool [K]: whether a label is among the TOP likeliest of the tokens that were told."""

    @property
    def answered(self) -> bool:
        return self.logmass > -math.inf


def heard(found: Entries, keys: Sequence[str], listed: int, exact: bool) -> Heard:
    """Labels by name among the tokens of a position, of which the `listed` likeliest were to be told.

    A label that is not told is less likely than the last one that was, and has no more than what all of them leave.
    `exact`: the labels themselves were asked for, so that none may be missing, and nothing is known of ranks.
    """
    best: dict[str, float] = {}
    for name, value in found:
        if not value <= SLACK:
            raise Garbled("a log-probability is above zero or no number")
        best[name] = max(best.get(name, -math.inf), -math.inf if value <= NOTHING else min(value, 0.0))
    told_of = sum(math.exp(value) for value in best.values())
    if told_of > 1.01:
        raise Garbled(f"probabilities of {len(best)} tokens add up to {told_of:.3f}")
    absent = [name for name in keys if name not in best]
    if exact and absent:
        raise Garbled(f"{len(absent)} of {len(keys)} labels that were asked for are missing")
    ranked = sorted(best.values(), reverse=True)[:listed]
    least = math.exp(ranked[-1]) if ranked else 1.0
    missing = min(len(absent) * least, max(0.0, 1.0 - told_of)) if absent else 0.0
    raw = np.array([best.get(name, -math.inf) for name in keys])
    logmass = float(np.logaddexp.reduce(raw))
    logp = raw - logmass if logmass > -math.inf else np.full(len(keys), -math.inf)
    top = (raw >= ranked[:TOP][-1]) & (raw > -math.inf) if ranked else np.zeros(len(keys), dtype=bool)
    return Heard(logp, logmass, missing, top)


class Answers:
    """What is known of N questions so far."""

    def __init__(self, questions: int, labels: int) -> None:
        self._logp = np.full((questions, labels), np.nan, dtype=np.float32)
        self._logmass = np.full(questions, np.nan, dtype=np.float32)
        self._missing = np.full(questions, np.nan, dtype=np.float32)
        self._top = np.zeros((questions, labels), dtype=bool)
        self.outcome = np.full(questions, Outcome.TRANSPORT, dtype=np.int8)

    def put(self, index: int, answer: Heard) -> None:
        self._missing[index] = answer.missing
        if answer.answered:
            self._logp[index], self._logmass[index], self._top[index] = answer.logp, answer.logmass, answer.top
            self.outcome[index] = Outcome.OK

    def scores(self, *, mass: bool, listed: int) -> Scores:
        """`listed`: length of the lists of likeliest tokens that labels came from; 0 if the labels were asked for."""
        return Scores(
            self._logp,
            self._logmass if mass else None,
            self.outcome,
            missing=self._missing if listed else None,
            top=self._top if listed >= TOP else None,
        )
