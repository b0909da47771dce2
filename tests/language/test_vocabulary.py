import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.language.vocabulary import END_OF_TEXT, KINDS, Vocabulary, kind, quote, unquote


@given(st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
def test_quotes_survive_any_bytes(text: bytes) -> None:
    quoted = quote(text)
    assert unquote(quoted) == text
    assert quoted.isprintable()
    assert quoted.encode().decode() == quoted


def test_every_byte_alone_and_every_quote_is_its_own() -> None:
    every = [bytes([byte]) for byte in range(256)]
    assert [unquote(quote(text)) for text in every] == every
    assert len({quote(text) for text in every}) == 256


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        (b" of", '" of"'),
        (b'"', r'"\""'),
        (b"a\\n", r'"a\\n"'),
        (b"\n\t\r", r'"\n\t\r"'),
        (b"\x00\x7f", r'"\x00\x7f"'),
        ("é木🙂".encode(), '"é木🙂"'),
        ("木".encode()[:2], r'"\xe6\x9c"'),
        (b"a" + "🙂".encode()[1:], r'"a\x9f\x99\x82"'),
        ("\u200b".encode(), r'"\xe2\x80\x8b"'),
    ],
)
def test_how_tokens_are_quoted(text: bytes, quoted: str) -> None:
    assert quote(text) == quoted
    assert unquote(quoted) == text


def test_an_escape_may_be_written_in_capitals() -> None:
    assert unquote(r'"\xE6\x9C"') == unquote(r'"\xe6\x9c"')


@pytest.mark.parametrize("quoted", [r'"\q"', r'"\x4"', '"\\"', r'"\xzz"'])
def test_an_unknown_escape_is_refused(quoted: str) -> None:
    with pytest.raises(ValueError, match="unknown escape"):
        unquote(quoted)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (END_OF_TEXT, "the start"),
        (b" \n", "a line break"),
        (b"  ", "a space"),
        (b"\t", "a space"),
        (b" 7a", "a number"),
        (b" The", "a capital"),
        (b"T", "a capital"),
        (b" the", "a new word"),
        (b"ing", "a word part"),
        ("木".encode(), "a word part"),
        (b" (", "a sign"),
        ("木".encode()[:2], "a sign"),
        ("🙂".encode(), "a sign"),
    ],
)
def test_kinds(text: bytes, name: str) -> None:
    assert KINDS[kind(text)] == name


@given(st.binary(max_size=8))
def test_everything_has_a_kind(text: bytes) -> None:
    assert 0 <= kind(text) < len(KINDS)


def test_tokens_that_are_spelled_alike_are_the_first_of_them() -> None:
    vocabulary = Vocabulary((b"", b"a", b"b", b"a", b""))
    assert vocabulary.ids == {b"": 0, b"a": 1, b"b": 2}
    assert vocabulary.first_V.tolist() == [0, 1, 2, 1, 0]
