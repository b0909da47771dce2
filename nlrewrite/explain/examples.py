"""Stretches of text that are shown to a language model: where a latent is active, and where it is not.

In: a split's text, activations grouped by latent, and a seed. Out: examples, each the tokens around one activation with
the latent's activation on every one of them. Invariant: an example's activations are the stored ones of its tokens, no
two examples of a latent are the same stretch, and what is drawn depends on the seed, the purpose and the latent alone.

By quantile, examples come in equal numbers from the ten deciles of the latent's activations; "top" takes the largest.
Different windows of text come first, so that one busy passage does not fill the list. Of a latent that is active more
often than MOST, as many activations are drawn evenly beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from nlrewrite.activations.pairs import ByLatent
from nlrewrite.activations.statistics import DECILES
from nlrewrite.seeds import generator
from nlrewrite.text.positions import Positions

MOST = 1024
BEFORE = 0.75
"""Share of an example's tokens that stand before the activation it is about, where the text has them."""
MARKED = 0.3
"""Tokens with at least this share of an example's largest activation are marked, and the one that it is about."""
TRIES = 4
STRONGEST = 9

Style = Literal["quantile", "top"]


@dataclass(frozen=True)
class Spans:
    """N stretches of text, each about one position in it."""

    about: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.about)

    def __getitem__(self, rows: np.ndarray | slice) -> "Spans":
        return Spans(self.about[rows], self.first[rows], self.stop[rows])


@dataclass(frozen=True)
class Text:
    """A split's text by position, and the bytes of every token id."""

    where: Positions
    texts: Sequence[bytes]

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the window of text begins and ends that each position is in."""
        starts = np.flatnonzero(np.diff(self.where.window, prepend=-1))
        lengths = np.diff(starts, append=len(self.where))
        return np.repeat(starts, lengths), np.repeat(starts + lengths, lengths)

    def spans(self, about: np.ndarray, window: int, before: np.ndarray | int) -> Spans:
        """Up to `window` tokens, `before` of them before each position; shifted where the text begins or ends."""
        begin, end = self.bounds
        about = np.asarray(about, dtype=np.int64)
        first = np.maximum(begin[about], np.minimum(about - before, end[about] - window))
        return Spans(about, first, np.minimum(end[about], first + window))

    def tokens(self, first: int, stop: int) -> tuple[bytes, ...]:
        return tuple(self.texts[token] for token in self.where.token[first:stop].tolist())


@dataclass(frozen=True)
class Example:
    """One stretch of text as it is shown."""

    position: int
    """The position it is about."""
    first: int
    group: int
    tokens: tuple[bytes, ...]
    activation: np.ndarray
    """float32, one for each token: of the latent that is asked about."""
    at: tuple[int, ...]
    """Places in it that are marked."""

    def strengths(self, scale: float) -> list[tuple[bytes, int]]:
        """The marked tokens with their activations in ninths of `scale`: 1 to 9."""
        return [(self.tokens[place], strength(float(self.activation[place]), scale)) for place in self.at]


def strength(value: float, scale: float) -> int:
    """An activation as a digit: 0 for none, else 1 to 9 in ninths of `scale`."""
    if value <= 0 or scale <= 0:
        return 0
    return int(np.clip(round(STRONGEST * value / scale), 1, STRONGEST))


def examples(
    text: Text, grouped: ByLatent, latent: int, count: int, window: int, seed: int, style: Style = "quantile"
) -> list[Example]:
    """Up to `count` stretches in which the latent is active, by decile or the strongest ones."""
    position, value = grouped.of(latent)
    draws = generator(seed, "examples", style, latent)
    spans = drawn(text, position, value, count, window, draws, style)
    return shown(text, position, value, spans)


def counter_examples(
    text: Text, grouped: ByLatent, latent: int, others: Sequence[int], count: int, window: int, seed: int
) -> list[Example]:
    """Up to `count` stretches in which another latent is active and this one is silent; the others take turns."""
    position, _ = grouped.of(latent)
    turns: list[list[Example]] = []
    for other in others:
        other_position, other_value = grouped.of(other)
        draws = generator(seed, "counter-examples", latent, other)
        spans = drawn(text, other_position, other_value, TRIES * count, window, draws, "quantile")
        spans = spans[np.flatnonzero(_silent(position, spans))]
        turns.append([_with_value(each, 0.0) for each in shown(text, other_position, other_value, spans[:count])])
    taken: dict[int, Example] = {}
    for turn in range(count):
        for each in turns:
            if turn < len(each) and len(taken) < count:
                taken.setdefault(each[turn].first, each[turn])
    return list(taken.values())


def drawn(
    text: Text,
    position: np.ndarray,
    value: np.ndarray,
    count: int,
    window: int,
    draws: np.random.Generator,
    style: Style,
) -> Spans:
    """Stretches about up to `count` of a latent's activations, all different."""
    kept = np.arange(len(position))
    if len(kept) > MOST and style == "quantile":
        kept = np.sort(draws.choice(len(position), MOST, replace=False, shuffle=False))
    if style == "top":
        kept = kept[np.argsort(-value, kind="stable")[: TRIES * count]]
    spans = text.spans(position[kept], window, round(BEFORE * (window - 1)))
    return spans[chosen(value[kept], text.where.window[position[kept]], spans.first, count, draws, style)]


