"""Monotone maps of a score as knots: distinct scores in, as few knots as give every one of them its value out.

In: evidence, or values at distinct ascending scores. Out: the arrays of the map `knots`. Invariant: the map gives each
score it was made of its value exactly, and holds no knot that the line between its neighbours makes needless where it
is level: a latent that is silent on most contexts costs as many knots as it has values above zero, however many
contexts there are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.calibrate.fitted import Part

if TYPE_CHECKING:
    from nlrewrite.calibrate.evidence import Evidence


@dataclass(frozen=True)
class Scored:
    """A latent's cases, ascending by score."""

    score: np.ndarray
    weight: np.ndarray
    total: np.ndarray
    fold: np.ndarray

    def where(self, cases: np.ndarray) -> "Scored":
        return Scored(self.score[cases], self.weight[cases], self.total[cases], self.fold[cases])

    def weighty(self) -> "Scored":
        """Without the cases that weigh nothing, which are no cases."""
        return self if self.weight.all() else self.where(self.weight > 0)

    def starts(self) -> np.ndarray:
        """Where each distinct score begins."""
        first = np.ones(len(self.score), dtype=bool)
        np.not_equal(self.score[1:], self.score[:-1], out=first[1:])
        return np.flatnonzero(first)

    def merged(self) -> "Scored":
        """Tied scores as one case, whose fold means nothing."""
        cases = self.weighty()
        starts = cases.starts()
        if len(starts) == len(cases.score):
            return cases
        weight, total = (np.add.reduceat(each, starts) for each in (cases.weight, cases.total))
        return Scored(cases.score[starts], weight, total, cases.fold[starts])


def ascending(evidence: "Evidence") -> Iterator[Scored]:
    """The cases of one latent after the other."""
    score_BS = evidence.answers.score_BS
    order_BS = np.argsort(score_BS, axis=1)
    for row in range(evidence.latents):
        order = _row(order_BS, row)
        weight, total = (_row(each, row)[order].astype(np.float64) for each in (evidence.weight, evidence.total))
        yield Scored(_row(score_BS, row)[order], weight, total, evidence.fold[order])


def _row(array: np.ndarray, row: int) -> np.ndarray:
    """A latent's row of an array that has one for each or one for all."""
    return array[row if len(array) > 1 else 0]


def needed(values: np.ndarray) -> np.ndarray:
    """Which of the values at ascending scores are needed: the ends of level stretches, and none beyond the last."""
    if len(values) < 2:
        return np.ones(len(values), dtype=bool)
    changes = values[1:] != values[:-1]
    kept = np.zeros(len(values), dtype=bool)
    kept[1:] |= changes
    kept[:-1] |= changes
    if not kept.any():
        kept[-1] = True
    return kept


def part(lines: Iterable[tuple[np.ndarray, np.ndarray]], gain: np.ndarray | None = None) -> Part:
    """The scores and values of each latent of a block, in one piece."""
    xs, ys, start = [], [], [0]
    for score, value in lines:
        kept = needed(value)
        xs.append(score[kept])
        ys.append(value[kept])
        start.append(start[-1] + len(xs[-1]))
    arrays = {"x": np.concatenate(xs), "y": np.concatenate(ys), "start": np.array(start)}
    return Part("knots", {**arrays, "x": arrays["x"].astype(np.float64)}, gain)
