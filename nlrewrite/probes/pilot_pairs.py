"""Which latents a pilot takes, and about which contexts it asks: by cases for each latent, and jointly for all.

In: true activations of one split, which are free. Out: `Pairs`: L latents, S columns for each. The first columns are
contexts that all of the latents are asked about, random ones: a latent's inactive cases, and where all can be replaced
at once. The others are a latent's own contexts in which it is active. Invariants: active cases are a random sample of
all active ones, with weights that undo the drawing; columns hold contexts of one fold each, so that what is said at a
context can be mapped by a calibrator that has not seen its documents; no latent or context is asked about twice.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nlrewrite.calibrate.cases import NOTHING, Drawn
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.drawing import positives
from nlrewrite.simulate.said import Said, Spoken
from nlrewrite.text.positions import Positions


@dataclass(frozen=True)
class Pairs:
    """L piloted latents and S columns; contexts are positions of the split."""

    latent_L: np.ndarray
    """Their numbers in the coder, ascending."""
    context_LS: np.ndarray
    """NOTHING where a latent has no case in a column."""
    active_LS: np.ndarray
    fold_S: np.ndarray
    there_L2: np.ndarray
    """How many contexts there are to draw from, inactive and active."""
    shared: int
    """Columns, the first ones, that hold the same context for all."""
    population: int
    """Latents that these are a random sample of: all of the coder's."""
    explained_L: np.ndarray
    """Which of the piloted ones have a sentence: of the others nothing is asked, for they keep their mean."""

    @property
    def shared_C(self) -> np.ndarray:
        return self.context_LS[0, : self.shared]

    @property
    def asked_LS(self) -> np.ndarray:
        return self.context_LS != NOTHING

    def queries(self) -> int:
        """Questions to the simulator."""
        return int(self.asked_LS[self.explained_L].sum())

    def weights(self) -> np.ndarray:
        """The share of all contexts that each case stands for: [L, S], adding up to one over a latent's cases."""
        active, asked = self.active_LS, self.asked_LS
        cases = np.stack([(asked & ~active).sum(1), (asked & active).sum(1)], axis=1)
        there = np.where(cases > 0, self.there_L2, 0)
        each = there / np.maximum(cases, 1) / there.sum(1, keepdims=True)
        return np.where(asked, np.where(active, each[:, 1, None], each[:, 0, None]), 0.0)

    def drawn(self) -> Drawn:
        """The same with columns as contexts, as calibrators take cases."""
        columns = np.arange(self.context_LS.shape[1], dtype=np.int32)
        column_LS = np.where(self.asked_LS, columns, NOTHING).astype(np.int32)
        return Drawn(column_LS, self.active_LS, self.fold_S, self.there_L2, len(columns))


def pairs(
    truth_PL: sparse.csr_matrix,
    where: Positions,
    explained: np.ndarray,
    latents: int,
    active: int,
    inactive: int,
    *,
    folds: int,
    seed: int,
    rows: np.ndarray | None = None,
) -> Pairs:
    """`latents` of all; `rows` are the positions that may be asked about, ascending (all, if none)."""
    rows = np.arange(len(where)) if rows is None else rows
    if not explained.any():
        raise SettingError("a pilot asks about latents that have a sentence: there is none. Explain some first")
    if len(rows) <= inactive:
        raise SettingError(
            f"pilot.inactive must be below the contexts of the split: inactive={inactive}, contexts={len(rows)}. "
            f"Lower --set pilot.inactive or give more text"
        )
    latent_L = np.sort(generator(seed, "pilot", "latents").permutation(len(explained))[:latents])
    shared_C = np.sort(rows[generator(seed, "pilot", "contexts").permutation(len(rows))[:inactive]])
    fold_P = _folds(where, folds, seed)
    truth = sparse.csr_matrix(truth_PL[rows][:, latent_L])
    own: list[np.ndarray] = []
    there_L2 = np.zeros((len(latent_L), 2), dtype=np.int64)
    for number, positive in enumerate(positives(truth)):
        there_L2[number] = len(rows) - len(positive), len(positive)
        free = np.setdiff1d(rows[positive], shared_C, assume_unique=True)
        wanted = max(0, active - (len(positive) - len(free)))
        draws = generator(seed, "pilot", "active", int(latent_L[number]))
        own.append(free[draws.permutation(len(free))[:wanted]])
    room = np.max([np.bincount(fold_P[each], minlength=folds) for each in own], axis=0)
    first = len(shared_C) + np.cumsum(room) - room
    context_LS = np.full((len(latent_L), len(shared_C) + int(room.sum())), NOTHING, dtype=np.int32)
    context_LS[:, : len(shared_C)] = shared_C
    active_LS = np.zeros(context_LS.shape, dtype=bool)
    active_LS[:, : len(shared_C)] = (truth_PL[shared_C][:, latent_L] > 0).toarray().T
    for number, each in enumerate(own):
        fold = fold_P[each]
        by = np.argsort(fold, kind="stable")
        column = first[fold[by]] + np.arange(len(each)) - np.searchsorted(fold[by], fold[by])
        context_LS[number, column] = each[by]
        active_LS[number, column] = True
    fold_S = np.concatenate([fold_P[shared_C], np.repeat(np.arange(folds), room)])
    return Pairs(latent_L, context_LS, active_LS, fold_S, there_L2, len(shared_C), len(explained), explained[latent_L])


def _folds(where: Positions, folds: int, seed: int) -> np.ndarray:
    """A fold for every position; a document group is never in two."""
    groups, of_position = np.unique(where.group, return_inverse=True)
    if folds < 2 or len(groups) < 2 * folds:
        raise SettingError(
            f"a pilot tries calibrators on documents they have not seen: the calibrate split has {len(groups)} "
            f"document groups, and it takes {2 * max(folds, 2)}. Give more text"
        )
    fold_of = np.empty(len(groups), dtype=np.int64)
    fold_of[generator(seed, "pilot", "folds").permutation(len(groups))] = np.arange(len(groups)) % folds
    return fold_of[of_position]


# -- what was said, in columns -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InColumns:
    """What was said about the pairs alone; columns are its contexts."""

    explained: np.ndarray
    score_LS: np.ndarray
    digits_LSZ: np.ndarray | None

    @property
    def contexts(self) -> int:
        return self.score_LS.shape[1]

    def scores(self, latents: slice) -> np.ndarray:
        return self.score_LS[latents]

    def digits(self, latents: slice) -> np.ndarray | None:
        return None if self.digits_LSZ is None else self.digits_LSZ[latents]


def in_columns(said: Said, pairs: Pairs) -> InColumns:
    """Of a simulation of all latents everywhere, what it says about the pairs."""
    scores: list[np.ndarray] = []
    digits: list[np.ndarray] = []
    for latent, context_S in zip(pairs.latent_L.tolist(), pairs.context_LS, strict=True):
        one, at, empty = slice(latent, latent + 1), np.maximum(context_S, 0), context_S == NOTHING
        score = said.scores(one)[0][at]
        if isinstance(said, Spoken):  # a distribution for each level, which need not be spread over the split
            table = said.simulated.digits_ZD.astype(np.float32)[score.astype(np.int64)]
        else:
            every = said.digits(one)
            table = None if every is None else every[0][at]
        scores.append(np.where(empty, np.float32(np.nan), score))
        if table is not None:
            digits.append(np.where(empty[:, None], np.float32(np.nan), table))
    return InColumns(said.explained[pairs.latent_L], np.stack(scores), np.stack(digits) if digits else None)
