"""The plots of a page about coders: how they learned, and what they cost by how many latents they keep active.

In: facts of coders and what was measured of them. Out: `Figure`s with a caption and a description in words. Invariant:
a plot shows its intervals and says how they were made; values of what was varied are told apart by shade and by name,
and what was not measured is left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.report.coder_facts import LONGEST, CoderFacts
from nlrewrite.report.coder_wording import OVER
from nlrewrite.report.curves import DASHED
from nlrewrite.report.drawing import BLUE, GREY, INK, MUTED, draw, end_labels, label_powers
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup, visible
from nlrewrite.report.wording import many, percent
from nlrewrite.report.wording import number as written

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Row = dict[str, Any]
NAMED_AT_MOST = 10
"""Lines or points of one panel that are named; of more, so many spread over all."""
FAINTEST = 0.3
LETTER, LINE = 0.02, 0.04
"""Width of a letter and half the height of a line, as shares of a panel."""
CURVES = (
    ("fvu", "Variance left unexplained", True),
    ("l0", "Latents active on a token", False),
    ("dead_share", "Latents that are dead", True),
    ("learning_rate", "Learning rate", False),
)


# -- training ---------------------------------------------------------------------------------------------------------


def training(coders: Sequence[CoderFacts]) -> Figure | None:
    """How every coder learned, over the tokens it has seen."""
    learned = [coder for coder in coders if coder.curve]
    panels, rows = [], []
    for key, title, share in CURVES:
        lines = [(coder, *_points(coder, key)) for coder in learned]
        lines = [line for line in lines if len(line[1])]
        if lines:
            panels.append(_learning(key, title, share, lines))
            rows += [
                {"coder": coder.name, "measure": key, "tokens": at, "value": value}
                for coder, x, y in lines
                for at, value in zip(x.tolist(), y.tolist(), strict=True)
            ]
    if not panels:
        return None
    several = " Stronger lines have higher values of what was varied." if len(learned) > 1 else ""
    return Figure(
        "coder-training",
        "How the coders learned" if len(learned) > 1 else "How the coder learned",
        f"Over the tokens seen in training. What is left unexplained is measured on held-out text, all else on the "
        f"batches themselves.{several}",
        tuple(panels),
        frame(rows),
    )


def _points(coder: CoderFacts, key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(coder.tokens(each), each[key]) for each in coder.curve if each.get(key) is not None]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _learning(key: str, title: str, share: bool, lines: Sequence[tuple[CoderFacts, np.ndarray, np.ndarray]]) -> Markup:
    alike = all(len(y) == len(lines[0][2]) and np.allclose(y, lines[0][2]) for _, _, y in lines)
    lowest, highest = (of(float(of(y)) for _, _, y in lines) for of in (min, max))
    log = key == "fvu" and 0 < lowest < 0.1 * highest

    def plot(axes: "Axes") -> None:
        labels = []
        for (coder, x, y), shade in zip(lines, shades(len(lines)), strict=True):
            axes.plot(x, y, color=BLUE, alpha=shade, linewidth=1.5, marker="o" if len(x) == 1 else None, markersize=3)
            labels.append((float(y[-1]), coder.name, INK))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
        if log:
            axes.set_yscale("log")
            _ticks(axes.yaxis)
            axes.set_ylim(0.8 * lowest, 1.25 * highest)
            labels = [(_height(y, axes.get_ylim()), name, colour) for y, name, colour in labels]
        else:
            axes.set_ylim(0, highest * 1.08 or 1.0)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.set_title(f"{title} (log scale)" if log else title)
        axes.set_xlabel("tokens")
        if len(lines) > 1:
            end_labels(axes, [(labels[0][0], "all of them", MUTED)] if alike else spread(labels))

    told = ", ".join(f"{coder.name} {_said(float(y[-1]), share)}" for coder, _, y in lines[:NAMED_AT_MOST])
    return draw(f"learning-{key}", f"{title} over tokens, at the end: {told}.", plot)


# -- the front --------------------------------------------------------------------------------------------------------


def frontier(found: Row, coders: Sequence[CoderFacts]) -> Figure | None:
    """Mean active latents against the loss with the coder in place, between the original model and mean ablation."""
    rows, names = in_order(found, coders)
    if len({row["site"] for row in rows}) > 1:
        return None
    named = found["over"] in OVER
    short = {coder.label: visible(coder.value)[:LONGEST] if named else coder.name for coder in coders}
    beside = f"Beside a point, where there is room: its {OVER[found['over']]}." if named else ""
    original = found["original"]["ce"]
    mean = next(each for each in found["ablations"] if each["arm"] == "mean")
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["l0"])
    l0 = [max(row["l0"], 0.1) for row in rows]

    def points(axes: "Axes", base: float) -> None:
        axes.plot([max(row["l0"], 0.1) for row in front], [base + row["delta_ce"] for row in front], color=BLUE, lw=1.2)
        for row, x in zip(rows, l0, strict=True):
            y = base + row["delta_ce"]
            reach = [[row["delta_ce"] - row["delta_ce_low"]], [row["delta_ce_high"] - row["delta_ce"]]]
            colour = BLUE if row["front"] else GREY
            axes.errorbar([x], [y], yerr=reach, color=colour, elinewidth=1.3)
            axes.plot([x], [y], marker="o", markersize=6, color=colour, markerfacecolor=colour)
        axes.set_xscale("log")
        _ticks(axes.xaxis)
        axes.set_xlim(min(l0) / 1.35, max(l0) * 1.6)
        axes.set_xlabel("mean active latents on a token (log scale)")

    def name_points(axes: "Axes", base: float) -> None:
        where = [(x, base + row["delta_ce"]) for row, x in zip(rows, l0, strict=True)]
        labels = [short[row["label"]] for row in rows]
        for at, above in apart(axes.transAxes.inverted().transform(axes.transData.transform(where)), labels):
            offset = (6, 5) if above else (6, -13)
            axes.annotate(labels[at], where[at], offset, textcoords="offset points", color=INK, fontsize=10)

    def whole(axes: "Axes") -> None:
        points(axes, original)
        ends = [(original, "original model"), (mean["ce"], "output at its mean")]
        for y, _ in ends:
            axes.axhline(y, color=MUTED, linewidth=1.1, linestyle=DASHED)
        low, high = min(original, mean["ce"]), max(mean["ce"], *(row["ce"] for row in rows))
        pad = 0.06 * (high - low or 1.0)
        axes.set_ylim(low - pad, high + pad)
        axes.set_title("Between the model and the site's mean")
        axes.set_ylabel("next-token loss, nats")
        end_labels(axes, [(y, label, MUTED) for y, label in ends])
        name_points(axes, original)

    def close(axes: "Axes") -> None:
        points(axes, 0.0)
        highest = max(row["delta_ce_high"] for row in rows)
        lowest = min(0.0, *(row["delta_ce_low"] for row in rows))
        axes.axhline(0, color=MUTED, linewidth=1.1, linestyle=DASHED)
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.12 * (highest - lowest or 1.0))
        axes.set_title("The coders alone")
        axes.set_ylabel("added loss, nats per token")
        name_points(axes, 0.0)

    told = ", ".join(f"{names[row['label']]} {written(row['delta_ce'])} at {row['l0']:.1f} latents" for row in rows)
    off = len(rows) - len(front)
    left = f" {many(off, 'coder')} in grey: another has no more active latents and no more loss." if off else ""
    return Figure(
        "frontier",
        "What a coder costs by how many latents it keeps active",
        f"Each point is a coder in place of {coders[0].place}. Bars: 95% bootstrap intervals over document groups of "
        f"the difference to the original model on the same text. The line joins the coders that no other beats.{left} "
        f"{beside}",
        (
            draw("frontier-whole", f"Loss against mean active latents. Added loss: {told}.", whole),
            draw("frontier-close", f"Added loss against mean active latents: {told}.", close),
        ),
        frame(
            {
                "coder": names[row["label"]],
                **{
                    name: row[name]
                    for name in ("l0", "ce", "delta_ce", "delta_ce_low", "delta_ce_high", "recovered", "front")
                },
                "original": original,
                "mean": mean["ce"],
            }
            for row in rows
        ),
    )


# -- within -----------------------------------------------------------------------------------------------------------


def shades(count: int) -> list[float]:
    """Opacities of so many lines in order, the last one full."""
    return [1.0] if count == 1 else np.linspace(FAINTEST, 1.0, count).tolist()


def spread_over(count: int) -> list[int]:
    """Which of so many are named: all, or as many as fit, the first and the last among them."""
    return sorted({round(each) for each in np.linspace(0, count - 1, min(count, NAMED_AT_MOST))})


def apart(where: np.ndarray, labels: Sequence[str]) -> list[tuple[int, bool]]:
    """Which points are named, above or below them, so that no name lies on another; `where` in shares of the axes.

    From the left; a point whose neighbours leave no room stays without a name.
    """
    placed: list[tuple[float, float, float]] = []
    found = []
    for at in sorted(range(len(labels)), key=lambda at: where[at][0]):
        x, y = where[at]
        width = 0.03 + LETTER * len(labels[at])
        for above in (True, False):
            line = y + (LINE if above else -LINE)
            if all(x > end or x + width < start or abs(line - other) > 1.5 * LINE for start, end, other in placed):
                placed.append((float(x), float(x + width), float(line)))
                found.append((at, above))
                break
    return found


def spread(labels: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    return [labels[at] for at in spread_over(len(labels))]


def in_order(found: Row, coders: Sequence[CoderFacts]) -> tuple[list[Row], dict[str, str]]:
    """What was measured in the coders' order, and what they are called."""
    measured = {row["label"]: row for row in found["coders"]}
    return [measured[coder.label] for coder in coders], {coder.label: coder.name for coder in coders}


def _said(value: float, share: bool) -> str:
    return percent(value) if share else f"{value:.3g}"


def _height(value: float, limits: tuple[float, float]) -> float:
    """Where on a linear axis with these limits a value would stand as it does on the logarithmic one."""
    low, high = limits
    return low + (high - low) * float(np.log(value / low) / np.log(high / low))


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _ticks(axis: "Axis") -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of every power of ten, written plainly."""
    from matplotlib.ticker import LogLocator

    label_powers(axis, plain=True)
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))


def frame(rows: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(list(rows))