def chosen(
    value: np.ndarray, passage: np.ndarray, first: np.ndarray, count: int, draws: np.random.Generator, style: Style
) -> np.ndarray:
    """Up to `count` indices with different `first`: new passages before known ones, then evenly from the deciles."""
    total = len(value)
    order = np.argsort(-value, kind="stable") if style == "top" else draws.permutation(total)
    known = _again(passage[order])
    kept = ~_again(first[order])
    if style == "top":
        turn, decile = np.arange(total), np.zeros(total, dtype=np.int64)
    else:
        decile = _deciles(value)[order]
        turn = _turns(decile, known)
    best = np.lexsort((turn, known)) if style == "top" else np.lexsort((decile, turn))
    best = best[kept[best]][:count]
    return order[best]


def silent_spans(
    text: Text, position: np.ndarray, count: int, window: int, before: np.ndarray, draws: np.random.Generator
) -> Spans:
    """Up to `count` different stretches with none of the activations at `position`, drawn evenly from the text.

    `before` says where in a stretch the position that it is about stands, in turn.
    """
    total = len(text.where)
    found = Spans(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
    for number in range(2):
        wanted = min(total, TRIES * count) if number == 0 else total
        about = draws.choice(total, wanted, replace=False)
        spans = text.spans(about, window, np.resize(before, len(about)))
        found = spans[np.flatnonzero(_silent(position, spans))]
        found = found[np.flatnonzero(~_again(found.first))]
        if len(found) >= count:
            break
    return found[:count]


def share_active(text: Text, position: np.ndarray, window: int, before: int) -> float:
    """Share of all stretches, one about each position of the text, that hold one of the activations.

    The stretches that hold one activation are those about a run of positions; the runs rise with the activations.
    """
    if not len(position):
        return 0.0
    begin, end = (bound[position] for bound in text.bounds)
    position = position.astype(np.int64)
    last = np.where(position >= np.maximum(begin, end - window), end - 1, np.minimum(end - 1, position + before))
    first = np.where(position - window < begin, begin, position - window + 1 + before)
    known = np.concatenate([[-1], np.maximum.accumulate(last)[:-1]])
    return float(np.maximum(last - np.maximum(first, known + 1) + 1, 0).sum() / len(text.where))


def shown(text: Text, position: np.ndarray, value: np.ndarray, spans: Spans) -> list[Example]:
    """The stretches with their tokens and the activations in them; tokens that are active enough are marked."""
    low, high = np.searchsorted(position, spans.first), np.searchsorted(position, spans.stop)
    found: list[Example] = []
    for row in range(len(spans)):
        first, stop = int(spans.first[row]), int(spans.stop[row])
        activation = np.zeros(stop - first, dtype=np.float32)
        inside = slice(low[row], high[row])
        activation[position[inside] - first] = value[inside]
        about = int(spans.about[row])
        marked = activation >= MARKED * max(float(activation.max(initial=0.0)), np.finfo(np.float32).tiny)
        marked[about - first] |= activation[about - first] > 0
        at = np.flatnonzero(marked)
        group = int(text.where.group[about])
        found.append(Example(about, first, group, text.tokens(first, stop), activation, tuple(at.tolist())))
    return found


def _silent(position: np.ndarray, spans: Spans) -> np.ndarray:
    return np.searchsorted(position, spans.first) == np.searchsorted(position, spans.stop)


def _with_value(example: Example, value: float) -> Example:
    activation = np.full(len(example.tokens), value, dtype=np.float32)
    return Example(example.position, example.first, example.group, example.tokens, activation, example.at)


def _again(keys: np.ndarray) -> np.ndarray:
    """Which entries stand further in front too."""
    again = np.ones(len(keys), dtype=bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def _deciles(value: np.ndarray) -> np.ndarray:
    """The decile of each value among all, by rank: 0 to 9, in parts that differ by one at most."""
    decile = np.empty(len(value), dtype=np.int64)
    sizes = [len(part) for part in np.array_split(np.empty(len(value), dtype=bool), DECILES)]
    decile[np.argsort(value, kind="stable")] = np.repeat(np.arange(DECILES), sizes)
    return decile


def _turns(decile: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The turn at which each entry is taken within its decile: new passages first, then in their order."""
    order = np.lexsort((np.arange(len(decile)), known, decile))
    starts = np.searchsorted(decile[order], np.arange(DECILES))
    turn = np.empty(len(decile), dtype=np.int64)
    turn[order] = np.arange(len(decile)) - starts[decile[order]]
    return turn
