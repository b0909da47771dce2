"""The tables of the page: every arm, what became of the sentences, the text, the calibrators, the artifacts.

In: rows of the results and facts. Out: tables. Invariant: a table has a caption, its headers say what they head, and a
share stands beside the number it is a share of.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlrewrite.report import wording
from nlrewrite.report.facts import Facts
from nlrewrite.report.markup import Markup, element
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
        el("td", row["calibrator"] or MISSING),
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
    columns = (Column("Calibrator"), Column("Knows"), Column("Error", True), Column("of mean ablation's", True))
    chosen, floor = facts.calibration["chosen"], facts.calibration["mean_ablation_error"]
    body = []
    for each in facts.calibration["calibrators"]:
        error = each["cross_fitted_error"]
        share = None if error is None or not floor else error / floor
        name = f"{each['calibrator']} (chosen)" if each["calibrator"] == chosen else each["calibrator"]
        knows = wording.INFORMATION.get(each["information"], each["information"])
        body.append(row(columns, (name, knows, number(error, 1), percent(share))))
    caption = (
        "How the calibrator was chosen: squared error of what the latents write, on documents of the calibrate split "
        "that it was not fitted on."
    )
    return table(caption, columns, body, "How the calibrator was chosen")


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
