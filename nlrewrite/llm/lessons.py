"""What a reader is taught: random rules of the rule language, and contexts of the explain split with their digits.

In: the positions of a split. Out: for a seed and a number one `Lesson`: a sentence, some contexts, the digit of each,
and how much likelier each digit is among a lesson's contexts than in the text. Invariants: a lesson depends on the
corpus, the seed and its number alone; digits are what the rule language says; sentences of the held-out share are drawn
for judging and for nothing else.

A latent is silent on nearly all text, so contexts are drawn by cases: from those where the rule speaks, from hard ones
where it does not (its token stands there but something holds it down, or a token that it quotes elsewhere, or one that
is spelled nearly so), and from all others.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nlrewrite.language.reading import Contexts
from nlrewrite.language.sentence import SILENT, STRONGEST, Change, Item, Place, Rule, write
from nlrewrite.language.vocabulary import KINDS, Vocabulary
from nlrewrite.seeds import generator
from nlrewrite.text.positions import NOTHING, Positions

SPEAKS, HARD, OTHER = range(3)
SHARES = (0.5, 0.3, 0.2)
"""Of a lesson's contexts: where the rule speaks, where it nearly does, all others."""

QUOTES = 12
STRENGTHS = np.array([0.37, 0.2, 0.125, 0.095, 0.075, 0.05, 0.035, 0.025, 0.015, 0.01])
"""How often a named token has strength 0, 1, ... 9."""
AMOUNTS = np.array([0.25, 0.25, 0.18, 0.14, 0.08, 0.05, 0.025, 0.015, 0.01])
"""How often a change is by 1, 2, ... 9."""
PLACES = ((Place(1), 0.68), (Place(8, within=True), 0.12), (Place(2), 0.1))
"""Where most changes look; the others look anywhere up to 8 back."""
REACH = 8
KIND_CHANGES = 5
NEAR_SPELLING, HOLDS, FEW, FULL, DOWN, SILENCES = 0.3, 0.8, 0.4, 0.2, 0.4, 0.06
"""How often a token is spelled like one that is named already, a change is by something that does stand there, a
sentence is short, names tokens alone, and a change weakens or silences."""


@dataclass(frozen=True)
class Stage:
    """A part of the course: how much a sentence says, and how many tokens of a context are shown."""

    until: float
    """Share of the course after which it is over."""
    quotes: int = QUOTES
    kinds: int = KIND_CHANGES
    changes: bool = True
    shown: int = REACH + 1


LAST = Stage(1.0)


@dataclass(frozen=True)
class Lesson:
    """One sentence and C questions about it."""

    rule: Rule
    sentence: str
    position_C: np.ndarray
    digit_C: np.ndarray
    tilt_CZ: np.ndarray
    """log of how much more often a context like this with this digit is drawn than it stands in the text."""
    weight_C: np.ndarray
    """Contexts of the text that each one stands for, as a share; they add up to one."""


