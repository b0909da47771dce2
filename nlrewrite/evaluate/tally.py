"""Losses summed per arm and window: all that the figures of an evaluation are computed from, and `losses.parquet`.

In: planned arms with their losses at every position. Out: one `Tally` per place of patching, and the same as columns of
a table. Invariant: what is left out is decided by the unpatched loss alone, is the same for every arm, and is summed
beside what is kept; `read` gives back what `columns` was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.evaluate.arms import Arm
from nlrewrite.evaluate.losses import Losses, Where
from nlrewrite.text.positions import Positions
from nlrewrite.text.tokens import Windows

SUMS = ("ce", "kl", "kl_coder", "agrees", "ce_left_out", "kl_left_out")


@dataclass(frozen=True)
class Tally:
    """Sums of A arms over the positions of W windows. `kl_coder` and `agrees` are NaN where they were not measured."""

    arms: tuple[int, ...]
    """Their places among the planned arms."""
    document_W: np.ndarray
    group_W: np.ndarray
    positions_W: np.ndarray
    left_out_W: np.ndarray
    """Positions with an unpatched loss below the least that counts; in none of the sums but those called left out."""
    ce: np.ndarray
    kl: np.ndarray
    kl_coder: np.ndarray
    agrees: np.ndarray
    ce_left_out: np.ndarray
    kl_left_out: np.ndarray

    @property
    def n_left_out(self) -> int:
        return int(self.left_out_W.sum())

    def with_means(self, members: Sequence[Sequence[int]]) -> "Tally":
        """Further arms behind these: the means of the members' sums, window by window."""
        if not members:
            return self
        sums = {
            name: np.concatenate([values, *(values[list(each)].mean(0, keepdims=True) for each in members)])
            for name, values in ((name, getattr(self, name)) for name in SUMS)
        }
        return Tally(
            (*self.arms, *(self.arms[each[0]] for each in members)),
            self.document_W,
            self.group_W,
            self.positions_W,
            self.left_out_W,
            **sums,
        )


def tally(
    planned: Sequence[Arm],
    measured: Mapping[str, Losses],
    position: Where,
    where: Positions,
    windows: Windows,
    least_base_loss: float,
) -> Tally:
    """The sums of one position's arms, over the positions whose unpatched loss is at least `least_base_loss`."""
    indices = [index for index, arm in enumerate(planned) if arm.key.position == position]
    base = next(index for index in indices if planned[index].key.arm == "original")
    assert planned[base].write is None, "what counts is decided by the loss of the unpatched subject"
    kept = measured[str(base)].ce >= least_base_loss
    if not kept.any():
        raise SettingError(
            f"some prompt must have a base loss of evaluate.least_base_loss: it is {least_base_loss:g}, and "
            f"the highest is {measured[str(base)].ce.max():.3g}. Lower --set evaluate.least_base_loss"
        )
    window = where.window if position == "all" else np.arange(len(windows))
    size = len(windows)

    def sums(values: np.ndarray | None, counted: np.ndarray) -> np.ndarray:
        if values is None:
            return np.full(size, np.nan)
        return np.bincount(window[counted], values[counted], minlength=size)

    found: dict[str, list[np.ndarray]] = {name: [] for name in SUMS}
    for index in indices:
        losses = measured[str(index)]
        _refuse_what_is_no_number(planned[index], losses)
        for name in ("ce", "kl", "kl_coder", "agrees"):
            found[name].append(sums(getattr(losses, name), kept))
        for name in ("ce", "kl"):
            found[f"{name}_left_out"].append(sums(getattr(losses, name), ~kept))
    return Tally(
        tuple(indices),
        windows.document,
        windows.group,
        np.bincount(window[kept], minlength=size),
        np.bincount(window[~kept], minlength=size),
        **{name: np.stack(rows) for name, rows in found.items()},
    )


def columns(tallies: Sequence[Tally]) -> dict[str, np.ndarray]:
    """A table with one row per arm and window."""
    out: dict[str, list[np.ndarray]] = {}
    for each in tallies:
        arms, windows = each.ce.shape
        table = {
            "arm": np.repeat(np.array(each.arms, dtype=np.int32), windows),
            "window": np.tile(np.arange(windows, dtype=np.int32), arms),
            "document": np.tile(each.document_W, arms),
            "group": np.tile(each.group_W, arms),
            "positions": np.tile(each.positions_W.astype(np.int32), arms),
            "left_out": np.tile(each.left_out_W.astype(np.int32), arms),
            **{name: getattr(each, name).ravel() for name in SUMS},
        }
        for name, column in table.items():
            out.setdefault(name, []).append(column)
    return {name: np.concatenate(parts) for name, parts in out.items()}


def read(table: Mapping[str, np.ndarray], planned: Sequence[Arm]) -> dict[str, Tally]:
    """The tallies by position that `columns` made a table of."""
    found: dict[str, Tally] = {}
    positions = np.array([arm.key.position for arm in planned])[table["arm"]]
    for position in dict.fromkeys(arm.key.position for arm in planned):
        part = {name: column[positions == position] for name, column in table.items()}
        arms = tuple(dict.fromkeys(part["arm"].tolist()))
        size = len(part["arm"]) // len(arms)
        found[position] = Tally(
            arms,
            *(part[name][:size] for name in ("document", "group", "positions", "left_out")),
            **{name: part[name].reshape(len(arms), size) for name in SUMS},
        )
    return found


def _refuse_what_is_no_number(arm: Arm, losses: Losses) -> None:
    wrong = int((~np.isfinite(losses.ce)).sum())
    if wrong:
        told = ", ".join(
            str(part) for part in (arm.key.arm, arm.key.simulator, arm.key.calibrator, arm.key.topk) if part
        )
        raise SettingError(
            f"a loss must be a number: that of the arm ({told}) is none at {wrong} of {len(losses.ce)} positions, so "
            f"its predictions are none either or too large. Leave its calibrator out of --set calibrate.calibrators"
        )
