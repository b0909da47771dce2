"""From losses at every position to the rows of the results, and the one number with its controls.

In: planned arms and their losses. Out: sums per arm and window, a row of figures per arm, the headline. Invariant:
every figure of a row is computed from the same documents, resampled in the same way for all arms.
"""

from dataclasses import asdict

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.evaluate import bootstrap
from nlrewrite.evaluate.arms import Arm
from nlrewrite.evaluate.losses import Losses
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec
from nlrewrite.text.positions import Positions
from nlrewrite.text.tokens import Windows


def summarise(
    spec: EvaluateSpec,
    planned: list[Arm],
    measured: dict[str, Losses],
    where: Positions,
    windows: Windows,
) -> tuple[dict[str, np.ndarray], list[dict[str, object]]]:
    """Sums per arm and window, and a row of figures per arm."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("arm", "window", "group", "positions", "ce", "kl")}
    rows: list[dict[str, object]] = []
    for position in spec.positions:
        of_position = [index for index, arm in enumerate(planned) if arm.key.position == position]
        base = next(index for index in of_position if planned[index].key.arm == "original")
        kept = measured[str(base)].ce >= spec.least_base_loss
        if not kept.any():
            raise SettingError(
                f"some prompt must have a base loss of evaluate.least_base_loss: it is {spec.least_base_loss:g}, and "
                f"the highest is {measured[str(base)].ce.max():.3g}. Lower --set evaluate.least_base_loss"
            )
        window = (where.window if position == "all" else np.arange(len(windows)))[kept]
        counts = np.bincount(window, minlength=len(windows))
        ce, kl = (
            np.stack(
                [
                    np.bincount(window, getattr(measured[str(index)], name)[kept], minlength=len(windows))
                    for index in of_position
                ]
            )
            for name in ("ce", "kl")
        )
        for place, index in enumerate(of_position):
            columns["arm"].append(np.full(len(windows), index, dtype=np.int32))
            columns["window"].append(np.arange(len(windows), dtype=np.int32))
            columns["group"].append(windows.group)
            columns["positions"].append(counts.astype(np.int32))
            columns["ce"].append(ce[place])
            columns["kl"].append(kl[place])
        groups, of_window = np.unique(windows.group, return_inverse=True)
        gather_GW = np.zeros((len(groups), len(windows)))
        gather_GW[of_window, np.arange(len(windows))] = 1
        in_ce, in_kl = (
            bootstrap.resample(
                gather_GW @ sums.T,
                gather_GW @ counts,
                spec.resamples,
                generator(spec.seed, "evaluate", "bootstrap", position),  # the same documents for both figures
            )
            for sums in (ce, kl)
        )
        rows += _figures(planned, of_position, in_ce, in_kl, counts, windows)
    return {name: np.concatenate(parts) for name, parts in columns.items()}, rows


def _figures(
    planned: list[Arm],
    indices: list[int],
    ce: bootstrap.Resampled,
    kl: bootstrap.Resampled,
    counts_W: np.ndarray,
    windows: Windows,
) -> list[dict[str, object]]:
    place = {index: at for at, index in enumerate(indices)}
    named = {planned[index].key.arm: place[index] for index in indices if planned[index].key.selection == "all"}
    means = {planned[index].compared: place[index] for index in indices if planned[index].key.arm == "mean"}
    original, coder, token = named["original"], named["coder"], named["token_lookup"]
    rows = []
    for index in indices:
        arm, at = planned[index], place[index]
        floor = means[arm.compared]
        delta, divergence = ce.difference(at, original), kl.difference(at, original)
        gap = ce.share(floor, coder, at)
        gap_kl = kl.share(floor, coder, at)
        over = ce.share_difference(floor, coder, at, token) if arm.compared == ("all", 1.0, 0) else None
        over_bigram = (
            ce.share_difference(floor, coder, at, named["bigram_lookup"]) if arm.compared == ("all", 1.0, 0) else None
        )
        rows.append(
            {
                **asdict(arm.key),
                "n_latents": arm.n_latents,
                "n_unexplained": arm.n_unexplained,
                "n_contexts": int(counts_W.sum()),
                "n_documents": len(np.unique(windows.document[counts_W > 0])),
                "n_groups": len(np.unique(windows.group[counts_W > 0])),
                "ce": float(ce.measured_A[at]),
                "delta_ce": delta.mean,
                "delta_ce_low": delta.low,
                "delta_ce_high": delta.high,
                "kl": divergence.mean,
                "kl_low": divergence.low,
                "kl_high": divergence.high,
                "gap_closed": gap and gap.mean,
                "gap_closed_low": gap and gap.low,
                "gap_closed_high": gap and gap.high,
                "gap_closed_kl": gap_kl and gap_kl.mean,
                "over_token_lookup": over and asdict(over),
                "over_bigram_lookup": over_bigram and asdict(over_bigram),
                "eviction_rate": 0.0,
            }
        )
    return rows


def headline(rows: list[dict[str, object]], chosen: str) -> dict[str, object]:
    """The one number, its row, and the controls it must stand beside: all latents, patched at all positions."""
    position = "all" if any(row["position"] == "all" for row in rows) else "last"
    whole = [row for row in rows if row["position"] == position and row["selection"] == "all" and row["topk"] == "none"]
    by_arm = {row["arm"]: row for row in whole if row["arm"] != "rewritten"}
    quoted = next(row for row in whole if row["explanation"] == "rules" and row["calibrator"] == chosen)
    key = ("arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "subset_seed")

    def loss(arm: str) -> float:
        value = by_arm[arm]["delta_ce"]
        assert isinstance(value, float)
        return value

    return {
        "position": position,
        "fraction": 1,
        **{name: quoted[name] for name in key},
        "chosen_on": "calibrate",
        "gap_closed": quoted["gap_closed"],
        "low": quoted["gap_closed_low"],
        "high": quoted["gap_closed_high"],
        "token_lookup": by_arm["token_lookup"]["gap_closed"],
        "bigram_lookup": by_arm["bigram_lookup"]["gap_closed"],
        "shuffled": by_arm["shuffled"]["gap_closed"],
        "oracle": by_arm["oracle"]["gap_closed"],
        "coder_share": (loss("mean") - loss("coder")) / loss("mlp_mean"),
        "over_token_lookup": quoted["over_token_lookup"],
        "over_bigram_lookup": quoted["over_bigram_lookup"],
        "n_latents": quoted["n_latents"],
        "n_unexplained": quoted["n_unexplained"],
    }
