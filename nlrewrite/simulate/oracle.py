"""Simulators made from the truth: what a simulator as good as asked for, and no better, would have said.

In: true activations, how well the oracle knows them (`Scored` or `Flagged`), and its manner of answering. Out: a `Said`
like any other. Invariant: what is drawn for a latent depends on (seed, split, latent) alone, so that blocks of any size
give the same bits; a setting that is changed moves only what it is about.

Scored: z = Normal(0, 1) + [active] * (d' + slope * log(magnitude / its mean)) + tau * (one Normal per context).
With slope 0 its AUC is Phi(d' / sqrt(2 (1 + tau^2))): `of_auc` takes the AUC without prompt effect, which is also the
AUC within one context.
Flagged: 1 with chance `sensitivity` where active and `1 - specificity` elsewhere, every error by itself.

Digits of a scored answer, with q = expit(z - threshold): 0 with chance 1 - q, else 1 + Binomial(8, q). So the log-odds
that the digit is not 0 are z - threshold, and an oracle with the default threshold over-predicts as simulators do: at
one activation in a thousand it calls one inactive context in six likelier active than not. A flag is the digit 9, no
flag 0. A quantised oracle answers with one digit, the nearest to the expected one, and that is also its score.
A failed answer is NaN, in scores and in digits: it is missing, not a value.
"""

from dataclasses import dataclass, field
from math import comb, sqrt
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.special import expit, ndtri

from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Said, blocks, expected

TIED = -4.0
"""The score of a tied answer: digit 0 for almost certain, and lower than nearly all that is not tied."""


@dataclass(frozen=True)
class Scored:
    """An oracle with a score that is higher where the latent is active."""

    d_prime: float
    """Distance between the scores of active and of inactive contexts, in standard deviations."""
    spread: float = 0.0
    """Standard deviation of d' over latents; below 0 it is 0."""
    slope: float = 0.0
    """How much the score rises with the logarithm of the magnitude."""
    tau: float = 0.0
    """Standard deviation of what is added to the scores of all latents in a context."""

    def __post_init__(self) -> None:
        for name, least in (("d_prime", 0.0), ("spread", 0.0), ("slope", -np.inf), ("tau", 0.0)):
            value = getattr(self, name)
            if not least <= value < np.inf:
                raise SettingError(f"{name} of an oracle must be a number from {least:g} on: {value}. Change it")

    @classmethod
    def of_auc(cls, auc: float, spread: float = 0.0, slope: float = 0.0, tau: float = 0.0) -> "Scored":
        if not 0.5 <= auc < 1:
            raise SettingError(f"an AUC must be at least 0.5 and below 1: {auc}. Turn the score round if it is lower")
        return cls(sqrt(2) * float(ndtri(auc)), spread, slope, tau)


@dataclass(frozen=True)
class Flagged:
    """An oracle that says active or not; one number for all latents or one for each [L]."""

    sensitivity: float | np.ndarray
    specificity: float | np.ndarray

    def __post_init__(self) -> None:
        for name in ("sensitivity", "specificity"):
            values = np.asarray(getattr(self, name))
            if not ((values >= 0) & (values <= 1)).all():
                raise SettingError(
                    f"{name} of an oracle must lie in 0..1: {values[~((values >= 0) & (values <= 1))][0]}"
                )


@dataclass(frozen=True)
class Manner:
    """How an oracle answers."""

    digits: bool = True
    """Answers with a distribution over the ten digits too; only a score if not."""
    threshold: float = 1.0
    """Score at which it holds active and inactive equally likely."""
    quantised: bool = False
    tied: float = 0.0
    """Share of the answers, active or not, that are all the same one."""
    mass: float = 1.0
    """Mean probability that an answer is a digit at all; it varies from answer to answer as U ** (1 / mass - 1)."""
    renormalised: bool = True
    """Distributions over digits add up to one; else to the mass of the answer, as the published program left them."""
    failed: float = 0.0
    """Share of the answers that are missing."""

    def __post_init__(self) -> None:
        for name in ("tied", "failed"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"the share of {name} answers must be at least 0 and below 1: {getattr(self, name)}")
        if not 0 < self.mass <= 1:
            raise SettingError(f"the mass of the digits must lie above 0 and be at most 1: {self.mass}")


