"""The page's plots: what rewriting costs, what length buys, what calibration does, and what scores are worth.

In: rows of the results, the evaluation's tables and histograms, training curves. Out: `Figure`s of one panel or more,
with a caption and a description in words. Invariant: a plot shows its intervals and says how they were made; what
cannot be drawn from the data that are there is left out, not guessed.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.report import curves
from nlrewrite.report.curves import DASHED, IN_PERCENT, QUARTERS, Line, Point
from nlrewrite.report.drawing import BLUE, GREY, MUTED, ORANGE, PAGE, PURPLE, draw, end_labels, label_powers
from nlrewrite.report.facts import Facts
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup
from nlrewrite.report.wording import percent
from nlrewrite.score.diagnostics import LEAST_IN_BIN, binned

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Row = dict[str, Any]


def figures(
    rows: list[Row],
    headline: Row,
    spread: dict[str, Any],
    told: "pd.DataFrame",
    scores: "pd.DataFrame",
    facts: Facts,
) -> list[Figure]:
    """All figures that the data allow, in the order of the page."""
    drawn = [
        fractions(rows, headline),
        lengths(rows, headline, facts),
        distributions(spread),
        by_score(told, scores),
        training(facts),
    ]
    return [figure for figure in drawn if figure is not None]


# -- losses -----------------------------------------------------------------------------------------------------------

GAP = ("gap_closed", "gap_closed_low", "gap_closed_high")
LINES = (("zero", "at zero", ORANGE), ("mean", "at mean", GREY), ("rewritten", "rewritten", BLUE))
SELECTIONS = {
    "top": "Best-scoring latents first",
    "sampled": "Latents drawn at random",
    "gain": "Largest held-out gain first",
}


def fractions(rows: list[Row], headline: Row) -> Figure | None:
    """Loss increase against the share of latents replaced, for each way to choose them."""
    here = [row for row in rows if row["position"] == headline["position"] and row["topk"] == _topk(row, headline)]
    whole = [row for row in here if row["selection"] == "all"]
    ends = {row["arm"]: row for row in whole if row["arm"] != "rewritten"}
    ends["rewritten"] = next(
        row
        for row in whole
        if (row["arm"], row["explanation"], row["calibrator"])
        == ("rewritten", headline["explanation"], headline["calibrator"])
    )
    highest = max([ends["coder"]["delta_ce_high"], *(ends[arm]["delta_ce_high"] for arm, _, _ in LINES)])
    lowest = min([0.0, *(row["delta_ce_low"] for row in here if row["selection"] != "all")])

    def lines(selection: str) -> list[Line]:
        part = [row for row in here if row["selection"] == selection]
        found = []
        for arm, label, colour in LINES:
            quoted = [row for row in part if row["arm"] == arm and _quoted(row, headline)]
            for at, some in enumerate(curves.draws(quoted)):
                points = [_point(0.0, ends["coder"]), *(_point(row["fraction"], row) for row in some)]
                found.append(Line(label, colour, (*points, _point(1.0, ends[arm])), sibling=at))
        return found

    shown = [(name, lines(name)) for name in SELECTIONS if any(row["selection"] == name for row in here)]
    shown = [(name, found) for name, found in shown if found]
    if not shown:
        return None
    limits = lowest * 1.05, highest * 1.05
    return Figure(
        "fractions",
        "What it costs to replace more and more latents",
        "Added next-token loss over the unpatched model; latents that are not replaced keep their true activations. At "
        "0 stands the coder itself, at 100% no true activation is left. Bands: 95% bootstrap over document groups "
        "and, where several random subsets were drawn, over these.",
        tuple(
            curves.by_share(f"fractions-{name}", SELECTIONS[name], "added loss, nats per token", found, limits)
            for name, found in shown
        ),
        curves.table(shown, "share", "delta_ce"),
    )


def _topk(row: Row, headline: Row) -> str:
    return str(headline["topk"]) if row["arm"] == "rewritten" else "none"


def _quoted(row: Row, headline: Row) -> bool:
    """Whether a rewritten row is the headline's own; others have no such names."""
    return row["arm"] != "rewritten" or all(row[name] == headline[name] for name in ("explanation", "calibrator"))


