"""Which contexts a simulator is asked about for calibration, when asking about all of them is too dear.

In: true activations, which are free, and how many contexts to ask about. Out: `Drawn`, contexts of each latent by
whether it is active there (case-control), and `Evidence` of them with weights that undo the drawing; or `at_random`,
the same contexts for all latents. Invariants: what is drawn for a latent depends on (seed, latent) and its own
activations alone; a larger draw holds the smaller one; weights of the active and of the inactive cases add up to how
many such contexts there are; an answer that is missing is a case that was not drawn.

All latents have their cases in the same columns by fold of the document group, so that folds can be held out for any
number of latents at once: a column that a latent has no use for weighs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from nlrewrite.calibrate.evidence import Evidence
from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.ask import NOTHING
from nlrewrite.simulate.drawing import at_random, by_activity, positives
from nlrewrite.simulate.said import Answers, Reading, Said, Spoken, answers, blocks

INACTIVE, ACTIVE = 0, 1

__all__ = ["ACTIVE", "INACTIVE", "NOTHING", "Drawn", "arranged", "as_asked", "at_random", "case_control", "restricted"]


@dataclass(frozen=True)
class Drawn:
    """Contexts of L latents, S columns for each."""

    context_LS: np.ndarray
    """Which context a case is, or NOTHING."""
    active_LS: np.ndarray
    """Whether the latent is truly active there."""
    fold_S: np.ndarray
    there_L2: np.ndarray
    """How many contexts there are to draw from, inactive and active."""
    contexts: int

    def queries(self, explained: np.ndarray | None = None) -> int:
        """How often the simulator has to be asked."""
        asked_L = (self.context_LS != NOTHING).sum(1)
        return int(asked_L.sum() if explained is None else asked_L[explained].sum())

    def evidence(self, said: Said, truth_PL: sparse.csr_matrix) -> Callable[[slice, Reading], Evidence]:
        """Evidence of a block of latents; centred readings take off what was said in these cases on average."""
        truth_LP = sparse.csr_matrix(truth_PL.T)
        centres: dict[Reading, np.ndarray] = {}

        def evidence(latents: slice, reading: Reading) -> Evidence:
            if reading.centred and reading not in centres:
                centres[reading] = self.centre(said, reading)
            found = self._answers(said, latents, reading, centres.get(reading), digits=True)
            weight, drawn = self._weights(latents, found)
            context = np.maximum(self.context_LS[latents], 0)
            truth = np.take_along_axis(truth_LP[latents].toarray(), context, axis=1)
            return Evidence(
                _without_missing(found),
                weight,
                weight * self.active_LS[latents],
                weight * truth,
                self.fold_S,
                drawn,
            )

        return evidence

    def centre(self, said: Said, reading: Reading) -> np.ndarray:
        """Mean over the explained latents of what is read at each context, as far as these cases tell: [P].

        A context that no latent drew has the mean of all.
        """
        plain = replace(reading, centred=False)
        total_P, weight_P = np.zeros(self.contexts), np.zeros(self.contexts)
        for block in blocks(len(self.context_LS)):
            found = self._answers(said, block, plain, None, digits=False)
            weight = self._weights(block, found)[0] * said.explained[block, None]
            rows, columns = np.nonzero(weight)
            context, amount = self.context_LS[block][rows, columns], weight[rows, columns]
            np.add.at(total_P, context, amount * found.score_BS[rows, columns])
            np.add.at(weight_P, context, amount)
        overall = total_P.sum() / max(weight_P.sum(), 1.0)
        return np.divide(total_P, weight_P, out=np.full(self.contexts, overall), where=weight_P > 0)

    def _answers(
        self, said: Said, latents: slice, reading: Reading, centre_P: np.ndarray | None, *, digits: bool
    ) -> Answers:
        """What was said in the cases; NaN in columns without one and where an answer is missing."""
        context = self.context_LS[latents]
        place = np.maximum(context, 0)
        centre = None if centre_P is None else centre_P[place].astype(np.float32)
        if isinstance(said, Answered):  # asked about these cases alone
            said, place = said.columned, said.columns(latents, context)
        everywhere = answers(said, latents, replace(reading, centred=False), digits=digits)
        score = np.take_along_axis(everywhere.score_BS, place, axis=1)
        if centre is not None:
            score = score - centre
        score[context == NOTHING] = np.nan
        table = everywhere.digits_BSZ
        if table is not None:
            table = np.broadcast_to(table, (len(context), *table.shape[1:]))
            table = np.take_along_axis(table, place[..., None], axis=1)
        return Answers(score, table)

    def _weights(self, latents: slice, found: Answers) -> tuple[np.ndarray, np.ndarray]:
        """How many contexts each case stands for, and the share of each kind that was drawn."""
        answered, active = ~np.isnan(found.score_BS), self.active_LS[latents]
        cases = np.stack([(answered & ~active).sum(1), (answered & active).sum(1)], axis=1)
        there = self.there_L2[latents]
        drawn = np.where(there > 0, np.maximum(cases, 1) / np.maximum(there, 1), 1.0)
        weight = np.where(active, 1 / drawn[:, ACTIVE, None], 1 / drawn[:, INACTIVE, None])
        return np.where(answered, weight, 0.0), drawn


def case_control(truth_PL: sparse.csr_matrix, folds_P: np.ndarray, active: int, inactive: int, *, seed: int) -> Drawn:
    """For each latent at most so many contexts where it is active and where it is not, at random, all if fewer."""
    return arranged(list(by_activity(truth_PL, active, inactive, seed)), truth_PL, folds_P)


def arranged(
    chosen: Sequence[tuple[np.ndarray, np.ndarray]], truth_PL: sparse.csr_matrix, folds_P: np.ndarray
) -> Drawn:
    """Contexts where each latent is inactive and where it is active, in columns by fold."""
    contexts, folds = len(folds_P), np.unique(folds_P)
    positive = np.array([len(each) for each in positives(truth_PL)])
    there_L2 = np.stack([contexts - positive, positive], axis=1)
    drawn = [np.concatenate(each) for each in chosen]
    fold_of = [np.searchsorted(folds, folds_P[each]) for each in drawn]
    room = np.max([np.bincount(each, minlength=len(folds)) for each in fold_of], axis=0)
    first = np.cumsum(room) - room
    context_LS = np.full((len(drawn), int(room.sum())), NOTHING, dtype=np.int32)
    active_LS = np.zeros(context_LS.shape, dtype=bool)
    for latent, fold in enumerate(fold_of):
        order = np.argsort(fold, kind="stable")
        column = first[fold[order]] + np.arange(len(fold)) - np.searchsorted(fold[order], fold[order])
        context_LS[latent, column] = drawn[latent][order]
        active_LS[latent, column] = order >= len(chosen[latent][INACTIVE])
    return Drawn(context_LS, active_LS, np.repeat(folds, room), there_L2, contexts)


def as_asked(said: Answered, truth_PL: sparse.csr_matrix, folds_P: np.ndarray) -> Drawn:
    """The cases that a language model was asked about, each latent its own."""
    chosen = []
    for asked, positive in zip(said.position_LS, positives(truth_PL), strict=True):
        contexts = asked[asked != NOTHING]
        active = np.isin(contexts, positive)
        chosen.append((contexts[~active], contexts[active]))
    return arranged(chosen, truth_PL, folds_P)


def restricted(said: Said, rows: np.ndarray) -> Said:
    """The same simulation at some contexts alone, by their numbers, ascending; they are numbered anew."""
    if not isinstance(said, Spoken):
        return _Restricted(said, rows)
    place = np.full(said.contexts, NOTHING, dtype=np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    mask = place != NOTHING
    simulated = said.simulated.at(mask)
    return Spoken(replace(simulated, position=place[simulated.position]), len(rows))


@dataclass(frozen=True)
class _Restricted:
    said: Said
    rows: np.ndarray

    @property
    def explained(self) -> np.ndarray:
        return self.said.explained

    @property
    def contexts(self) -> int:
        return len(self.rows)

    def scores(self, latents: slice) -> np.ndarray:
        return self.said.scores(latents)[:, self.rows]

    def digits(self, latents: slice) -> np.ndarray | None:
        digits = self.said.digits(latents)
        return None if digits is None else digits[:, self.rows]


def _without_missing(found: Answers) -> Answers:
    """Missing answers as a score of 0 and the digit 0: their weight is 0."""
    missing = np.isnan(found.score_BS)
    score, digits = np.where(missing, np.float32(0), found.score_BS), found.digits_BSZ
    if digits is not None:
        digits = np.where(missing[..., None], np.eye(DIGITS, dtype=digits.dtype)[0], digits)
    return Answers(score, digits)