@dataclass(frozen=True)
class Oracle:
    """What is said of L latents in P contexts by one who knows the truth to a degree."""

    truth_LP: sparse.csr_matrix
    magnitude_L: np.ndarray
    """Mean activation where active; the score's slope is about it."""
    knows: Scored | Flagged
    manner: Manner
    seed: int
    split: str
    """Names the contexts: other contexts have other noise, and latents the same d'."""
    explained: np.ndarray = field(repr=False)

    @property
    def contexts(self) -> int:
        return self.truth_LP.shape[1]  # type: ignore[index]

    def scores(self, latents: slice) -> np.ndarray:
        score_BP = self._scores(latents)
        if self.manner.quantised:
            score_BP = self._digit(score_BP).astype(np.float32)
        return self._with_failures(score_BP, latents)

    def digits(self, latents: slice) -> np.ndarray | None:
        if not self.manner.digits:
            return None
        score_BP = self._scores(latents)
        if self.manner.quantised or isinstance(self.knows, Flagged):
            digits_BPZ = np.eye(DIGITS, dtype=np.float32)[self._digit(score_BP)]
        else:
            digits_BPZ = _distribution(score_BP - np.float32(self.manner.threshold))
        if not self.manner.renormalised:
            digits_BPZ *= self.masses(latents)[..., None]
        return self._with_failures(digits_BPZ, latents)

    def masses(self, latents: slice) -> np.ndarray:
        """How much of each answer's probability is on digits: [B, P]."""
        if self.manner.mass == 1:
            return np.ones((self._count(latents), self.contexts), dtype=np.float32)
        return self._uniform(latents, "mass") ** np.float32(1 / self.manner.mass - 1)

    def ok(self, latents: slice) -> np.ndarray:
        """Which answers there are: [B, P]."""
        if not self.manner.failed:
            return np.ones((self._count(latents), self.contexts), dtype=bool)
        return self._uniform(latents, "failed") >= self.manner.failed

    def d_primes(self, latents: slice = slice(None)) -> np.ndarray:
        """Of every latent, or of a block. Only of an oracle with a score."""
        assert isinstance(self.knows, Scored)
        each = range(*latents.indices(len(self.explained)))
        if not self.knows.spread:
            return np.full(len(each), self.knows.d_prime)
        around = [generator(self.seed, "oracle", "d-prime", latent).standard_normal() for latent in each]
        return np.maximum(self.knows.d_prime + self.knows.spread * np.array(around), 0.0)

    def _scores(self, latents: slice) -> np.ndarray:
        """Scores before they are quantised or fail: [B, P]."""
        truth_BP = self.truth_LP[latents].toarray()
        active_BP = truth_BP > 0
        if isinstance(self.knows, Flagged):
            hit_B, right_B = (
                np.broadcast_to(value, len(self.explained))[latents].astype(np.float32)
                for value in (self.knows.sensitivity, self.knows.specificity)
            )
            chance_BP = np.where(active_BP, hit_B[:, None], 1 - right_B[:, None])
            score_BP = (self._uniform(latents, "noise") < chance_BP).astype(np.float32)
        else:
            score_BP = self._each(latents, "noise", "normal")
            row, column = np.nonzero(active_BP)
            shift = self.d_primes(latents)[row]
            if self.knows.slope:
                mean = self.magnitude_L[latents][row]
                size = truth_BP[row, column]
                shift = shift + self.knows.slope * np.log(np.where(mean > 0, size / np.where(mean > 0, mean, 1), 1.0))
            score_BP[row, column] += shift
            if self.knows.tau:
                prompt_P = generator(self.seed, "oracle", self.split, "prompt").standard_normal(self.contexts)
                score_BP += (self.knows.tau * prompt_P).astype(np.float32)
        if self.manner.tied:
            common = 0.0 if isinstance(self.knows, Flagged) else TIED
            score_BP[self._uniform(latents, "tied") < self.manner.tied] = common
        return score_BP

    def _digit(self, score_BP: np.ndarray) -> np.ndarray:
        """The one digit that a score amounts to."""
        if isinstance(self.knows, Flagged):
            return (DIGITS - 1) * (score_BP > 0)
        rate = expit(score_BP - np.float32(self.manner.threshold))
        return np.rint(rate * (1 + (DIGITS - 2) * rate)).astype(np.int64)

    def _with_failures(self, said: np.ndarray, latents: slice) -> np.ndarray:
        if self.manner.failed:
            said[~self.ok(latents)] = np.nan
        return said

    def _uniform(self, latents: slice, purpose: str) -> np.ndarray:
        return self._each(latents, purpose, "uniform")

    def _each(self, latents: slice, purpose: str, law: Literal["normal", "uniform"]) -> np.ndarray:
        """Draws [B, P] of one purpose, a generator a latent."""
        start, stop, _ = latents.indices(len(self.explained))
        drawn = np.empty((stop - start, self.contexts), dtype=np.float32)
        for row, latent in enumerate(range(start, stop)):
            draws = generator(self.seed, "oracle", self.split, purpose, latent)
            if law == "normal":
                draws.standard_normal(out=drawn[row], dtype=np.float32)
            else:
                draws.random(out=drawn[row], dtype=np.float32)
        return drawn

    def _count(self, latents: slice) -> int:
        return len(range(*latents.indices(len(self.explained))))