def _point(share: float, row: Row) -> Point:
    return Point(share, row["delta_ce"], row["delta_ce_low"], row["delta_ce_high"])


def lengths(rows: list[Row], headline: Row, facts: Facts) -> Figure | None:
    """Gap closed against the most tokens that a sentence may quote."""
    alike = [
        row
        for row in rows
        if (row["arm"], row["selection"], row["topk"], row["position"], row["calibrator"])
        == ("rewritten", "all", "none", headline["position"], headline["calibrator"])
        and row["gap_closed"] is not None
    ]
    points: dict[int, Row] = {}
    for row in alike:
        stem, _, limit = str(row["explanation"]).rpartition("-")
        if row["explanation"] == headline["explanation"]:
            points[int(facts.explain.get("max_quotes", 0))] = row
        elif stem == headline["explanation"] and limit.isdigit():
            points[int(limit)] = row
    if len(points) < 2:
        return None
    most = sorted(points)
    mean, low, high = (np.array([points[limit][name] for limit in most]) for name in GAP)

    def plot(axes: "Axes") -> None:
        axes.fill_between(most, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(most, mean, color=BLUE, marker="o", markersize=4.5)
        axes.set_ylim(min(0.0, float(low.min())), max(1.0, float(high.max())))
        labels = [(float(mean[-1]), "sentences", BLUE)]
        for arm, label in (
            ("token_lookup", "token lookup"),
            ("bigram_lookup", "bigram lookup"),
            ("oracle", "oracle mask"),
        ):
            axes.axhline(headline[arm], color=MUTED, linewidth=1, linestyle=DASHED)
            labels.append((headline[arm], label, MUTED))
        axes.set_xscale("log", base=2)
        axes.set_xticks(most, [str(each) for each in most])
        axes.set_yticks(QUARTERS, IN_PERCENT)
        axes.set_xlabel("quoted tokens in a sentence, at most")
        axes.set_ylabel("gap closed")
        end_labels(axes, labels)

    told = ", ".join(f"{limit} quotes {percent(points[limit]['gap_closed'])}" for limit in most)
    return Figure(
        "lengths",
        "What length buys",
        "The same explainer under tighter limits, each with a calibrator of its own. Dashed: the controls. Band: 95% "
        "bootstrap over document groups.",
        (draw("lengths", f"Gap closed against the length of sentences: {told}.", plot),),
        _frame(
            {
                "quotes": limit,
                **{name: points[limit][name] for name in GAP},
                "explanation": points[limit]["explanation"],
            }
            for limit in most
        ),
    )


# -- calibration ------------------------------------------------------------------------------------------------------


MEANS = " A calibrator that predicts means, as this one does, writes small values where it is unsure."


def distributions(spread: dict[str, Any]) -> Figure | None:
    """How often each size of activation occurs, in truth and in prediction."""
    edges, counts, chosen = np.array(spread["edges"])[1:], spread["counts"], str(spread["chosen"])
    total = max(float(sum(counts["true"])), 1.0)
    edges = edges[::2]  # bins are joined in pairs, so that the few values of a digit are less ragged
    centres = np.sqrt(edges[1:] * edges[:-1])

    def heights(name: str) -> np.ndarray:
        fine = np.array(counts[name][1:], dtype=np.float64)
        joined = np.add.reduceat(fine, np.arange(0, len(fine), 2))[: len(centres)] / total
        return np.where(joined > 0, joined, np.nan)

    quantile = next((name for name in counts if name.startswith("quantile-")), "")
    wanted = [("none", "digits as read", ORANGE)]
    if quantile and not chosen.startswith("quantile-"):
        wanted.append((quantile, quantile, PURPLE))
    shown = [line for line in wanted if line[0] in counts and line[0] != chosen]
    if chosen in counts:
        shown.append((chosen, f"{chosen} (used)", BLUE))

    def plot(axes: "Axes") -> None:
        axes.stairs(np.nan_to_num(heights("true")), edges, fill=True, color=GREY, alpha=0.3, label="true")
        for name, label, colour in shown:
            axes.plot(centres, heights(name), color=colour, linewidth=1.6, marker="o", markersize=3.2, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-7)
        axes.set_xlim(edges[0], edges[-1])
        label_powers(axes.xaxis)
        label_powers(axes.yaxis)
        axes.set_xlabel("activation, as a share of the latent's largest")
        axes.set_ylabel("share of latents × tokens")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.4, handlelength=1.4)

    zeros = ", ".join(
        f"{label} {percent(float(counts[name][0]) / total)}"
        for name, label in [("true", "in truth"), *((name, label) for name, label, _ in shown)]
    )
    return Figure(
        "distributions",
        "Predicted and true activations, before and after calibration",
        f"All pairs of a latent and a token of the report split, both axes logarithmic. Zero or next to it, and so not "
        f"drawn: {zeros}.{MEANS if chosen == 'hurdle' else ''}",
        (draw("distributions", f"Histogram of activations. Shares next to zero: {zeros}.", plot),),
        _frame(
            {
                "of": name,
                "activation_from": float(low),
                "activation_to": float(high),
                "share": None if np.isnan(height) else float(height),
            }
            for name in ("true", *(each for each, _, _ in shown))
            for low, high, height in zip(edges, edges[1:], heights(name), strict=False)
        ),
    )


