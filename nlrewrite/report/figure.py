"""A figure: its words, its panels, and a table of exactly what they draw; on the page, and as files of its own.

In: panels made for the page and a pandas table. Out: `<name>.svg`, which needs nothing but itself and is read on white,
and `<name>.parquet`. Invariant: every figure of a report has both files, and equal data give equal bytes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nlrewrite.report.markup import Markup, element

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "figures"
ON_WHITE = {
    "--ink": "#1d1f23", "--muted": "#5b616a", "--rule": "#dedad2", "--page": "#ffffff",
    "--blue": "#1f5fae", "--orange": "#b95a14", "--grey": "#85898f", "--purple": "#76479f",
}  # fmt: skip
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
GAP, MARGIN = 36.0, 16.0


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    panels: tuple[Markup, ...]
    table: "pd.DataFrame"


def write(figures: Iterable[Figure], folder: Path) -> None:
    """Both files of every figure."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (folder / f"{figure.name}.svg").write_text(standalone(figure.panels, figure.title), encoding="utf-8")
        table = pa.Table.from_pandas(figure.table, preserve_index=False).replace_schema_metadata(None)
        pq.write_table(table, folder / f"{figure.name}.parquet", compression="zstd", store_schema=False)


def standalone(panels: Sequence[Markup], title: str) -> str:
    """The panels side by side in one SVG file, in the colours of a white page."""
    placed, at, height = [], MARGIN, 0.0
    for panel in panels:
        found = re.match(r'<svg [^>]*viewBox="([^"]*)"', panel)
        assert found is not None, "a panel is an svg"
        _, _, wide, high = (float(each) for each in found[1].split())
        where = f'<svg x="{at:g}" y="{MARGIN:g}" width="{wide:g}" height="{high:g}" overflow="visible" '
        placed.append(Markup(panel.replace("<svg ", where, 1)))
        at += wide + GAP
        height = max(height, high)
    width, height = at - GAP + MARGIN, height + 2 * MARGIN
    drawn = element(
        "svg",
        element("title", title),
        element("rect", width="100%", height="100%", fill=ON_WHITE["--page"]),
        *placed,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        font_family=FONT,
        fill=ON_WHITE["--ink"],
    )
    for variable, colour in ON_WHITE.items():
        drawn = drawn.replace(f"var({variable})", colour)
    return drawn + "\n"
