import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlrewrite.language.sentence import SILENT, Change, Place, Rule, Unparsed, parse, words, write
from nlrewrite.language.vocabulary import KINDS
from tests.language.making import rules, tokens

SENTENCE = (
    'Fires on " of" (7), " in" or " at" (3), and when strengthened on " a". Stronger right after " one" (+4), a number '
    '(+2). Weaker 2 tokens after "x" (-3). Silent within 8 tokens after "." or the start.'
)


@given(rules())
def test_a_sentence_is_read_as_the_rule_that_was_written(rule: Rule) -> None:
    assert parse(write(rule)) == rule.normal()
    assert write(parse(write(rule))) == write(rule)


def test_the_rule_that_never_fires() -> None:
    assert write(Rule(())) == "Never fires."
    assert parse("Never fires.") == Rule(())
    with pytest.raises(Unparsed, match="expected the end, at character 13"):
        parse("Never fires. Or does it.")


def test_a_sentence_says_what_it_says() -> None:
    assert parse(SENTENCE) == Rule(
        ((b" of", 7), (b" at", 3), (b" in", 3), (b" a", 0)),
        (
            Change(Place(1), b" one", 4),
            Change(Place(1), KINDS.index("a number"), 2),
            Change(Place(2), b"x", -3),
            Change(Place(8, within=True), b".", SILENT),
            Change(Place(8, within=True), KINDS.index("the start"), SILENT),
        ),
    )
    assert words(SENTENCE) == 36
    assert parse(SENTENCE).quotes == 7


def test_a_sentence_edited_by_hand_means_what_it_says() -> None:
    edits = {
        '" of" (7)': '" of" (2)',
        '" in" or " at" (3)': '" in" (3), "at" (4)',
        "(+4)": "(+1)",
        "2 tokens after": "5 tokens after",
        "Weaker 2 tokens after": "Weaker within 2 tokens after",
        "(-3)": "(-9)",
        'Silent within 8 tokens after "." or the start.': "",
        "Fires": "\n  Fires ",
    }
    read = {old: parse(SENTENCE.replace(old, new)) for old, new in edits.items()}
    assert dict(read['" of" (7)'].strengths)[b" of"] == 2
    assert dict(read['" in" or " at" (3)'].strengths) == {b" of": 7, b"at": 4, b" in": 3, b" a": 0}
    assert read["(+4)"].changes[-0] == Change(Place(1), KINDS.index("a number"), 2)
    assert Change(Place(1), b" one", 1) in read["(+4)"].changes
    assert Change(Place(5), b"x", -3) in read["2 tokens after"].changes
    assert Change(Place(2, within=True), b"x", -3) in read["Weaker 2 tokens after"].changes
    assert Change(Place(2), b"x", -9) in read["(-3)"].changes
    assert len(read['Silent within 8 tokens after "." or the start.'].changes) == 3
    assert read["Fires"] == parse(SENTENCE)


