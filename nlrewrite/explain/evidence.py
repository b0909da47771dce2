"""What an explainer counts in: the contexts of a split, and what stands before those of some tokens.

In: contexts and who is held out. Out: for rows of contexts, what stands at each place before them, ordered by what it
is, so that counting and summing over all that may be said costs one pass. Invariant: a code stands at most once in a
row's place, and codes mean what the reader takes them to mean (`Contexts.codes`).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nlrewrite.language.reading import Contexts, distances
from nlrewrite.language.sentence import Item, Place
from nlrewrite.language.vocabulary import KINDS


@dataclass
class Evidence:
    """What all latents share: the contexts, how often each pair of tokens stands together, and who is held out."""

    contexts: Contexts
    reach: int
    held_P: np.ndarray
    pairs_seen: np.ndarray = field(init=False)
    places: list[tuple[Place, bool]] = field(init=False)
    """Places that changes are looked for at, each with whether kinds are named there, or tokens."""

    def __post_init__(self) -> None:
        self.pairs_seen = np.bincount(self.pair(slice(None)), minlength=self._width * len(self.contexts.vocabulary))
        near, second, recent = Place(1), Place(2), Place(self.reach, within=True)
        self.places = [(near, False), (near, True), (second, False), (recent, False)]

    def pair(self, position: np.ndarray | slice) -> np.ndarray:
        """A number for each pair (token, token before or nothing)."""
        return self.contexts.where.token[position].astype(np.int64) * self._width + self.contexts.codes(1)[position]

    def item(self, code: int, by_kind: bool) -> Item:
        return code if by_kind else self.contexts.vocabulary.texts[code - 1]

    def code(self, item: Item) -> int:
        return item if isinstance(item, int) else self.contexts.vocabulary.ids[item] + 1

    @property
    def _width(self) -> int:
        return len(self.contexts.vocabulary) + 1


@dataclass(frozen=True)
class SeenAt:
    """What stands at one place before each of some contexts, ordered by code, and by row within a code."""

    codes: np.ndarray
    rows: np.ndarray
    size: int

    @cached_property
    def counts(self) -> np.ndarray:
        return np.bincount(self.codes, minlength=self.size)

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)])

    def sums(self, of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(self.codes, of_rows[self.rows], minlength=self.size)

    def rows_of(self, code: int) -> np.ndarray:
        return self.rows[self._bounds[code] : self._bounds[code + 1]]

    def among(self, chosen: np.ndarray) -> "SeenAt":
        """The same for the rows of a mask."""
        kept = np.flatnonzero(chosen[self.rows])
        return SeenAt(self.codes.take(kept), self.rows.take(kept), self.size)


def seen_at(contexts: Contexts, position: np.ndarray, place: Place, by_kind: bool) -> SeenAt:
    codes = np.stack([contexts.codes(distance)[position] for distance in distances(place)], axis=1)
    codes = contexts.kinds_by_code[codes] if by_kind else codes
    if codes.shape[1] > 1:
        codes = _once(codes)
    flat = codes.ravel()
    order = np.argsort(flat.astype(np.int16) if flat.max(initial=0) < 1 << 15 else flat, kind="stable")
    order = order[np.count_nonzero(flat < 0) :]
    size = len(KINDS) if by_kind else len(contexts.vocabulary) + 1
    return SeenAt(flat[order], order // codes.shape[1], size)


def _once(codes: np.ndarray) -> np.ndarray:
    """Each row's codes, with repetitions and what is nothing made -1."""
    codes = np.sort(codes, axis=1)
    again = np.zeros_like(codes, dtype=bool)
    again[:, 1:] = codes[:, 1:] == codes[:, :-1]
    return np.where(again | (codes == 0), -1, codes)
