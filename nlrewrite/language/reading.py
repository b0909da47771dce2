"""The reader of the rule language: sentence and context in, a distribution over the digits 0..9 out.

In: sentences, and contexts as the tokens of their text. Out: for one context a distribution, for many the positions
where a sentence speaks and the level it gives. Invariant: both ways agree, a context of which the rule names nothing
gets digit 0 with certainty, and nothing but the sentence and the last `window` tokens of the context is looked at.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from nlrewrite.language.sentence import SILENT, STRONGEST, Change, Item, Place, Rule, parse
from nlrewrite.language.vocabulary import START, Vocabulary
from nlrewrite.text.positions import NOTHING, Positions

DIGITS = STRONGEST + 1
BLUR = 0.1


def distributions() -> np.ndarray:
    """What the reader answers at each level: mostly that digit, and a little of its neighbours; 0 is certain."""
    table = np.eye(DIGITS) * (1 - 2 * BLUR) + (np.eye(DIGITS, k=1) + np.eye(DIGITS, k=-1)) * BLUR
    table[0] = np.eye(DIGITS)[0]
    table[-1, -1] = 1 - BLUR
    return table


def simulate(sentence: str, context: Sequence[bytes], window: int = 32) -> np.ndarray:
    """The distribution over digits for the last token of `context`, by the text of the sentence alone."""
    ids = {text: index for index, text in enumerate(dict.fromkeys(context))}
    tokens = np.array([ids[text] for text in context], dtype=np.int32)
    count = len(tokens)
    where = Positions(np.zeros(count, np.int32), np.arange(count, dtype=np.int32), tokens, np.zeros(count, np.int32))
    position, level = Contexts(where, Vocabulary(tuple(ids)), window).levels(parse(sentence))
    return distributions()[int(level[position == count - 1].sum())]


class Contexts:
    """Many contexts, one ending at each position, indexed so that a sentence costs what it speaks of.

    Tokens that are spelled alike are one token here: `where` holds the first of them.
    """

    def __init__(self, where: Positions, vocabulary: Vocabulary, window: int) -> None:
        where = replace(where, token=vocabulary.first_V[where.token])
        self.where, self.vocabulary, self.window = where, vocabulary, window
        order = np.argsort(where.token, kind="stable")
        bounds = np.searchsorted(where.token[order], np.arange(len(vocabulary) + 1))
        self._order, self._bounds = order, bounds
        self._back: dict[int, np.ndarray] = {}

    @cached_property
    def kinds_by_code(self) -> np.ndarray:
        """Kind of each code, where code 0 is nothing and code id + 1 a token."""
        return np.concatenate([[START], self.vocabulary.kinds_V])

    def at(self, token: int) -> np.ndarray:
        """Positions of a token, ascending."""
        return self._order[self._bounds[token] : self._bounds[token + 1]]

    def codes(self, distance: int) -> np.ndarray:
        """Code of what stands `distance` tokens before each position: 0 for nothing seen, id + 1 for a token."""
        if distance not in self._back:
            inside = distance < self.window
            codes = self.where.back(distance) + 1 if inside else np.full(len(self.where), NOTHING + 1, np.int32)
            self._back[distance] = codes
        return self._back[distance]

    def levels(self, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
        """Positions where the rule gives a level above 0, ascending, and the levels."""
        ids = self.vocabulary.ids
        named = [(ids[text], strength) for text, strength in rule.strengths if text in ids]
        if not named:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        position = np.concatenate([self.at(index) for index, _ in named])
        level = np.repeat([strength for _, strength in named], [len(self.at(index)) for index, _ in named])
        silent = np.zeros(len(position), dtype=bool)
        for change in rule.changes:
            holds = self.holds(change, position)
            if change.amount == SILENT:
                silent |= holds
            else:
                level = level + change.amount * holds
        level = np.where(silent, 0, np.clip(level, 0, STRONGEST))
        speaks = np.flatnonzero(level)
        speaks = speaks[np.argsort(position[speaks], kind="stable")]
        return position[speaks], level[speaks]

    def holds(self, change: Change, position: np.ndarray) -> np.ndarray:
        """Whether the condition of a change holds at each of `position`."""
        found = np.zeros(len(position), dtype=bool)
        for distance in distances(change.place):
            found |= self._named(change.item, self.codes(distance)[position])
        return found

    def _named(self, item: Item, codes: np.ndarray) -> np.ndarray:
        if isinstance(item, int):
            return self.kinds_by_code[codes] == item
        return (
            codes == self.vocabulary.ids[item] + 1 if item in self.vocabulary.ids else np.zeros(len(codes), dtype=bool)
        )


def distances(place: Place) -> range:
    return range(1 if place.within else place.distance, place.distance + 1)
