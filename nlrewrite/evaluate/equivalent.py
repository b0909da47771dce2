"""A loss told as training: the share of the subject's training at which a checkpoint has the same loss.

In: the losses of checkpoints on the report windows, and of an arm. Out: a share of the training steps with its
interval. Invariant: checkpoints and arms are resampled with the same documents, losses of checkpoints are made monotone
before they are interpolated in log steps, and what lies outside them is censored, never extrapolated: an estimate or an
end of an interval that says `below` or `above` is the first or the last checkpoint and not a number between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from nlrewrite.evaluate import bootstrap
from nlrewrite.evaluate.arms import Arm
from nlrewrite.evaluate.losses import Losses, Where
from nlrewrite.execution import Execution
from nlrewrite.questions import WRITTEN
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec
from nlrewrite.subject import sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.subject.checkpoints import Checkpoint
from nlrewrite.text.positions import Positions
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from torch import nn

    from nlrewrite.progress import Progress

WHOLE = ("original", "coder", "mean", "mlp_mean")
EXPONENTS = np.geomspace(0.02, 3.0, 120)
"""Of the power law: each is tried."""
SAME = 1e-9
"""Nats within which a loss is a checkpoint's own."""


@dataclass(frozen=True)
class Share:
    """A share of the training, with which of its three numbers lie outside the checkpoints."""

    share: float
    low: float
    high: float
    censored: str
    low_censored: str
    high_censored: str


def checkpoint_losses(
    subject: "nn.Module",
    found: Sequence[Checkpoint],
    windows: Windows,
    batch_tokens: int,
    execution: Execution,
    progress: "Progress",
) -> np.ndarray:
    """Cross-entropy [P, checkpoints] at every position of `windows`. Changes the subject's weights."""
    import torch

    columns = []
    with progress.stage("checkpoint losses", len(found)) as advance:
        for checkpoint in found:
            model = checkpoint.load(subject, execution)
            column = []
            for rows in batches(windows, batch_tokens):
                part = windows[rows]
                ids, valid = padded(part), inside(part)
                labels = torch.from_numpy(part.tokens[:, 1 : 1 + ids.shape[1]].astype(np.int64))
                logits = sites.logits(model, ids)[valid]
                column.append(torch.nn.functional.cross_entropy(logits, labels[valid], reduction="none").numpy())
            columns.append(np.concatenate(column))
            advance(1)
    return np.stack(columns, axis=1)


def as_training(
    spec: EvaluateSpec,
    planned: Sequence[Arm],
    measured: Mapping[str, Losses],
    where: Positions,
    chosen: str,
    subject: "nn.Module",
    found: Sequence[Checkpoint],
    windows: Windows,
    execution: Execution,
    progress: "Progress",
) -> list[dict[str, object]]:
    """The arms that replace all latents or the whole site, told as shares of training; none without checkpoints."""
    position: Where = "all" if "all" in spec.positions else "last"
    told = [
        index
        for index, arm in enumerate(planned)
        if (arm.key.position, arm.key.selection, arm.key.topk) == (position, "all", "none")
        and (
            arm.key.arm in WHOLE
            or (arm.key.arm == "rewritten" and arm.key.explanation in WRITTEN and arm.key.calibrator == chosen)
        )
    ]
    if not found or not told:
        return []
    rows = np.arange(len(where)) if position == "all" else np.cumsum(windows.lengths) - 1
    base = next(index for index in told if planned[index].key.arm == "original")
    kept = measured[str(base)].ce >= spec.least_base_loss
    of_checkpoints = checkpoint_losses(subject, found, windows, execution.batch_tokens, execution, progress)[rows]
    of_arms = np.stack([measured[str(index)].ce for index in told], axis=1)
    together = np.concatenate([of_checkpoints, of_arms], axis=1)[kept]
    groups, of_position = np.unique(where.group[rows][kept], return_inverse=True)
    sums = np.zeros((len(groups), together.shape[1]))
    np.add.at(sums, of_position, together)
    draws = generator(spec.seed, "evaluate", "bootstrap", "training")
    drawn = bootstrap.resample(sums, np.bincount(of_position).astype(np.float64), spec.resamples, draws)
    shares = equivalent(np.array([each.step for each in found]), drawn)
    return [
        {
            "arm": planned[index].key.arm,
            "position": position,
            **share,
            "checkpoints": [{"step": each.step, "revision": each.name, "commit": each.commit} for each in found],
        }
        for index, share in zip(told, shares, strict=True)
    ]


