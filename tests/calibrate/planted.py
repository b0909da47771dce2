"""Latents whose levels inform, or not, about their activations; and as dense arrays what the cells count."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate.known import Statistics
from nlrewrite.calibrate.pairing import Pairing
from nlrewrite.language.reading import distributions
from nlrewrite.seeds import generator
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Answers, Said, Spoken


@dataclass(frozen=True)
class Planted:
    """Levels and activations of L latents at P positions; the explain split is the same truth."""

    simulated: Simulated
    truth_PL: sparse.csr_matrix
    folds_P: np.ndarray

    @property
    def spoken(self) -> Spoken:
        return Spoken(self.simulated, len(self.folds_P))

    @cached_property
    def statistics(self) -> Statistics:
        latents = self.truth_PL.shape[1]
        every = np.tile(np.arange(latents, dtype=np.int32), (len(self.folds_P), 1))
        explain = Active(every, self.truth_PL.toarray())
        return Statistics(explain, self.truth_PL, self.folds_P, latents, seed=0)

    def pairing(self, said: Said | None = None) -> Pairing:
        return Pairing(said or self.spoken, self.truth_PL, self.folds_P)


def fitting(
    level_PL: np.ndarray,
    truth_PL: np.ndarray,
    explained_L: np.ndarray | None = None,
    folds_P: np.ndarray | None = None,
) -> Planted:
    latent, position = np.nonzero(level_PL.T)
    explained = np.ones(level_PL.shape[1], dtype=bool) if explained_L is None else explained_L
    simulated = Simulated(latent, position, level_PL[position, latent], distributions(), explained)
    truth = sparse.csr_matrix(truth_PL.astype(np.float32))
    return Planted(simulated, truth, np.arange(len(level_PL)) // 50 % 3 if folds_P is None else folds_P)


@dataclass(frozen=True)
class Told:
    """Any scores as a simulation; its digits are as sure of 0 as the score is low, if it has any."""

    score_LP: np.ndarray
    digits_LPZ: np.ndarray | None = None
    explained_L: np.ndarray | None = None

    @property
    def explained(self) -> np.ndarray:
        return np.ones(len(self.score_LP), dtype=bool) if self.explained_L is None else self.explained_L

    @property
    def contexts(self) -> int:
        return self.score_LP.shape[1]

    def scores(self, latents: slice) -> np.ndarray:
        return self.score_LP[latents].astype(np.float32)

    def digits(self, latents: slice) -> np.ndarray | None:
        return None if self.digits_LPZ is None else self.digits_LPZ[latents].astype(np.float32)


def as_contexts(spoken: Spoken) -> Told:
    """The same levels, each context by itself."""
    every = slice(0, len(spoken.explained))
    return Told(spoken.scores(every), spoken.digits(every), spoken.explained)


def told(score_LP: np.ndarray) -> Answers:
    return Answers(score_LP.astype(np.float32), None)


def informative(positions: int = 4000, latents: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Levels, and activations whose rate and size grow with them."""
    draws = generator(seed, "planted calibration")
    level = np.where(draws.random((positions, latents)) < 0.9, 0, draws.integers(1, 10, (positions, latents)))
    active = draws.random(level.shape) < 0.01 + 0.09 * level
    return level, np.where(active, draws.gamma(4.0, 0.05 + 0.02 * level), 0.0)


def binormal(
    latents: int = 40, contexts: int = 2000, d_prime: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [L, P] that are Normal(0, 1), higher by d' where active, and lognormal activations [P, L]."""
    draws = generator(seed, "binormal", latents, contexts)
    rate = np.exp(draws.normal(-4, 0.8, latents))
    active = draws.random((latents, contexts)) < rate[:, None]
    noise, width = draws.normal(size=active.shape), np.sqrt(np.log(1.36))
    size = np.exp(draws.normal(0, 0.3, (latents, 1)) - width**2 / 2 + width * noise)
    score = draws.normal(size=active.shape) + active * (d_prime + 0.5 * (width * noise - width**2 / 2))
    return score, (active * size).T


def shuffled(level_PL: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.stack(
        [generator(seed, "shuffle", latent).permutation(column) for latent, column in enumerate(level_PL.T)], 1
    )