class Teacher:
    """Draws lessons about the contexts of one split."""

    def __init__(self, where: Positions, vocabulary: Vocabulary, window: int, held_out: float, seed: int) -> None:
        self.contexts = Contexts(where, vocabulary, window)
        self._held_out, self._seed = held_out, seed
        token = self.contexts.where.token
        seen = np.bincount(token, minlength=len(vocabulary)).astype(np.float64)
        seen[vocabulary.kinds_V == 0] = 0  # no sentence fires on what stands before a text
        self._named = np.cumsum(seen**0.75 / (seen**0.75).sum())

    def lesson(self, number: int, questions: int, stage: Stage = LAST, *, judging: bool = False) -> Lesson:
        """Lesson `number` of those taught, or of those judged by."""
        draws = generator(self._seed, "lesson", int(judging), number)
        while True:
            rule = self.rule(draws, stage)
            sentence = write(rule)
            if held_out(sentence, self._held_out) != judging:
                continue
            lesson = self.about(rule, questions, draws)
            if lesson is not None:
                return lesson

    def about(self, rule: Rule, questions: int, draws: np.random.Generator) -> Lesson | None:
        """Questions about a given rule; None if it never speaks here."""
        position, level = self.contexts.levels(rule)
        if not len(position):
            return None
        contexts = len(self.contexts.where)
        known = np.zeros(contexts, dtype=bool)
        known[position] = True
        hard = self._hard(rule)
        hard = hard[~known[hard]]
        known[hard] = True
        counts = np.array([len(position), len(hard), contexts - len(position) - len(hard)])
        taken = _shared(questions, counts)
        speaks = draws.choice(len(position), taken[SPEAKS], replace=taken[SPEAKS] > len(position))
        near = draws.choice(hard, taken[HARD], replace=taken[HARD] > len(hard)) if taken[HARD] else hard[:0]
        others = np.zeros(0, dtype=np.int64)
        while len(others) < taken[OTHER]:
            drawn = draws.integers(0, contexts, 2 * taken[OTHER] + 8)
            others = np.concatenate([others, drawn[~known[drawn]]])[: taken[OTHER]]
        kind = np.repeat([SPEAKS, HARD, OTHER], taken)
        tilt = np.log(np.maximum(taken, 1) / questions) - np.log(np.maximum(counts, 1) / contexts)
        tilt_CZ = np.repeat(np.where(kind == OTHER, tilt[OTHER], tilt[HARD])[:, None], STRONGEST + 1, axis=1)
        if not taken[HARD]:
            tilt_CZ[:] = tilt[OTHER]
        tilt_CZ[:, 1:] = tilt[SPEAKS]
        digit = np.concatenate([level[speaks], np.zeros(questions - taken[SPEAKS], dtype=level.dtype)])
        weight = (counts / contexts)[kind] / taken[kind]
        asked = np.concatenate([position[speaks], near, others])
        return Lesson(rule, write(rule), asked, digit, tilt_CZ.astype(np.float32), weight / weight.sum())

    def names_last(self, lesson: Lesson) -> np.ndarray:
        """[C]: whether the sentence names the token that each context ends with."""
        ids = self.contexts.vocabulary.ids
        named = [ids[text] for text, _ in lesson.rule.strengths if text in ids]
        return np.isin(self.contexts.where.token[lesson.position_C], named)

    def _hard(self, rule: Rule) -> np.ndarray:
        """Contexts that end with a token which the sentence quotes, or one spelled nearly so."""
        ids = self.contexts.vocabulary.ids
        quoted = [text for text, _ in rule.strengths]
        quoted += [change.item for change in rule.changes if isinstance(change.item, bytes)]
        tokens = {ids[text] for text in quoted if text in ids}
        tokens |= {alike for text, _ in rule.strengths for alike in self._alike.get(_bare(text), ())}
        return np.concatenate([np.zeros(0, np.int64), *(self.contexts.at(token) for token in sorted(tokens))])

    @cached_property
    def _alike(self) -> dict[bytes, list[int]]:
        groups: dict[bytes, list[int]] = defaultdict(list)
        for text, number in self.contexts.vocabulary.ids.items():
            if text:
                groups[_bare(text)].append(number)
        return groups

    # -- rules ---------------------------------------------------------------------------------------------------------

    def rule(self, draws: np.random.Generator, stage: Stage = LAST) -> Rule:
        """A rule such as the explainer finds: common tokens, and changes by what does stand before them."""
        quotes = int(draws.integers(1, stage.quotes + 1)) if draws.random() < FEW else stage.quotes
        names = int(draws.integers(1, quotes + 1)) if draws.random() >= FULL else quotes
        strengths: dict[bytes, int] = {}
        texts = self.contexts.vocabulary.texts
        for _ in range(names):
            token = texts[self._common(draws)]
            if strengths and draws.random() < NEAR_SPELLING:
                like = self._alike[_bare(list(strengths)[int(draws.integers(len(strengths)))])]
                token = texts[like[int(draws.integers(len(like)))]]
            strengths[token] = int(draws.choice(STRONGEST + 1, p=STRENGTHS))
        if not stage.changes:
            return Rule(tuple((text, max(strength, 1)) for text, strength in strengths.items())).normal()
        kinds = int(draws.integers(0, stage.kinds + 1))
        changes: dict[tuple[Place, Item], int] = {}
        for number in range(kinds + quotes - len(strengths)):
            place = _place(draws)
            item = self._item(list(strengths), place, number < kinds, draws)
            if draws.random() < SILENCES:
                amount = SILENT
            else:
                amount = 1 + int(draws.choice(STRONGEST, p=AMOUNTS))
                amount = -amount if draws.random() < DOWN else amount
            changes[place, item] = amount
        return Rule(tuple(strengths.items()), tuple(Change(*key, amount) for key, amount in changes.items())).normal()

    def _common(self, draws: np.random.Generator) -> int:
        return int(np.searchsorted(self._named, draws.random(), side="right"))

    def _item(self, named: list[bytes], place: Place, by_kind: bool, draws: np.random.Generator) -> Item:
        """What stands at `place` before some occurrence of a named token; now and then, anything."""
        rows = self.contexts.at(self.contexts.vocabulary.ids[named[int(draws.integers(len(named)))]])
        distance = int(draws.integers(1, place.distance + 1)) if place.within else place.distance
        code = NOTHING + 1
        if len(rows) and draws.random() < HOLDS:
            code = int(self.contexts.codes(distance)[rows[int(draws.integers(len(rows)))]])
            if by_kind:
                return int(self.contexts.kinds_by_code[code])
        if by_kind:
            return int(draws.integers(len(KINDS)))
        return self.contexts.vocabulary.texts[code - 1 if code else self._common(draws)]


def held_out(sentence: str, share: float) -> bool:
    """Whether a sentence belongs to those that nothing is taught by."""
    digest = hashlib.sha256(sentence.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * (1 << 64)


def _shared(questions: int, counts: np.ndarray) -> np.ndarray:
    """How many of each case are drawn; what is not there leaves its share to the others."""
    shares = np.array(SHARES) * (counts > 0)
    taken = np.floor(questions * shares / shares.sum()).astype(np.int64)
    taken[int(np.argmax(counts > 0))] += questions - taken.sum()
    return taken


def _place(draws: np.random.Generator) -> Place:
    drawn = draws.random()
    for place, share in PLACES:
        if drawn < share:
            return place
        drawn -= share
    return Place(int(draws.integers(1, REACH + 1)), within=bool(draws.random() < 0.5))


def _bare(text: bytes) -> bytes:
    return text.strip().lower() or text
