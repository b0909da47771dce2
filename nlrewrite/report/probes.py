"""Figures and tables of what the probes found: the ladder, how good a simulator must be, how much calibration takes.

In: the artifacts of the probes that were asked for (`rows.parquet`, `summary.json`). Out: `Figure`s and tables.
Invariant: what leaves a frame is said to, and stands in the table; every effect stands with its interval.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.report.curves import DASHED
from nlrewrite.report.drawing import BLUE, GREY, INK, MUTED, ORANGE, PAGE, PURPLE, draw, end_labels, label_powers
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup, element
from nlrewrite.report.tables import Column, row, table
from nlrewrite.report.wording import MISSING, number, percent
from nlrewrite.specs import PROBES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Row = dict[str, Any]
el = element


@dataclass(frozen=True)
class Asked:
    """A probe and its answer."""

    name: str
    rows: tuple[Row, ...]
    summary: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {"summary": dict(self.summary), "rows": list(self.rows)}

    @property
    def frame(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(list(self.rows))


def gather(inputs: Mapping[str, Folder]) -> list[Asked]:
    """The answers of the probes that are among a report's inputs."""
    import pyarrow.parquet as pq

    found = []
    for name in PROBES:
        if name in inputs:
            rows = pq.read_table(inputs[name].path("rows.parquet")).to_pylist()
            summary = json.loads(inputs[name].path("summary.json").read_text(encoding="utf-8"))
            found.append(Asked(name, tuple(_plain(each) for each in rows), summary))
    return found


def figures(asked: Sequence[Asked]) -> dict[str, Figure]:
    return {each.name: FIGURES[each.name](each) for each in asked}


def tables(each: Asked) -> list[Markup]:
    return ladder_tables(each) if each.name == "ladder" else []


