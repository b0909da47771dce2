"""A loss told as training: the share of the subject's training at which a checkpoint has the same loss.

In: the losses of log-spaced checkpoints on the report windows, and of an arm. Out: a share of the training steps with
its interval. Invariant: checkpoints and arms are resampled with the same documents, losses of checkpoints are made
monotone before they are interpolated in log steps, and what lies outside them is censored, never extrapolated.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from nlrewrite.artifacts import Folder
from nlrewrite.subject import sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from torch import nn

    from nlrewrite.progress import Progress


def checkpoints(subject: Folder) -> dict[int, Path]:
    """Step and weights of every checkpoint that the subject's artifact keeps; empty for a subject not trained here."""
    names = [entry.path for entry in subject.manifest.files if entry.path.startswith("checkpoints/step-")]
    return {int(Path(name).stem.removeprefix("step-")): subject.path(name) for name in sorted(names)}


def checkpoint_losses(
    model: "nn.Module", weights: dict[int, Path], windows: Windows, batch_tokens: int, progress: "Progress"
) -> np.ndarray:
    """Cross-entropy [P, checkpoints] at every position of `windows`. Changes the model's weights."""
    import torch
    from safetensors.torch import load_file

    columns = []
    with progress.stage("checkpoint losses", len(weights)) as advance:
        for path in weights.values():
            model.load_state_dict(load_file(path))
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


def share_of_training(steps_C: np.ndarray, loss_RC: np.ndarray, arm_R: np.ndarray) -> np.ndarray:
    """For each resample the share of the last step at which the loss is the arm's, cut to the range of checkpoints."""
    at = np.log1p(steps_C.astype(np.float64))
    shares = np.empty(len(arm_R))
    for index, (losses, arm) in enumerate(zip(loss_RC, arm_R, strict=True)):
        falling = isotonic_regression(losses, increasing=False).x
        shares[index] = np.expm1(np.interp(-arm, -falling, at)) / steps_C[-1]
    return shares


def equivalent(steps_C: np.ndarray, measured: np.ndarray, resampled: np.ndarray) -> list[dict[str, object]]:
    """One entry per arm. `measured` [C + A] and `resampled` [R, C + A]: checkpoint losses, then the arms'."""
    count = len(steps_C)
    found = []
    for arm in range(count, len(measured)):
        share = share_of_training(steps_C, measured[None, :count], measured[None, arm])[0]
        low, high = np.quantile(share_of_training(steps_C, resampled[:, :count], resampled[:, arm]), [0.025, 0.975])
        best, worst = measured[:count].min(), measured[:count].max()
        censored = "" if best <= measured[arm] <= worst else "above" if measured[arm] < best else "below"
        found.append({"share": float(share), "low": float(low), "high": float(high), "censored": censored})
    return found
