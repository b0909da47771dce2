"""The tables of the page: every arm, what became of the sentences, the text, the calibrators, the artifacts.

In: rows of the results and facts. Out: tables. Invariant: a table has a caption, its headers say what they head, and a
share stands beside the number it is a share of.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlrewrite.protocols import PROTOCOLS
from nlrewrite.report import wording
from nlrewrite.report.facts import Facts
from nlrewrite.report.markup import Markup, element
from nlrewrite.report.papers import Entry
from nlrewrite.report.wording import MISSING, count, many, number, percent, percent_interval

Row = dict[str, Any]
el = element


@dataclass(frozen=True)
class Column:
    name: str
    numeric: bool = False


def table(
    caption: object, columns: Sequence[Column], body: Sequence[Markup], label: str, class_: str | None = None
) -> Markup:
    """A table that scrolls by itself where the page is narrow. `label` names it for those who cannot see it."""
    head = el("tr", *(el("th", each.name, scope="col", class_="n" if each.numeric else None) for each in columns))
    inside = el("table", el("caption", caption), el("thead", head), el("tbody", *body), class_=class_)
    return el("div", inside, class_="scroll", tabindex=0, role="region", aria_label=label)


def row(columns: Sequence[Column], cells: Sequence[object]) -> Markup:
    """A row whose first cell heads it."""
    first, *others = cells
    shown = [
        el("td", cell, class_="n" if each.numeric else None) for each, cell in zip(columns[1:], others, strict=True)
    ]
    return el("tr", el("th", first, scope="row"), *shown)


# -- arms -------------------------------------------------------------------------------------------------------------

ARMS = (
    Column("Arm"),
    Column("Calibrator"),
    Column("Information used"),
    Column("Loss", True),
    Column("Added loss", True),
    Column("KL", True),
    Column("Gap closed", True),
    Column("in KL", True),
)


def arms(rows: Sequence[Row], words: str, quoted: Row) -> Markup:
    """One table of arms with all latents replaced, in groups, the headline's row set off."""
    groups: dict[str, list[Row]] = {group: [] for group in wording.GROUPS}
    for each in rows:
        groups[wording.group_of(each)].append(each)
    body = []
    for group, members in groups.items():
        if members:
            body.append(el("tr", el("th", group, colspan=len(ARMS), scope="colgroup", class_="group")))
            body += [_arm(each, each is quoted) for each in members]
    size = f": {count(rows[0]['n_contexts'])} tokens, {count(rows[0]['n_documents'])} documents."
    return table([el("strong", words), size], ARMS, body, words)


def _arm(row: Row, quoted: bool) -> Markup:
    name, about = wording.arm_name(row)
    information = str(row["information"])
    has_gap = row["gap_closed"] is not None and row["arm"] != "original"
    cells = [
        el("th", name, " (the headline)" if quoted else None, el("small", about), scope="row"),
        _calibrator(row),
        el("td", information or MISSING, title=wording.INFORMATION.get(information)),
        el("td", number(row["ce"]), class_="n"),
        el("td", number(row["delta_ce"]), _interval(row, "delta_ce"), class_="n"),
        el("td", number(row["kl"]), _interval(row, "kl"), class_="n"),
        el(
            "td",
            percent(row["gap_closed"]) if has_gap else MISSING,
            _gap_interval(row) if has_gap else None,
            class_="n",
        ),
        el("td", percent(row["gap_closed_kl"]) if has_gap else MISSING, class_="n"),
    ]
    return el("tr", *cells, class_="quoted" if quoted else None)


def _interval(row: Row, name: str) -> Markup:
    return el("small", f"[{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]")


def _gap_interval(row: Row) -> Markup | None:
    """The interval of the gap closed; an end of the scale has none."""
    low, high = row["gap_closed_low"], row["gap_closed_high"]
    return el("small", percent_interval(low, high)) if low != high else None


def _named(row: Row) -> Markup:
    """The arm's name, with what it is where that is not the same for all of the name."""
    name, about = wording.arm_name(row)
    return el(
        "th",
        name,
        el("small", about) if about != wording.arm_name({"arm": row["arm"]})[1] else None,
        scope="row",
    )


