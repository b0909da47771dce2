"""An arm over all fractions at once: simultaneous bands, the area against mean ablation, and the worst it can be.

In: the resampled arms of each position. Out: an entry per arm and selection with its contrast to the mean ablation of
the same latents at every fraction, and per rewriting one bound that holds over fractions, selections and positions.
Invariant: all contrasts of a statement come from the same resamples; a curve ends where all latents are replaced.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from nlrewrite.evaluate import bands
from nlrewrite.evaluate.bootstrap import Figure, Resampled, freedom
from nlrewrite.evaluate.rows import Measured, Row

NAMED = ("arm", "site", "simulator", "explanation", "calibrator", "information", "topk")


@dataclass(frozen=True)
class Curve:
    """The places of an arm and of its mean ablation, by rising fraction."""

    named: dict[str, object]
    selection: str
    subsets: int
    fractions: tuple[float, ...]
    arms: tuple[int, ...]
    floors: tuple[int, ...]

    @property
    def over_mean(self) -> Figure:
        """[..., A] -> [..., K]: the arm's loss over its mean ablation's, negative where it is better."""
        return lambda means: means[..., list(self.arms)] - means[..., list(self.floors)]


def curves(of: Measured) -> list[Curve]:
    """Every arm but mean ablation itself that replaces a part of the latents at some fraction."""
    pooled = {member for members in of.pooled for member in members}
    parts: dict[tuple[object, ...], list[int]] = {}
    ends: dict[tuple[object, ...], int] = {}
    for at in range(len(of.tally.arms)):
        key = asdict(of.arm(at).key)
        name = tuple(key[field] for field in NAMED)
        if key["arm"] == "mean" or at in pooled:
            continue
        if key["selection"] == "all":
            ends.setdefault(name, at)
        else:
            parts.setdefault((*name, key["selection"]), []).append(at)
    found = []
    for (*name, selection), members in parts.items():
        end = ends.get(tuple(name))
        arms = members if end is None or end in members else [*members, end]
        arms.sort(key=lambda at: of.arm(at).key.fraction)
        fractions = tuple(of.arm(at).key.fraction for at in arms)
        if len(set(fractions)) == len(fractions):
            floors = tuple(of.found("mean", at) for at in arms)
            subsets = max(len(of.members(at)) for at in arms)
            found.append(
                Curve(dict(zip(NAMED, name, strict=True)), str(selection), subsets, fractions, tuple(arms), floors)
            )
    return found


def told(of: Measured, position: str) -> list[Row]:
    """The curves of one position with their bands and areas."""
    coder = of.found("coder")
    rows: list[Row] = []
    for curve in curves(of):
        fractions_K, drawn = np.array(curve.fractions), of.ce
        estimates_K, resampled_RK = curve.over_mean(drawn.measured_A), curve.over_mean(drawn.resampled_RA)
        free = _freedom(drawn, resampled_RK, curve.over_mean(drawn.left_out_GA))
        both = bands.max_t(estimates_K, resampled_RK, groups=drawn.groups, freedom=free)
        upper = bands.max_t(estimates_K, resampled_RK, side="upper", groups=drawn.groups, freedom=free)
        points = [drawn.difference(arm, floor) for arm, floor in zip(curve.arms, curve.floors, strict=True)]
        between, closed = _areas(drawn, curve, fractions_K, coder)
        rows.append(
            {
                **curve.named,
                "position": position,
                "selection": curve.selection,
                "n_subsets": curve.subsets,
                "fractions": list(curve.fractions),
                "over_mean": estimates_K.tolist(),
                "over_mean_low": [point.low for point in points],
                "over_mean_high": [point.high for point in points],
                "band_low": both.low_K.tolist(),
                "band_high": both.high_K.tolist(),
                "bound": upper.high_K.tolist(),
                "area": between,
                "area_share": closed,
            }
        )
    return rows


def worst(found: Mapping[str, Measured]) -> dict[tuple[object, ...], Row]:
    """For each rewriting by sentences the worst that it can be against mean ablation, anywhere, with 95% confidence.

    The contrasts of all fractions, subsets and positions, each as a share of what mean ablation of all latents costs at
    its position, get one-sided bounds that hold together; the largest of them is the answer. It speaks of the subsets
    that were drawn, and of all documents. Nothing where the cost may be nothing.
    """
    columns: dict[tuple[object, ...], list[tuple[float, np.ndarray, float]]] = {}
    groups = min(of.ce.groups for of in found.values())
    for of in found.values():
        drawn, floor, coder = of.ce, of.found("mean"), of.found("coder")
        if not drawn.difference(floor, coder).low > 0:
            return {}
        whole_R = drawn.resampled_RA[:, floor] - drawn.resampled_RA[:, coder]
        cost = float(drawn.measured_A[floor] - drawn.measured_A[coder])
        for at in range(of.count):
            key = asdict(of.arm(at).key)
            if key["arm"] == "rewritten":
                over = _over(at, of.found("mean", at))
                contrast = float(over(drawn.measured_A)) / cost, over(drawn.resampled_RA) / whole_R, cost
                columns.setdefault(tuple(key[field] for field in NAMED), []).append(contrast)
    answers: dict[tuple[object, ...], Row] = {}
    for name, contrasts in columns.items():
        estimates = np.array([estimate for estimate, _, _ in contrasts])
        upper = bands.max_t(estimates, np.stack([drawn for _, drawn, _ in contrasts], 1), side="upper", groups=groups)
        highest = int(upper.high_K.argmax())
        answers[name] = {
            "share": float(upper.high_K[highest]),
            "nats": float(upper.high_K[highest] * contrasts[highest][2]),
            "contrasts": len(contrasts),
        }
    return answers


def _freedom(drawn: Resampled, resampled_RK: np.ndarray, left_out_GK: np.ndarray) -> float | None:
    """The fewest degrees of freedom of any of the contrasts."""
    columns = zip(resampled_RK.T, left_out_GK.T, strict=True)
    found = [freedom(resampled, left_out, drawn.groups, drawn.subsets) for resampled, left_out in columns]
    return min((each for each in found if each is not None), default=None)


def _over(arm: int, mean: int) -> Figure:
    return lambda means: means[..., arm] - means[..., mean]


def _areas(
    drawn: Resampled, curve: Curve, fractions_K: np.ndarray, coder: int
) -> tuple[dict[str, float], dict[str, float] | None]:
    """The area by which the arm lies below mean ablation, in nats, and as a share of the area above the coder."""

    def between(means: np.ndarray) -> np.ndarray:
        return bands.area(fractions_K, -curve.over_mean(means))

    def whole(means: np.ndarray) -> np.ndarray:
        return bands.area(fractions_K, means[..., list(curve.floors)] - means[..., [coder]])

    closed = drawn.ratio(between, whole)
    return asdict(drawn.figure(between)), closed and asdict(closed)
