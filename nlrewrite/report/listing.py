"""The list of latents: a sentence each, and unfolded the scores and the examples, true and simulated side by side.

In: dossiers of latents. Out: the section of the page. Invariant: values stand in words too, so that nothing depends on
colour alone, and the list is complete without the script.
"""

import re
from collections.abc import Sequence

from nlrewrite.report import wording
from nlrewrite.report.facts import Facts
from nlrewrite.report.latents import Dossier, Example, Piece
from nlrewrite.report.markup import Markup, element, visible
from nlrewrite.report.wording import count, many, number, percent

el = element
LONGEST_UNBROKEN = 24
ORDERS = (
    ("energy down", "most energetic first"),
    ("detection down", "best detected first"),
    ("detection up", "worst detected first"),
    ("fuzzing down", "best at fuzzing first"),
    ("mcc up", "lowest MCC first"),
    ("frequency down", "most frequent first"),
    ("latent up", "by number"),
)


def listing(latents: Sequence[Dossier], facts: Facts) -> Markup:
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
        " is what the sentence makes the reader say, calibrated; both against the latent's largest activation. The ",
        el("span", "framed", class_="tok target key"),
        " token is the one whose two values stand on the left. Hover over a token for its values. ⏎ is a line break.",
        el("br"),
        wording.language(facts),
        class_="legend",
    )
    return el(
        "section",
        el("h2", "The latents and their sentences"),
        el(
            "p",
            f"The {many(len(latents), 'latent')} that write most into the model, of {count(facts.latents)}, by mean "
            f"squared activation times the squared length of the decoder vector; {count(explained)} of them with a "
            f"sentence. Scores are from the calibrate split, examples and frequencies from the report split, drawn "
            f"over all tenths of a latent's activations, with the reader's surest false alarms beside them.",
            class_="about",
        ),
        legend,
        tools,
        el("ol", *(_latent(latent, place == 0) for place, latent in enumerate(latents)), class_="latents"),
        id="latents",
    )


def _latent(latent: Dossier, opened: bool) -> Markup:
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
        ("written where the sentence is silent", number(latent.silent, 3)),
        ("AUPRC", number(scores["auprc"], 2)),
        ("sensitivity", number(scores["sensitivity"], 2)),
        ("specificity", number(scores["specificity"], 3)),
        ("energy explained, explain split", percent(latent.energy_explained)),
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
    return el("li", el("details", summary, inside, id=f"latent-{latent.latent}", open=opened), **data)


def _datum(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _sentence(latent: Dossier) -> Markup:
    if not latent.sentence:
        return el("span", f"No sentence: {latent.why_none or latent.outcome}.", class_="sentence none")
    pieces: list[object] = []
    for index, piece in enumerate(re.split(r'("(?:[^"\\]|\\.)*")', latent.sentence)):
        pieces.append(_quoted(piece) if index % 2 else visible(piece))
    unread = None if latent.outcome == "ok" else el("em", f" ({latent.outcome})")
    return el("span", *pieces, unread, class_="sentence")


def _quoted(quote: str) -> Markup:
    """A quoted token; a short one is never broken over two lines."""
    return el("code", visible(quote), class_="long" if len(quote) > LONGEST_UNBROKEN else None)


def _examples(latent: Dossier) -> Markup:
    head = el(
        "tr",
        el("th", "Drawn from", scope="col"),
        el("th", "True", scope="col", class_="n"),
        el("th", "Simulated", scope="col", class_="n"),
        el(
            "th",
            "Text, the token framed; what comes after it, neither side can see",
            scope="col",
            colspan=3,
            class_="words",
        ),
    )
    rows = [_example(example, latent.largest) for example in latent.examples]
    caption = el("caption", f"Examples of latent {latent.latent} on the report split.")
    return el("table", caption, el("thead", head), el("tbody", *rows), class_="examples")


def _example(example: Example, largest: float) -> Markup:
    """A row in which the tokens asked about stand one below the other."""
    at = next(index for index, piece in enumerate(example.pieces) if piece.target)
    return el(
        "tr",
        el("td", example.why, class_="why", title=visible(example.document)),
        el("td", number(example.true, 2), class_="n", data_name="true"),
        el("td", number(example.simulated, 2), class_="n", data_name="simulated"),
        el("td", *(_piece(piece, largest) for piece in example.pieces[: at + 1]), class_="text before"),
        el("td", *(_piece(piece, largest) for piece in example.pieces[at + 1 :]), class_="text after"),
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