def _calibrator(row: Row) -> Markup:
    name = str(row["calibrator"] or MISSING)
    return el("td", name, title=wording.calibrator(name) or None)


STATISTICS = (
    Column("Arm"),
    Column("Calibrator"),
    Column("Over mean ablation", True),
    Column("Windows won", True),
    Column("Trimmed mean", True),
    Column("Median", True),
    Column("95th percentile", True),
    Column("KL to the coder", True),
    Column("Same first token", True),
    Column("Windows to tell", True),
)


def statistics(rows: Sequence[Row], words: str, quoted: Row) -> Markup:
    """What stands beside the means: how often, how evenly, how far from the coder, and how many windows it takes."""
    body = [_statistics(each, each is quoted) for each in rows if each["arm"] != "original"]
    about = (
        ": loss over mean ablation of the same latents, and the share of windows with less of it. Added loss over the "
        "original as the mean without a tenth of the windows at either end, as median and as 95th percentile of "
        "windows. KL to the coder counts the simulation alone; the first token is the likeliest one; last, the windows "
        "that it takes to tell the arm from mean ablation in four of five tries."
    )
    caption = [el("strong", f"{words}: beside the means"), about]
    return table(caption, STATISTICS, body, f"{words}: beside the means", class_="statistics")


def _statistics(row: Row, quoted: bool) -> Markup:
    needed = row["contexts_to_detect"]
    cells = [
        _named(row),
        _calibrator(row),
        el("td", number(row["over_mean"]), _interval(row, "over_mean"), class_="n"),
        el(
            "td",
            percent(row["win_rate"]),
            el("small", wording.percent_interval(row["win_rate_low"], row["win_rate_high"])),
            class_="n",
        ),
        *(el("td", number(row[f"{each}_delta_ce"]), class_="n") for each in ("trimmed", "median", "q95")),
        el("td", number(row["kl_coder"]), class_="n"),
        el("td", percent(row["agreement"]), class_="n"),
        el("td", MISSING if needed is None else count(int(needed)), class_="n"),
    ]
    return el("tr", *cells, class_="quoted" if quoted else None)


CURVES = (
    Column("Arm"),
    Column("Calibrator"),
    Column("Latents replaced"),
    Column("Area below mean ablation", True),
    Column("of the area above the coder", True),
    Column("Worst of all shares", True),
)


def curves(found: Sequence[Mapping[str, Any]], words: str) -> Markup:
    """One row per arm and selection: the area between its curve and mean ablation's, and a bound on all shares."""
    body = []
    for each in found:
        area, share = each["area"], each["area_share"]
        drawn = f", {each['n_subsets']} draws" if each["n_subsets"] > 1 else ""
        cells = [
            _named(dict(each)),
            _calibrator(dict(each)),
            el("td", SELECTED.get(str(each["selection"]), str(each["selection"])) + drawn),
            el("td", number(area["mean"]), el("small", f"[{number(area['low'])}, {number(area['high'])}]"), class_="n"),
            el(
                "td",
                *(
                    [percent(share["mean"]), el("small", percent_interval(share["low"], share["high"]))]
                    if share
                    else [MISSING]
                ),
                class_="n",
            ),
            el("td", number(max(each["bound"])), class_="n"),
        ]
        body.append(el("tr", *cells))
    about_all = (
        ": the area between an arm's curve and that of mean ablation of the same latents, in nats; last, the highest "
        "one-sided 95% bound on its loss over mean ablation that holds for all shares together: below 0 it is better "
        "at every share."
    )
    caption = [el("strong", f"{words}: over all shares"), about_all]
    return table(caption, CURVES, body, f"{words}: over all shares", class_="statistics")


SELECTED = {"top": "best score first", "sampled": "at random", "gain": "largest held-out gain first"}

# -- what was read and left out ---------------------------------------------------------------------------------------

OUTCOMES = {
    "ok": "read and simulated",
    "unexplained": "no sentence was found",
    "unparseable": "sentence could not be read",
}


