"""The page: one file that stands alone, readable without its script, in the light and in the dark.

In: `results.json`'s content, facts, figures, dossiers of latents. Out: HTML. Invariant: every string goes through
`markup`, which escapes it, and nothing is referred to outside the file.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlrewrite.report import wording
from nlrewrite.report.facts import Facts
from nlrewrite.report.figures import Figure
from nlrewrite.report.latents import Dossier, Example, Piece
from nlrewrite.report.markup import Markup, element, together, verbatim, visible
from nlrewrite.report.style import SCRIPT, STYLE
from nlrewrite.report.wording import MISSING, count, many, number, percent, percent_interval

Row = dict[str, Any]
el = element


def page(results: Mapping[str, Any], facts: Facts, figures: Sequence[Figure], latents: Sequence[Dossier]) -> str:
    """The whole document."""
    headline = results["headline"]
    quoted = quoted_row(results)
    sections = (("result", "Result"), ("arms", "Every arm"), ("figures", "Figures"), ("latents", "Latents"), ("method", "Method"), ("provenance", "Provenance"))  # fmt: skip
    body = [
        el("a", "Skip to the result", class_="skip", href="#result"),
        el(
            "header",
            el("p", "Partial rewriting of a transformer in natural language", class_="kicker"),
            el("h1", wording.title(facts)),
            el("p", _strong(wording.result(facts, headline), headline), class_="lead"),
            el("p", wording.beside(headline), class_="lead"),
        ),
        el("nav", el("div", *(el("a", name, href=f"#{key}") for key, name in sections)), aria_label="Sections"),
        el(
            "main",
            _result(headline, quoted, facts),
            _arms(results["arms"], quoted),
            _figures(figures),
            _latents(latents, facts),
            _method(facts, results),
        ),
        _provenance(results["provenance"]),
        verbatim("script", SCRIPT),
    ]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy()),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", wording.title(facts)),
        el("link", rel="icon", href="data:,"),
        verbatim("style", STYLE),
    )
    return f"<!doctype html>\n{el('html', head, el('body', *body), lang='en')}\n"


def quoted_row(results: Mapping[str, Any]) -> Row:
    """The row of the arms that the headline quotes."""
    headline = results["headline"]
    key = ("arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "position", "subset_seed")  # fmt: skip
    return next(row for row in results["arms"] if all(row[name] == headline[name] for name in key))


def _policy() -> str:
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{script}'; "
        f"base-uri 'none'; form-action 'none'"
    )


def _strong(sentence: str, headline: Row) -> list[object]:
    """The sentence with its number and interval set off."""
    if headline["gap_closed"] is None:
        return [sentence]
    figure = f"{percent(headline['gap_closed'])} {percent_interval(headline['low'], headline['high'])}"
    before, found, after = sentence.partition(figure)
    return [before, el("strong", found), after]


# -- result -----------------------------------------------------------------------------------------------------------


def _result(headline: Row, quoted: Row, facts: Facts) -> Markup:
    return el(
        "section",
        el("h2", "How much of the layer the sentences keep"),
        _scale(headline),
        el("p", wording.carried(headline, facts)),
        _cards(headline, quoted, facts),
        el("h3", "Before you quote this"),
        el("ul", *(el("li", each) for each in wording.caveats(facts, headline, quoted)), class_="notes"),
        id="result",
    )


def _scale(headline: Row) -> Markup | None:
    """The summary in one picture: from every latent at its mean to the real coder, with the controls."""
    if headline["gap_closed"] is None:
        return None
    marks: list[tuple[str, float | None, float | None, float | None]] = [
        ("Shuffled sentences", headline["shuffled"], None, None),
        ("Token lookup", headline["token_lookup"], None, None),
        ("Bigram lookup", headline["bigram_lookup"], None, None),
        ("Oracle on/off mask", headline["oracle"], None, None),
        ("The sentences", headline["gap_closed"], headline["low"], headline["high"]),
    ]
    known = sorted((mark for mark in marks if mark[1] is not None), key=lambda mark: mark[1] or 0.0)
    values = [value for mark in known for value in mark[1:] if value is not None]
    low, high = min(0.0, *values), max(1.0, *values)
    pad = 0.02 * (high - low) if low < 0 or high > 1 else 0.0
    low, high = low - (pad if low < 0 else 0), high + (pad if high > 1 else 0)

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    def width(start: float, end: float) -> str:
        return f"{100 * (end - start) / (high - low):.2f}%"

    rows = []
    for name, value, least, most in known:
        assert value is not None
        ours = least is not None and most is not None
        track = [el("i", class_="zero", style=f"left:{at(0)}") if low < 0 else None]
        track += [el("i", class_="zero", style=f"left:{at(1)}") if high > 1 else None]
        if least is not None and most is not None:
            track.append(el("i", class_="fill", style=f"left:{at(min(0.0, value))};width:{width(min(0.0, value), max(0.0, value))}"))
            track.append(el("i", class_="range", style=f"left:{at(least)};width:{width(least, most)}"))
        track.append(el("i", class_="dot", style=f"left:{at(value)}"))
        shown = [percent(value), el("small", f" {percent_interval(least, most)}") if ours else None]
        rows.append(
            el(
                "li",
                el("span", name),
                el("span", *track, class_="track", aria_hidden="true"),
                el("span", *shown, class_="value"),
                class_="ours" if ours else None,
            )
        )
    ends = el(
        "div",
        el("span"),
        el(
            "div",
            el("span", "every latent", el("br"), "at its mean: 0%", class_="from", style=f"left:{at(0)}"),
            el("span", "the real coder:", el("br"), "100%", class_="to", style=f"left:{at(1)}"),
        ),
        el("span"),
        class_="ends",
        aria_hidden="true",
    )
    return el(
        "figure",
        ends,
        el("ol", *rows),
        el(
            "figcaption",
            "Gap closed in next-token cross-entropy with all latents replaced. Lookup tables are fitted on other "
            "documents; the mask knows when each latent is truly active, not how strongly. The sentences' mark carries "
            "its 95% interval; those of the controls are in the table.",
        ),
        class_="scale",
        aria_label="Gap closed by the sentences and by the controls, in percent",
    )


def _cards(headline: Row, quoted: Row, facts: Facts) -> Markup:
    sentences = f"of {count(facts.latents)} latents"
    cards = [
        ("Added loss", f"{number(quoted['delta_ce'])} nats", f"[{number(quoted['delta_ce_low'])}, {number(quoted['delta_ce_high'])}] per token"),
        ("KL to the original", f"{number(quoted['kl'])} nats", f"[{number(quoted['kl_low'])}, {number(quoted['kl_high'])}] per token"),
        ("Sentences", count(facts.sentences), sentences),
        ("The latents' share", percent(headline["coder_share"]), "of the site's effect on the loss"),
    ]  # fmt: skip
    return el(
        "dl",
        *(el("div", el("dt", name), el("dd", value, el("small", about))) for name, value, about in cards),
        class_="cards",
    )


# -- arms -------------------------------------------------------------------------------------------------------------


def _arms(rows: Sequence[Row], quoted: Row) -> Markup:
    tables = []
    for position, words in (("all", "Patched at every token"), ("last", "Patched at the last token of a window only")):
        here = [row for row in rows if row["position"] == position and row["selection"] == "all"]
        if here:
            tables.append(_arms_table(here, words, quoted))
    return el(
        "section",
        el("h2", "Every arm"),
        el(
            "p",
            "All latents replaced at once, all numbers on the report split. Added loss and KL are measured against the "
            "original model; the gap is that between the latents at their mean and the coder. Brackets: 95% intervals.",
            class_="about",
        ),
        *tables,
        id="arms",
    )


def _arms_table(rows: Sequence[Row], words: str, quoted: Row) -> Markup:
    contexts, documents = rows[0]["n_contexts"], rows[0]["n_documents"]
    head = el(
        "tr",
        el("th", "Arm", scope="col"),
        el("th", "Calibrator", scope="col"),
        el("th", "Information used", scope="col"),
        el("th", "Loss", scope="col", class_="n"),
        el("th", "Added loss", scope="col", class_="n"),
        el("th", "KL", scope="col", class_="n"),
        el("th", "Gap closed", scope="col", class_="n"),
        el("th", "in KL", scope="col", class_="n"),
    )
    body = []
    groups: dict[str, list[Row]] = {group: [] for group in (*wording.GROUPS, "Rewritten in sentences", "Others")}
    for row in rows:
        groups[wording.group_of(row)].append(row)
    for group, members in groups.items():
        if members:
            body.append(el("tr", el("th", group, colspan=8, scope="colgroup", class_="group")))
            body += [_arm(row, row is quoted) for row in members]
    caption = el("caption", el("strong", words), f": {count(contexts)} tokens, {count(documents)} groups of documents.")
    return el("div", el("table", caption, el("thead", head), el("tbody", *body)), class_="scroll", tabindex=0, role="region", aria_label=words)  # fmt: skip


def _arm(row: Row, quoted: bool) -> Markup:
    name, about = wording.arm_name(row)
    information = str(row["information"])
    gap = percent(row["gap_closed"]) if row["arm"] not in ("original",) else MISSING
    return el(
        "tr",
        el("th", name, " (the headline)" if quoted else None, el("small", about), scope="row"),
        el("td", row["calibrator"] or MISSING),
        el("td", information or MISSING, title=wording.INFORMATION.get(information)),
        el("td", number(row["ce"]), class_="n"),
        el("td", number(row["delta_ce"]), _small(row, "delta_ce"), class_="n"),
        el("td", number(row["kl"]), _small(row, "kl"), class_="n"),
        el("td", gap, el("small", percent_interval(row["gap_closed_low"], row["gap_closed_high"])) if gap != MISSING else None, class_="n"),
        el("td", percent(row["gap_closed_kl"]) if gap != MISSING else MISSING, class_="n"),
        class_="quoted" if quoted else None,
    )  # fmt: skip


def _small(row: Row, name: str) -> Markup:
    return el("small", f"[{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]")


# -- figures ----------------------------------------------------------------------------------------------------------


def _figures(figures: Sequence[Figure]) -> Markup:
    return el(
        "section",
        el("h2", "Figures"),
        el("div", *(_figure(figure) for figure in figures), class_="figures"),
        id="figures",
    )


def _figure(figure: Figure) -> Markup:
    return el(
        "figure",
        el("h3", figure.title),
        el("div", figure.drawing, class_="panels"),
        el("figcaption", figure.caption),
        class_="wide" if figure.wide else None,
        id=f"figure-{figure.name}",
    )


# -- latents ----------------------------------------------------------------------------------------------------------

ORDERS = (
    ("energy down", "most energetic first"),
    ("detection down", "best detected first"),
    ("detection up", "worst detected first"),
    ("fuzzing down", "best at fuzzing first"),
    ("mcc up", "lowest MCC first"),
    ("frequency down", "most frequent first"),
    ("latent up", "by number"),
)


def _latents(latents: Sequence[Dossier], facts: Facts) -> Markup:
    explained = sum(latent.outcome == "ok" for latent in latents)
    tools = el(
        "div",
        el("label", "Find ", el("input", type="search", placeholder="token, word or number")),
        el("label", "Order ", el("select", *(el("option", name, value=value) for value, name in ORDERS))),
        el("label", el("input", type="checkbox"), " only those with a sentence"),
        el("output", aria_live="polite"),
        class_="tools",
        hidden=True,
    )
    legend = el(
        "p",
        "In the examples, a ",
        el("span", "blue box", class_="tok true key", style="--a:.5"),
        " is a token on which the latent is truly active, the darker the stronger; an ",
        el("span", "orange line", class_="tok said key", style="--s:1"),
        " is what the sentence makes the reader say, calibrated; both are shares of the latent's largest activation. The ",
        el("span", "framed", class_="tok target key"),
        " token is the one whose two values stand on the left. Hover over a token for its values. ⏎ is a line break.",
        class_="legend",
    )
    return el(
        "section",
        el("h2", "The latents and their sentences"),
        el(
            "p",
            f"The {many(len(latents), 'latent')} that write most into the model, of {count(facts.latents)}, by mean "
            f"squared activation times the squared length of the decoder vector; {count(explained)} of them have a "
            f"sentence. Scores are from the calibrate split, examples and frequencies from the report split, drawn over "
            f"all tenths of a latent's activations, with the reader's surest false alarms beside them.",
            class_="about",
        ),
        legend,
        tools,
        el("ol", *(_latent(latent) for latent in latents), class_="latents"),
        id="latents",
    )


def _latent(latent: Dossier) -> Markup:
    scores = latent.scores
    bits = (("detection", "detection_f1"), ("fuzzing", "fuzzing_f1"), ("MCC", "mcc"))
    summary = el(
        "summary",
        el("span", f"{latent.latent}", class_="id"),
        _sentence(latent),
        el("span", *(el("span", el("b", number(scores[key], 2)), name) for name, key in bits), class_="bits"),
    )
    figures = [
        ("share of all energy", percent(latent.energy)),
        ("active on", f"{percent(latent.frequency)} of tokens ({count(latent.count)})"),
        ("largest", number(latent.largest, 2)),
        ("where the sentence is silent, written", number(latent.silent, 3)),
        ("AUPRC", number(scores["auprc"], 2)),
        ("sensitivity", number(scores["sensitivity"], 2)),
        ("specificity", number(scores["specificity"], 3)),
        ("energy the sentence accounts for, explain split", percent(latent.energy_explained)),
        ("words", count(latent.words)),
    ]
    inside = el(
        "div",
        el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in figures)),
        _examples(latent) if latent.examples else el("p", "It is never active on the report split."),
        class_="inside",
    )
    data = {
        "data_latent": latent.latent,
        "data_energy": f"{latent.energy:.8f}",
        "data_frequency": f"{latent.frequency:.8f}",
        "data_detection": _datum(scores["detection_f1"]),
        "data_fuzzing": _datum(scores["fuzzing_f1"]),
        "data_mcc": _datum(scores["mcc"]),
        "data_outcome": latent.outcome,
    }
    return el("li", el("details", summary, inside, id=f"latent-{latent.latent}"), **data)


def _datum(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _sentence(latent: Dossier) -> Markup:
    if not latent.sentence:
        return el("span", f"No sentence: {latent.why_none or latent.outcome}.", class_="sentence none")
    pieces: list[object] = []
    for index, piece in enumerate(re.split(r'("(?:[^"\\]|\\.)*")', latent.sentence)):
        pieces.append(el("code", visible(piece)) if index % 2 else visible(piece))
    unread = None if latent.outcome == "ok" else el("em", f" ({latent.outcome})")
    return el("span", *pieces, unread, class_="sentence")


def _examples(latent: Dossier) -> Markup:
    head = el(
        "tr",
        el("th", "Drawn from", scope="col"),
        el("th", "True", scope="col", class_="n"),
        el("th", "Simulated", scope="col", class_="n"),
        el("th", "Text up to the token, and a little after", scope="col", style="padding-left:1.1rem"),
    )
    rows = [_example(example, latent.largest) for example in latent.examples]
    caption = el("caption", f"Examples of latent {latent.latent} on the report split.")
    return el("table", caption, el("thead", head), el("tbody", *rows), class_="examples")


def _example(example: Example, largest: float) -> Markup:
    return el(
        "tr",
        el("td", example.why, class_="why", title=visible(example.document)),
        el("td", number(example.true, 2), class_="n", data_name="true"),
        el("td", number(example.simulated, 2), class_="n", data_name="simulated"),
        el("td", *(_piece(piece, largest) for piece in example.pieces), class_="text"),
    )


def _piece(piece: Piece, largest: float) -> object:
    if not piece.marked:
        return piece.text
    classes = ["tok", "true" if piece.true > 0 else "", "said" if piece.level else "", "target" if piece.target else ""]
    unit = max(largest, 1e-9)
    style = []
    if piece.true > 0:
        style.append(f"--a:{min(1.0, piece.true / unit) * 0.8 + 0.08:.2f}")
    if piece.level:
        style.append(f"--s:{min(1.0, max(0.0, piece.simulated) / unit) * 0.75 + 0.25:.2f}")
    values = f"true {piece.true:.2f}, simulated {piece.simulated:.2f} (digit {piece.level})"
    return el("span", piece.text, class_=" ".join(filter(None, classes)), style=";".join(style) or None, title=values)


# -- method -----------------------------------------------------------------------------------------------------------


def _method(facts: Facts, results: Mapping[str, Any]) -> Markup:
    coder = facts.coder
    skip = "a skip transcoder" if coder.get("skip") else "a transcoder" if facts.site["kind"] == "mlp" else "a sparse autoencoder"
    fvu = facts.coder_training.get("fvu")
    live = facts.coder_training.get("live_share")
    how = [
        el("p", f"At one hookpoint, {facts.place} ({results['headline']['site']}), {skip} with {count(coder['width'])} "
                f"latents, {coder['k']} of them active on a token, imitates the module"
                + (f"; it leaves {percent(fvu)} of the variance unexplained" if fvu is not None else "")
                + (f", and {percent(live)} of its latents are live" if live is not None else "")
                + ". Layer, width and k were fixed before any rewritten arm was computed."),
        el("p", "For every latent an explainer looks at where it is active on the explain split and writes a sentence. A "
                "simulator then reads that sentence and the text up to a token, and answers with a distribution over "
                "the digits 0 to 9: how active the latent should be there. A calibrator, fitted on the calibrate split, "
                "turns digits into activations. Those activations take the place of the coder's encoder; its decoder "
                "and the rest of the model stay as they are, and the loss on the report split says what was lost."),
        el("p", f"The simulator sees at most {facts.simulate['window']} tokens. A sentence holds at most "
                f"{facts.explain.get('max_words', '?')} words and {facts.explain.get('max_quotes', '?')} quoted tokens. "
                f"Detection asks in which windows a latent is active at all, fuzzing whether a marked token is one of its "
                f"own; both are F1 scores on balanced draws, and MCC, AUPRC, sensitivity and specificity are counted "
                f"at natural prevalence."),
    ]  # fmt: skip
    return el(
        "section",
        el("h2", "Method"),
        *how,
        _outcomes(facts),
        _text_table(facts),
        _calibrators(facts),
        id="method",
    )


def _outcomes(facts: Facts) -> Markup:
    names = {"ok": "read and simulated", "unexplained": "no sentence was found", "unparseable": "sentence could not be read"}
    rows = [
        el("tr", el("th", names.get(outcome, outcome), scope="row"), el("td", count(found), class_="n"), el("td", percent(found / facts.latents), class_="n"))
        for outcome, found in {**dict.fromkeys(names, 0), **facts.outcomes}.items()
    ]  # fmt: skip
    head = el("tr", el("th", "Outcome", scope="col"), el("th", "Latents", scope="col", class_="n"), el("th", f"of {count(facts.latents)}", scope="col", class_="n"))  # fmt: skip
    return _table("What became of the sentences", head, rows)


def _text_table(facts: Facts) -> Markup:
    tokens, corpus = facts.tokens.get("splits", {}), facts.corpus.get("splits", {})
    uses = {
        "train": "subject and coder",
        "explain": "sentences, lookup tables",
        "calibrate": "calibrators and their choice, scores, lookup tables",
        "report": "every number of this page",
    }
    rows = []
    for split, use in uses.items():
        of_text, of_tokens = corpus.get(split, {}), tokens.get(split, {})
        cells = (of_text.get("documents"), of_text.get("groups"), of_tokens.get("windows"), of_tokens.get("tokens"))
        shown = [el("td", count(cell) if cell is not None else MISSING, class_="n") for cell in cells]
        rows.append(el("tr", el("th", split, scope="row"), el("td", use), *shown))
    columns = ("Documents", "Groups", "Windows", "Tokens")
    head = el("tr", el("th", "Split", scope="col"), el("th", "Used for", scope="col"), *(el("th", name, scope="col", class_="n") for name in columns))  # fmt: skip
    left = f"{many(facts.corpus['duplicates'], 'duplicate')} of {many(facts.corpus['read'], 'document')} read were left out" if "read" in facts.corpus else ""
    least = facts.evaluate.get("least_base_loss", 0)
    if least:
        left += f"; tokens whose loss is below {least:g} nats to begin with are left out of the evaluation"
    return _table(f"The text{': ' + left if left else ''}. Near-duplicates form one group, and a group is in one split", head, rows)  # fmt: skip


def _calibrators(facts: Facts) -> Markup:
    chosen = facts.calibration.get("chosen")
    floor = facts.calibration.get("mean_ablation_error")
    rows = []
    for row in facts.calibration.get("calibrators", []):
        error = row["cross_fitted_error"]
        share = None if error is None or not floor else error / floor
        name = f"{row['calibrator']} (chosen)" if row["calibrator"] == chosen else row["calibrator"]
        cells = (number(error, 1), percent(share))
        rows.append(
            el("tr", el("th", name, scope="row"), el("td", wording.INFORMATION.get(row["information"], row["information"])),
               *(el("td", cell, class_="n") for cell in cells))
        )  # fmt: skip
    head = el("tr", el("th", "Calibrator", scope="col"), el("th", "Knows", scope="col"), el("th", "Error", scope="col", class_="n"), el("th", "of mean ablation's", scope="col", class_="n"))  # fmt: skip
    return _table("How the calibrator was chosen: squared error of what the latents write, on documents of the calibrate split it was not fitted on", head, rows)  # fmt: skip


def _table(words: str, head: Markup, rows: Sequence[Markup], class_: str | None = None) -> Markup:
    inside = el("table", el("caption", f"{words}."), el("thead", head), el("tbody", *rows), class_=class_)
    return el("div", inside, class_="scroll", tabindex=0, role="region", aria_label=words)


# -- provenance -------------------------------------------------------------------------------------------------------


def _provenance(provenance: Mapping[str, Any]) -> Markup:
    rows = [
        el(
            "tr",
            el("th", label, scope="row"),
            el("td", el("code", made["artifact"])),
            el("td", el("details", el("summary", "spec"), el("pre", json.dumps(made["spec"], indent=1, ensure_ascii=False)))),
        )
        for label, made in provenance["artifacts"].items()
    ]  # fmt: skip
    head = el("tr", el("th", "Input", scope="col"), el("th", "Artifact", scope="col"), el("th", "Made from", scope="col"))
    packages = together(
        [name, " ", el("code", version), ", " if index < len(provenance["packages"]) - 1 else "."]
        for index, (name, version) in enumerate(provenance["packages"].items())
    )
    code = provenance["commit"] or "not from a checkout"
    edited = ", with edits since" if provenance["edited_since_commit"] else ""
    return el(
        "footer",
        el("h2", "Provenance", id="provenance"),
        el("p", "Every artifact is named by what it was made from. Equal names, equal numbers.", class_="about"),
        _table("What this page was made from", head, rows, class_="digests"),
        el("p", "Code: ", el("code", code), edited, ". Packages: ", packages, class_="packages", style="margin-top:1rem"),
    )
