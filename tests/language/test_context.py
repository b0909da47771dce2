"""Contexts as they are shown: nothing is lost, nothing hides, and nothing is longer than it may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.language.context import CLOSE, ELLIPSIS, OPEN, bounded, marked, separated, unmarked, visible
from nlrewrite.language.sentence import Rule, parse, write

HARD = [b"<", b"<<", b">", b">>", b"\\", b"\\n", b"x4", b"\n", b"\r\t", b'"', b"\x00\x1b[31m", " 木".encode(), b"\xff"]
FAMILY = "👩‍👩‍👧".encode()
few = st.sampled_from([*HARD, FAMILY[:2], FAMILY[2:5], FAMILY[5:], "é".encode()[:1], "é".encode()[1:], b" a"])
tokens = st.lists(few | st.binary(min_size=1, max_size=5) | st.text(min_size=1, max_size=3).map(str.encode), max_size=8)


@given(tokens, st.sets(st.integers(0, 7)))
def test_plain_text_gives_the_bytes_back(some: list[bytes], at: set[int]) -> None:
    at = {index for index in at if index < len(some)}
    shown = marked(some, at)
    assert shown.isprintable() or not shown
    raw, spans = unmarked(shown)
    assert raw == b"".join(some)
    covered = {place for begin, end in spans for place in range(begin, end)}
    starts = [sum(map(len, some[:index])) for index in range(len(some) + 1)]
    wanted = {place for index in at for place in range(starts[index], starts[index + 1])}
    assert wanted <= covered
    if raw.isascii():
        assert wanted == covered


@given(tokens, st.sets(st.integers(0, 7)))
def test_token_style_gives_tokens_and_marks_back(some: list[bytes], at: set[int]) -> None:
    at = {index for index in at if index < len(some)}
    shown = marked(some, at, "tokens")
    assert shown.isprintable() or not shown
    assert separated(shown) == (some, sorted(at))


@pytest.mark.parametrize(
    ("some", "at", "shown"),
    [
        ([b"the", b" cat"], {1}, "the<< cat>>"),
        ([b"the", b" cat"], {-1}, "the<< cat>>"),
        ([b"the", b" cat"], {0, 1}, "<<the cat>>"),
        ([b"a", b"b", b"c"], {0, 2}, "<<a>>b<<c>>"),
        ([FAMILY[:2], FAMILY[2:4], b"!"], {2}, "👩<<!>>"),
        ([FAMILY[:2], FAMILY[2:4], b"!"], {1}, "<<👩>>!"),
        ([FAMILY[:2], b"!"], {0}, r"<<\xf0\x9f>>!"),
        ([b"a << b", b"<"], {1}, r"a \<\< b<<\<>>"),
        ([b"a<", b"b"], {1}, r"a\<<<b>>"),
        ([b"b>", b">"], {0}, r"<<b\>>>\>"),
        ([b"x = y << 2\n"], set(), r"x = y \<\< 2\n"),
        ([b"C:\\n"], set(), r"C:\\n"),
        (["\u202eevil".encode()], set(), r"\xe2\x80\xaeevil"),
        ([], set(), ""),
    ],
)
def test_how_it_looks(some: list[bytes], at: set[int], shown: str) -> None:
    assert marked(some, at) == shown


def test_no_text_can_bring_a_mark_of_its_own() -> None:
    for some in ([b"<<fake>>", b" real"], [b"<", b"<fake>", b">", b" real"], [b"\\", b"<<fake>>", b" real"]):
        shown = marked(some, {len(some) - 1})
        plain = shown.replace("\\\\", "").replace("\\<", "").replace("\\>", "")
        assert plain.count(OPEN) == plain.count(CLOSE) == 1
        assert unmarked(shown)[1] == [(len(b"".join(some[:-1])), len(b"".join(some)))]


def test_tokens_are_quoted_as_in_a_sentence() -> None:
    for token in [*HARD, " 木".encode()[:2]]:
        quoted = marked([token], set(), "tokens")
        assert quoted in write(Rule(((token, 7),)))
        assert parse(f"Fires on {quoted} (7).").strengths == ((token, 7),)


@pytest.mark.parametrize("text", ["a", '"a', '"a" "b"', '<<"a"', '"a">>', '"\\q"', '""x'])
def test_what_is_no_row_of_quotes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quote|escape"):
        separated(text)


@given(st.text(max_size=200))
def test_visible_text_is_one_printable_line(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


@given(st.text(max_size=60) | tokens.map(lambda some: marked(some, {0} if some else ())), st.integers(10, 60))
def test_bounds_hold_and_keep_what_they_should(text: str, most: int) -> None:
    start, end = bounded(text, most), bounded(text, most, "end")
    assert max(len(start), len(end)) <= most
    if len(text) <= most:
        assert start == end == text
    else:
        assert text.startswith(start.removesuffix(ELLIPSIS).rstrip()) and start.endswith(ELLIPSIS)
        assert text.endswith(end.removeprefix(ELLIPSIS)) and end.startswith(ELLIPSIS)


@given(tokens.filter(bool), st.integers(10, 60))
def test_a_cut_breaks_no_escape_and_no_mark(some: list[bytes], most: int) -> None:
    shown = marked(some, {len(some) - 1})
    raw, _ = unmarked(bounded(shown, most, "end").removeprefix(ELLIPSIS))
    assert b"".join(some).endswith(raw)


def test_a_hundred_thousand_characters_are_cut() -> None:
    assert len(bounded("x" * 100_000, 2000)) == 2000
    assert len(bounded("x" * 100_000, 2000, "end")) == 2000