@pytest.mark.parametrize(
    ("sentence", "where"),
    [
        ("", "expected 'Fires', at character 0"),
        ("Never.", "expected 'Fires', at character 0"),
        ("Fires.", "no token is named that it fires on, at character 5"),
        ("Fires on the (3).", "expected a quoted token or a kind .* at character 9"),
        ('Fires on "a".', r"expected a strength such as \(7\), at character 12"),
        ('Fires on "a" (0).', "a strength is 1 to 9, not 0, at character 16"),
        ('Fires on "a" (+3).', "expected a strength .* at character 13"),
        ('Fires on "a" (3)', "expected '.', at character 16"),
        ('Fires on "a" (3), "a" (4).', '"a" is named twice, at character 25'),
        ("Fires on a number (3).", "it fires on quoted tokens, not on a number, at character 21"),
        ('Fires on "" (3).', "an empty quote names no token, at character 9"),
        (r'Fires on "\q" (3).', r"unknown escape .* at character 9"),
        ('Fires on "\ud800" (3).', r"surrogates not allowed, at character 9"),
        ('Fires on "a (3).', "cannot read .* at character 8"),
        ('Fires on "a" (3). Louder after "b" (+3).', "expected one of Stronger, Weaker, Silent, at character 18"),
        ('Fires on "a" (3). Stronger after "b" (+3).', "expected 'right after', or a number .* at character 27"),
        ('Fires on "a" (3). Stronger 65 tokens after "b" (+3).', "from 1 to 64, at character 27"),
        ('Fires on "a" (3). Stronger 0 tokens after "b" (+3).', "from 1 to 64, at character 27"),
        (f'Fires on "a" (3). Stronger {"9" * 5000} tokens after "b" (+3).', "from 1 to 64, at character 27"),
        ('Fires on "a" (3). Stronger right after "b" (3).', r"expected a change such as \(\+2\), at character 43"),
        ('Fires on "a" (3). Stronger right after "b" (-3).', "Stronger and -3 contradict each other, at character 47"),
        ('Fires on "a" (3). Weaker right after "b" (+3).', "Weaker and .3 contradict each other, at character 45"),
        ('Fires on "a" (3). Silent right after "b" (-3).', "expected '.', at character 41"),
        ('Fires on "a" (3). Silent right after "b". Weaker right after "b" (-1).', "one condition is given twice"),
        ("Fires on “a” (3).", "cannot read '.* at character 8"),
        ('Fires on "a" (٣).', "cannot read '.* at character 12"),
    ],
)
def test_what_does_not_parse_says_where(sentence: str, where: str) -> None:
    with pytest.raises(Unparsed, match=where):
        parse(sentence)


def read(sentence: str) -> Rule | Unparsed:
    """Whatever else is raised fails the test."""
    try:
        return parse(sentence)
    except Unparsed as error:
        return error


pieces = st.sampled_from(
    [*re.findall(r'"[^"]*"|\([^)]*\)|[A-Za-z]+|\d+|[.,]', SENTENCE), *KINDS, "Never", "fires", '"']
)


@given(st.lists(pieces, max_size=30).map(" ".join) | st.text(max_size=40))
@example("Fires on")
@example('Fires on "a" (3). Stronger')
@example('Fires on "a" (3). Stronger within')
def test_reading_never_fails_otherwise(sentence: str) -> None:
    rule = read(sentence)
    if isinstance(rule, Unparsed):
        assert re.search(r"at character \d+", str(rule))
    else:
        assert parse(write(rule)) == rule


@given(rules(), st.data())
def test_damage_is_noticed_or_makes_another_sentence(rule: Rule, data: st.DataObject) -> None:
    sentence = write(rule)
    at = data.draw(st.integers(0, len(sentence) - 1))
    damaged = sentence[:at] + data.draw(st.sampled_from(["", '"', "\\", "(", "7", " or "])) + sentence[at + 1 :]
    found = read(damaged)
    if isinstance(found, Unparsed):
        assert re.search(r"at character \d+", str(found))
    else:
        assert parse(write(found)) == found


@given(rules())
def test_every_name_is_counted(rule: Rule) -> None:
    sentence = write(rule)
    quoted = re.findall(r'"(?:\\.|[^"\\])*"', sentence)
    assert rule.quotes == len(quoted)
    assert words(sentence) == len(re.sub(r'"(?:\\.|[^"\\])*"', "Q", sentence).split())


@given(st.lists(tokens, min_size=1, max_size=5, unique=True))
def test_equal_strengths_are_said_together(named: list[bytes]) -> None:
    assert write(Rule(tuple((token, 4) for token in named))).count("(4)") == 1


@pytest.mark.parametrize("page", ["nlrewrite/language/sentence.py", "docs/rule-language.md"])
def test_the_examples_of_the_documentation_parse(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text()
    shown = text[text.index("    Fires on ") :].split("\n\n")[0]
    rule = parse(" ".join(line.strip() for line in shown.splitlines()))
    assert len(rule.strengths) == 4
    assert len(rule.changes) == 4