def oracle(
    truth_PL: sparse.csr_matrix,
    magnitude_L: np.ndarray,
    knows: Scored | Flagged,
    manner: Manner | None = None,
    *,
    seed: int,
    split: str,
    explained: np.ndarray | None = None,
) -> Oracle:
    """An oracle of all latents, or of those of a mask [L]."""
    every = np.ones(len(magnitude_L), dtype=bool) if explained is None else explained
    return Oracle(sparse.csr_matrix(truth_PL.T), magnitude_L, knows, manner or Manner(), seed, split, every)


def confusion(said: Said, truth_PL: sparse.csr_matrix, threshold: float = 0.0) -> Flagged:
    """Sensitivity and specificity of each latent when a score above `threshold` counts as active.

    An oracle that knows as much errs as often as `said` did, and never together with another latent or for a reason:
    what it does better is what the structure of the errors costs.
    """
    truth_LP = sparse.csr_matrix(truth_PL.T)
    hit_L, right_L = np.zeros(len(said.explained)), np.ones(len(said.explained))
    for block in blocks(len(said.explained)):
        flagged_BP, active_BP = said.scores(block) > threshold, truth_LP[block].toarray() > 0
        hit_L[block] = (flagged_BP & active_BP).sum(1) / np.maximum(active_BP.sum(1), 1)
        right_L[block] = (~flagged_BP & ~active_BP).sum(1) / np.maximum((~active_BP).sum(1), 1)
    return Flagged(hit_L, right_L)


def expected_digit(score: np.ndarray, threshold: float = 1.0) -> np.ndarray:
    """The expected digit of an oracle's answer with this score, which rises with it."""
    return expected(_distribution(np.asarray(score, dtype=np.float32) - np.float32(threshold)))


def _distribution(odds: np.ndarray) -> np.ndarray:
    """The ten digits at these log-odds of being above 0."""
    rate, rest = expit(odds), expit(-odds)
    digits = np.empty((*odds.shape, DIGITS), dtype=np.float32)
    digits[..., 0] = rest
    top = DIGITS - 2
    for step in range(top + 1):
        digits[..., step + 1] = comb(top, step) * rate ** (step + 1) * rest ** (top - step)
    return digits
