"""A language model as reader and editor of refining.

In: an engine, compiled prompts, and the text of a split. Out: expected digits for sentences in contexts, and edited
sentences. Invariant: a question without an answer is NaN, an edit without a sentence is none, and neither stops others.

All contexts would be too many to ask about: of each latent some where it is active and some where it is not are drawn,
as many from either part of the documents, and each stands for its share of the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nlrewrite.explain.examples import Example, Text
from nlrewrite.explain.refine import Asked, Cases, Wanted
from nlrewrite.language.prompts import Prompts
from nlrewrite.language.vocabulary import quote
from nlrewrite.llm.engine import Engine, Outcome, Sampling
from nlrewrite.llm.purse import check_asked
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.simulate import ask, expectation

ACTIVE, SILENT = 30, 120
"""Contexts of a latent that are asked about, from either part of the documents."""


@dataclass(frozen=True)
class EngineReader:
    engine: Engine
    prompts: Prompts
    text: Text
    window: int
    progress: Progress

    def levels(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """The expected digit in the contexts that end at each position."""
        if not asked:
            return []
        every, place = np.unique(np.concatenate([each.position for each in asked]), return_inverse=True)
        ending = [context(self.text, int(position), self.window) for position in every]
        shown = [self.prompts.shown(each.tokens, each.at) for each in ending]
        lengths = [len(each.position) for each in asked]
        context_LS = np.full((len(asked), max(lengths)), ask.NOTHING, dtype=np.int32)
        context_LS[np.arange(max(lengths)) < np.array(lengths)[:, None]] = place
        sentences = [each.sentence for each in asked]
        found = ask.ask(self.engine, self.prompts, sentences, shown, context_LS, self.prompts.order, self.progress)
        expected_LS = expectation.expected("renormalised", found.logp)
        return [expected[:length] for expected, length in zip(expected_LS, lengths, strict=True)]


@dataclass(frozen=True)
class EngineEditor:
    engine: Engine
    prompts: Prompts
    sampling: Sampling
    text: Text
    window: int
    scale_L: np.ndarray
    sentence_of: Callable[[str], str | None]

    def edits(self, wanted: Sequence[Wanted]) -> list[str | None]:
        replies = self.engine.complete([self._prompt(each) for each in wanted], self.sampling)
        check_asked([each.outcome for each in replies])
        return [self.sentence_of(each.text) if each.outcome is Outcome.OK else None for each in replies]

    def _prompt(self, wanted: Wanted) -> np.ndarray:
        given: dict[str, object] = {
            "explanation": wanted.sentence,
            "wrong": self._lines(wanted, wanted.false_positives),
            "missed": self._lines(wanted, wanted.false_negatives),
        }
        return self.prompts.whole(**{name: given[name] for name in self.prompts.fields})

    def _lines(self, wanted: Wanted, rows: np.ndarray) -> list[str]:
        cases, scale = wanted.cases, float(self.scale_L[wanted.latent])
        return [
            line(
                self.prompts, context(self.text, int(cases.position[row]), self.window, float(cases.truth[row])), scale
            )
            for row in rows
        ]


def line(prompts: Prompts, example: Example, scale: float) -> str:
    """The text with its marked tokens; behind it those on which the latent is active, with a strength of 1 to 9."""
    shown = prompts.shown(example.tokens, example.at)
    listed = [f"{quote(token)} {level}" for token, level in example.strengths(scale) if level]
    return f"{shown} ({', '.join(listed)})" if listed else shown


def context(text: Text, position: int, window: int, value: float = 0.0) -> Example:
    """The context that ends at a position, its last token marked; `value` is the latent's activation there."""
    first = max(position - window + 1, position - int(text.where.offset[position]))
    tokens = text.tokens(first, position + 1)
    activation = np.zeros(len(tokens), dtype=np.float32)
    activation[-1] = value
    return Example(position, first, int(text.where.group[position]), tokens, activation, (len(tokens) - 1,))


class Drawing:
    """Draws the contexts of a latent that are asked about, from either part of the documents."""

    def __init__(self, group_P: np.ndarray, shown_P: np.ndarray, seed: int) -> None:
        self._group_P, self._shown_P, self._seed = group_P, shown_P, seed
        self._parts = np.flatnonzero(shown_P), np.flatnonzero(~shown_P)

    def cases(self, latent: int, position: np.ndarray, value: np.ndarray) -> Cases:
        """Each context stands for as many as it was drawn from; `position` ascends."""
        draws = generator(self._seed, "refine", "cases", latent)
        chosen: list[np.ndarray] = []
        truths: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        for part, inside in zip(self._parts, (self._shown_P[position], ~self._shown_P[position]), strict=True):
            there = np.flatnonzero(inside)
            active = np.sort(draws.choice(there, min(ACTIVE, len(there)), replace=False))
            silent = _silent(part, position, min(SILENT, len(part) - len(there)), draws)
            chosen += [position[active], silent]
            truths += [value[active].astype(np.float64), np.zeros(len(silent))]
            for drawn, stands_for in ((active, len(there)), (silent, len(part) - len(there))):
                weights.append(np.full(len(drawn), stands_for / max(len(drawn), 1)))
        at = np.concatenate(chosen)
        return Cases(at, np.concatenate(truths), np.concatenate(weights), self._group_P[at], self._shown_P[at])


def _silent(part: np.ndarray, position: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """`count` positions of a part at which the latent is silent; all are looked at only if a few draws do not do."""
    some = draws.choice(part, min(len(part), 2 * count), replace=False)
    found = some[~_among(some, position)][:count]
    if len(found) < count:
        found = draws.choice(part[~_among(part, position)], count, replace=False)
    return np.sort(found)


def _among(some: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Which of `some` are in `position`, which ascends."""
    if not len(position):
        return np.zeros(len(some), dtype=bool)
    return position[np.minimum(np.searchsorted(position, some), len(position) - 1)] == some
