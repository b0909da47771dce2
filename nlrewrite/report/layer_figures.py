"""The plots of what coders cost at several places: one layer at a time, all of them at once, all but each.

In: what a sweep over layers or a replacement measured. Out: `Figure`s with a caption and a description in words.
Invariant: every point stands with its interval beside what it is compared with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.report.coder_facts import CoderFacts
from nlrewrite.report.coder_figures import frame, in_order
from nlrewrite.report.curves import DASHED
from nlrewrite.report.drawing import BLUE, GREY, INK, MUTED, ORANGE, PAGE, draw
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup
from nlrewrite.report.wording import number as written
from nlrewrite.report.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
ENDS = ("", "_low", "_high")


def by_value(found: Row, coders: Sequence[CoderFacts]) -> Figure | None:
    """Added loss of every coder beside its site at the mean, where the coders do not stand at one place."""
    rows, names = in_order(found, coders)
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
        frame(
            {"coder": names[row["label"]], "series": label, **_three(each, "delta_ce")}
            for label, _, some in series
            for row, each in zip(rows, some, strict=True)
        ),
    )


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
        (draw("replaced", f"Next-token loss in nats: {told}.", plot, (6.2, 3.6)),),
        frame({"arm": label, "ce": original + row["delta_ce"], **_three(row, "delta_ce")} for label, row, _ in shown),
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
        frame(
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
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.set_title(title, pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.4, handlelength=1.2)

    def value(row: Row) -> str:
        return percent(row[key]) if share else written(row[key])

    told = "; ".join(
        f"{label}: " + ", ".join(f"{one} {value(row)}" for one, row in zip(names, rows, strict=True))
        for label, _, rows in series
    )
    return draw(name, f"{title}. {told}.", plot)


def _three(row: Row, key: str) -> Row:
    return {f"{key}{end}": row[f"{key}{end}"] for end in ENDS}
