"""What a probe found, as a Markdown table for a terminal and for the Prefect UI.

In: the `probes` of results.json. Out: a table for each. Invariant: light to import, and every figure has its interval.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlrewrite.terminal import interval, number, table

Row = Mapping[str, Any]
Cell = Callable[[Row], str]


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """A table for each probe of a run, by its name; none for a run that asked nothing."""
    return {name: _table(name, told["rows"]) for name, told in results.get("probes", {}).items()}


def _table(name: str, rows: Sequence[Row]) -> str:
    if name == "ladder":  # all latents replaced, or the most of them that were
        rows = [row for row in rows if row["fraction"] == max(each["fraction"] for each in rows)]
    texts, figures = COLUMNS[name]
    cells = [[of(row) for of in (*texts.values(), *figures.values())] for row in rows]
    return table((*texts, *figures), cells, right=tuple(figures))


def _text(key: str) -> Cell:
    return lambda row: str(row[key])


def _number(key: str) -> Cell:
    return lambda row: number(row[key])


def _interval(key: str) -> Cell:
    return lambda row: interval(row, key)


def _effect(row: Row) -> str:
    unmoved = row["rung"] == 0 or row["effect_low"] == row["effect_high"]
    return str(row["note"]) if unmoved else interval(row, "effect")


def _quality(row: Row) -> str:
    return f"specificity {row['specificity']:g}" if row["kind"] == "flags" else f"AUC {row['auc']:g}"


def _drawn(row: Row) -> str:
    if row["active"] is None:
        return f"{row['contexts']:,.0f} at random"
    return f"{row['active']:.0f} active, {row['inactive']:.0f} not"


COLUMNS: dict[str, tuple[dict[str, Cell], dict[str, Cell]]] = {
    "ladder": (
        {"simulator": _text("simulator"), "change": _text("change")},
        {"above the mean, nats": _interval("above_mean"), "effect": _effect, "gap closed": _interval("gap_closed")},
    ),
    "requirement": (
        {"simulator": _quality, "calibrator": _text("calibrator")},
        {
            "gap closed": _interval("gap_closed"),
            "error against the mean's": _number("error_ratio"),
            "in theory": _number("error_ratio_in_theory"),
        },
    ),
    "sample-size": (
        {"simulator": _text("simulator"), "contexts": _drawn, "calibrator": _text("calibrator")},
        {"questions of a latent": lambda row: f"{row['questions']:,.0f}", "gap closed": _interval("gap_closed")},
    ),
}