def outcomes(facts: Facts) -> Markup:
    columns = (Column("Outcome"), Column("Latents", True), Column(f"of {count(facts.latents)}", True))
    found = {**dict.fromkeys(OUTCOMES, 0), **facts.outcomes}
    body = [
        row(columns, (OUTCOMES.get(outcome, outcome), count(number_of), percent(number_of / facts.latents)))
        for outcome, number_of in found.items()
    ]
    words = "What became of the sentences"
    return table(f"{words}.", columns, body, words)


USES = {
    "train": "subject and coder",
    "explain": "sentences, lookup tables",
    "calibrate": "calibrators and their choice, scores, lookup tables",
    "report": "losses, gaps, frequencies, examples",
}


def text(facts: Facts) -> Markup:
    """The splits, what each was used for, and what was left out on the way."""
    columns = (
        Column("Split"),
        Column("Used for"),
        *(Column(name, True) for name in ("Documents", "Groups", "Windows", "Tokens")),
    )
    documents, tokens = facts.corpus["splits"], facts.tokens["splits"]
    body = []
    for split, use in USES.items():
        sizes = (
            documents[split]["documents"],
            documents[split]["groups"],
            tokens[split].get("windows"),
            tokens[split]["tokens"],
        )
        body.append(row(columns, (split, use, *(MISSING if each is None else count(each) for each in sizes))))
    told = [
        f"The text: {count(facts.corpus['duplicates'])} of {many(facts.corpus['read'], 'document')} read were equal to "
        f"another and left out.",
        "Near-duplicates form one group, and a group lies in one split.",
    ]
    if facts.evaluate.get("least_base_loss"):
        told.append(
            f"Tokens with a loss below {facts.evaluate['least_base_loss']:g} nats to begin with are not evaluated."
        )
    return table(" ".join(told), columns, body, "The text and its splits")


def calibrators(facts: Facts) -> Markup:
    columns = (
        Column("Calibrator"),
        Column("Knows"),
        Column("Error", True),
        Column("of mean ablation's", True),
    )
    chosen, floor = facts.calibration["chosen"], facts.calibration["mean_ablation_error"]
    fixed = PROTOCOLS[str(facts.evaluate.get("protocol", "ours"))].calibrator
    by_protocol = fixed in {each["calibrator"] for each in facts.calibration["calibrators"]}
    quoted, why = (fixed, "the protocol's") if by_protocol else (chosen, "chosen")
    body = []
    for each in facts.calibration["calibrators"]:
        error = each["cross_fitted_error"]
        share = None if error is None or not floor else error / floor
        name = f"{each['calibrator']} ({why})" if each["calibrator"] == quoted else each["calibrator"]
        knows = wording.INFORMATION.get(each["information"], each["information"])
        named = [name, el("small", wording.calibrator(each["calibrator"]))]
        body.append(row(columns, (named, knows, wording.figures(error), percent(share))))
    words = "What the calibrators are worth" if by_protocol else "How the calibrator was chosen"
    caption = (
        f"{words}: squared error of what the latents write, on documents of the calibrate split "
        "that it was not fitted on; none for what looks at the test."
    )
    return table(caption, columns, body, words)


# -- the papers -------------------------------------------------------------------------------------------------------


def papers(entries: Sequence[Entry]) -> Markup:
    """Every figure of the papers: what it shows, and where it is or why it is not."""
    columns = (Column("Figure"), Column("Shows"), Column("Here"))
    body = [row(columns, (each.name, each.shows, _where(each))) for each in entries]
    words = "The figures of the papers"
    return table(f"{words}, found by content.", columns, body, words, class_="papers")


def _where(entry: Entry) -> object:
    if entry.figure is None:
        return entry.why
    return el("a", entry.figure.title, href=f"#figure-{entry.same_as or entry.name}")


# -- provenance -------------------------------------------------------------------------------------------------------


def artifacts(made: Mapping[str, Any]) -> Markup:
    """Every input by its name, with the spec it was made from."""
    columns = (Column("Input"), Column("Artifact"), Column("Made from"))
    body = []
    for label, each in made.items():
        spec = el("pre", json.dumps(each["spec"], indent=1, ensure_ascii=False))
        body.append(row(columns, (label, el("code", each["artifact"]), el("details", el("summary", "spec"), spec))))
    words = "What this page was made from"
    return table(f"{words}.", columns, body, words, class_="digests")
