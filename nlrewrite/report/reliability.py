"""Figures of what predictions are worth at natural prevalence: as probabilities, and as shares of variance explained.

In: `diagnostics.json`, the evaluation's table of latents, the scores. Out: `Figure`s. Invariant: every calibrator's
curve stands beside the truth it should lie on, on axes on which one in a million can be seen.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.report.curves import DASHED, IN_PERCENT, QUARTERS
from nlrewrite.report.drawing import BLUE, GREY, MUTED, ORANGE, PURPLE, draw, label_powers
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup
from nlrewrite.report.wording import number, percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ROLES = {"raw": ORANGE, "quantile": PURPLE, "on-prompt": GREY, "chosen": BLUE}
MOST = 300
SIZES = 4
LOWEST = -0.5
LEAST_CASES = 10
"""A bin with fewer cases is no share of anything."""


def diagnosed(found: dict[str, Any] | None) -> Figure | None:
    """Predicted against observed shares, and how many latents a prediction says are active."""
    if not found or not found["calibrators"]:
        return None
    import pandas as pd

    named = [(name, each, ROLES.get(each["role"], GREY)) for name, each in found["calibrators"].items()]
    rows = [
        {"calibrator": name, "probability": each["probability"], **cell}
        for name, each, _ in named
        for cell in each["reliability"]
    ]
    counts = [
        {"calibrator": "true", **found["truly_active"]},
        *({"calibrator": n, **e["expected_active"]} for n, e, _ in named),
    ]
    table = pd.concat([pd.DataFrame(rows).assign(panel="reliability"), pd.DataFrame(counts).assign(panel="active")])
    return Figure(
        "reliability",
        "What the predictions are worth as probabilities",
        f"Left: all pairs of a latent and a token, by the predicted chance that the latent is active there, four bins "
        f"to a power of ten; on the dashed line as many are active as was said. Right: latents that a prediction says "
        f"are active on a token, from the 5th to the 95th percentile of tokens, with quartiles and mean; the coder "
        f"keeps {found['k']}. Where a calibrator gives no chance, its activation in units of the latent's mean "
        f"magnitude stands for it. " + _skills(named),
        (_reliability(named), _active(found, named)),
        table,
    )


def _skills(named: list[tuple[str, dict[str, Any], str]]) -> str:
    said = [f"{name} {number(each['brier_skill'], 2)}" for name, each, _ in named]
    return f"Brier skill against each latent's base rate (1: all known, 0: nothing): {', '.join(said)}."


def _reliability(named: list[tuple[str, dict[str, Any], str]]) -> Markup:
    seen = [cell for _, each, _ in named for cell in each["reliability"] if _drawn(cell)]
    least = min([1e-3, *(min(cell["predicted"], cell["observed"]) for cell in seen)])

    def plot(axes: "Axes") -> None:
        axes.plot([least, 1], [least, 1], color=MUTED, linewidth=1, linestyle=DASHED)
        for name, each, colour in named:
            cells = [cell for cell in each["reliability"] if _drawn(cell)]
            x, y = ([cell[key] for cell in cells] for key in ("predicted", "observed"))
            axes.plot(x, y, color=colour, marker="o", markersize=3.6, linewidth=1.4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(least * 0.8, 1.25)
        axes.set_ylim(least * 0.8, 1.25)
        label_powers(axes.xaxis)
        label_powers(axes.yaxis)
        axes.set_title("Reliability")
        axes.set_xlabel("predicted chance of being active")
        axes.set_ylabel("share truly active")
        axes.legend(loc="upper left", handlelength=1.4)

    told = ", ".join(f"{name} {percent(each['brier_skill'])}" for name, each, _ in named)
    return draw("reliability", f"Observed against predicted shares on logarithmic axes. Brier skill: {told}.", plot)


def _drawn(cell: dict[str, Any]) -> bool:
    return cell["observed"] > 0 and cell["predicted"] > 0 and cell["n"] >= LEAST_CASES


def _active(found: dict[str, Any], named: list[tuple[str, dict[str, Any], str]]) -> Markup:
    lines = [
        ("truly active", found["truly_active"], GREY),
        *((name, each["expected_active"], c) for name, each, c in named),
    ]
    least = max(0.1, min(count["q05"] for _, count, _ in lines))
    most = max(count["q95"] for _, count, _ in lines)

    def plot(axes: "Axes") -> None:
        for at, (_, count, colour) in enumerate(reversed(lines)):
            low, high = (max(count[key], least * 0.9) for key in ("q05", "q95"))
            axes.plot([low, high], [at, at], color=colour, linewidth=1.4)
            axes.plot([max(count[key], least * 0.9) for key in ("q25", "q75")], [at, at], color=colour, linewidth=6)
            axes.plot([max(count["mean"], least * 0.9)], [at], color=colour, marker="o", markersize=8)
        axes.axvline(found["k"], color=MUTED, linewidth=1, linestyle=DASHED)
        axes.set_yticks(range(len(lines)), [name for name, _, _ in reversed(lines)])
        axes.set_ylim(-0.6, len(lines) - 0.4)
        axes.grid(visible=False, axis="y")
        if most / least > 30:
            axes.set_xscale("log")
            label_powers(axes.xaxis, plain=True)
        else:
            axes.set_xlim(left=0)
        axes.set_title(f"Active latents on a token, k = {found['k']}")
        axes.set_xlabel("latents")

    told = ", ".join(f"{name} {count['mean']:.1f}" for name, count, _ in lines)
    return draw("active", f"Mean number of active latents on a token: {told}. The coder keeps {found['k']}.", plot)


# -- variance explained -----------------------------------------------------------------------------------------------


def explained(told: "pd.DataFrame", scores: "pd.DataFrame", found: dict[str, Any] | None) -> Figure | None:
    """The share of each latent's variance that its predictions explain, against what its score promised."""
    import pandas as pd

    if "r2_chosen" not in told or "explained_by_flags" not in scores:
        return None
    table = pd.DataFrame(
        {
            "latent": told["latent"],
            "mcc2": scores["mcc2"],
            "explained_by_flags": scores["explained_by_flags"],
            "r2": told["r2_chosen"],
            "energy": told["energy_of_deviations"],
        }
    )
    table = table.dropna(subset=["r2", "explained_by_flags"])
    if len(table) < 3:
        return None
    whole = (found or {}).get("calibrators", {}).get((found or {}).get("chosen", ""), {}).get("r2", {}).get("mean")
    promised, r2, energy = (table[name].to_numpy(dtype=np.float64) for name in ("explained_by_flags", "r2", "energy"))
    at = np.lexsort((table["latent"].to_numpy(), -energy))[:MOST]
    varied = promised[at].std() > 0 and r2[at].std() > 0
    correlation = float(np.corrcoef(promised[at], r2[at])[0, 1]) if varied else 0.0
    size = np.ceil(SIZES * np.sqrt(energy[at] / max(float(energy.max()), 1e-30)))

    def scatter(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHED)
        for each in range(SIZES + 1):
            some = at[size == each]
            axes.plot(promised[some], np.maximum(r2[some], LOWEST), color=BLUE, marker="o", alpha=0.45,
                      markersize=2.5 + 1.6 * each, markeredgewidth=0, linestyle="")  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(min(0.0, max(float(r2[at].min()), LOWEST)) - 0.03, 1)
        axes.set_title("Promised and reached")
        axes.set_xlabel("promised by the MCC on the calibrate split")
        axes.set_ylabel("R² reached on the report split")

    grid = np.linspace(LOWEST, 1, 61)
    above = r2[None] >= np.where(grid > LOWEST, grid, -np.inf)[:, None]
    reached = pd.DataFrame(
        {
            "at_least": grid,
            "share_of_latents": above.mean(1),
            "share_of_energy": above @ energy / max(float(energy.sum()), 1e-30),
        }
    )

    def distribution(axes: "Axes") -> None:
        axes.plot(grid, reached["share_of_energy"], color=BLUE, label="of their energy")
        axes.plot(grid, reached["share_of_latents"], color=GREY, label="of latents")
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=DASHED)
        axes.set_xlim(LOWEST, 1)
        axes.set_ylim(0, 1.02)
        axes.set_yticks(QUARTERS, IN_PERCENT)
        axes.set_title("Share with at least this R²")
        axes.set_xlabel("R² on the report split")
        axes.legend(loc="lower left")

    rest = f" All together, weighted by energy: {percent(whole)}." if whole is not None else ""
    return Figure(
        "explained",
        "How much of each latent the predictions explain",
        f"R² against mean ablation: 1 is the true activation, 0 the latent's mean, below 0 is worse than that; values "
        f"below −0.5 stand at −0.5. Left: the {len(at):,} most energetic latents, larger where variance times "
        f"squared decoder length is; on the dashed line a latent reaches what its MCC promised of a yes-or-no answer, "
        f"above it the strength of the answer adds something (correlation {number(correlation, 2)}).{rest}",
        (
            draw("promised", f"R² reached against R² promised by MCC, correlation {correlation:.2f}.", scatter),
            draw("r2", "Share of latents and of their energy with at least a given R².", distribution),
        ),
        pd.concat([table.iloc[at].assign(panel="promised"), reached.assign(panel="reached")]),
    )
