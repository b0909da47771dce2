"""The rule language: what can be said about a latent, how it is written, how it is read.

    Fires on " of" (7), " in" or " at" (3), and when strengthened on " a". Stronger right after " one" (+4), a number
    (+2). Weaker within 8 tokens after "def" (-3). Silent right after ".".

In: a `Rule`. Out: its sentences, and back. A context gets the strength of its last token if the rule names it (else 0),
plus every change whose condition holds, cut to 0..9; where a silencing one holds, it gets 0.
Invariant: `parse(write(rule)) == rule` for every rule in normal form, a sentence edited by hand means what it says, and
what does not parse raises `Unparsed` with the place.
"""

import re
from dataclasses import dataclass
from itertools import groupby
from typing import NoReturn

from nlrewrite.language.vocabulary import KINDS, quote, unquote

STRONGEST = 9
SILENT = -100  # no sum of changes: whatever else holds, the level is 0

Item = bytes | int
"""What is named: the bytes of one token, or a kind (an index into KINDS)."""


class Unparsed(ValueError):
    """A sentence that is not in the rule language."""


@dataclass(frozen=True, order=True)
class Place:
    """Where before the last token something stands: exactly `distance` tokens before it, or at most."""

    distance: int
    within: bool = False


@dataclass(frozen=True)
class Change:
    """`amount`, -9 to 9, is added when `item` stands at `place`; SILENT makes the level 0 instead."""

    place: Place
    item: Item
    amount: int


@dataclass(frozen=True)
class Rule:
    """What one latent fires on. `strengths`: token to 0..9; 0 means only when strengthened."""

    strengths: tuple[tuple[bytes, int], ...]
    changes: tuple[Change, ...] = ()

    def normal(self) -> "Rule":
        """The same rule in the order in which it is written."""
        strengths = sorted(self.strengths, key=lambda pair: (-pair[1], pair[0]))
        changes = sorted(self.changes, key=lambda change: (_paragraph(change), -abs(change.amount), _rank(change.item)))
        return Rule(tuple(strengths), tuple(changes))

    @property
    def quotes(self) -> int:
        return len(self.strengths) + sum(isinstance(change.item, bytes) for change in self.changes)


# -- writing ----------------------------------------------------------------------------------------------------------


def write(rule: Rule) -> str:
    rule = rule.normal()
    if not rule.strengths:
        return "Never fires."
    loud = [(strength, token) for token, strength in rule.strengths if strength]
    quiet = [token for token, strength in rule.strengths if not strength]
    groups = [
        f"{_either([token for _, token in group])} ({strength})"
        for strength, group in groupby(loud, key=lambda pair: pair[0])
    ]
    first = "Fires on " + ", ".join(groups) if loud else "Fires"
    if quiet:
        first += f"{', and' if loud else ''} when strengthened on {_either(quiet)}"
    sentences = [first + "."]
    for _, group in groupby(rule.changes, key=_paragraph):
        changes = list(group)
        head = f"{_verb(changes[0].amount)} {_place(changes[0].place)} "
        parts = []
        for amount, same in groupby(changes, key=lambda change: change.amount):
            strength = "" if amount == SILENT else f" ({amount:+d})"
            parts.append(_either([change.item for change in same]) + strength)
        sentences.append(head + ", ".join(parts) + ".")
    return " ".join(sentences)


def words(sentence: str) -> int:
    """Words of a sentence, told apart by spaces; a quoted token is one, whatever is in it."""
    return len(re.findall(r'(?:"(?:\\.|[^"\\])*"|[^\s"])+', sentence))


def _either(items: list[Item] | list[bytes]) -> str:
    names = [KINDS[item] if isinstance(item, int) else quote(item) for item in items]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def _place(place: Place) -> str:
    if place.within:
        return f"within {place.distance} tokens after"
    return "right after" if place.distance == 1 else f"{place.distance} tokens after"


def _verb(amount: int) -> str:
    return "Silent" if amount == SILENT else "Stronger" if amount > 0 else "Weaker"


def _paragraph(change: Change) -> tuple[int, Place]:
    return (("Stronger", "Weaker", "Silent").index(_verb(change.amount)), change.place)


def _rank(item: Item) -> tuple[int, bytes, int]:
    return (0, item, 0) if isinstance(item, bytes) else (1, b"", item)


# -- reading ----------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<quoted>\"(?:\\.|[^\"\\])*\")|(?P<amount>\([+-]?[0-9]\))|(?P<mark>[.,])|(?P<word>[A-Za-z]+|[0-9]+))"
)


