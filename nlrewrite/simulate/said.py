"""What a simulator said about latents and contexts, whichever simulator it was, as calibrators read it.

In: a simulation, by blocks of latents. Out: `Answers`: one number per latent and context, higher for more active, and
where the simulator answers with digits their distribution. Invariant: a block of latents is read without the others,
so that memory follows the block; nothing here knows a true activation.

What the number is, a `Reading` says: the simulator's own score (a rule's level, an oracle's log-odds), the expected
digit, or the log-odds that the digit is not 0; each as it is, or centred: less the mean over all latents of that
context, which takes away what a simulator says of every latent alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.rules import Simulated

BLOCK = 256
LEAST_MASS = 1e-6
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""

Number = Literal["own", "expected", "log-odds"]


@dataclass(frozen=True)
class Reading:
    """Which number is read from what was said."""

    number: Number = "own"
    centred: bool = False


@dataclass(frozen=True)
class Answers:
    """What was said about B latents in S cases."""

    score_BS: np.ndarray
    digits_BSZ: np.ndarray | None = None
    """Of the ten digits; the first axis may be 1 where all latents share it. Rows add up to one, and to less with a
    flavour that counts what is on no digit."""

    def at(self, cases: np.ndarray) -> "Answers":
        """The cases chosen by a mask or by indices."""
        digits = self.digits_BSZ
        return Answers(self.score_BS[:, cases], None if digits is None else digits[:, cases])


class Said(Protocol):
    """A simulation of L latents in P contexts."""

    @property
    def explained(self) -> np.ndarray:
        """[L]: of which latents the simulator could say anything."""
        ...

    @property
    def contexts(self) -> int: ...

    def scores(self, latents: slice) -> np.ndarray:
        """The simulator's own score: [B, P], float32."""
        ...

    def digits(self, latents: slice) -> np.ndarray | None:
        """Distribution over digits [B, P, 10], float32; None for a simulator without digits."""
        ...


@dataclass(frozen=True)
class Spoken:
    """The levels of a rule reader, kept as pairs, in the form that every simulator has."""

    simulated: Simulated
    contexts: int

    @property
    def explained(self) -> np.ndarray:
        return self.simulated.explained

    def scores(self, latents: slice) -> np.ndarray:
        return self._levels(latents).astype(np.float32)

    def digits(self, latents: slice) -> np.ndarray:
        return self.simulated.digits_ZD[self._levels(latents)].astype(np.float32)

    def _levels(self, latents: slice) -> np.ndarray:
        start, stop, _ = latents.indices(len(self.explained))
        first, last = np.searchsorted(self.simulated.latent, (start, stop))
        levels = np.zeros((stop - start, self.contexts), dtype=np.int8)
        pairs = self.simulated.latent[first:last] - start, self.simulated.position[first:last]
        levels[pairs] = self.simulated.level[first:last]
        return levels


def blocks(latents: int, size: int = BLOCK) -> Iterator[slice]:
    for start in range(0, latents, size):
        yield slice(start, min(start + size, latents))


def answers(
    said: Said, latents: slice, reading: Reading, centre_P: np.ndarray | None = None, *, digits: bool = True
) -> Answers:
    """What was said about a block of latents, read as `reading` says; `centre_P` is `centre` of the same reading.

    Without `digits` their distributions, ten times the size of the scores, are left out where none are read.
    """
    table = said.digits(latents) if digits or reading.number != "own" else None
    if reading.number == "own":
        score = said.scores(latents)
        if np.isinf(score).any():
            row, column = np.argwhere(np.isinf(score))[0]
            raise SettingError(
                f"an answer must be a number or, where it is missing, none: there is {score[row, column]:g} of latent "
                f"{(latents.start or 0) + row} in context {column}. Have the simulator give finite numbers"
            )
    else:
        if table is None:
            raise SettingError(
                f"this simulator gives no digits, so that there is no {reading.number} to read. "
                f"Leave @{reading.number} out of --set calibrate.calibrators"
            )
        score = expected(table) if reading.number == "expected" else log_odds(table)
    if reading.centred:
        assert centre_P is not None
        score = score - centre_P.astype(np.float32)
    return Answers(score, table if digits else None)


def centre(said: Said, reading: Reading) -> np.ndarray:
    """Mean over the explained latents of what is read at each context, missing answers left out: [P]."""
    explained = said.explained
    total, count = np.zeros(said.contexts), np.zeros(said.contexts)
    plain = Reading(reading.number)
    for block in blocks(len(explained)):
        score = answers(said, block, plain, digits=False).score_BS[explained[block]]
        there = ~np.isnan(score)
        total += np.where(there, score, 0).sum(0, dtype=np.float64)
        count += there.sum(0)
    return total / np.maximum(count, 1)


def expected(digits_Z: np.ndarray) -> np.ndarray:
    """The expected digit of distributions in the last axis."""
    return digits_Z @ np.arange(DIGITS, dtype=digits_Z.dtype)


def log_odds(digits_Z: np.ndarray) -> np.ndarray:
    """log P(digit above 0) - log P(digit 0), among the digits; what is on no digit speaks for neither."""
    total = digits_Z.sum(-1)
    certain = np.where(np.isnan(total), total, np.ones_like(total))
    none = np.divide(digits_Z[..., 0], total, out=certain, where=total > 0)
    none = np.clip(none, LEAST_MASS, 1 - LEAST_MASS)
    return np.log1p(-none) - np.log(none)
