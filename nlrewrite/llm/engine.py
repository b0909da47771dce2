"""What every engine can be asked, and what it answers: the one protocol of `reference`, `packed`, `vllm` and `server`.

In: token ids; rendering and splitting is done before (`language/prompts.py`). Out: `Scores`, log-probabilities of a few
labels (the ten digits, or no and yes) at the end of each of many suffixes of one prefix; or `Completion`s.
Invariants: labels are compared by token id, never by text; scores of a question that got no answer are NaN and its
outcome says why, so that a failure can never be taken for a number; engines differ by rounding alone.

The same block serves both orders of a prompt: (prefix = instruction and context, suffixes = explanations) or (prefix =
instruction and explanation, suffixes = contexts).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

import numpy as np

from nlrewrite.errors import SettingError

TOP = 10
"""The published program reads digits among this many likeliest tokens."""


class Outcome(IntEnum):
    """What became of one question."""

    OK = 0
    UNPARSEABLE = 1
    """There is a reply, and no answer in it."""
    REFUSED = 2
    """The engine or its provider would not answer this question; asking again will not help."""
    TRANSPORT = 3
    """No reply came, after all tries."""
    SKIPPED = 4
    """Not asked: a gate, a screen or a budget left it out."""


@dataclass(frozen=True)
class PrefixBlock:
    """Many questions that begin alike."""

    prefix: np.ndarray
    """int32 [P], at least one token."""
    suffix_tokens: np.ndarray
    """int32 [sum of lengths]: all suffixes, one behind the other."""
    suffix_offsets: np.ndarray
    """int64 [N + 1]: where each begins and the last one ends; none is empty."""
    labels: tuple[int, ...]
    """Token ids whose probability is asked for behind each suffix."""

    @classmethod
    def of(
        cls, prefix: Sequence[int] | np.ndarray, suffixes: Sequence[Sequence[int] | np.ndarray], labels: Sequence[int]
    ) -> "PrefixBlock":
        lengths = [len(each) for each in suffixes]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.fromiter((token for each in suffixes for token in each), np.int32, int(offsets[-1]))
        return cls(np.asarray(prefix, dtype=np.int32), tokens, offsets, tuple(int(each) for each in labels)).checked()

    def checked(self) -> "PrefixBlock":
        if not len(self.prefix):
            raise SettingError(
                "a prefix must have a token: it is empty. Cut the prompt behind its first token or later"
            )
        empty = np.flatnonzero(np.diff(self.suffix_offsets) <= 0)
        if len(empty):
            raise SettingError(f"every suffix must have a token: number {empty[0]} is empty. Cut the prompt earlier")
        if len(set(self.labels)) < len(self.labels) or not self.labels:
            raise SettingError(f"labels must be different tokens: {self.labels}. Give one token to each answer")
        return self

    def __len__(self) -> int:
        return len(self.suffix_offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.suffix_offsets)

    def suffix(self, index: int) -> np.ndarray:
        return self.suffix_tokens[self.suffix_offsets[index] : self.suffix_offsets[index + 1]]

    def at(self, chosen: np.ndarray) -> "PrefixBlock":
        """The questions of an index array, in its order."""
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.repeat(self.suffix_offsets[:-1][chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(self, suffix_tokens=self.suffix_tokens[source], suffix_offsets=offsets)


@dataclass(frozen=True)
class Scores:
    """Answers to the N questions of a block, K labels each."""

    logp: np.ndarray
    """float32 [N, K]: log-probabilities that add up to one over the labels; NaN in rows without an answer."""
    logmass: np.ndarray | None
    """float32 [N]: log of the labels' total probability; None where the engine cannot know it."""
    outcome: np.ndarray
    """int8 [N] of `Outcome`."""
    missing: np.ndarray | None = None
    """float32 [N]: upper bound of the probability of labels that were not told, whose logp is -inf; None: all were."""
    top: np.ndarray | None = None
    """bool [N, K]: whether a label is among the TOP likeliest tokens; None where that was not asked for."""

    @classmethod
    def known(cls, logp: np.ndarray, logmass: np.ndarray | None, top: np.ndarray | None = None) -> "Scores":
        return cls(logp, logmass, np.zeros(len(logp), dtype=np.int8), top=top)


@dataclass(frozen=True)
class Sampling:
    """How text is drawn."""

    most: int = 256
    """New tokens, at most."""
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The reply to one prompt."""

    text: str
    outcome: Outcome
    complete: bool = True
    """Ended by itself, and not because it was too long."""
    why: str = ""
    """Of an outcome that is not OK."""


@dataclass
class Usage:
    """What an engine has been asked for so far; engines add to it."""

    queries: int = 0
    prompt_tokens: int = 0
    """As the arithmetic counts them: a shared prefix once."""
    cached_tokens: int = 0
    """Tokens of prefixes that were reused."""
    new_tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0
    """In the currency of the price that was given."""
    failed: dict[str, int] = field(default_factory=dict)
    """Questions without an answer, by the name of their outcome."""


class Engine(Protocol):
    """Something that answers."""

    name: str
    exact_mass: bool
    """Whether `Scores.logmass` is told."""

    @property
    def usage(self) -> Usage: ...

    def about(self) -> dict[str, object]:
        """Provenance: model, dtype, versions, kernels. No part of any name."""
        ...

    def digits(self, block: PrefixBlock) -> Scores: ...

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]: ...

    def close(self) -> None: ...