def _plain(found: Row) -> Row:
    """A row in which what is not a number is missing."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in found.items()
    }


# -- the ladder -------------------------------------------------------------------------------------------------------

TALL = 0.27
"""Inches of a rung."""


def ladder(asked: Asked) -> Figure:
    """One column per simulator, one row per rung: the loss added over mean ablation, all latents replaced."""
    rows = [each for each in asked.rows if each["fraction"] == max(each["fraction"] for each in asked.rows)]
    simulators = list(dict.fromkeys(str(each["simulator"]) for each in rows))
    of = {name: sorted((r for r in rows if r["simulator"] == name), key=lambda r: r["rung"]) for name in simulators}
    return Figure(
        "ladder",
        "From the published protocol to ours",
        "Each row changes one thing and keeps what was changed above it. Dots: added loss of the rewriting less that "
        f"of mean ablation, {_all(rows)} of the latents replaced; left of the line the sentences are better than the "
        "mean. Bars: 95% bootstrap over document groups, not paired in the first rows, as published, and cut off at "
        "the frame; a dot outside it is written at its edge.",
        tuple(_rungs(name, of[name]) for name in simulators),
        asked.frame,
    )


def _all(rows: Sequence[Row]) -> str:
    share = rows[0]["fraction"]
    return "all" if share == 1 else percent(share)


def _rungs(simulator: str, rungs: Sequence[Row]) -> Markup:
    paired = [each for each in rungs if each["rung"] >= _paired_from(rungs)]
    ends = [each[f"above_mean{end}"] for each in paired for end in ("", "_low", "_high")]
    reach = max([1e-6, *map(abs, ends)])
    low, high = min(-0.35 * reach, 1.15 * min(ends)), max(0.35 * reach, 1.6 * max(ends))

    def plot(axes: "Axes") -> None:
        for at, each in enumerate(reversed(rungs)):
            value = each["above_mean"]
            colour = BLUE if each["above_mean_high"] < 0 else GREY
            if not low < value < high:
                edge, side, said = (high, "right", f"{number(value, 2)} ▸") if value >= high else (
                    low, "left", f"◂ {number(value, 2)}")  # fmt: skip
                axes.text(edge, at, said, ha=side, va="center", color=MUTED, fontsize=10)
                continue
            bar = np.clip([each["above_mean_low"], each["above_mean_high"]], low, high)
            axes.plot(bar, [at, at], color=colour, linewidth=4.5, alpha=0.45, solid_capstyle="butt")
            axes.plot([value], [at], color=colour, marker="o", markersize=5.5)
        axes.axvline(0, color=INK, linewidth=1, linestyle=DASHED)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(-0.6, len(rungs) - 0.4)
        axes.set_yticks(range(len(rungs)), [str(each["change"]) for each in reversed(rungs)])
        axes.set_title(simulator)
        axes.set_xlabel("added loss less mean ablation's, nats")

    from matplotlib.ticker import MaxNLocator

    last = rungs[-1]
    told = f"{simulator}: from {number(rungs[0]['above_mean'])} to {number(last['above_mean'])} nats over mean ablation"
    return draw(f"ladder-{_slug(simulator)}", f"{told}, in {len(rungs)} steps.", plot, (6.6, 1.1 + TALL * len(rungs)))


def _paired_from(rungs: Sequence[Row]) -> int:
    """The rung from which on intervals are those of paired differences."""
    named = [each["rung"] for each in rungs if each["name"] == "paired"]
    return named[0] if named else len(rungs) // 2


def ladder_tables(asked: Asked) -> list[Markup]:
    """One table per fraction: the paired effect of every change, for every simulator."""
    found = []
    simulators = list(dict.fromkeys(str(each["simulator"]) for each in asked.rows))
    columns = [Column("Change")]
    for name in simulators:
        columns += [Column(f"{name}: over the mean", True), Column("effect", True)]
    for fraction in sorted({each["fraction"] for each in asked.rows}, reverse=True):
        rows = {(r["simulator"], r["rung"]): r for r in asked.rows if r["fraction"] == fraction}
        body = []
        for rung in sorted({place for _, place in rows}):
            cells: list[object] = [_change([r for (_, place), r in rows.items() if place == rung])]
            for name in simulators:
                each = rows.get((name, rung))
                cells += [_with_ends(each, "above_mean"), _effect(each)]
            body.append(row(columns, cells))
        words = f"The ladder, {'all' if fraction == 1 else percent(fraction)} latents replaced"
        about = ": added loss less mean ablation's in nats, and the paired effect of each change; below 0 is better."
        found.append(table([el("strong", words), about], columns, body, words, class_="ladder"))
    return found


def _change(same: Sequence[Row]) -> list[object]:
    """What is changed, and where that cannot matter why."""
    notes: dict[str, list[str]] = {}
    for each in same:
        if each.get("note"):
            notes.setdefault(str(each["note"]), []).append(str(each["simulator"]))
    told = (note if len(named) == len(same) else f"{', '.join(named)}: {note}" for note, named in notes.items())
    return [str(same[0]["change"]), *(el("small", note) for note in told)]


def _effect(each: Row | None) -> object:
    if each is None or each["rung"] == 0 or (each["effect"] == 0 and each["effect_low"] == each["effect_high"]):
        return MISSING
    return _with_ends(each, "effect")


def _with_ends(each: Row | None, name: str) -> object:
    if each is None or each[name] is None:
        return MISSING
    ends = f"[{number(each[f'{name}_low'])}, {number(each[f'{name}_high'])}]"
    return [number(each[name]), el("small", ends)]


def _slug(name: str) -> str:
    return "".join(character if character.isalnum() and character.isascii() else "-" for character in name)


# -- how good a simulator must be -------------------------------------------------------------------------------------

COLOURS = {"raw": ORANGE, "none": ORANGE, "quantile-6": PURPLE, "quantile-7": GREY, "hurdle": BLUE}
LOWEST = -1.0
"""Gap closed below which lines are cut off: as far below the mean as the coder is above it."""


def requirement(asked: Asked) -> Figure:
    """Gap closed by simulators of known quality: against false alarms, and against the area under the ROC curve."""
    flags = sorted((r for r in asked.rows if r["kind"] == "flags"), key=lambda each: each["specificity"])
    scores = sorted((r for r in asked.rows if r["kind"] == "score"), key=lambda each: each["auc"])
    even = asked.summary["break_even_specificity"]
    measured = even["measured"]
    told = "" if measured is None else f" Here flags at face value break even at {_share(measured)} specificity"
    theory = even["this base rate"]
    if told and theory is not None:
        told += f" ({_share(theory)} in theory)"
    published, rate = even["published base rate"], asked.summary["published_rate"]
    if published is not None:
        told += f"{';' if told else ' In theory flags break even'} at the published base rate of {number(rate, 5)} "
        told += f"it takes {_share(published)}."
    return Figure(
        "requirement",
        "How good a simulator must be",
        f"Oracles that know the true activations and are wrong as often as set, independently for every latent and "
        f"token; all latents replaced. Base rate here: {number(asked.summary['rate'], 4)}, the mean over latents "
        f"weighted by energy.{told} Lines below −100% are cut off. Bands: 95% bootstrap over document groups.",
        (
            _quality(
                "requirement-specificity",
                f"Flags of sensitivity {number(asked.summary['sensitivity'], 2)}",
                "specificity",
                flags,
                measured,
            ),
            _quality("requirement-auc", "Scores", "area under the ROC curve", scores, None),
        ),
        asked.frame,
    )


def _quality(name: str, title: str, axis: str, rows: Sequence[Row], even: float | None) -> Markup:
    """Gap closed against specificity or AUC, on a logarithmic axis of what lacks to 1."""
    key = "specificity" if axis == "specificity" else "auc"
    lines = {
        calibrator: [each for each in rows if each["calibrator"] == calibrator and each["gap_closed"] is not None]
        for calibrator in dict.fromkeys(str(each["calibrator"]) for each in rows)
    }
    ticks = sorted({each[key] for each in rows})

    def plot(axes: "Axes") -> None:
        labels = []
        for calibrator, some in lines.items():
            if not some:
                continue
            colour = COLOURS.get(calibrator, GREY)
            x = [1 - each[key] for each in some]
            low, high, value = ([each[f"gap_closed{end}"] for each in some] for end in ("_low", "_high", ""))
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(x, value, color=colour, marker="o", markersize=3.6)
            labels.append((float(np.clip(value[-1], LOWEST, 1)), calibrator, colour))
        axes.axhline(0, color=INK, linewidth=1, linestyle=DASHED)
        if even is not None:
            axes.axvline(1 - even, color=MUTED, linewidth=1, linestyle=DASHED)
            axes.text(1 - even, LOWEST * 0.97, f" {_share(even)}", color=MUTED, fontsize=10, va="bottom")
        axes.set_xscale("log")
        axes.set_xlim(1 - min(ticks), (1 - max(ticks)) * 0.85)
        axes.set_xticks([1 - each for each in ticks], [f"{each:g}" for each in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", rotation=40)
        axes.set_ylim(LOWEST, 1.05)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1], ["−100%", "−50%", "0", "50%", "100%"])
        axes.set_title(title)
        axes.set_xlabel(axis)
        axes.set_ylabel("gap closed")
        end_labels(axes, labels)

    from matplotlib.ticker import NullFormatter

    told = "; ".join(f"{name} {', '.join(percent(r['gap_closed']) for r in some)}" for name, some in lines.items())
    return draw(name, f"{title}: gap closed at {axis} {', '.join(f'{each:g}' for each in ticks)}: {told}.", plot)


def _share(value: float) -> str:
    """A share near 1 with as many nines as it has."""
    digits = max(0, int(np.ceil(-np.log10(max(1 - value, 1e-9)))) - 1)
    return f"{round(100 * value, digits):.9g}%"


# -- how much calibration takes ---------------------------------------------------------------------------------------


def sample_size(asked: Asked) -> Figure:
    """Gap closed against the questions asked of each latent, drawn at random and by whether it is active."""
    simulators = list(dict.fromkeys(str(each["simulator"]) for each in asked.rows))
    return Figure(
        "sample-size",
        "How many contexts calibration takes",
        f"Gap closed on the report split by calibrators fitted on ever more contexts of the calibrate split, of which "
        f"{asked.summary['contexts']:,} are there. Filled and solid: contexts at random; hollow and dashed: so many "
        f"in which the latent is active and so many in which it is not, with the drawing undone by weights. Base "
        f"rate: {number(asked.summary['rate'], 4)}. Bars: 95% bootstrap over document groups.",
        tuple(_sizes(name, [each for each in asked.rows if each["simulator"] == name]) for name in simulators),
        asked.frame,
    )


def _sizes(simulator: str, rows: Sequence[Row]) -> Markup:
    rows = [each for each in rows if each["gap_closed"] is not None]
    lowest = min([0.0, *(each["gap_closed"] for each in rows)])
    below = max(lowest - 0.05, LOWEST)

    def plot(axes: "Axes") -> None:
        names = list(dict.fromkeys(str(each["calibrator"]) for each in rows))
        for beneath, calibrator in enumerate(reversed(names)):  # wider, the further down: lines may coincide
            colour = COLOURS.get(calibrator, GREY)
            for drawn, hollow in (("random", False), ("by activity", True)):
                some = sorted(
                    (each for each in rows if (each["calibrator"], each["drawn"]) == (calibrator, drawn)),
                    key=lambda each: each["questions"] if hollow else each["contexts"],
                )
                if not some:
                    continue
                x = [each["questions"] if hollow else each["contexts"] for each in some]
                value = [each["gap_closed"] for each in some]
                ends = [[v - r["gap_closed_low"] for v, r in zip(value, some, strict=True)],
                        [r["gap_closed_high"] - v for v, r in zip(value, some, strict=True)]]  # fmt: skip
                axes.errorbar(
                    x,
                    value,
                    yerr=np.maximum(ends, 0),
                    color=colour,
                    marker="o",
                    markersize=5 + beneath,
                    markerfacecolor=PAGE if hollow else colour,
                    linestyle="--" if hollow else "-",
                    linewidth=1.4 + 0.7 * beneath,
                    elinewidth=1,
                    zorder=9 - beneath,
                    label=None if hollow else calibrator,
                )
        axes.axhline(0, color=INK, linewidth=1, linestyle=DASHED)
        axes.set_xscale("log")
        label_powers(axes.xaxis, plain=True)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=9))
        axes.set_ylim(below, 1.05)
        axes.set_yticks([each for each in (-1, -0.5, 0, 0.5, 1) if each >= below])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_title(simulator)
        axes.set_xlabel("contexts asked about, for each latent")
        axes.set_ylabel("gap closed")
        axes.legend(loc="upper left", handlelength=1.6)

    from matplotlib.ticker import FuncFormatter, LogLocator

    told = "; ".join(
        f"{each['calibrator']} {each['drawn']} {each['questions'] if each['active'] else each['contexts']:.0f}: "
        f"{percent(each['gap_closed'])}"
        for each in rows
    )
    return draw(f"sample-size-{_slug(simulator)}", f"{simulator}: gap closed by contexts: {told}.", plot)


FIGURES = {"ladder": ladder, "requirement": requirement, "sample-size": sample_size}
