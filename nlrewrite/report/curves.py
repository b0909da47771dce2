"""Lines with their bands over the share of latents replaced, or over anything else that grows.

In: lines of points, each with its interval. Out: a panel for the page and the rows of its table. Invariant: what the
table holds is what is drawn, point for point.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlrewrite.report.drawing import draw, end_labels
from nlrewrite.report.markup import Markup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

QUARTERS = [0, 0.25, 0.5, 0.75, 1]
IN_PERCENT = ["0", "25%", "50%", "75%", "100%"]
DASHED = (0, (4, 3))


@dataclass(frozen=True)
class Point:
    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """`sibling`: one of several draws of one thing, of which only the first is named."""

    label: str
    colour: str
    points: tuple[Point, ...]
    dashed: bool = False
    sibling: int = 0


def table(panels: Sequence[tuple[str, Sequence[Line]]], x: str, value: str) -> "pd.DataFrame":
    """One row per point: the panel, the line, which draw of it, and the numbers under their names."""
    import pandas as pd

    rows = [
        {
            "panel": panel,
            "line": line.label,
            "draw": line.sibling,
            x: point.x,
            value: point.value,
            f"{value}_low": point.low,
            f"{value}_high": point.high,
        }
        for panel, lines in panels
        for line in lines
        for point in line.points
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "draw", x, value, f"{value}_low", f"{value}_high"])


def by_share(
    name: str, title: str, ylabel: str, lines: Sequence[Line], limits: tuple[float, float] | None = None
) -> Markup:
    """Lines over the share of latents replaced, named where all are."""
    low, high = limits or _limits(lines)

    def plot(axes: "Axes") -> None:
        siblings = 1 + max(line.sibling for line in lines)
        for line in lines:
            x = [point.x for point in line.points]
            ends = [point.low for point in line.points], [point.high for point in line.points]
            axes.fill_between(x, *ends, color=line.colour, alpha=0.12 + 0.12 / siblings, linewidth=0)
            style = DASHED if line.dashed else "-"
            values = [point.value for point in line.points]
            axes.plot(x, values, color=line.colour, marker="o", markersize=3, linestyle=style)
        axes.set_title(title)
        axes.set_xlabel("share of latents replaced")
        axes.set_ylabel(ylabel)
        axes.set_xlim(0, 1)
        axes.set_ylim(low, high)
        axes.set_xticks(QUARTERS, IN_PERCENT)
        end_labels(axes, [(min(line.points[-1].value, high), line.label, line.colour) for line in _named(lines)])

    told = ", ".join(f"{line.label} {line.points[-1].value:.3f}" for line in _named(lines))
    return draw(name, f"{title}: {ylabel} against the share of latents replaced. With all: {told}.", plot)


def draws(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of one arm by random draw, fractions ascending; where a row speaks for all draws together, those alone."""
    pooled = [row for row in rows if row["subset_seed"] is None]
    alone = [
        [row for row in rows if row["subset_seed"] == seed]
        for seed in sorted({row["subset_seed"] for row in rows} - {None})
    ]
    return [sorted(each, key=lambda row: row["fraction"]) for each in ([pooled] if pooled else alone)]


def _named(lines: Sequence[Line]) -> Iterator[Line]:
    return (line for line in lines if not line.sibling)


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    points = [point for line in lines for point in line.points]
    low, high = min(0.0, *(point.low for point in points)), max(point.high for point in points)
    pad = 0.05 * (high - low)
    return low - pad * (low < 0), high + pad
