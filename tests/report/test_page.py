import base64
import hashlib
import re
from dataclasses import replace
from typing import Any

import pytest

from nlrewrite.report import wording
from nlrewrite.report.facts import Facts
from nlrewrite.report.latents import Dossier, Example, Piece
from nlrewrite.report.markup import visible
from nlrewrite.report.page import page
from nlrewrite.report.wording import number, percent
from tests.report.conftest import Made
from tests.report.hostile import ATTACKS
from tests.report.reading import Node, read


@pytest.fixture(scope="module")
def tree(made: Made) -> Node:
    return read(made.html)


def test_the_page_is_read_without_its_script(tree: Node, made: Made, told: Facts):
    headline = made.results["headline"]
    assert tree.one("h1").text == wording.title(told)
    assert wording.result(told, headline) in tree.one("header").text
    assert [node.text for node in tree.all("h2")] == [
        "How much of the layer the sentences keep",
        "Figures",
        "Every arm",
        "Method",
        "The papers' figures",
        "The latents and their sentences",
        "Provenance",
    ]
    first = tree.one("ol", "latents").all("details")[0]
    assert "open" in first.attributes
    assert first.all("table", "examples")
    tools = tree.one("div", "tools")
    assert "hidden" in tools.attributes, "what only works with the script is shown by the script"


def _with_interval(row: dict[str, Any], name: str) -> str:
    return f"{number(row[name])}[{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]"


def test_every_row_of_the_arms_is_in_a_table(tree: Node, made: Made):
    folded = [more.all("table") for more in tree.named("arms").all("details")]
    assert [len(each) for each in folded] == [2, 3], "the position that is not quoted is folded away whole"
    shown = [table for table in tree.named("arms").all("table") if not any(table in each for each in folded)]
    assert len(shown) == 1
    tables = [shown[0], folded[1][0]]
    for table, position in zip(tables, ("all", "last"), strict=True):
        rows = [
            row
            for row in made.results["arms"]
            if row["position"] == position and row["selection"] in ("all", "harmless")
        ]
        shown = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr") if row.all("td")]
        assert len(shown) == len(rows)
        expected = [
            (row["calibrator"] or "–", row["information"] or "–", number(row["ce"]), _with_interval(row, "delta_ce"))
            for row in rows
        ]
        assert sorted(tuple(cells[:4]) for cells in shown) == sorted(expected)
    assert sum(len(table.all("tr", "quoted")) for table in tables) == 1, "the headline's row is set off"


def test_what_stands_beside_the_means_is_in_tables_of_its_own(tree: Node, made: Made):
    statistics, curves = tree.named("arms").all("details")[0].all("table")
    rows = [row for row in made.results["arms"] if row["position"] == "all" and row["selection"] in ("all", "harmless")]
    shown = [[cell.text for cell in row.all("td")] for row in statistics.one("tbody").all("tr")]
    assert len(shown) == len(rows) - 1, "all but the original"
    expected = {(number(row["over_mean"]), percent(row["win_rate"]), number(row["kl_coder"])) for row in rows}
    assert {(cells[1].partition("[")[0], cells[2].partition("[")[0], cells[6]) for cells in shown} <= expected
    of_all = [each for each in made.results["curves"] if each["position"] == "all"]
    areas = [row.all("td")[2].text.partition("[")[0] for row in curves.one("tbody").all("tr")]
    assert areas == [number(each["area"]["mean"]) for each in of_all]


def test_every_rung_has_a_line_of_its_own(tree: Node, made: Made):
    assert {"gate", "gated", "rules"} <= {row["explanation"] for row in made.results["arms"]}
    first = tree.named("arms").all("table")[0].text
    for words in ("Gate only", "Gate and sentence", "only sentences and the text are read"):
        assert words in first


def test_a_published_protocol_is_named_with_its_defects(told: Facts, with_gap: dict[str, Any]):
    assert not read(page(with_gap, told, [], [])).all("aside"), "ours is not set off"
    with_gap["protocol"] = {"name": "p9 <b>", "summary": "One & two.", "defects": ["<i>First.", "Second."]}
    aside = read(page(with_gap, told, [], [])).one("aside")
    assert "p9 <b>" in aside.text
    assert [item.text for item in aside.all("li")] == ["<i>First.", "Second."]


def test_controls_stand_beside_the_result(told: Facts, with_gap: dict[str, Any], listed: list[Dossier]):
    tree = read(page(with_gap, told, [], listed))
    assert "72% [70, 74]" in tree.one("header").one("strong").text
    marks = [(mark.all("span")[0].text, mark.all("span", "value")[0].text) for mark in tree.one("figure").all("li")]
    assert marks == [
        ("Shuffled sentences", "0.6% [−1, 3]"),
        ("Token lookup", "21% [19, 23]"),
        ("The sentences", "72% [70, 74]"),
        ("Oracle on/off mask", "86% [84, 88]"),
        ("Bigram lookup", "94% [92, 96]"),
    ]
    for mark in tree.one("figure").all("i"):
        for figure in re.findall(r"(-?[\d.]+)%", mark.attributes["style"] or ""):
            assert 0 <= float(figure) <= 100


def test_a_rewriting_worse_than_the_mean_stays_on_the_scale(told: Facts, with_gap: dict[str, Any]):
    for row in with_gap["arms"]:
        if row["arm"] == "rewritten":
            row.update(gap_closed=-0.5, gap_closed_low=-0.6, gap_closed_high=-0.4)
    with_gap["headline"].update(gap_closed=-0.5, low=-0.6, high=-0.4)
    tree = read(page(with_gap, told, [], []))
    assert "−50% [−60, −40]" in tree.one("header").one("strong").text
    for mark in tree.one("figure").all("i"):
        for figure in re.findall(r"(-?[\d.]+)%", mark.attributes["style"] or ""):
            assert 0 <= float(figure) <= 100


