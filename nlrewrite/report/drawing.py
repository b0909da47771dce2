"""Matplotlib's SVG made fit for the page: its colours are the page's, its text is text, its bytes are always the same.

In: a function that draws on axes with the colours named here. Out: an `<svg>` whose ids are its own, without dates,
references or fonts. Invariant: equal data give equal bytes, and a drawing follows the page into the dark.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nlrewrite.report.markup import Markup, element

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, MUTED, RULE, PAGE = "#010101", "#020202", "#030303", "#040404"
BLUE, ORANGE, GREY, PURPLE = "#050505", "#060606", "#070707", "#080808"
VARIABLES = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule", PAGE: "--page",
    BLUE: "--blue", ORANGE: "--orange", GREY: "--grey", PURPLE: "--purple",
}  # fmt: skip
"""Colours that stand for the page's own; as black as they are, no plot would use them by accident."""

PANEL = (6.2, 4.0)
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.titlesize": 11.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(name: str, described: str, plot: "Callable[[Axes], None]", size: tuple[float, float] = PANEL) -> Markup:
    """What `plot` draws on one pair of axes. `described` is read out in its place."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {**SETTINGS, "svg.hashsalt": f"nlrewrite {name}"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.add_subplot())
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(written, metadata=nothing)
    return _for_the_page(written.getvalue(), name, described)


def _for_the_page(svg: str, name: str, described: str) -> Markup:
    found = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>', svg, re.DOTALL)
    assert found is not None, "matplotlib wrote no svg"
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", found[2], flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda each: each[0] if each[1] in used else "", body)
    for one in sorted(used):
        body = re.sub(rf'(id="|href="#|url\(#){re.escape(one)}(?=["\)])', rf"\g<1>{name}-{one}", body)
    body = re.sub(r" font-family: [^;]*;", "", body)
    body = re.sub(r"font: (\S+) [^;]*;", r"font-size: \1;", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"\s*\n\s*", " ", body)
    body = re.sub(r"> <", "><", body).strip()
    return element("svg", Markup(body), role="img", aria_label=described, viewBox=found[1], class_="plot")


def end_labels(axes: "Axes", labels: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Names of lines at their right ends, moved apart where they would lie on one another. (y, text, colour)"""
    low, high = axes.get_ylim()
    heights = sorted(((y - low) / (high - low), label, colour) for y, label, colour in labels)
    placed: list[float] = []
    for height, _, _ in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    over = max(0.0, placed[-1] - 1.0) if placed else 0.0
    for at in reversed(range(len(placed))):  # what was pushed beyond the top pushes back
        top = 1.0 if at == len(placed) - 1 else placed[at + 1] - gap
        placed[at] = min(placed[at], top) if over else placed[at]
    for (_, label, colour), height in zip(heights, placed, strict=True):
        axes.text(1.02, height, label, color=colour, transform=axes.transAxes, va="center", fontsize=10.5)


def label_powers(axis: "Axis", plain: bool = False) -> None:
    """Ticks of a logarithmic axis as 10⁻³, or plainly as 1000."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else power(value)))
    axis.set_minor_formatter(NullFormatter())


def power(value: float) -> str:
    exponent = round(math.log10(value))
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
