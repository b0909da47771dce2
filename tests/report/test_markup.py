import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.report.markup import Markup, element, text, together, verbatim, visible
from tests.report.hostile import ATTACKS
from tests.report.reading import read

# a parser folds carriage returns and refuses NUL; `visible` writes both out before they come near the page
STRINGS = st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",)))


@given(STRINGS, STRINGS)
def test_strings_come_back_as_they_were_and_as_nothing_else(content: str, value: str):
    node = read(element("p", content, title=value)).one("p")
    assert node.text == content
    assert node.attributes == {"title": value}
    assert node.all() == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_text(attack: str):
    page = read(together([element("td", attack, title=attack), attack]))
    assert [node.tag for node in page.all()] == ["td"]
    assert page.text == attack * 2


def test_markup_is_not_escaped_again():
    assert element("b", element("i", "a < b")) == "<b><i>a &lt; b</i></b>"
    assert text(["1 < 2", Markup("<br>"), None, 3]) == "1 &lt; 2<br>3"


def test_attributes_are_named_as_in_html_and_left_out_when_false():
    written = element("th", "x", class_="n", data_name="y", colspan=2, hidden=True, title=None, open=False)
    assert written == '<th class="n" data-name="y" colspan="2" hidden>x</th>'
    assert element("meta", name="viewport") == '<meta name="viewport">'


def test_what_cannot_be_written_is_refused():
    with pytest.raises(AssertionError, match="cannot be written"):
        text(object())
    for content in ("a</script>", "a<!--"):
        with pytest.raises(AssertionError, match="would end early"):
            verbatim("script", content)


@given(st.text())
def test_visible_text_can_be_seen(characters: str):
    assert all(each.isprintable() for each in visible(characters))


def test_visible_text_says_what_it_hides():
    assert visible("a b\n\tc") == "a b⏎⇥c"
    assert visible("\u202e\x00\x1b\u200b\r") == "\\u202e\\x00\\x1b\\u200b\\x0d"
    assert visible("naïve 日本語 🙂") == "naïve 日本語 🙂"
