"""Tokens as a sentence names them: quoted, or by their kind.

In: the exact bytes of every token of a tokenizer. Out: quotes that survive any byte, and the kind of each token ("a
number", "a new word", ...). Invariant: `unquote(quote(text)) == text` for all bytes, and every token has one kind.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

KINDS = (
    "the start",
    "a line break",
    "a space",
    "a number",
    "a capital",
    "a new word",
    "a word part",
    "a sign",
)
"""Noun phrases for kinds of tokens. The start is where the text begins; the others go by the token's characters."""
START = 0
END_OF_TEXT = b"<|endoftext|>"
STARTS = (END_OF_TEXT, b"<|begin_of_text|>", b"<bos>", b"<s>")  # what stands before a text, by family

_ESCAPE = re.compile(r'\\(?:x([0-9a-fA-F]{2})|(["\\nrt]))')
_SHORT = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_ESCAPED = {character: "\\" + letter for letter, character in _SHORT.items()}


def quote(text: bytes) -> str:
    """`text` between double quotes; what is not printable UTF-8 is written as \\n, \\t or \\xNN."""
    pieces = []
    for character in text.decode("utf-8", "surrogateescape"):
        if character in _ESCAPED:
            pieces.append(_ESCAPED[character])
        elif character.isprintable():
            pieces.append(character)
        else:
            raw = character.encode("utf-8", "surrogateescape")
            pieces.append("".join(f"\\x{byte:02x}" for byte in raw))
    return '"' + "".join(pieces) + '"'


def unquote(quoted: str) -> bytes:
    """The bytes between the quotes; ValueError when an escape or a character cannot be."""
    inside, out, at = quoted[1:-1], bytearray(), 0
    while at < len(inside):
        if inside[at] != "\\":
            out += inside[at].encode("utf-8")
            at += 1
            continue
        escape = _ESCAPE.match(inside, at)
        if escape is None:
            raise ValueError(f"unknown escape in {quoted} at {inside[at : at + 4]!r}")
        out += bytes([int(escape[1], 16)]) if escape[1] else _SHORT[escape[2]].encode()
        at = escape.end()
    return bytes(out)


def kind(text: bytes) -> int:
    """The kind of a token, as an index into KINDS."""
    if text in STARTS:
        return START
    whole = text.decode("utf-8", "replace")
    bare = whole.lstrip(" ")
    if "\n" in whole:
        return 1
    if not bare.strip():
        return 2
    if bare[0].isdigit():
        return 3
    if bare[0].isalpha():
        if bare[0].isupper():
            return 4
        return 5 if bare != whole else 6
    return 7


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of a tokenizer by id."""

    texts: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def kinds_V(self) -> np.ndarray:
        return np.array([kind(text) for text in self.texts], dtype=np.int64)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each text; the first one where tokens are spelled alike, for a reader sees no difference."""
        ids: dict[bytes, int] = {}
        for index, text in enumerate(self.texts):
            ids.setdefault(text, index)
        return ids

    @cached_property
    def first_V(self) -> np.ndarray:
        """For each token the first one that is spelled like it."""
        return np.array([self.ids[text] for text in self.texts], dtype=np.int32)
