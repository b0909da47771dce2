"""The rule language as reader and editor of refining, and a contrastive edit of a rule: no language model is asked.

In: contexts of a split, sentences of the rule language, and what they get wrong. Out: levels, and edited sentences.
Invariant: an edit is a sentence of the rule language within its limits of quotes and words, and the editor looks at no
context beyond those that it is shown, but that it may count on the shown part what an edit would do there.

Edits: a change or a token is taken out; where the sentence speaks in vain, what stands before is made to silence or to
weaken it; where it is silent in vain, the token is named, or what stands before a named one strengthens it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlrewrite.explain.examples import Example
from nlrewrite.explain.refine import Asked, Cases, Wanted, predicted
from nlrewrite.language.reading import Contexts, distances
from nlrewrite.language.sentence import SILENT, Change, Item, Place, Rule, Unparsed, parse, words, write

REACH = 8
PLACES = (Place(1), Place(2), Place(REACH, within=True))
CANDIDATES = 4
"""Conditions that are tried at each place, the commonest among the errors less among what is right."""
STRENGTHS = (3, 6, 9)
WEAKER = (SILENT, -6, -3)
STRONGER = (3, 6, 9)


@dataclass(frozen=True)
class RuleReader:
    """Reads sentences in the contexts that end at positions of one split."""

    contexts: Contexts

    def levels(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        return [self._levels(each) for each in asked]

    def _levels(self, asked: Asked) -> np.ndarray:
        try:
            return level_at(self.contexts, parse(asked.sentence), asked.position)
        except Unparsed:
            return np.full(len(asked.position), np.nan)


@dataclass(frozen=True)
class RuleEditor:
    """Proposes the edit that does best on the shown part."""

    contexts: Contexts
    most_quotes: int
    most_words: int

    def edits(self, wanted: Sequence[Wanted]) -> list[str | None]:
        return [self._edit(each) for each in wanted]

    def _edit(self, wanted: Wanted) -> str | None:
        rule = parse(wanted.sentence)
        shown = np.flatnonzero(wanted.cases.shown)
        cases = taken(wanted.cases, shown)
        wrong = wanted.cases.position[wanted.false_positives]
        missed = wanted.cases.position[wanted.false_negatives]
        right = wanted.cases.position[shown[(cases.truth > 0) & (wanted.level[shown] > 0)]]
        best, least = None, squared_error(cases, wanted.level[shown])
        for candidate in self.candidates(rule, wrong, missed, right):
            error = squared_error(cases, level_at(self.contexts, candidate, cases.position))
            if error < least and write(candidate) not in wanted.refused:
                best, least = candidate, error
        return None if best is None else write(best)

    def candidates(self, rule: Rule, wrong: np.ndarray, missed: np.ndarray, right: np.ndarray) -> Iterator[Rule]:
        """Edited rules within the limits, each once."""
        seen = {rule.normal()}
        for edited in (*_shorter(rule), *self._narrower(rule, wrong, right), *self._wider(rule, missed)):
            normal = edited.normal()
            fits = normal.quotes <= self.most_quotes and words(write(normal)) <= self.most_words
            if fits and normal.strengths and normal not in seen:
                seen.add(normal)
                yield normal

    def _narrower(self, rule: Rule, wrong: np.ndarray, right: np.ndarray) -> Iterator[Rule]:
        for place, item in self._before(wrong, right):
            for amount in WEAKER:
                yield _with_change(rule, Change(place, item, amount))

    def _wider(self, rule: Rule, missed: np.ndarray) -> Iterator[Rule]:
        texts, tokens = self.contexts.vocabulary.texts, self.contexts.where.token
        named = dict(rule.strengths)
        counted = Counter(texts[token] for token in tokens[missed].tolist())
        for text, _ in counted.most_common(CANDIDATES):
            for strength in STRENGTHS:
                if text and strength > named.get(text, 0):
                    yield replace(rule, strengths=tuple({**named, text: strength}.items()))
        of_named = missed[np.isin(tokens[missed], [self.contexts.vocabulary.ids.get(text, -1) for text in named])]
        for place, item in self._before(of_named, of_named[:0]):
            for amount in STRONGER:
                yield _with_change(rule, Change(place, item, amount))

    def _before(self, errors: np.ndarray, right: np.ndarray) -> Iterator[tuple[Place, Item]]:
        """What stands before errors more often than before what is right, in shares of either."""
        if not len(errors):
            return
        vocabulary = self.contexts.vocabulary
        for place in PLACES:
            there, against = (self._standing(place, each) for each in (errors, right))
            over = {code: count / len(errors) - against[code] / max(len(right), 1) for code, count in there.items()}
            for code in sorted(over, key=lambda code: (-over[code], code))[:CANDIDATES]:
                if over[code] > 0 and code > 0 and vocabulary.texts[code - 1]:
                    yield place, vocabulary.texts[code - 1]
        for place in PLACES[:2]:
            kinds = [Counter(self.contexts.kinds_by_code[self._codes(place, each)].ravel()) for each in (errors, right)]
            share = {kind: kinds[0][kind] / len(errors) - kinds[1][kind] / max(len(right), 1) for kind in kinds[0]}
            likeliest = max(sorted(share), key=lambda kind: share[kind])
            if share[likeliest] > 0:
                yield place, int(likeliest)

    def _codes(self, place: Place, position: np.ndarray) -> np.ndarray:
        return np.stack([self.contexts.codes(distance)[position] for distance in distances(place)], axis=1)

    def _standing(self, place: Place, position: np.ndarray) -> Counter[int]:
        return Counter(code for row in self._codes(place, position).tolist() for code in set(row))


@dataclass(frozen=True)
class ContrastEditor:
    """Proposes the edit that does best on a few examples: the latent's own, and those of its rivals where it is silent.

    This is what a language model is shown when it contrasts: the text beyond the examples is unknown to it.
    """

    editor: RuleEditor
    own: Mapping[int, Sequence[Example]]
    others: Mapping[int, Sequence[Example]]

    def edits(self, wanted: Sequence[Wanted]) -> list[str | None]:
        return self.editor.edits([self._by_examples(each) for each in wanted])

    def _by_examples(self, wanted: Wanted) -> Wanted:
        """The same with the tokens of the examples as the only contexts; errors are those among the rivals'."""
        own, others = self.own[wanted.latent], self.others[wanted.latent]
        position = np.concatenate([np.arange(each.first, each.first + len(each.tokens)) for each in (*own, *others)])
        truth = np.concatenate([each.activation for each in (*own, *others)]).astype(np.float64)
        position, once = np.unique(position, return_index=True)
        cases = Cases(position, truth[once], np.ones(len(once)), np.zeros(len(once)), np.ones(len(once), dtype=bool))
        level = level_at(self.editor.contexts, parse(wanted.sentence), position)
        wrong = np.flatnonzero((level > 0) & (cases.truth <= 0))
        return Wanted(wanted.latent, wanted.sentence, cases, level, wrong, wrong[:0])


