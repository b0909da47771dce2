"""The figures of the two versions of the paper, from this run's numbers, one function each.

In: a `Run`. Out: a `Figure`, or a sentence that says what the run lacks to draw it. Invariant: nothing is drawn of
data that are not there, and every function says whose numbers it shows. Which figure shows what was found out by
content, not by looking at the originals: docs/figures.md.

| figure | shows                                                                                   | function |
|--------|-----------------------------------------------------------------------------------------|----------|
| p1-1   | added loss by share rewritten: best first, random, zero ablation; quantile-normalised    | `p1_1`   |
| p1-3   | predicted and true activations, before and after normalisation                          | `p1_3`   |
| p1-4   | sensitivity and specificity by detection score, before and after                        | `p1_4`   |
| p1-a1  | as p1-1 without calibration                                                              | `p1_a1`  |
| p1-a2  | as p1-1 with targets taken on the very prompts                                           | `p1_a2`  |
| p1-a3  | how many contexts calibration takes                                                      | `p1_a3`  |
| p1-a4  | as p1-4 by fuzzing score                                                                 | `p1_a4`  |
| p1-a5  | the share of training at which the subject had the same loss                             | `p1_a5`  |
| p2-2   | mean added loss and its error by share rewritten: best first, random, mean ablation      | `p2_2`   |
| p2-3   | the three targets of normalisation beside each other                                     | `p2_3`   |
| p2-4   | sensitivity and specificity by detection score, before and after                        | `p2_4`   |
| p2-a1  | the same by fuzzing score                                                                | `p2_a1`  |
| p2-a2  | as p2-2 for the sparse autoencoder                                                       | `p2_a2`  |
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nlrewrite.questions import WRITTEN
from nlrewrite.report import curves
from nlrewrite.report.curves import Line, Point
from nlrewrite.report.drawing import BLUE, GREY, MUTED, ORANGE, PURPLE, draw, label_powers
from nlrewrite.report.facts import Facts
from nlrewrite.report.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
RAW = re.compile(r"none|published")
QUANTILE = re.compile(r"quantile-\d(-tenth)?")
ON_PROMPT = re.compile(r"quantile-\d-on-prompt")
MEDIAN, MEAN = "median_abs_delta", "delta_ce"
TOO_HIGH = 2.5
"""Lines are cut off where they rise above this many times the ablation's highest point."""
NEAR = 0.3
"""Shares of training above it are told apart without a logarithmic axis."""
FLOORS = {"mean": ("at mean", "mean ablation"), "zero": ("at zero", "zero ablation")}
PARTLY = "with --protocol p1 or p2 every calibrator is measured at every share"


@dataclass(frozen=True)
class Run:
    """What a report is made of, as far as the papers' figures need it."""

    results: Mapping[str, Any]
    facts: Facts
    sample_size: Figure | None = None
    own: Mapping[str, Figure] = field(default_factory=dict)
    """The page's own figures by name, where a paper's is the same."""


@dataclass(frozen=True)
class Entry:
    """One figure of a paper: what it shows, and the figure or why there is none."""

    name: str
    shows: str
    figure: Figure | None
    why: str = ""
    same_as: str = ""
    """The page's own figure that holds the same drawing; such a one is a file, and is not drawn on the page twice."""


def entries(run: Run) -> list[Entry]:
    """All figures of both papers, in order."""
    found = []
    for name, (shows, function, same_as) in PAPERS.items():
        made = function(run)
        drawn = made if isinstance(made, Figure) else None
        found.append(Entry(name, shows, drawn, "" if isinstance(made, Figure) else made, same_as if drawn else ""))
    return found


# -- loss by share ----------------------------------------------------------------------------------------------------


def p1_1(run: Run) -> Figure | str:
    """Added loss by the share of latents rewritten, quantile-normalised, beside zero ablation."""
    return _by_share(run, "p1-1", "Quantile-normalised predictions, by share rewritten", QUANTILE, "zero", MEDIAN)