def by_score(told: "pd.DataFrame", scores: "pd.DataFrame") -> Figure | None:
    """Sensitivity and specificity of latents by their score, as read and quantile-normalised."""
    explained = int(told["explained"].to_numpy().sum())
    if not explained:
        return None

    def bins(score: str, measure: str, after: str) -> tuple[np.ndarray, ...]:
        return binned(scores[score].to_numpy(), told[f"{measure}_{after}"].to_numpy())

    def panel(score: str, title: str) -> Markup:
        def plot(axes: "Axes") -> None:
            labels = []
            for measure, colour in (("sensitivity", BLUE), ("specificity", ORANGE)):
                for after, shift in (("raw", -0.008), ("quantile", 0.008)):
                    raw = after == "raw"
                    centre, mean, half, _ = bins(score, measure, after)
                    axes.errorbar(
                        centre + shift,
                        mean,
                        yerr=half,
                        color=colour,
                        marker="o",
                        markersize=5,
                        markerfacecolor=PAGE if raw else colour,
                        linestyle="--" if raw else "-",
                        linewidth=1.3,
                        elinewidth=1,
                    )
                    if len(mean) and not raw:
                        labels.append((float(mean[-1]), measure, colour))
            for label, face, style in (("as read", PAGE, "--"), ("quantile-normalised", MUTED, "-")):
                shown = axes.plot([], [], color=MUTED, linestyle=style, linewidth=1.3, label=label)[0]
                shown.set(marker="o", markersize=5, markerfacecolor=face)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.03)
            axes.set_yticks(QUARTERS, IN_PERCENT)
            axes.set_title(f"By {title} score")
            axes.set_xlabel(f"{title} F1 on the calibrate split")
            axes.set_ylabel("mean over latents")
            axes.legend(loc="upper left", bbox_to_anchor=(0, 0.92))
            end_labels(axes, labels)

        return draw(f"by-{title}", f"Mean sensitivity and specificity of latents against their {title} score.", plot)

    return Figure(
        "by-score",
        "What a score promises",
        f"Sensitivity and specificity on the report split, latents grouped by their score on the calibrate split in "
        f"bins of 0.1: {explained:,} latents with a sentence; bins with fewer than {LEAST_IN_BIN} are left out. Bars: "
        f"95% interval of a bin's mean.",
        (panel("detection_f1", "detection"), panel("fuzzing_f1", "fuzzing")),
        _frame(
            {"score": score, "measure": measure, "after": after, "centre": at, "mean": mean, "half": half, "latents": n}
            for score in ("detection_f1", "fuzzing_f1")
            for measure in ("sensitivity", "specificity")
            for after in ("raw", "quantile")
            for at, mean, half, n in zip(*(each.tolist() for each in bins(score, measure, after)), strict=True)
        ),
    )