def cases_of(contexts: Contexts, position: np.ndarray, value: np.ndarray, shown_P: np.ndarray, rule: Rule) -> Cases:
    """All contexts of the split for one latent, as `Cases`.

    Those that end in a token on which the latent is never active, and which the rule does not name, have level 0 under
    every edit: of each document group one of them stands for all.
    """
    token_P, group_P = contexts.where.token, contexts.where.group
    ids = contexts.vocabulary.ids
    speaking = np.zeros(len(contexts.vocabulary), dtype=bool)
    speaking[token_P[position]] = True
    speaking[[ids[text] for text, _ in rule.strengths if text in ids]] = True
    own = np.flatnonzero(speaking[token_P])
    rest = np.flatnonzero(~speaking[token_P])
    _, first, count = np.unique(group_P[rest], return_index=True, return_counts=True)
    at = np.concatenate([own, rest[first]])
    truth = np.zeros(len(at))
    truth[np.searchsorted(own, position)] = value
    weight = np.concatenate([np.ones(len(own)), count])
    return Cases(at, truth, weight, group_P[at], shown_P[at])


def level_at(contexts: Contexts, rule: Rule, position: np.ndarray) -> np.ndarray:
    """The rule's level in the contexts that end at `position`."""
    speaks, level = contexts.levels(rule)
    dense = np.zeros(len(contexts.where), dtype=np.float64)
    dense[speaks] = level
    return dense[position]


def squared_error(cases: Cases, level: np.ndarray) -> float:
    return float(cases.weight @ np.square(predicted(cases, level) - cases.truth))


def taken(cases: Cases, rows: np.ndarray) -> Cases:
    """Some of the cases."""
    return Cases(cases.position[rows], cases.truth[rows], cases.weight[rows], cases.group[rows], cases.shown[rows])


def _shorter(rule: Rule) -> Iterable[Rule]:
    for index in range(len(rule.changes)):
        yield replace(rule, changes=rule.changes[:index] + rule.changes[index + 1 :])
    for index in range(len(rule.strengths)):
        yield replace(rule, strengths=rule.strengths[:index] + rule.strengths[index + 1 :])


def _with_change(rule: Rule, change: Change) -> Rule:
    others = [each for each in rule.changes if (each.place, each.item) != (change.place, change.item)]
    return replace(rule, changes=(*others, change))