def p1_a1(run: Run) -> Figure | str:
    """The same with predictions as they were read."""
    return _by_share(run, "p1-a1", "Uncalibrated predictions, by share rewritten", RAW, "zero", MEDIAN)


def p1_a2(run: Run) -> Figure | str:
    """The same with the true activations of the very prompts as targets."""
    return _by_share(run, "p1-a2", "Targets taken on the prompts themselves", ON_PROMPT, "zero", MEDIAN)


def p2_2(run: Run) -> Figure | str:
    """Mean added loss with its standard error, beside mean ablation."""
    return _by_share(run, "p2-2", "Best first, at random, and mean ablation", QUANTILE, "mean", MEAN)


def p2_a2(run: Run) -> Figure | str:
    """The same for a sparse autoencoder of the residual stream."""
    if run.facts.site["kind"] == "mlp":
        return "It is about a sparse autoencoder; this run's coder is a transcoder. Run with coder.site.kind=residual."
    return _by_share(run, "p2-a2", "The sparse autoencoder, by share rewritten", QUANTILE, "mean", MEAN)


def p2_3(run: Run) -> Figure | str:
    """Raw, quantile-normalised and on-prompt predictions of the best latents, beside mean ablation."""
    arms = _Arms(run, MEAN)
    lines = []
    for label, kind, colour in (
        ("uncalibrated", RAW, ORANGE),
        ("normalised", QUANTILE, BLUE),
        ("on the prompts", ON_PROMPT, PURPLE),
    ):
        calibrator = arms.calibrator(kind)
        if calibrator is None:
            return f"No {label} predictions were measured at any share below all: {PARTLY}."
        lines += arms.rewritten(label, calibrator, "top", colour)
    lines += arms.ablation("mean", "top", GREY) or arms.ablation("mean", "sampled", GREY)
    return _figure(arms, "p2-3", "What normalisation is aimed at", lines, "Best-scoring latents first.", "best first")


def _by_share(run: Run, name: str, title: str, kind: re.Pattern[str], floor: str, statistic: str) -> Figure | str:
    arms = _Arms(run, statistic)
    calibrator = arms.calibrator(kind)
    if calibrator is None:
        return f"No calibrator of that kind was measured at any share below all: {PARTLY}."
    lines = [
        *arms.rewritten("best first", calibrator, "top", BLUE),
        *arms.rewritten("at random", calibrator, "sampled", ORANGE),
        *arms.ablation(floor, "sampled", GREY),
    ]
    if not any(line.label == "at random" for line in lines) or not any(line.label == "best first" for line in lines):
        return "It compares the best-scoring latents with random ones; evaluate.selections names only one of them."
    about = f"Calibrator: {calibrator}; {FLOORS[floor][1]} of the same random latents."
    return _figure(arms, name, title, lines, about, calibrator)


def _figure(arms: "_Arms", name: str, title: str, lines: Sequence[Line], about: str, panel: str) -> Figure:
    highest = max((point.high for line in lines if line.colour == GREY for point in line.points), default=0.0)
    whole = max(point.high for line in lines for point in line.points)
    lowest = min(0.0, *(point.low for line in lines for point in line.points))
    top = min(whole, TOO_HIGH * highest) if highest > 0 else whole
    cut = " Lines that leave the frame go on in the table." if whole > top else ""
    where = "at the last token of a context" if arms.position == "last" else "at every token"
    return Figure(
        name,
        title,
        f"{arms.words}, patched {where}. {about}{cut}",
        (curves.by_share(name, panel, arms.axis, lines, (lowest * 1.05, top * 1.05)),),
        curves.table([(name, lines)], "share", arms.statistic),
    )


