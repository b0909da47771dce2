r"""Contexts and sentences as a language model is shown them: bytes made into text, marks around tokens, bounds.

    the| cat  ->  plain style: `the<< cat>>`; token style: `"the"<<" cat">>`

In: the bytes of tokens, and which of them are marked. Out: one line of printable text. What is not printable is written
as \n, \t, \r or \xNN, a backslash twice, and a sign that could be taken for a mark behind a backslash. In token style
each token is quoted as the rule language quotes it, so that a reader can match the two, and sees where tokens end.
Invariants: `unmarked(marked(tokens, at)) == (b"".join(tokens), spans)`, and in token style the tokens themselves come
back; no output has a line break or a control character, and none is longer than it may be.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Literal

from nlrewrite.language.vocabulary import quote, unquote

Style = Literal["plain", "tokens"]

OPEN, CLOSE = "<<", ">>"
ELLIPSIS = "…"
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: never printable, so never in visible text
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MEANT = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\", "<": b"<", ">": b">"}
_QUOTED = re.compile(r'(?P<open><<)?(?P<token>"(?:\\.|[^"\\])*")(?(open)>>)')
_PART = re.compile(r"\\x(?P<byte>[0-9a-f]{2})|\\(?P<sign>[nrt\\<>])|(?P<open><<)|(?P<close>>>)|(?P<text>.)", re.DOTALL)


def visible(text: str) -> str:
    """`text` in one line: what is not printable is written as an escape; all else is left as it is."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def marked(tokens: Sequence[bytes], at: Collection[int], style: Style = "plain") -> str:
    """The text of `tokens` with << >> around those at the indices `at`, neighbours together.

    In plain style a mark inside a character, where a token ends between its bytes, is moved out to take it in whole.
    """
    chosen = {index % len(tokens) for index in at} if tokens else set[int]()
    if style == "tokens":
        quoted = [quote(token) for token in tokens]
        return "".join(f"{OPEN}{each}{CLOSE}" if index in chosen else each for index, each in enumerate(quoted))
    spans: list[list[int]] = []
    begin = 0
    for index, token in enumerate(tokens):
        if index in chosen:
            if spans and spans[-1][1] == begin:
                spans[-1][1] = begin + len(token)
            else:
                spans.append([begin, begin + len(token)])
        begin += len(token)
    return _signed(_with_marks(b"".join(tokens), spans))


def unmarked(text: str) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes of a text in plain style, and the spans of them that are marked."""
    out, spans, begun = bytearray(), list[tuple[int, int]](), 0
    for part in _PART.finditer(text):
        if part["open"]:
            begun = len(out)
        elif part["close"]:
            spans.append((begun, len(out)))
        else:
            out += _bytes(part)
    return bytes(out), spans


def separated(text: str) -> tuple[list[bytes], list[int]]:
    """The tokens of a text in token style, and the indices of the marked ones; ValueError if it is not in it."""
    tokens, at, end = list[bytes](), list[int](), 0
    while end < len(text):
        found = _QUOTED.match(text, end)
        if found is None:
            raise ValueError(f"a context in token style is a row of quotes: {text[end : end + 20]!r}")
        at += [len(tokens)] if found["open"] else []
        tokens.append(unquote(found["token"]))
        end = found.end()
    return tokens, at


def bounded(text: str, most_characters: int, keep: Literal["start", "end"] = "start") -> str:
    """`text`, or as much of its start or end as fits with an ellipsis."""
    if len(text) <= most_characters:
        return text
    if keep == "start":
        return text[: most_characters - 2].rstrip() + " " + ELLIPSIS
    at = len(text) - most_characters + 1
    return ELLIPSIS + text[at + _begun(text, at) :]


# -- parts ------------------------------------------------------------------------------------------------------------


def _escape(character: str) -> str:
    raw = character.encode("utf-8", "surrogatepass" if not "\udc80" <= character <= "\udcff" else "surrogateescape")
    return _SHORT.get(character) or "".join(f"\\x{byte:02x}" for byte in raw)


def _plain(characters: str) -> str:
    return visible(characters.replace("\\", "\\\\"))


def _signed(text: str) -> str:
    """Marks written out; what stands beside its like, and could be read as one, gets a backslash."""
    text = re.sub(f"<(?=[<{_OPEN}])|(?<=[<{_OPEN}])<", r"\\<", text)
    text = re.sub(f">(?=[>{_CLOSE}])|(?<=[>{_CLOSE}])>", r"\\>", text)
    return text.replace(_OPEN, OPEN).replace(_CLOSE, CLOSE)


def _with_marks(raw: bytes, spans: list[list[int]]) -> str:
    """The text of `raw` with private marks at the spans, each widened to whole characters."""
    characters = raw.decode("utf-8", "surrogateescape")
    bounds = [0, *accumulate(len(each.encode("utf-8", "surrogateescape")) for each in characters)]
    wide: list[list[int]] = []
    for begin, end in spans:
        first, last = bisect_right(bounds, begin) - 1, bisect_left(bounds, end)
        if wide and first <= wide[-1][1]:
            wide[-1][1] = max(last, wide[-1][1])
        elif begin < end:
            wide.append([first, last])
    pieces, at = list[str](), 0
    for first, last in wide:
        pieces += [_plain(characters[at:first]), _OPEN, _plain(characters[first:last]), _CLOSE]
        at = last
    return "".join(pieces) + _plain(characters[at:])


def _bytes(part: "re.Match[str]") -> bytes:
    if part["byte"]:
        return bytes([int(part["byte"], 16)])
    return _MEANT[part["sign"]] if part["sign"] else part["text"].encode("utf-8", "surrogatepass")


def _begun(text: str, at: int) -> int:
    """How many characters from `at` on belong to an escape or a mark that begins before it."""
    run = len(text[:at]) - len(text[:at].rstrip("\\"))
    if run % 2:
        return 3 if text[at] == "x" else 1
    for back in (2, 3):
        begin = at - back
        slashes = len(text[: begin + 1]) - len(text[: begin + 1].rstrip("\\")) if begin >= 0 else 0
        if slashes % 2 and text[begin + 1] == "x":
            return 4 - back
    return 1 if text[at - 1 : at + 1] in (OPEN, CLOSE) else 0