def parse(sentence: str) -> Rule:
    """The rule that `sentence` states; Unparsed says where it stops making sense."""
    reader = _Reader(sentence)
    if reader.take("Never", "fires"):
        reader.expect(".")
        reader.expect_end()
        return Rule(())
    reader.expect("Fires")
    strengths: dict[bytes, int] = {}
    if reader.take("on"):
        while True:
            tokens = reader.items()
            amount = reader.amount(signed=False)
            if not 0 < amount <= STRONGEST:
                reader.fail(f"a strength is 1 to {STRONGEST}, not {amount}")
            reader.name_all(strengths, tokens, amount)
            if not reader.take(",") or reader.take("and"):
                break
    if reader.take("when"):
        reader.expect("strengthened")
        reader.expect("on")
        reader.name_all(strengths, reader.items(), 0)
    if not strengths:
        reader.fail("no token is named that it fires on")
    reader.expect(".")
    changes: list[Change] = []
    while not reader.at_end():
        verb = reader.one_of("Stronger", "Weaker", "Silent")
        place = reader.place()
        while True:
            items = reader.items()
            amount = SILENT if verb == "Silent" else reader.amount(signed=True)
            if (amount > 0) != (verb == "Stronger"):
                reader.fail(f"{verb} and {amount:+d} contradict each other")
            changes += [Change(place, item, amount) for item in items]
            if not reader.take(","):
                break
        reader.expect(".")
    named = [(change.place, change.item) for change in changes]
    if len(set(named)) < len(named):
        reader.fail("one condition is given twice")
    return Rule(tuple(strengths.items()), tuple(changes)).normal()


class _Reader:
    """The sentence as a row of lexical tokens, read once from left to right."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        end = len(sentence.rstrip())
        at = 0
        while at < end:
            found = _TOKEN.match(sentence, at)
            if found is None:
                raise Unparsed(f"cannot read {sentence[at : at + 20]!r} at character {at}")
            assert found.lastgroup is not None
            self._tokens.append((found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            at = found.end()

    def fail(self, why: str) -> NoReturn:
        where = self._tokens[self._at][2] if self._at < len(self._tokens) else len(self._sentence)
        raise Unparsed(f"{why}, at character {where}: {self._sentence[where : where + 20]!r}")

    def at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def expect_end(self) -> None:
        if not self.at_end():
            self.fail("expected the end")

    def take(self, *texts: str) -> bool:
        ahead = self._tokens[self._at : self._at + len(texts)]
        if [text for kind, text, _ in ahead if kind in ("word", "mark")] != list(texts):
            return False
        self._at += len(texts)
        return True

    def expect(self, text: str) -> None:
        if not self.take(text):
            self.fail(f"expected {text!r}")

    def one_of(self, *texts: str) -> str:
        for text in texts:
            if self.take(text):
                return text
        self.fail(f"expected one of {', '.join(texts)}")

    def place(self) -> Place:
        if self.take("right", "after"):
            return Place(1)
        within = self.take("within")
        kind, text, _ = self._tokens[self._at] if not self.at_end() else ("", "", 0)
        if kind != "word" or not text.isdigit() or len(text) > 2 or not 0 < int(text) <= 64:
            self.fail("expected 'right after', or a number of tokens from 1 to 64")
        self._at += 1
        if not self.take("tokens", "after"):
            self.fail("expected 'tokens after'")
        return Place(int(text), within)

    def items(self) -> list[Item]:
        items = [self._item()]
        while True:
            before = self._at
            if self.take("or"):
                items.append(self._item())
                return items
            if self.take(",") and self._starts_item():
                items.append(self._item())
                continue
            self._at = before
            return items

    def amount(self, signed: bool) -> int:
        kind, text, _ = self._tokens[self._at] if not self.at_end() else ("", "", 0)
        if kind != "amount" or (text[1] in "+-") != signed:
            self.fail("expected a change such as (+2)" if signed else "expected a strength such as (7)")
        self._at += 1
        return int(text[1:-1])

    def name_all(self, strengths: dict[bytes, int], items: list[Item], amount: int) -> None:
        for item in items:
            if isinstance(item, int):
                self.fail(f"it fires on quoted tokens, not on {KINDS[item]}")
            elif item in strengths:
                self.fail(f"{quote(item)} is named twice")
            else:
                strengths[item] = amount

    def _starts_item(self) -> bool:
        kind, text = self._tokens[self._at][:2] if not self.at_end() else ("", "")
        return kind == "quoted" or text in ("a", "the")

    def _item(self) -> Item:
        kind, text, _ = self._tokens[self._at] if not self.at_end() else ("", "", 0)
        if kind == "quoted":
            named = b""
            try:
                named = unquote(text)
            except ValueError as error:
                self.fail(str(error))
            if not named:
                self.fail("an empty quote names no token")
            self._at += 1
            return named
        for index, name in enumerate(KINDS):
            if self.take(*name.split()):
                return index
        self.fail("expected a quoted token or a kind such as 'a number'")