# -- training ---------------------------------------------------------------------------------------------------------


def training(facts: Facts) -> Figure | None:
    """How the subject and the coder learned."""
    panels, told = [], []
    if facts.training and facts.training.get("curve"):
        end = facts.training["held_out_loss"]
        told.append(
            f"the subject ends at {end:.2f} nats, where counting tokens gives {facts.training['unigram_entropy']:.2f}"
        )
        panels.append(
            draw(
                "subject",
                f"Held-out loss of the subject over training steps, ending at {end:.2f}.",
                _subject(facts.training),
            )
        )
    if facts.coder_training.get("curve"):
        fvu = facts.coder_training["fvu"]
        told.append(f"the coder leaves {percent(fvu)} of the site's variance unexplained{_kept(facts.coder_training)}")
        panels.append(
            draw(
                "coder",
                f"Variance the coder leaves unexplained over training steps, ending at {percent(fvu)}.",
                _coder(facts.coder_training),
            )
        )
    if not panels:
        return None
    curve = [
        ("subject held-out loss", facts.training, "held_out"),
        ("coder variance unexplained", facts.coder_training, "fvu"),
    ]
    return Figure(
        "training",
        "How subject and coder learned",
        f"Measured on held-out text; {'; '.join(told)}.",
        tuple(panels),
        _frame(
            {"curve": name, "step": point["step"], "value": point[key]}
            for name, of, key in curve
            for point in (of or {}).get("curve", ())
        ),
    )


def _kept(training: dict[str, Any]) -> str:
    """What else the last point of a coder's curve says, where curves have it."""
    last = training["curve"][-1]
    said = [f"{last['l0']:.1f} latents active on a token"] if "l0" in last else []
    said += [f"{percent(last['dead_share'])} of all latents dead"] if "dead_share" in last else []
    return f", with {' and '.join(said)}" if said else ""


def _frame(rows: "Iterable[Row]") -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(list(rows))


def _subject(curve: dict[str, Any]) -> "Callable[[Axes], None]":
    def plot(axes: "Axes") -> None:
        points = [point for point in curve["curve"] if point["step"] > 0]
        steps, losses = [point["step"] for point in points], [point["held_out"] for point in points]
        axes.plot(steps, losses, color=BLUE, marker="o", markersize=3.2)
        axes.axhline(curve["unigram_entropy"], color=MUTED, linewidth=1, linestyle=DASHED)
        axes.set_xscale("log")
        label_powers(axes.xaxis, plain=True)
        axes.set_ylim(bottom=0)
        axes.set_title("Subject: held-out loss, nats per token")
        axes.set_xlabel("training step")
        end_labels(axes, [(curve["unigram_entropy"], "unigrams", MUTED), (points[-1]["held_out"], "subject", BLUE)])

    return plot


def _coder(curve: dict[str, Any]) -> "Callable[[Axes], None]":
    def plot(axes: "Axes") -> None:
        points = curve["curve"]
        axes.plot([point["step"] for point in points], [point["fvu"] for point in points], color=BLUE)
        axes.set_ylim(0, min(1.05, max(point["fvu"] for point in points) * 1.05))
        axes.set_yticks(QUARTERS, IN_PERCENT)
        axes.set_title("Coder: variance left unexplained")
        axes.set_xlabel("training step")
        end_labels(axes, [(points[-1]["fvu"], "coder", BLUE)])

    return plot
