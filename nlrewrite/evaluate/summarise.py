"""From losses at every position to the rows of the results, and the one number with its controls.

In: planned arms and their losses. Out: sums per arm and window, a row of figures per arm, the same over random subsets,
curves over fractions, the headline. Invariant: every figure is computed from the sums alone (`tell`), and from the same
documents, resampled in the same way for all arms and positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlrewrite.evaluate import bootstrap, curves
from nlrewrite.evaluate.arms import Arm
from nlrewrite.evaluate.losses import Losses
from nlrewrite.evaluate.rows import Measured, Row, measured, pools, row
from nlrewrite.evaluate.tally import Tally, columns, tally
from nlrewrite.questions import WRITTEN
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec
from nlrewrite.text.positions import Positions
from nlrewrite.text.tokens import Windows

ABSOLUTE = ("p1", "p1-code")
"""Protocols whose headline is the median absolute difference: positive under no effect, and it hides the sign."""


@dataclass(frozen=True)
class Summary:
    """All that an evaluation says of its arms."""

    sums: dict[str, np.ndarray]
    """`losses.parquet`: a row per arm and window."""
    rows: list[Row]
    """A row per planned arm."""
    over_subsets: list[Row]
    """A row per arm and fraction that speaks for all random subsets: documents and subsets both resampled."""
    curves: list[Row]
    """An entry per arm and selection: bands over the fractions and the area against mean ablation."""
    notes: dict[str, object]
    """How the figures were made."""


def summarise(
    spec: EvaluateSpec,
    planned: Sequence[Arm],
    losses: Mapping[str, Losses],
    where: Positions,
    windows: Windows,
) -> Summary:
    """Sums per arm and window, and all that they say."""
    return tell(
        spec,
        planned,
        {
            position: tally(planned, losses, position, where, windows, spec.least_base_loss)
            for position in spec.positions
        },
    )


def tell(spec: EvaluateSpec, planned: Sequence[Arm], tallies: Mapping[str, Tally]) -> Summary:
    """Every figure from the sums: those of `losses.parquet` give the same ones."""
    some = next(iter(tallies.values()))
    counted = np.sum([each.positions_W + each.left_out_W for each in tallies.values()], axis=0)
    groups = np.unique(some.group_W[counted > 0])
    draws = bootstrap.draw(
        len(groups), spec.resamples, generator(spec.seed, "evaluate", "bootstrap", "documents"), spec.interval
    )
    sizes = {len(each) for found in tallies.values() for each in pools(planned, found)}
    weights = {
        size: bootstrap.subset_weights(
            size, spec.resamples, generator(spec.seed, "evaluate", "bootstrap", "subsets", size)
        )
        for size in sizes
    }
    found = {position: measured(planned, each, draws, groups, weights) for position, each in tallies.items()}
    absolute = spec.protocol in ABSOLUTE
    worst = curves.worst(found)
    rows = [
        {**row(of, at, absolute), "worst_over_mean": _worst(of, at, worst)}
        for of in found.values()
        for at in range(of.count)
    ]
    return Summary(
        sums=columns(list(tallies.values())),
        rows=rows,
        over_subsets=[
            {**row(of, at, absolute), "worst_over_mean": None}
            for of in found.values()
            for at in range(of.count, len(of.tally.arms))
        ],
        curves=[entry for position, of in found.items() for entry in curves.told(of, position)],
        notes={
            "interval": spec.interval,
            "level": bootstrap.LEVEL,
            "resamples": spec.resamples,
            "groups": len(groups),
            "least_base_loss": spec.least_base_loss,
            "positions": {
                position: {
                    "equal_groups": of.ce.groups,
                    "n_left_out": of.tally.n_left_out,
                    "base_loss_thirds": list(of.bounds),
                }
                for position, of in found.items()
            },
        },
    )


def headline(rows: Sequence[Row], chosen: str, topk: str = "none", chosen_on: str = "calibrate") -> Row:
    """The one number, its row, and the controls it must stand beside: all latents, patched at all positions.

    `topk` is the policy of what is simulated, and `chosen_on` what settled the calibrator: the split, or a protocol.
    """
    position = "all" if any(row["position"] == "all" for row in rows) else "last"
    whole = [
        row
        for row in rows
        if row["position"] == position
        and row["selection"] == "all"
        and row["topk"] == (topk if row["arm"] in ("rewritten", "shuffled") else "none")
    ]
    by_arm: dict[object, Row] = {}
    for each in whole:
        if each["arm"] != "rewritten":
            by_arm.setdefault(each["arm"], each)
    quoted = next(row for row in whole if row["explanation"] in WRITTEN and row["calibrator"] == chosen)
    key = ("arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "subset_seed")
    coder = by_arm["coder"]
    return {
        "position": position,
        "fraction": 1,
        **{name: quoted[name] for name in key},
        "chosen_on": chosen_on,
        "gap_closed": quoted["gap_closed"],
        "low": quoted["gap_closed_low"],
        "high": quoted["gap_closed_high"],
        "token_lookup": by_arm["token_lookup"]["gap_closed"],
        "bigram_lookup": by_arm["bigram_lookup"]["gap_closed"],
        "shuffled": by_arm["shuffled"]["gap_closed"],
        "oracle": by_arm["oracle"]["gap_closed"],
        "coder_share": coder["site_share"],
        "coder_share_low": coder["site_share_low"],
        "coder_share_high": coder["site_share_high"],
        "over_token_lookup": quoted["over_token_lookup"],
        "over_bigram_lookup": quoted["over_bigram_lookup"],
        "over_shuffled": quoted["over_shuffled"],
        "over_mean": {name: quoted[f"over_mean{end}"] for name, end in ENDS},
        "over_mean_kl": {name: quoted[f"over_mean_kl{end}"] for name, end in ENDS},
        "kl": quoted["kl"],
        "kl_coder": quoted["kl_coder"],
        "gap_closed_kl": {name: quoted[f"gap_closed_kl{end}"] for name, end in ENDS},
        "win_rate": {name: quoted[f"win_rate{end}"] for name, end in ENDS},
        "worst_over_mean": quoted["worst_over_mean"],
        "contexts_to_detect": quoted["contexts_to_detect"],
        "n_left_out": quoted["n_left_out"],
        "n_latents": quoted["n_latents"],
        "n_unexplained": quoted["n_unexplained"],
    }


ENDS = (("mean", ""), ("low", "_low"), ("high", "_high"))


def _worst(of: Measured, at: int, answers: Mapping[tuple[object, ...], Row]) -> Row | None:
    """The bound over all fractions, selections and positions, in the row of all latents of a rewriting."""
    key = of.arm(at).key
    if key.selection != "all":
        return None
    return answers.get(tuple(getattr(key, field) for field in curves.NAMED))
