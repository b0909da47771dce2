"""Refining sentences by their errors: they are shown to an editor, and its edit has to prove itself.

In: sentences, contexts of the explain split with the truth, a reader and an editor. Out: sentences, each with what was
tried and what it gained. Invariant: errors are shown, and predictions fitted, on one part of the document groups, and
an edit is accepted on the other part alone, if it raises the gain there by more than one standard error.

A reader gives each context a level; a line fitted on the shown part turns it into an activation. The gain is what this
takes off the squared error of the mean, times the squared length of the decoder row. False positives are shown in
proportion to the damage they do, which is what speaking adds to the squared error there; false negatives in proportion
to the square of what is missed. Reader and editor may be a language model or the rule language: the loop cannot tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nlrewrite.seeds import generator

SHOWN_SHARE = 0.5
"""Share of the document groups whose errors are shown."""
ERRORS = 10
"""Contexts of either kind of error that an editor sees, at most."""
STANDARD_ERRORS = 1.0
MISSED = 0.5
"""An active context counts as missed where less than this share of its activation is predicted."""


@dataclass(frozen=True)
class Cases:
    """S contexts of one latent on which its sentences are judged."""

    position: np.ndarray
    truth: np.ndarray
    weight: np.ndarray
    """How many contexts of the text each one stands for."""
    group: np.ndarray
    shown: np.ndarray
    """bool: on the part whose errors are shown; the others decide."""

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True)
class Wanted:
    """What an editor is told: a latent's sentence, its cases, what was read, and which errors it may look at."""

    latent: int
    sentence: str
    cases: Cases
    level: np.ndarray
    false_positives: np.ndarray
    """Indices of cases, the most damaging ones likeliest."""
    false_negatives: np.ndarray
    refused: frozenset[str] = frozenset()
    """Edits that did not prove themselves."""


@dataclass(frozen=True)
class Asked:
    """A sentence to be read in some contexts."""

    latent: int
    sentence: str
    position: np.ndarray