def test_tables_have_captions_and_headers_that_say_what_they_head(tree: Node):
    tables = tree.all("table")
    assert len(tables) > 6
    for table in tables:
        assert table.one("caption").text.strip()
        assert all(header.attributes.get("scope") for header in table.all("th"))


def test_names_are_given_once_and_links_arrive(tree: Node):
    ids = [node.attributes["id"] for node in tree.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in tree.all():
        for name in ("href", "src"):
            target = node.attributes.get(name)
            if target is not None:
                assert target == "data:," or target.removeprefix("#") in ids, target
    assert {link.attributes["href"] for link in tree.one("nav").all("a")} == {
        f"#{name}" for name in ("result", "figures", "arms", "method", "papers", "latents", "provenance")
    }


def test_nothing_outside_the_file_is_referred_to(made: Made, tree: Node):
    assert {node.tag for node in tree.all()}.isdisjoint({"img", "iframe", "object", "embed", "base", "form", "video"})
    styles = tree.one("style").text + "".join(node.attributes.get("style") or "" for node in tree.all())
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", styles)
    assert "@import" not in styles
    assert "://" not in re.sub(r">[^<]*<", "><", made.html).replace(tree.one("style").text, "")


def test_the_policy_allows_the_one_script_and_nothing_else(tree: Node):
    script = base64.b64encode(hashlib.sha256(tree.one("script").text.encode()).digest()).decode()
    (policy,) = [node for node in tree.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{script}'; "
        f"base-uri 'none'; form-action 'none'"
    )
    assert not [name for node in tree.all() for name in node.attributes if name.startswith("on")]


def test_text_from_documents_is_text(made: Made, tree: Node):
    shown = tree.named("latents").text
    assert "<scr" in shown or "<img" in shown or "onerror" in shown, "the text under test is not in the page"
    assert len(tree.all("script")) == 1
    names = {row.attributes.get("title") for row in tree.all("td", "why")}
    assert any(name and name.startswith("\"><img onerror='alert(") for name in names)
    hidden = [character for character in made.html if not character.isprintable() and character not in "\n "]
    assert hidden == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_sentences_of_a_model_are_text(attack: str, told: Facts, with_gap: dict[str, Any], listed: list[Dossier]):
    pieces = (Piece(attack), Piece(attack, 1.0, 2.0, 3, target=True), Piece(attack, 0.0, 0.5, 1))
    example = Example(attack, attack, 1.0, 2.0, 3, pieces)
    spoken = replace(listed[0], sentence=f'Fires on "{attack}" {attack}', outcome=attack, examples=(example,))
    silent = replace(listed[1], latent=999_999, sentence="", why_none=attack)
    for row in with_gap["arms"]:
        row.update(site=attack, simulator=attack, calibrator=attack, information=attack)
    with_gap["headline"].update(site=attack, simulator=attack, calibrator=attack, information=attack)
    with_gap["provenance"]["packages"][attack] = attack
    with_gap["provenance"]["artifacts"]["coder"]["spec"] = {attack: attack}
    plain = replace(told, outcomes={attack: 1, "ok": 1}, latents=2)
    tree = read(page(with_gap, plain, [], [spoken, silent]))
    harmless = read(page(with_gap, told, [], [replace(listed[0], examples=()), listed[1]]))
    assert {node.tag for node in tree.all()} <= {node.tag for node in harmless.all()} | {
        "table",
        "caption",
        "em",
        "code",
    }
    assert len(tree.all("script")) == len(tree.all("style")) == 1
    assert not [name for node in tree.all() for name in node.attributes if name.startswith("on")]
    latent, other = tree.one("ol", "latents").all("li")
    assert latent.all("span", "sentence")[0].text.count(visible(attack)) >= 2
    assert visible(attack) in other.text or attack in other.text
    assert attack in tree.named("arms").text


def test_examples_show_both_values_in_words_and_in_shade(tree: Node, listed: list[Dossier]):
    details = tree.named(f"latent-{listed[0].latent}")
    for row, example in zip(details.one("tbody").all("tr"), listed[0].examples, strict=True):
        why, true, simulated, *text = row.all("td")
        assert (why.text, true.text, simulated.text) == (
            example.why,
            number(example.true, 2),
            number(example.simulated, 2),
        )
        assert "".join(cell.text for cell in text) == "".join(piece.text for piece in example.pieces)
        marked = row.all("span", "tok")
        assert [mark.attributes["title"] for mark in marked] == [
            f"true {piece.true:.2f}, simulated {piece.simulated:.2f} (digit {piece.level})"
            for piece in example.pieces
            if piece.marked
        ]


def test_counts_have_their_denominators(tree: Node, told: Facts):
    (outcomes,) = [table for table in tree.named("method").all("table") if table.one("caption").text.startswith("What")]
    assert f"of {told.latents}" in outcomes.text
    rows = {row.one("th").text: [cell.text for cell in row.all("td")] for row in outcomes.one("tbody").all("tr")}
    assert rows["read and simulated"] == [str(told.sentences), percent(told.sentences / told.latents)]
    assert sum(int(cells[0]) for cells in rows.values()) == told.latents


def test_the_footer_names_every_artifact(made: Made, tree: Node):
    footer = tree.one("footer").text
    for folder in made.inputs.values():
        assert str(folder.manifest.artifact) in footer
    assert all(f"{name} {version}" in footer for name, version in made.results["provenance"]["packages"].items())