class _Arms:
    """The rows of a run as lines: of one position, one statistic, and the TopK that its parts were measured with."""

    def __init__(self, run: Run, statistic: str) -> None:
        rows: list[Row] = [*run.results["arms"], *run.results.get("over_subsets", ())]
        self.position = "last" if any(row["position"] == "last" for row in rows) else "all"
        self.rows = [row for row in rows if row["position"] == self.position]
        self.statistic = statistic if all(row.get(f"{statistic}_low") is not None for row in self.rows) else MEAN
        if self.statistic == MEDIAN:
            self.words, self.axis = "Median of the absolute added loss, 95% bootstrap", "median |added loss|, nats"
        else:
            self.words, self.axis = "Mean added loss and its standard error", "added loss, nats per token"

    def calibrator(self, kind: re.Pattern[str]) -> str | None:
        """The first calibrator of a kind that is measured at some share below all."""
        partial = (row for row in self.rows if row["arm"] == "rewritten" and row["selection"] in ("top", "sampled"))
        return next((row["calibrator"] for row in partial if kind.fullmatch(row["calibrator"])), None)

    def rewritten(self, label: str, calibrator: str, selection: str, colour: str) -> list[Line]:
        mine = [row for row in self.rows if row["arm"] == "rewritten" and row["calibrator"] == calibrator]
        mine = [row for row in mine if row["explanation"] in ("", *WRITTEN)]
        part = [row for row in mine if row["selection"] == selection]
        policy = next(
            (each for each in ("mixed", "values", "none") if any(row["topk"] == each for row in part)), "none"
        )
        return self._lines(label, [row for row in mine if row["topk"] == policy], selection, colour)

    def ablation(self, floor: str, selection: str, colour: str) -> list[Line]:
        return self._lines(FLOORS[floor][0], [row for row in self.rows if row["arm"] == floor], selection, colour)

    def _lines(self, label: str, rows: list[Row], selection: str, colour: str) -> list[Line]:
        coder = next(row for row in self.rows if row["arm"] == "coder")
        ends = [row for row in rows if row["selection"] == "all"]
        part = [row for row in rows if row["selection"] == selection]
        lines = []
        for at, some in enumerate(curves.draws(part)):
            whole = [] if any(row["fraction"] == 1 for row in some) else ends[:1]
            points = (self._point(row, share) for row, share in self._shares(coder, [*some, *whole]))
            lines.append(Line(label, colour, tuple(points), sibling=at))
        return lines

    def _shares(self, coder: Row, rows: list[Row]) -> list[tuple[Row, float]]:
        return [(coder, 0.0), *((row, float(row["fraction"])) for row in rows)]

    def _point(self, row: Row, share: float) -> Point:
        value = row[self.statistic]
        if self.statistic == MEAN and row.get("delta_ce_se") is not None:
            return Point(share, value, value - row["delta_ce_se"], value + row["delta_ce_se"])
        return Point(share, value, row[f"{self.statistic}_low"], row[f"{self.statistic}_high"])


# -- activations and scores -------------------------------------------------------------------------------------------


def p1_3(run: Run) -> Figure | str:
    """Predicted and true activations, before and after normalisation."""
    return _own(run, "p1-3", "distributions")


def p1_4(run: Run) -> Figure | str:
    """Sensitivity and specificity by detection score."""
    return _own(run, "p1-4", "by-score", "detection_f1", 0)


def p1_a4(run: Run) -> Figure | str:
    """The same by fuzzing score."""
    return _own(run, "p1-a4", "by-score", "fuzzing_f1", 1)


def p2_4(run: Run) -> Figure | str:
    """Sensitivity and specificity by detection score."""
    return _own(run, "p2-4", "by-score", "detection_f1", 0)


def p2_a1(run: Run) -> Figure | str:
    """The same by fuzzing score."""
    return _own(run, "p2-a1", "by-score", "fuzzing_f1", 1)


def p1_a3(run: Run) -> Figure | str:
    """How many contexts calibration takes."""
    if run.sample_size is None:
        return "It takes other sizes of the calibrate split, which the probe sample-size measures: ask for that one."
    return replace(run.sample_size, name="p1-a3")


