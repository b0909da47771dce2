"""The page: one file that stands alone, readable without its script, in the light and in the dark.

In: `results.json`'s content, facts, figures, dossiers of latents. Out: HTML. Invariant: every string goes through
`markup`, which escapes it, and nothing is referred to outside the file.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlrewrite.report import tables, wording
from nlrewrite.report.asked import Asked, section
from nlrewrite.report.facts import Facts
from nlrewrite.report.figure import Figure
from nlrewrite.report.latents import Dossier
from nlrewrite.report.listing import listing
from nlrewrite.report.markup import Markup, element, together, verbatim
from nlrewrite.report.method import method
from nlrewrite.report.papers import Entry
from nlrewrite.report.style import SCRIPT, STYLE
from nlrewrite.report.wording import count, number, percent, percent_interval

Row = dict[str, Any]
el = element

SECTIONS = {
    "result": "Result",
    "figures": "Figures",
    "probes": "How good is good enough",
    "arms": "Every arm",
    "method": "Method",
    "asked": "What the reader was asked",
    "papers": "The papers' figures",
    "latents": "Latents",
    "provenance": "Provenance",
}
Probed = tuple[Figure, Sequence[Markup]]
"""What a probe found, as a figure and tables."""
QUOTED_BY = (
    *("arm", "site", "simulator", "explanation", "calibrator", "information"),
    *("topk", "selection", "position", "subset_seed"),
)


def page(
    results: Mapping[str, Any],
    facts: Facts,
    figures: Sequence[Figure],
    latents: Sequence[Dossier],
    papers: Sequence[Entry] = (),
    probed: Sequence[Probed] = (),
    asked: Asked | None = None,
) -> str:
    """The whole document."""
    headline = results["headline"]
    quoted = quoted_row(results)
    title = wording.title(facts)
    absent = {"probes": not probed, "papers": not papers, "asked": asked is None}
    links = (el("a", name, href=f"#{key}") for key, name in SECTIONS.items() if not absent.get(key))
    body = el(
        "body",
        el("a", "Skip to the result", class_="skip", href="#result"),
        el(
            "header",
            el("p", "Partial rewriting of a transformer in natural language", class_="kicker"),
            el("h1", title),
            el("p", _with_figure(wording.result(facts, headline), headline), class_="lead"),
            el("p", wording.beside(headline), class_="lead"),
            _protocol(results.get("protocol")),
        ),
        el("nav", el("div", *links), aria_label="Sections"),
        el(
            "main",
            _result(results, quoted, facts),
            _figures(figures),
            _probed(probed) if probed else None,
            _arms(results, quoted),
            _method(facts, headline),
            el("section", el("h2", SECTIONS["asked"]), section(asked), id="asked") if asked else None,
            _papers(papers) if papers else None,
            listing(latents, facts),
        ),
        provenance(results["provenance"]),
        verbatim("script", SCRIPT),
    )
    return document(title, body, policy())


def document(title: str, body: Markup, policy: str) -> str:
    """The file that a browser reads."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        verbatim("style", STYLE),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def quoted_row(results: Mapping[str, Any]) -> Row:
    """The row of the arms that the headline quotes."""
    headline = results["headline"]
    return next(row for row in results["arms"] if all(row[name] == headline[name] for name in QUOTED_BY))


