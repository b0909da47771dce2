"""What a scorer is asked about one latent: stretches of text in which it is active, and as many in which it is not.

In: the text and activations of the calibrate split, and a generator of the latent's own. Out: quizzes, their questions
in random order. Invariants: no two questions of a kind are about the same stretch; where an activation stands in its
stretch is drawn evenly from its second half, and so is the place that a silent stretch is about; wrong marks of a
fuzzing quiz stand at the very places of the right ones, so that neither their number nor their places tell them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlrewrite.explain.examples import MOST, Example, Text, chosen, shown, silent_spans

CHOICES = 5
"""Texts of an intruder question, one of them the intruder."""


@dataclass(frozen=True)
class Latent:
    """What is known of one latent on the split it is scored on."""

    number: int
    sentence: str
    position: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Quiz:
    """N questions about one latent, each about one stretch of text or more."""

    latent: int
    sentence: str
    items: tuple[tuple[Example, ...], ...]
    truth: np.ndarray
    """int64 [N]: 1 where yes is right, else 0; or which of the texts is."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def examples(self) -> list[Example]:
        """The stretch of each question that has one."""
        return [item[0] for item in self.items]


def detection(text: Text, latent: Latent, count: int, window: int, draws: np.random.Generator) -> Quiz:
    """Is the latent active anywhere in this text? Up to `count` in which it is, by decile, and as many others."""
    active = active_examples(text, latent, count, window, draws)
    silent = silent_examples(text, latent, len(active), window, draws)
    active = active[: len(silent)]
    return _shuffled(
        latent, [(replace(each, at=()),) for each in (*active, *silent)], _ones(len(active), len(silent)), draws
    )


def fuzzing(text: Text, latent: Latent, count: int, window: int, draws: np.random.Generator) -> Quiz:
    """Are the marked tokens those on which the latent is active? The same number of right and of wrong marks."""
    right = active_examples(text, latent, count, window, draws)
    silent = silent_examples(text, latent, len(right), window, draws)
    wrong = [mismarked(each.at, right, silent, draws) for each in right]
    pairs = [(one, other) for one, other in zip(right, wrong, strict=True) if other is not None]
    items = [(one,) for one, _ in pairs] + [(other,) for _, other in pairs]
    return _shuffled(latent, items, _ones(len(pairs), len(pairs)), draws)


def intruder(text: Text, latent: Latent, count: int, window: int, draws: np.random.Generator) -> Quiz:
    """Which of five texts does not belong: four with the latent's tokens marked, one silent, marked as one of them."""
    active = active_examples(text, latent, (CHOICES - 1) * count, window, draws)
    silent = silent_examples(text, latent, len(active) // (CHOICES - 1), window, draws)
    items: list[tuple[Example, ...]] = []
    places: list[int] = []
    for number, other in enumerate(silent):
        four = active[(CHOICES - 1) * number : (CHOICES - 1) * (number + 1)]
        marks = next((each.at for each in four if each.at[-1] < len(other.tokens)), None)
        if marks is not None:
            place = int(draws.integers(CHOICES))
            items.append((*four[:place], replace(other, at=marks), *four[place:]))
            places.append(place)
    return Quiz(latent.number, latent.sentence, tuple(items), np.array(places, dtype=np.int64))


def active_examples(text: Text, latent: Latent, count: int, window: int, draws: np.random.Generator) -> list[Example]:
    """Stretches about activations, evenly from their deciles."""
    rows = np.arange(len(latent.position))
    if len(rows) > MOST:
        rows = np.sort(draws.choice(len(rows), MOST, replace=False, shuffle=False))
    position, value = latent.position[rows], latent.value[rows]
    spans = text.spans(position, window, _places(window, len(position), draws))
    kept = chosen(value, text.where.window[position], spans.first, count, draws, "quantile")
    return shown(text, latent.position, latent.value, spans[kept])


def silent_examples(text: Text, latent: Latent, count: int, window: int, draws: np.random.Generator) -> list[Example]:
    """Stretches without an activation."""
    if not count:
        return []
    spans = silent_spans(text, latent.position, count, window, _places(window, count, draws), draws)
    return shown(text, latent.position, latent.value, spans)


def mismarked(
    at: tuple[int, ...], active: Sequence[Example], silent: Sequence[Example], draws: np.random.Generator
) -> Example | None:
    """A text with marks at these places, on none of which the latent is active: one where it is elsewhere, if any."""
    for group in (active, silent):
        for row in draws.permutation(len(group)).tolist():
            other = group[row]
            if at[-1] < len(other.tokens) and not other.activation[list(at)].any():
                return replace(other, at=at)
    return None


def _places(window: int, count: int, draws: np.random.Generator) -> np.ndarray:
    return draws.integers(window // 2, window, count)


def _ones(yes: int, no: int) -> np.ndarray:
    return np.repeat([1, 0], [yes, no])


def _shuffled(
    latent: Latent, items: Sequence[tuple[Example, ...]], truth: np.ndarray, draws: np.random.Generator
) -> Quiz:
    order = draws.permutation(len(items))
    return Quiz(latent.number, latent.sentence, tuple(items[row] for row in order.tolist()), truth[order])