def equivalent(steps_C: np.ndarray, drawn: bootstrap.Resampled) -> list[dict[str, object]]:
    """One entry per arm; the arms of `drawn` are the checkpoints by rising step, and then those to be told.

    Beside the interpolation stands what the power law L = a + b t^-c says, fitted to the same checkpoints.
    """
    assert (np.diff(steps_C) > 0).all(), "checkpoints must stand by rising step"
    count = len(steps_C)
    measured_1A, resampled_RA = drawn.measured_A[None], drawn.resampled_RA
    falling_1C, falling_RC = (monotone(losses[:, :count]) for losses in (measured_1A, resampled_RA))
    law_1, law_R = (power_law(steps_C, losses[:, :count]) for losses in (measured_1A, resampled_RA))
    found = []
    for arm in range(count, len(drawn.measured_A)):
        losses_1, losses_R = measured_1A[:, arm], resampled_RA[:, arm]
        share_1, share_R = (
            share_of_training(steps_C, falling, losses)
            for falling, losses in ((falling_1C, losses_1), (falling_RC, losses_R))
        )
        interpolated = _told(steps_C, share_1, share_R, drawn.groups)
        assert interpolated is not None
        by_law = _told(
            steps_C, share_by_law(steps_C, law_1, losses_1), share_by_law(steps_C, law_R, losses_R), drawn.groups
        )
        found.append(asdict(interpolated) | {"power_law": by_law and asdict(by_law)})
    return found


def monotone(loss_RC: np.ndarray) -> np.ndarray:
    """Losses that never rise with training, as near as can be to those given, row by row (pooled violators)."""
    return np.stack([isotonic_regression(losses, increasing=False).x for losses in loss_RC])


def share_of_training(steps_C: np.ndarray, falling_RC: np.ndarray, arm_R: np.ndarray) -> np.ndarray:
    """For each row the share of the last step at which the monotone losses are the arm's.

    -inf where the arm's loss is higher than the first checkpoint's, inf where it is lower than the last one's.
    """
    at = np.log1p(steps_C.astype(np.float64))
    shares = np.array(
        [np.interp(-arm, -falling, at) for falling, arm in zip(falling_RC, arm_R, strict=True)], dtype=np.float64
    )
    shares = np.expm1(shares) / steps_C[-1]
    shares[arm_R > falling_RC[:, 0] + SAME] = -np.inf
    shares[arm_R < falling_RC[:, -1] - SAME] = np.inf
    return shares


def power_law(steps_C: np.ndarray, loss_RC: np.ndarray) -> np.ndarray:
    """a, b and c of L = a + b t^-c by least squares over the checkpoints after the first step, for each row: [R, 3].

    NaN where fewer than three checkpoints are left, or where the losses do not fall.
    """
    after = steps_C > 0
    if after.sum() < 3:
        return np.full((len(loss_RC), 3), np.nan)
    steps, losses_RC = steps_C[after].astype(np.float64), loss_RC[:, after]
    best, fitted = np.full(len(loss_RC), np.inf), np.full((len(loss_RC), 3), np.nan)
    for exponent in EXPONENTS:
        design = np.stack([np.ones_like(steps), steps**-exponent], axis=1)
        weights_R2 = losses_RC @ np.linalg.pinv(design).T
        error_R = np.square(losses_RC - weights_R2 @ design.T).sum(1)
        better = (error_R < best) & (weights_R2[:, 1] > 0)
        best[better] = error_R[better]
        fitted[better] = np.column_stack([weights_R2, np.full(len(loss_RC), exponent)])[better]
    return fitted


def share_by_law(steps_C: np.ndarray, law_R3: np.ndarray, arm_R: np.ndarray) -> np.ndarray:
    """As `share_of_training`, by the law's inverse; NaN where there is no law, censored at the same two steps."""
    a, b, c = law_R3.T
    first = max(1, int(steps_C[0]))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.where(arm_R > a, ((arm_R - a) / b) ** (-1 / c), np.inf)
    shares = np.where(steps > steps_C[-1] * (1 + SAME), np.inf, np.where(steps < first, -np.inf, steps / steps_C[-1]))
    return np.where(np.isfinite(a), shares, np.nan)


def _told(steps_C: np.ndarray, share_1: np.ndarray, share_R: np.ndarray, groups: float) -> Share | None:
    """A share with its interval, cut to the checkpoints and saying so; None where there is no share."""
    share_R = share_R[~np.isnan(share_R)]
    if np.isnan(share_1[0]) or not len(share_R):
        return None
    ordered = np.sort(share_R)  # an end is one of the resampled shares: between two there may be a censored one
    low, high = np.round(bootstrap.levels(groups) * (len(ordered) - 1)).astype(int)
    numbers = np.array([share_1[0], ordered[low], ordered[high]])
    told = ["" if np.isfinite(number) else "below" if number < 0 else "above" for number in numbers]
    cut = np.clip(numbers, steps_C[0] / steps_C[-1], 1.0)
    return Share(float(cut[0]), float(cut[1]), float(cut[2]), told[0], told[1], told[2])