def policy() -> str:
    """What a browser may do for this page: apply its styles, run its one script, and nothing else."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{script}'; "
        f"base-uri 'none'; form-action 'none'"
    )


def _with_figure(sentence: str, headline: Row) -> list[object]:
    """The sentence with its number and interval set off."""
    if headline["gap_closed"] is None:
        return [sentence]
    figure = f"{percent(headline['gap_closed'])} {percent_interval(headline['low'], headline['high'])}"
    before, found, after = sentence.partition(figure)
    return [before, el("strong", found), after]


def _protocol(protocol: Mapping[str, Any] | None) -> Markup | None:
    """Whose protocol the numbers follow, if not ours, with what is known to be wrong with it."""
    if not protocol or protocol["name"] == "ours":
        return None
    return el(
        "aside",
        el("p", el("strong", f"Protocol {protocol['name']}. "), str(protocol["summary"])),
        el("p", "These numbers follow a published protocol, with what is known to be wrong with it:"),
        el("ul", *(el("li", str(each)) for each in protocol["defects"]), class_="notes"),
        class_="protocol",
        aria_label="Protocol",
    )


# -- result -----------------------------------------------------------------------------------------------------------


def _result(results: Mapping[str, Any], quoted: Row, facts: Facts) -> Markup:
    headline = results["headline"]
    trained = wording.as_training(results.get("equivalent_training", ()))
    left = (
        el("p", wording.carried(headline, facts)),
        el("p", worst) if (worst := wording.at_worst(headline)) else None,
        el("p", trained) if trained else None,
        _cards(headline, quoted, facts),
    )
    right = (
        el("h3", "Before you quote this"),
        el("ul", *(el("li", each) for each in wording.caveats(facts, headline, quoted)), class_="notes"),
    )
    return el(
        "section",
        el("h2", "How much of the layer the sentences keep"),
        _scale(results, quoted),
        el("div", el("div", *left), el("div", *right), class_="two"),
        id="result",
    )


MARKS = {
    "shuffled": "Shuffled sentences",
    "token_lookup": "Token lookup",
    "bigram_lookup": "Bigram lookup",
    "oracle": "Oracle on/off mask",
}


def _scale(results: Mapping[str, Any], quoted: Row) -> Markup | None:
    """The summary in one picture: from every latent at its mean to the real coder, with the controls."""
    if quoted["gap_closed"] is None:
        return None
    whole = [
        row
        for row in results["arms"]
        if (row["selection"], row["topk"], row["position"]) == ("all", "none", quoted["position"])
    ]
    marks = [(MARKS[row["arm"]], row) for row in whole if row["arm"] in MARKS] + [("The sentences", quoted)]
    marks.sort(key=lambda mark: mark[1]["gap_closed"])
    values = [row[name] for _, row in marks for name in ("gap_closed", "gap_closed_low", "gap_closed_high")]
    low, high = min(-0.01, *values), max(1.01, *values)

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    ends = (
        el("b", "every latent at its mean: 0%", class_="from", style=f"left:{at(0):.2f}%"),
        el("b", "the real coder: 100%", class_="to", style=f"left:{at(1):.2f}%"),
    )
    caption = (
        "Share of the gap in next-token loss that is closed with all latents replaced. Lookup tables are fitted on "
        "other documents; the mask knows when each latent is truly active, but not how strongly. Bars: 95% intervals."
    )
    return el(
        "figure",
        el("div", el("span"), el("div", *ends, class_="track"), el("span"), class_="ends", aria_hidden="true"),
        el("ol", *(_mark(name, row, row is quoted, at) for name, row in marks)),
        el("figcaption", caption),
        class_="scale",
        aria_label="Gap closed by the sentences and by the controls, in percent",
    )


def _mark(name: str, row: Row, ours: bool, at: Callable[[float], float]) -> Markup:
    value, low, high = at(row["gap_closed"]), at(row["gap_closed_low"]), at(row["gap_closed_high"])
    start, end = sorted((at(0), value))
    track = (
        el("i", class_="zero", style=f"left:{at(0):.2f}%"),
        el("i", class_="zero", style=f"left:{at(1):.2f}%"),
        el("i", class_="fill", style=f"left:{start:.2f}%;width:{end - start:.2f}%") if ours else None,
        el("i", class_="range", style=f"left:{low:.2f}%;width:{high - low:.2f}%"),
        el("i", class_="dot", style=f"left:{value:.2f}%"),
    )
    interval = percent_interval(row["gap_closed_low"], row["gap_closed_high"])
    return el(
        "li",
        el("span", name),
        el("span", *track, class_="track", aria_hidden="true"),
        el("span", percent(row["gap_closed"]), el("small", f" {interval}"), class_="value"),
        class_="ours" if ours else None,
    )


def _cards(headline: Row, quoted: Row, facts: Facts) -> Markup:
    def between(name: str) -> str:
        return f"[{number(quoted[f'{name}_low'])}, {number(quoted[f'{name}_high'])}] per token"

    cards = (
        ("Added loss", f"{number(quoted['delta_ce'])} nats", between("delta_ce")),
        ("KL to the original", f"{number(quoted['kl'])} nats", between("kl")),
        ("Sentences", count(facts.sentences), f"for {count(facts.latents)} latents"),
        ("The latents' share", percent(headline["coder_share"]), "of the site's effect on the loss"),
    )
    shown = (el("div", el("dt", name), el("dd", value, el("small", about))) for name, value, about in cards)
    return el("dl", *shown, class_="cards")


# -- figures, arms, method --------------------------------------------------------------------------------------------


def _figures(figures: Sequence[Figure]) -> Markup:
    return el("section", el("h2", "Figures"), el("div", *map(framed, figures), class_="figures"), id="figures")


def framed(figure: Figure) -> Markup:
    """A figure with its words."""
    return el(
        "figure",
        el("h3", figure.title),
        el("div", *figure.panels, class_="panels"),
        el("figcaption", figure.caption),
        class_="wide" if len(figure.panels) > 1 else None,
        id=f"figure-{figure.name}",
    )


def _probed(probed: Sequence[Probed]) -> Markup:
    about = (
        "Questions about the method, asked of this subject and coder: what each change to the published protocol does, "
        "how good a simulator would have to be, and how many contexts calibration takes. Oracles are simulators that "
        "know the truth and err as often as set."
    )
    shown = (
        el("div", el("div", framed(figure), class_="figures"), *found[:1], _folded(found[1:]), class_="probe")
        for figure, found in probed
    )
    return el("section", el("h2", SECTIONS["probes"]), el("p", about, class_="about"), *shown, id="probes")


def _folded(found: Sequence[Markup]) -> Markup | None:
    return el("details", el("summary", "The same at other shares"), *found, class_="more") if found else None


def _papers(entries: Sequence[Entry]) -> Markup:
    about = (
        "The figures of the two versions of the paper, drawn from this run's numbers: p1 is “Partially Rewriting a "
        "Transformer in Natural Language” (January 2025), p2 “Can We Partially Rewrite Transformers in Natural "
        "Language?” (2025), a their appendices. Each is a file of its own beside this page, figures/NAME.svg, with "
        "what it draws in figures/NAME.parquet."
    )
    drawn = [framed(each.figure) for each in entries if each.figure is not None and not each.same_as]
    return el(
        "section",
        el("h2", SECTIONS["papers"]),
        el("p", about, class_="about"),
        tables.papers(entries),
        el("div", *drawn, class_="figures") if drawn else None,
        id="papers",
    )


POSITIONS = {"all": "Patched at every token", "last": "Patched at the last token of a window only"}
WHOLE = ("all", "harmless")
"""Selections of latents that have no share: all of them, or those that are sure to gain."""


def _arms(results: Mapping[str, Any], quoted: Row) -> Markup:
    rows: Sequence[Row] = results["arms"]
    about = (
        "All latents replaced at once, all numbers on the report split. Added loss and KL are measured against the "
        "original model; the gap is that between the latents at their mean and the coder. Brackets: 95% intervals."
    )
    whole = [row for row in rows if row["selection"] in WHOLE]
    shown: list[Markup] = []
    for position in (each for each in POSITIONS if any(row["position"] == each for row in whole)):
        here = [row for row in whole if row["position"] == position]
        losses, more, told = tables.arms(here, POSITIONS[position], quoted), [], ""
        if position == quoted["position"]:
            shown.append(losses)
        else:
            more, told = [losses], "losses, "
        if all("win_rate" in row for row in here):
            more.append(tables.statistics(here, POSITIONS[position], quoted))
        if curves := [each for each in results.get("curves", ()) if each["position"] == position]:
            more.append(tables.curves(curves, POSITIONS[position]))
        if more:
            told += "medians, shares of windows, agreement, power, all shares of latents"
            title = f"{POSITIONS[position]}: {told}"
            shown.append(el("details", el("summary", title), *more, class_="more"))
    return el("section", el("h2", "Every arm"), el("p", about, class_="about"), *shown, id="arms")


def _method(facts: Facts, headline: Row) -> Markup:
    return el(
        "section",
        el("h2", "Method"),
        *(el("p", paragraph) for paragraph in method(facts, str(headline["site"]))),
        tables.calibrators(facts),
        el("div", tables.outcomes(facts), tables.text(facts), class_="two"),
        id="method",
    )


# -- provenance -------------------------------------------------------------------------------------------------------


def provenance(made: Mapping[str, Any]) -> Markup:
    """What the numbers were made of, at the end of the page."""
    packages = [[name, " ", el("code", version), ", "] for name, version in made["packages"].items()]
    packages[-1][-1] = "."
    return el(
        "footer",
        el("h2", "Provenance", id="provenance"),
        el("p", "Every artifact is named by what it was made from: equal names, equal numbers.", class_="about"),
        tables.artifacts(made["artifacts"]),
        el(
            "p",
            "Code: ",
            el("code", made["commit"] or "not from a checkout"),
            ", with edits since" if made["edited_since_commit"] else None,
            ". Packages: ",
            together(packages),
            class_="packages",
        ),
    )
