"""The page's plots: what rewriting costs, what length buys, what calibration does, and what scores are worth.

In: rows of the results, the evaluation's tables and histograms, training curves. Out: `Figure`s, each with its drawing,
a caption and a description in words. Invariant: a plot shows its intervals and says how they were made; what cannot be
drawn from the data that are there is left out, not guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.report.drawing import BLUE, GREY, INK, MUTED, ORANGE, PAGE, PURPLE, draw, end_labels
from nlrewrite.report.facts import Facts
from nlrewrite.report.markup import Markup
from nlrewrite.report.wording import percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Row = dict[str, Any]
WIDE = (9.0, 3.7)
LEAST_IN_BIN = 3
NORMAL = 1.96


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    drawing: Markup
    wide: bool = False


def figures(
    rows: list[Row],
    headline: Row,
    spread: dict[str, Any],
    told: "pd.DataFrame",
    scores: "pd.DataFrame",
    facts: Facts,
) -> list[Figure]:
    """All figures that the data allow, in the order of the page."""
    position = str(headline["position"])
    drawn = [
        fractions(rows, position),
        lengths(rows, headline, facts),
        distributions(spread, headline),
        by_score(told, scores),
        training(facts),
    ]
    return [figure for figure in drawn if figure is not None]


# -- losses -----------------------------------------------------------------------------------------------------------

LINES = (("zero", "at zero", ORANGE), ("mean", "at mean", GREY), ("rewritten", "rewritten", BLUE))
SELECTIONS = {"top": "Best-scoring latents first", "sampled": "Latents drawn at random"}


def fractions(rows: list[Row], position: str) -> Figure | None:
    """Loss increase against the share of latents replaced, for each way to choose them."""
    here = [row for row in rows if row["position"] == position and row["topk"] == "none"]
    selections = [name for name in SELECTIONS if any(row["selection"] == name for row in here)]
    ends = {row["arm"]: row for row in here if row["selection"] == "all"}
    chosen = next((row["calibrator"] for row in here if row["arm"] == "rewritten" and row["selection"] != "all"), None)
    ends["rewritten"] = next(
        (row for row in here if row["selection"] == "all" and row["calibrator"] == chosen and row["explanation"] == "rules"),
        ends["rewritten"],
    )
    if not selections:
        return None

    def plot(axes: "Sequence[Axes]") -> None:
        for axis, selection in zip(axes, selections, strict=True):
            labels = []
            for arm, label, colour in LINES:
                seeds = sorted({row["subset_seed"] for row in here if row["selection"] == selection})
                for seed in seeds:
                    part = [
                        row
                        for row in here
                        if row["arm"] == arm and row["selection"] == selection and row["subset_seed"] == seed
                    ]
                    line = [ends["coder"], *sorted(part, key=lambda row: row["fraction"]), ends[arm]]
                    share = [0.0, *(row["fraction"] for row in line[1:-1]), 1.0]
                    low, high = ([row[f"delta_ce_{end}"] for row in line] for end in ("low", "high"))
                    axis.fill_between(share, low, high, color=colour, alpha=0.16 / len(seeds) + 0.04, linewidth=0)
                    axis.plot(share, [row["delta_ce"] for row in line], color=colour, marker="o", markersize=3.2)
                labels.append((ends[arm]["delta_ce"], label, colour))
            axis.set_title(SELECTIONS[selection])
            axis.set_xlabel("share of latents replaced")
            axis.set_xlim(0, 1)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
            end_labels(axis, labels)
        axes[0].set_ylabel("added loss, nats per token")

    told = ", ".join(f"{label} {ends[arm]['delta_ce']:.3f}" for arm, label, _ in LINES)
    return Figure(
        "fractions",
        "What it costs to replace more and more latents",
        "Added next-token loss over the unpatched model, with the true activations of all other latents kept. At 0 "
        "stands the coder itself, at 100% no true activation is left. Bands: 95% bootstrap over document groups; "
        "random subsets are drawn one by one.",
        draw("fractions", f"Added loss against the share of latents replaced. With all replaced: {told}.", plot,
             columns=len(selections), size=WIDE if len(selections) > 1 else (6.0, 3.7), share_y=True),
        wide=True,
    )  # fmt: skip


def lengths(rows: list[Row], headline: Row, facts: Facts) -> Figure | None:
    """Gap closed against the most tokens that a sentence may quote."""
    points = []
    for row in rows:
        if row["arm"] != "rewritten" or row["selection"] != "all" or row["topk"] != "none":
            continue
        if row["position"] != headline["position"] or row["calibrator"] != headline["calibrator"]:
            continue
        last = str(row["explanation"]).rpartition("-")[2]
        if row["explanation"] == headline["explanation"]:
            points.append((int(facts.explain["max_quotes"]), row))
        elif last.isdigit():
            points.append((int(last), row))
    points = sorted(
        ((most, row) for most, row in points if row["gap_closed"] is not None), key=lambda point: point[0]
    )
    if len(points) < 2:
        return None
    most = [point[0] for point in points]

    def plot(axes: "Sequence[Axes]") -> None:
        (axis,) = axes
        mean, low, high = (
            np.array([row[name] for _, row in points]) for name in ("gap_closed", "gap_closed_low", "gap_closed_high")
        )
        axis.fill_between(most, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axis.plot(most, mean, color=BLUE, marker="o", markersize=4.5)
        axis.set_ylim(min(0.0, float(low.min())), max(1.0, float(high.max())))
        labels = [(float(mean[-1]), "sentences", BLUE)]
        for arm, label in (("token_lookup", "token table"), ("bigram_lookup", "pair table"), ("oracle", "oracle mask")):
            axis.axhline(headline[arm], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            labels.append((headline[arm], label, MUTED))
        axis.set_xscale("log", base=2)
        axis.set_xticks(most, [str(each) for each in most])
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        axis.set_xlabel("quoted tokens a sentence may hold, at most")
        axis.set_ylabel("gap closed")
        end_labels(axis, labels)

    told = ", ".join(f"{limit} quotes {percent(row['gap_closed'])}" for limit, row in points)
    return Figure(
        "lengths",
        "What length buys",
        "The same explainer under tighter limits, each with its own calibrator. Dashed: the controls. Band: 95% "
        "bootstrap over document groups.",
        draw("lengths", f"Gap closed against length of sentences: {told}.", plot),
    )


# -- calibration ------------------------------------------------------------------------------------------------------


def distributions(spread: dict[str, Any], headline: Row) -> Figure | None:
    """How often each size of activation occurs, in truth and in prediction."""
    edges, counts = np.array(spread["edges"]), spread["counts"]
    total = max(float(sum(counts["true"])), 1.0)
    chosen = str(spread["chosen"])
    quantile = next((name for name in counts if name.startswith("quantile-") and name != chosen), None)
    wanted = [("none", "digits as read", ORANGE, 1.5), (quantile, "quantile-normalised", PURPLE, 1.5), (chosen, f"{chosen} (used)", BLUE, 2.2)]  # fmt: skip
    shown = [line for line in wanted if line[0] in counts and not (line[0] == chosen and line[1] != f"{chosen} (used)")]
    if not shown:
        return None

    def plot(axes: "Sequence[Axes]") -> None:
        (axis,) = axes
        heights = np.array(counts["true"][1:]) / total
        axis.stairs(heights, edges[1:], fill=True, color=GREY, alpha=0.3, label="true")
        for name, label, colour, width in shown:
            heights = np.array(counts[str(name)][1:]) / total
            axis.stairs(np.where(heights > 0, heights, np.nan), edges[1:], color=colour, linewidth=width, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.3 / total)
        axis.set_xlim(edges[1], edges[-1])
        axis.set_xlabel("activation, as a share of the latent's largest")
        axis.set_ylabel("share of latents × tokens")
        axis.legend(loc="upper left", fontsize=9.5)

    zeros = ", ".join(
        f"{label} {percent(float(counts[str(name)][0]) / total)}"
        for name, label in [("true", "in truth"), *((name, label) for name, label, _, _ in shown)]
    )
    return Figure(
        "distributions",
        "Predicted and true activations, before and after calibration",
        f"All pairs of latent and token on the report split, on two logarithmic axes. Not drawn, being zero or next "
        f"to it: {zeros}. A calibrator that predicts means writes small values where it is unsure.",
        draw("distributions", f"Histogram of activations. Shares at zero: {zeros}.", plot),
    )


def by_score(told: "pd.DataFrame", scores: "pd.DataFrame") -> Figure | None:
    """Sensitivity and specificity of latents by their score, as read and quantile-normalised."""
    kinds = {"detection_f1": "by detection score", "fuzzing_f1": "by fuzzing score"}
    measures = (("sensitivity", BLUE), ("specificity", ORANGE))
    if not told["explained"].any():
        return None

    def plot(axes: "Sequence[Axes]") -> None:
        for axis, (score, title) in zip(axes, kinds.items(), strict=True):
            labels = []
            for measure, colour in measures:
                for after, shift in (("raw", -0.008), ("quantile", 0.008)):
                    centre, mean, half = binned(scores[score].to_numpy(), told[f"{measure}_{after}"].to_numpy())
                    face = PAGE if after == "raw" else colour
                    axis.errorbar(
                        centre + shift, mean, yerr=half, color=colour, marker="o", markersize=5, markerfacecolor=face,
                        linestyle="--" if after == "raw" else "-", linewidth=1.3, elinewidth=1,
                    )  # fmt: skip
                    if len(mean) and after == "quantile":
                        labels.append((float(mean[-1]), measure, colour))
            axis.set_xlim(0, 1.0)
            axis.set_ylim(0, 1.03)
            axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
            axis.set_title(title[0].upper() + title[1:])
            axis.set_xlabel("F1 on the calibrate split")
            end_labels(axis, labels)
        axes[0].plot([], [], color=INK, marker="o", markersize=5, markerfacecolor=PAGE, linestyle="--", linewidth=1.3, label="as read")
        axes[0].plot([], [], color=INK, marker="o", markersize=5, linestyle="-", linewidth=1.3, label="quantile-normalised")
        axes[0].legend(loc="lower left" if len(kinds) == 1 else "center left", bbox_to_anchor=(0, 0.72))

    explained = int(told["explained"].sum())
    return Figure(
        "by-score",
        "What a score promises",
        f"Sensitivity and specificity on the report split, latents grouped by their score on the calibrate split in "
        f"bins of 0.1; {explained:,} latents with a sentence, bins with fewer than {LEAST_IN_BIN} left out. Bars: 95% "
        f"interval of the bin's mean.",
        draw("by-score", "Mean sensitivity and specificity of latents against detection and fuzzing scores.", plot,
             columns=2, size=WIDE, share_y=True),
        wide=True,
    )  # fmt: skip


def binned(score: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per bin of 0.1 of `score` with enough latents: its centre, mean value, and half of the mean's 95% interval."""
    known = np.isfinite(score) & np.isfinite(value)
    bins = np.clip((score[known] * 10).astype(int), 0, 9)
    rows = []
    for number in range(10):
        inside = value[known][bins == number]
        if len(inside) >= LEAST_IN_BIN:
            rows.append((number / 10 + 0.05, inside.mean(), NORMAL * inside.std(ddof=1) / np.sqrt(len(inside))))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


