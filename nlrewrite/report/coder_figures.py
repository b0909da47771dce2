"""The plots of a page about coders: how they learned, what they cost by what they keep, and what layers cost together.

In: facts of coders and what was measured of them. Out: `Figure`s with a caption and a description in words. Invariant:
a plot shows its intervals and says how they were made; values of what was varied are told apart by shade and by name,
and what was not measured is left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.report.coder_facts import CoderFacts
from nlrewrite.report.curves import DASHED
from nlrewrite.report.drawing import BLUE, GREY, INK, MUTED, ORANGE, PAGE, draw, end_labels, label_powers
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup
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
    several = " Darker lines have higher values of what was varied." if len(learned) > 1 else ""
    return Figure(
        "coder-training",
        "How the coders learned" if len(learned) > 1 else "How the coder learned",
        f"Over the tokens seen in training. What is left unexplained is measured on held-out text, all else on the "
        f"batches themselves.{several}",
        tuple(panels),
        _frame(rows),
    )


def _points(coder: CoderFacts, key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(coder.tokens(each), each[key]) for each in coder.curve if each.get(key) is not None]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _learning(key: str, title: str, share: bool, lines: Sequence[tuple[CoderFacts, np.ndarray, np.ndarray]]) -> Markup:
    alike = all(len(y) == len(lines[0][2]) and np.allclose(y, lines[0][2]) for _, _, y in lines)

    def plot(axes: "Axes") -> None:
        labels = []
        for (coder, x, y), shade in zip(lines, shades(len(lines)), strict=True):
            axes.plot(x, y, color=BLUE, alpha=shade, linewidth=1.5, marker="o" if len(x) == 1 else None, markersize=3)
            labels.append((float(y[-1]), coder.name, INK))
        highest = max(float(y.max()) for _, _, y in lines)
        axes.set_ylim(0, min(1.05, highest * 1.05) if key == "fvu" else highest * 1.08 or 1.0)
        axes.set_xlim(left=0)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: percent(value))
        axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
        axes.set_title(title)
        axes.set_xlabel("tokens")
        if len(lines) > 1:
            end_labels(axes, [(labels[0][0], "all of them", MUTED)] if alike else spread(labels))

    told = ", ".join(f"{coder.name} {_said(float(y[-1]), share)}" for coder, _, y in lines[:NAMED_AT_MOST])
    return draw(f"learning-{key}", f"{title} over tokens, at the end: {told}.", plot)


# -- the front --------------------------------------------------------------------------------------------------------


def frontier(found: Row, coders: Sequence[CoderFacts]) -> Figure | None:
    """Mean active latents against the loss with the coder in place, between the original model and mean ablation."""
    rows, names = _rows(found, coders)
    if len({row["site"] for row in rows}) > 1:
        return None
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
        for at in spread_over(len(rows)):
            row = sorted(rows, key=lambda row: row["l0"])[at]
            where = max(row["l0"], 0.1), base + row["delta_ce"]
            axes.annotate(names[row["label"]], where, (7, 5), textcoords="offset points", color=INK, fontsize=10)

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

    def close(axes: "Axes") -> None:
        points(axes, 0.0)
        highest = max(row["delta_ce_high"] for row in rows)
        lowest = min(0.0, *(row["delta_ce_low"] for row in rows))
        axes.axhline(0, color=MUTED, linewidth=1.1, linestyle=DASHED)
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.12 * (highest - lowest or 1.0))
        axes.set_title("The coders alone")
        axes.set_ylabel("added loss, nats per token")

    told = ", ".join(f"{names[row['label']]} {written(row['delta_ce'])} at {row['l0']:.1f} latents" for row in rows)
    off = len(rows) - len(front)
    left = f" {many(off, 'coder')} in grey: another has no more active latents and no more loss." if off else ""
    return Figure(
        "frontier",
        "What a coder costs by how many latents it keeps active",
        f"Each point is a coder in place of {coders[0].place}. Bars: 95% bootstrap intervals over document groups of "
        f"the difference to the original model on the same text. The line joins the coders that no other beats.{left}",
        (
            draw("frontier-whole", f"Loss against mean active latents. Added loss: {told}.", whole),
            draw("frontier-close", f"Added loss against mean active latents: {told}.", close),
        ),
        _frame(
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


def by_value(found: Row, coders: Sequence[CoderFacts]) -> Figure | None:
    """Added loss of every coder beside its site at the mean, where the coders do not stand at one place."""
    rows, names = _rows(found, coders)
    if len({row["site"] for row in rows}) < 2:
        return None
    mean = {each["site"]: each for each in found["ablations"] if each["arm"] == "mean"}
    series = [
        ("the coder", BLUE, rows),
        ("output at its mean", GREY, [mean[row["site"]] for row in rows]),
    ]
    return Figure(
        "by-layer",
        "What the coder costs at each place",
        "Added loss over the original model with one coder in place, and with the same output set to its mean. Bars: "
        "95% bootstrap over document groups, the same text throughout.",
        (_beside("by-layer", "Added loss", [names[row["label"]] for row in rows], series, "delta_ce"),),
        _frame(
            {"coder": names[row["label"]], "series": label, **_three(each, "delta_ce")}
            for label, _, some in series
            for row, each in zip(rows, some, strict=True)
        ),
    )


# -- several layers ---------------------------------------------------------------------------------------------------


def replaced(found: Row) -> Figure:
    """The losses of the whole: nothing, everything, everything at its mean and at zero."""
    original = found["original"]["ce"]
    shown = [("original model", found["original"], MUTED), ("all replaced by coders", found["all"], BLUE)]
    together = found["together"]
    if together is not None:
        summed = {f"delta_ce{end}": together[f"summed{end}"] for end in ("", "_low", "_high")}
        shown.append(("if each cost what it does alone", summed, BLUE))
    shown += [("all outputs at their mean", found["mean"], GREY), ("all outputs at zero", found["zero"], GREY)]

    def plot(axes: "Axes") -> None:
        for place, (_, row, colour) in enumerate(reversed(shown)):
            value, low, high = (original + row[name] for name in ("delta_ce", "delta_ce_low", "delta_ce_high"))
            hollow = "summed" if row is shown[2][1] and together is not None else ""
            axes.plot([original, value], [place, place], color=colour, linewidth=2.2, alpha=0.35)
            axes.errorbar([value], [place], xerr=[[value - low], [high - value]], color=colour, elinewidth=1.4)
            axes.plot([value], [place], "o", markersize=6.5, color=colour, markerfacecolor=PAGE if hollow else colour)
            axes.annotate(
                written(value, 2),
                (value, place),
                (0, 8),
                textcoords="offset points",
                color=INK,
                fontsize=9.5,
                ha="center",
            )
        axes.axvline(original, color=MUTED, linewidth=1.1, linestyle=DASHED)
        axes.set_yticks(range(len(shown)), [label for label, _, _ in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.3)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("next-token loss, nats")
        axes.margins(x=0.08)

    told = ", ".join(f"{label} {written(original + row['delta_ce'], 2)}" for label, row, _ in shown)
    return Figure(
        "replaced",
        "Every layer named, replaced at the same time",
        "Next-token loss. Bars: 95% bootstrap intervals of the difference to the original model over document groups, "
        "the same text throughout.",
        (draw("replaced", f"Next-token loss in nats: {told}.", plot, (7.4, 3.2)),),
        _frame({"arm": label, "ce": original + row["delta_ce"], **_three(row, "delta_ce")} for label, row, _ in shown),
    )


def layers(found: Row) -> Figure:
    """Layer by layer: what it adds alone, what leaving it out saves, and what its coder leaves unexplained."""
    rows = found["layers"]
    names = [f"layer {row['layer']}" for row in rows]
    losses = [("replaced alone", BLUE, [row["alone"] for row in rows], "delta_ce")]
    if found["together"] is not None:
        losses.append(("saved by leaving it", ORANGE, [row["all_but"] for row in rows], "saved"))
    unexplained = [("in the model as it is", BLUE, [row["clean"] for row in rows], "fvu")]
    if found["together"] is not None:
        unexplained.append(("with all replaced", ORANGE, [row["patched"] for row in rows], "fvu"))
    panels = (
        ("layer-losses", "Added loss, nats per token", losses, False),
        ("layer-fvu", "Variance left unexplained", unexplained, True),
    )
    return Figure(
        "layers",
        "Layer by layer",
        "Left: what a layer's coder adds to the loss when it alone is in place, and how much of the loss of all goes "
        "when that layer is left as it is. Right: what the coder leaves unexplained of what its layer makes of the "
        "same input; with all replaced, both read what the coders below have written. Bars: 95% bootstrap over "
        "document groups.",
        tuple(
            _beside(
                name,
                title,
                names,
                [
                    (label, colour, [{f"value{end}": row[f"{key}{end}"] for end in ENDS} for row in some])
                    for label, colour, some, key in series
                ],
                "value",
                share,
            )
            for name, title, series, share in panels
        ),
        _frame(
            {
                "layer": row["layer"],
                "panel": name,
                "series": label,
                **{f"value{end}": each[f"{key}{end}"] for end in ENDS},
            }
            for name, _, series, _ in panels
            for label, _, some, key in series
            for row, each in zip(rows, some, strict=True)
        ),
    )


ENDS = ("", "_low", "_high")


def _beside(
    name: str,
    title: str,
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[Row]]],
    key: str,
    share: bool = False,
) -> Markup:
    """Points with intervals, one column for each name and one colour for each series."""

    def plot(axes: "Axes") -> None:
        shift = 0.16 if len(series) > 1 else 0.0
        for at, (label, colour, rows) in enumerate(series):
            known = [(place, row) for place, row in enumerate(rows) if row[key] is not None]
            x = [place + shift * (2 * at - (len(series) - 1)) for place, _ in known]
            y = np.array([row[key] for _, row in known], dtype=np.float64)
            low, high = (np.array([row[f"{key}{end}"] for _, row in known], dtype=np.float64) for end in ENDS[1:])
            axes.vlines(x, 0, y, color=colour, linewidth=5, alpha=0.25)
            axes.errorbar(
                x, y, yerr=[y - low, high - y], color=colour, fmt="o", markersize=5, elinewidth=1.3, label=label
            )
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 6 else 0)
        axes.set_xlim(-0.6, len(names) - 0.4)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_title(title, pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.4, handlelength=1.2)

    def value(row: Row) -> str:
        return percent(row[key]) if share else written(row[key])

    told = "; ".join(
        f"{label}: " + ", ".join(f"{one} {value(row)}" for one, row in zip(names, rows, strict=True))
        for label, _, rows in series
    )
    return draw(name, f"{title}. {told}.", plot)


# -- within -----------------------------------------------------------------------------------------------------------


def shades(count: int) -> list[float]:
    """Opacities of so many lines in order, the last one full."""
    return [1.0] if count == 1 else np.linspace(FAINTEST, 1.0, count).tolist()


def spread_over(count: int) -> list[int]:
    """Which of so many are named: all, or as many as fit, the first and the last among them."""
    return sorted({round(each) for each in np.linspace(0, count - 1, min(count, NAMED_AT_MOST))})


def spread(labels: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    return [labels[at] for at in spread_over(len(labels))]


def _rows(found: Row, coders: Sequence[CoderFacts]) -> tuple[list[Row], dict[str, str]]:
    """What was measured in the coders' order, and what they are called."""
    measured = {row["label"]: row for row in found["coders"]}
    return [measured[coder.label] for coder in coders], {coder.label: coder.name for coder in coders}


def _three(row: Row, key: str) -> Row:
    return {f"{key}{end}": row[f"{key}{end}"] for end in ENDS}


def _said(value: float, share: bool) -> str:
    return percent(value) if share else f"{value:.3g}"


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


def _frame(rows: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(list(rows))
