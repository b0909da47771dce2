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
    """A latent's cases with tied scores merged, ascending; cases without weight are no cases."""

    score: np.ndarray
    weight: np.ndarray
    total: np.ndarray


def scored(evidence: "Evidence") -> Iterator[Scored]:
    """Each latent's cases by distinct score."""
    score_BS, total_BS = evidence.answers.score_BS, evidence.total
    order_BS = np.argsort(score_BS, axis=1)
    for row in range(evidence.latents):
        order = order_BS[min(row, len(order_BS) - 1)]
        weight = evidence.weight[min(row, len(evidence.weight) - 1)][order].astype(np.float64)
        total = total_BS[min(row, len(total_BS) - 1)][order].astype(np.float64)
        score = score_BS[min(row, len(score_BS) - 1)][order]
        if not weight.all():
            there = weight > 0
            score, weight, total = score[there], weight[there], total[there]
        first = np.ones(len(score), dtype=bool)
        np.not_equal(score[1:], score[:-1], out=first[1:])
        if first.all():
            yield Scored(score, weight, total)
        else:
            starts = np.flatnonzero(first)
            yield Scored(score[starts], np.add.reduceat(weight, starts), np.add.reduceat(total, starts))


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