# -- training ---------------------------------------------------------------------------------------------------------


def training(facts: Facts) -> Figure | None:
    """How the subject and the coder learned."""
    curves = [each for each in (facts.training, facts.coder_training) if each and each.get("curve")]
    if not curves:
        return None

    def plot(axes: "Sequence[Axes]") -> None:
        for axis, curve in zip(axes, curves, strict=True):
            points = curve["curve"]
            if "held_out" in points[0]:
                step = [point["step"] + 1 for point in points]
                axis.plot(step, [point["held_out"] for point in points], color=BLUE, marker="o", markersize=3.2)
                axis.axhline(curve["unigram_entropy"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                axis.annotate("counting tokens", (1, curve["unigram_entropy"]), xytext=(2, -13), textcoords="offset points", color=MUTED, fontsize=10)  # fmt: skip
                axis.set_xscale("log")
                axis.set_ylim(bottom=0)
                axis.set_title("Subject: held-out loss, nats")
            else:
                axis.plot([point["step"] for point in points], [point["fvu"] for point in points], color=BLUE)
                axis.set_ylim(0, min(1.05, max(point["fvu"] for point in points) * 1.1))
                axis.set_title("Coder: variance unexplained")
            axis.set_xlabel("training step")

    told = []
    if facts.training:
        told.append(f"the subject ends at {facts.training['held_out_loss']:.2f} nats")
    if facts.coder_training.get("fvu") is not None:
        told.append(f"the coder leaves {percent(facts.coder_training['fvu'])} of the site's variance unexplained")
    return Figure(
        "training",
        "How subject and coder learned",
        f"On text held out from training; {', '.join(told)}.",
        draw("training", f"Training curves: {', '.join(told)}.", plot, columns=len(curves), size=(6.0, 3.9) if len(curves) == 1 else (6.4, 3.4)),
    )
