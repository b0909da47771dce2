"""What was said beside what was true, by blocks of latents: the evidence that fits ask for.

In: a simulation, the true activations of the same contexts and a fold for each of them; or, for case-control, the cases
of each latent. Out: `Evidence` of any latents. Invariant: memory follows the block; levels that were said are counted
once, and what is fitted on the counts is what would be fitted on the contexts; a latent that is not explained reads 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy import sparse

from nlrewrite.calibrate.cases import as_asked
from nlrewrite.calibrate.cells import Cells, cells
from nlrewrite.calibrate.evidence import Evidence
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.said import BLOCK, Answers, Reading, Said, Spoken, answers, centre, expected, log_odds

CELL_BLOCK = 4 * BLOCK
"""Counted evidence is small, so that more latents fit into a block."""

Cases = Callable[[slice, Reading], Evidence]
"""Evidence of a block of latents from contexts that were chosen for each of them."""


class Pairing:
    """A simulation and the truth at the same P contexts."""

    def __init__(
        self,
        said: Said,
        truth_PL: sparse.csr_matrix,
        folds_P: np.ndarray,
        *,
        cases: Cases | None = None,
        centres: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.said, self.truth_PL, self.folds_P, self.cases = said, truth_PL, folds_P, cases
        self._parts_P, self._fold_of_part = _parts(folds_P)
        self._centres: dict[str, np.ndarray] = dict(centres or {})

    @property
    def latents(self) -> int:
        return len(self.said.explained)

    @property
    def folds(self) -> np.ndarray:
        return np.unique(self.folds_P)

    def has_digits(self) -> bool:
        return self.said.digits(slice(0, 1)) is not None

    def block(self, reading: Reading) -> int:
        return CELL_BLOCK if self._counted(reading) else BLOCK

    def centre(self, reading: Reading) -> np.ndarray | None:
        """What is taken off each context, computed once for each number that is read."""
        if not reading.centred:
            return None
        if reading.number not in self._centres:
            self._centres[reading.number] = centre(self.said, reading)
        return self._centres[reading.number]

    def evidence(self, latents: slice, reading: Reading, digits: bool = True) -> Evidence:
        """The cases of a block of latents; without `digits`, their numbers alone."""
        if self.cases is not None:
            found = self.cases(latents, reading)
        elif isinstance(self.said, Spoken) and self._counted(reading):
            found = self._counts(self.said, latents, reading)
        else:
            found = self._contexts(latents, reading, digits)
        return _heard(found, self.said.explained[latents]).finite()

    def without(self, evidence: Evidence, folds: tuple[int, ...]) -> Evidence:
        """The evidence but for the cases of some folds."""
        fold_S = evidence.fold if self.cases is not None else self._fold_of_part[evidence.fold]
        return evidence.where(~np.isin(fold_S, folds)) if folds else evidence

    def sample(self, latents: np.ndarray, reading: Reading, digits: bool = True) -> Evidence:
        """The cases of some latents, whichever they are."""
        return stacked([self.evidence(slice(latent, latent + 1), reading, digits) for latent in latents.tolist()])

    def _counted(self, reading: Reading) -> bool:
        return self.cases is None and isinstance(self.said, Spoken) and not reading.centred

    def _contexts(self, latents: slice, reading: Reading, digits: bool) -> Evidence:
        """Every context a case."""
        truth = self._truth_LP[latents].toarray()
        active = (truth > 0).astype(np.float32)
        weight = np.ones((1, len(self.folds_P)), dtype=np.float32)
        said = answers(self.said, latents, reading, self.centre(reading), digits=digits)
        return Evidence(said, weight, active, truth, self._parts_P)

    def _counts(self, said: Spoken, latents: slice, reading: Reading) -> Evidence:
        """Every level a case, once in each part."""
        table, count = self._cells, said.simulated.levels
        level = level_answers(said, reading)
        rows = len(table[0].said[latents])
        score = np.broadcast_to(np.tile(level.score_BS, len(table)), (rows, count * len(table)))
        assert level.digits_BSZ is not None
        found = Answers(score, np.tile(level.digits_BSZ, (1, len(table), 1)))
        weight, active, total = (
            np.concatenate([getattr(each, name)[latents] for each in table], axis=1)
            for name in ("said", "active", "total")
        )
        return Evidence(found, weight, active, total, np.repeat(np.arange(len(table)), count))

    @cached_property
    def _truth_LP(self) -> sparse.csr_matrix:
        return sparse.csr_matrix(self.truth_PL.T)

    @cached_property
    def _cells(self) -> list[Cells]:
        """What was counted in each part."""
        assert isinstance(self.said, Spoken)
        parts = range(len(self._fold_of_part))
        return [cells(self.said.simulated, self.truth_PL, self._parts_P == part) for part in parts]


def paired(said: Said, truth_PL: sparse.csr_matrix, folds_P: np.ndarray) -> Pairing:
    """A simulation and the truth at the contexts that it is about."""
    if not isinstance(said, Answered):
        return Pairing(said, truth_PL, folds_P)
    if said.by_cases:
        return Pairing(said, truth_PL, folds_P, cases=as_asked(said, truth_PL, folds_P).evidence(said, truth_PL))
    return Pairing(said.at_rows(), sparse.csr_matrix(truth_PL[said.rows]), folds_P[said.rows])


def _parts(folds_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The folds numbered from 0, and which fold each number is.

    One or two of them are halved in the order of their contexts: what is left when one is held out has then still two
    parts, of which a fit can try one by the other.
    """
    folds, number_P = np.unique(folds_P, return_inverse=True)
    if len(folds) > 2:
        return number_P, folds
    part_P = 2 * number_P
    for number in range(len(folds)):
        inside = np.flatnonzero(number_P == number)
        part_P[inside[len(inside) // 2 :]] += 1
    return part_P, np.repeat(folds, 2)


def _heard(found: Evidence, explained: np.ndarray) -> Evidence:
    """Evidence without missing answers, and with 0 for what was said of latents that are not explained."""
    score, digits = found.answers.score_BS, found.answers.digits_BSZ
    if not explained.all():
        score = np.where(explained[:, None], score, np.float32(0))
        digits = digits if digits is None or len(digits) == 1 else np.where(explained[:, None, None], digits, 0)
    missing = np.isnan(score)
    if not missing.any():
        return replace(found, answers=Answers(score, digits))
    digits = None if digits is None else np.where(missing[..., None], np.float32(0), digits)
    return replace(
        found,
        answers=Answers(np.where(missing, np.float32(0), score), digits),
        weight=np.where(missing, 0, found.weight),
        active=np.where(missing, 0, found.active),
        total=np.where(missing, 0, found.total),
    )


def level_answers(said: Spoken, reading: Reading) -> Answers:
    """What each level of a rule reader says, as the answers of one latent in Z cases."""
    digits_ZD = said.simulated.digits_ZD.astype(np.float32)
    numbers = {
        "own": np.arange(len(digits_ZD)),
        "expected": expected(digits_ZD),
        "log-odds": log_odds(digits_ZD),
    }
    return Answers(numbers[reading.number].astype(np.float32)[None], digits_ZD[None])


def stacked(parts: list[Evidence]) -> Evidence:
    """Latents of several pieces of evidence with the same cases, one below the other."""
    first = parts[0]

    def below(arrays: list[np.ndarray]) -> np.ndarray:
        shared = len(arrays[0]) == 1 and all(np.array_equal(array, arrays[0]) for array in arrays)
        return arrays[0] if shared else np.concatenate(arrays)

    digits = [each.answers.digits_BSZ for each in parts]
    together = None if first.answers.digits_BSZ is None else below([each for each in digits if each is not None])
    return Evidence(
        Answers(np.concatenate([each.answers.score_BS for each in parts]), together),
        below([each.weight for each in parts]),
        np.concatenate([each.active for each in parts]),
        np.concatenate([each.total for each in parts]),
        first.fold,
        None if first.drawn is None else np.concatenate([each.drawn for each in parts if each.drawn is not None]),
    )