def _own(run: Run, name: str, own: str, score: str = "", panel: int = 0) -> Figure | str:
    """A figure of the page, or the panel of it that belongs to one score."""
    found = run.own.get(own)
    if found is None:
        return "No latent has a sentence."
    if not score:
        return replace(found, name=name)
    table = found.table[found.table["score"] == score]
    if table.empty:
        return f"No bin of {score} holds enough latents."
    return replace(found, name=name, panels=(found.panels[panel],), table=table)


# -- training ---------------------------------------------------------------------------------------------------------

TRAINED = {
    "coder": "the coder",
    "mean": "latents at their mean",
    "mlp_mean": "the site at its mean",
    "zero": "latents at zero",
}


def p1_a5(run: Run) -> Figure | str:
    """The share of training at which the subject itself had the loss of each arm."""
    shares = [each for each in run.results.get("equivalent_training", ()) if each["arm"] != "original"]
    if not shares:
        return "It takes checkpoints of the subject's training, and there are none."
    import pandas as pd

    least = min(each["low"] for each in shares) or 1e-3
    names = [TRAINED.get(str(each["arm"]), str(each["arm"])) for each in shares]

    def plot(axes: "Axes") -> None:
        for at, each in enumerate(reversed(shares)):
            colour = BLUE if each["arm"] == "rewritten" else GREY
            axes.plot([each["low"], each["high"]], [at, at], color=colour, linewidth=5, alpha=0.4)
            axes.plot([each["share"]], [at], color=colour, marker="o", markersize=6)
        if least > NEAR:
            axes.set_xlim(least - 0.05, 1.02)
        else:
            axes.set_xscale("log")
            axes.set_xlim(least * 0.8, 1.1)
            label_powers(axes.xaxis)
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=curves.DASHED)
        axes.set_yticks(range(len(shares)), list(reversed(names)))
        axes.set_ylim(-0.6, len(shares) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.set_title("As good as the subject after this share of its training")
        axes.set_xlabel("share of training steps")

    told = ", ".join(f"{name} {each['share']:.3f}" for name, each in zip(names, shares, strict=True))
    return Figure(
        "p1-a5",
        "Losses told as training",
        "Where on its own way the subject had the same loss, patched at every token; 95% bootstrap over document "
        "groups, resampled together with the checkpoints. What lies outside the checkpoints is cut off there.",
        (draw("p1-a5", f"Share of training with the same loss: {told}.", plot),),
        pd.DataFrame([dict(each) for each in shares]),
    )


PAPERS: dict[str, tuple[str, Callable[[Run], Figure | str], str]] = {
    "p1-1": ("Added loss by share rewritten, normalised, beside zero ablation", p1_1, ""),
    "p1-3": ("Predicted and true activations, before and after normalisation", p1_3, "distributions"),
    "p1-4": ("Sensitivity and specificity by detection score", p1_4, "by-score"),
    "p1-a1": ("Added loss by share rewritten, uncalibrated", p1_a1, ""),
    "p1-a2": ("Added loss by share rewritten, targets on the prompts", p1_a2, ""),
    "p1-a3": ("How many contexts calibration takes", p1_a3, "sample-size"),
    "p1-a4": ("Sensitivity and specificity by fuzzing score", p1_a4, "by-score"),
    "p1-a5": ("Losses told as shares of the subject's training", p1_a5, ""),
    "p2-2": ("Added loss by share rewritten, beside mean ablation", p2_2, ""),
    "p2-3": ("The three targets of normalisation, by share rewritten", p2_3, ""),
    "p2-4": ("Sensitivity and specificity by detection score", p2_4, "by-score"),
    "p2-a1": ("Sensitivity and specificity by fuzzing score", p2_a1, "by-score"),
    "p2-a2": ("Added loss by share rewritten, of the sparse autoencoder", p2_a2, ""),
}
"""Each with what it shows, its function, and the page's own figure that holds the same."""