class Reader(Protocol):
    def levels(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """The level at each position, 0 to 9; NaN where there is no answer."""
        ...


class Editor(Protocol):
    def edits(self, wanted: Sequence[Wanted]) -> list[str | None]:
        """An edited sentence for each latent; None where the editor has none."""
        ...


@dataclass(frozen=True)
class Rise:
    """What an edit adds to the gain per context on the deciding part, and its standard error."""

    mean: float
    error: float

    @property
    def accepted(self) -> bool:
        return self.mean > STANDARD_ERRORS * self.error


@dataclass(frozen=True)
class Tried:
    """One edit."""

    sentence: str
    rise: Rise


@dataclass(frozen=True)
class Refined:
    sentence: str
    tried: tuple[Tried, ...]

    @property
    def kept(self) -> int:
        return sum(each.rise.accepted for each in self.tried)


def refine(
    latents: Sequence[int],
    sentences: Sequence[str],
    cases: Sequence[Cases],
    reader: Reader,
    editor: Editor,
    rounds: int,
    seed: int,
) -> list[Refined]:
    """`rounds` edits for each latent; all latents go to the editor and to the reader together."""
    current, tried = list(sentences), [list[Tried]() for _ in sentences]
    levels = reader.levels(_asked(latents, current, cases))
    for number in range(rounds):
        wanted = [
            _wanted(
                latents[row], current[row], cases[row], levels[row], frozenset(_sentences(tried[row])), seed, number
            )
            for row in range(len(latents))
        ]
        open_ = [row for row, each in enumerate(wanted) if len(each.false_positives) + len(each.false_negatives)]
        if not open_:
            break
        edits = editor.edits([wanted[row] for row in open_])
        proposed = [
            (row, edit)
            for row, edit in zip(open_, edits, strict=True)
            if edit is not None and edit != current[row] and edit not in wanted[row].refused
        ]
        rows = [row for row, _ in proposed]
        asked = _asked([latents[row] for row in rows], [edit for _, edit in proposed], [cases[row] for row in rows])
        for (row, edit), level in zip(proposed, reader.levels(asked), strict=True):
            rise = risen(cases[row], levels[row], level)
            tried[row].append(Tried(edit, rise))
            if rise.accepted:
                current[row], levels[row] = edit, level
    return [Refined(sentence, tuple(each)) for sentence, each in zip(current, tried, strict=True)]


def parts(group_P: np.ndarray, seed: int) -> np.ndarray:
    """Which positions are on the part whose errors are shown: whole document groups, drawn by the seed."""
    groups = np.unique(group_P)
    taken = generator(seed, "refine", "shown").permutation(groups)[: round(SHOWN_SHARE * len(groups))]
    return np.isin(group_P, taken)


def predicted(cases: Cases, level: np.ndarray) -> np.ndarray:
    """Activations by the line of least squares through the shown part; it never falls, and 0 is the least.

    Cases without an answer are left out of the fit, and get the mean.
    """
    there = cases.shown & np.isfinite(level)
    weight = cases.weight[there]
    if not weight.sum():
        return np.zeros(len(cases))
    mean, mean_level = np.average(cases.truth[there], weights=weight), np.average(level[there], weights=weight)
    apart = level[there] - mean_level
    spread = float(weight @ np.square(apart))
    slope = max(float(weight @ (apart * (cases.truth[there] - mean))) / spread, 0.0) if spread > 0 else 0.0
    return np.maximum(mean + slope * np.where(np.isfinite(level), level - mean_level, 0.0), 0.0)


def gains(cases: Cases, level: np.ndarray) -> np.ndarray:
    """What a sentence takes off the squared error of the mean in each case, for a decoder row of length 1."""
    weight = cases.weight[cases.shown]
    mean = np.average(cases.truth[cases.shown], weights=weight) if weight.sum() else 0.0
    guess = predicted(cases, level)
    return (mean - guess) * (mean + guess - 2 * cases.truth)


def risen(cases: Cases, before: np.ndarray, after: np.ndarray) -> Rise:
    """By how much the gain per context rises on the deciding part, paired, document groups being the clusters.

    A case counts where both sentences have an answer: an edit must not win because the other one was not heard.
    """
    judged = ~cases.shown & np.isfinite(before) & np.isfinite(after)
    more = (gains(cases, after) - gains(cases, before))[judged]
    return mean_by_group(more, cases.weight[judged], cases.group[judged])


def mean_by_group(value: np.ndarray, weight: np.ndarray, group: np.ndarray) -> Rise:
    """A weighted mean and its standard error, by the spread between groups; unknown with one group."""
    groups, of_case = np.unique(group, return_inverse=True)
    if len(groups) < 2 or not weight.sum():
        return Rise(0.0, np.inf)
    sums, counts = np.bincount(of_case, value * weight), np.bincount(of_case, weight)
    mean = sums.sum() / counts.sum()
    residual = sums - counts * mean
    error = np.sqrt(len(groups) / (len(groups) - 1) * np.square(residual).sum()) / counts.sum()
    return Rise(float(mean), float(error))


def damage(cases: Cases, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each case adds to the squared error: by being spoken of in vain, and by being missed. 0 elsewhere."""
    guess = predicted(cases, level)
    spoken = np.isfinite(level) & (level > 0)
    silent = predicted(cases, np.zeros(len(cases))) if not spoken.any() else _at_silence(cases, level, guess)
    wrong = np.where(spoken & (cases.truth <= 0), np.square(guess) - np.square(silent), 0.0)
    missed = np.isfinite(level) & (cases.truth > 0) & (guess < MISSED * cases.truth)
    lost = np.where(missed, np.square(cases.truth - guess), 0.0)
    return np.maximum(wrong, 0.0) * cases.weight, lost * cases.weight


def _at_silence(cases: Cases, level: np.ndarray, guess: np.ndarray) -> float:
    """What is predicted where nothing is said: of the lowest answer, as near to that as there is."""
    return float(guess[int(np.nanargmin(level))])


def _sentences(tried: Sequence[Tried]) -> list[str]:
    return [each.sentence for each in tried if not each.rise.accepted]


def _wanted(
    latent: int, sentence: str, cases: Cases, level: np.ndarray, refused: frozenset[str], seed: int, number: int
) -> Wanted:
    wrong, lost = damage(cases, level)
    draws = generator(seed, "refine", latent, number)
    positives, negatives = (_drawn(np.where(cases.shown, each, 0.0), draws) for each in (wrong, lost))
    return Wanted(latent, sentence, cases, level, positives, negatives, refused)


def _drawn(weight: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Up to ERRORS cases in proportion to their weight, none twice."""
    there = np.flatnonzero(weight > 0)
    if not len(there):
        return there
    share = weight[there] / weight[there].sum()
    return draws.choice(there, min(ERRORS, len(there)), replace=False, p=share)


def _asked(latents: Sequence[int], sentences: Sequence[str], cases: Sequence[Cases]) -> list[Asked]:
    return [
        Asked(latent, sentence, each.position) for latent, sentence, each in zip(latents, sentences, cases, strict=True)
    ]
