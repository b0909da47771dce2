"""Text to token ids, where a frame may spell special tokens and what is put into it never does.

In: a fast tokenizer; frames, the words of a chat template, and texts. Out: ids. Invariant: no text, whoever wrote it,
gives an added token of the tokenizer, but for those that are white space and nothing else; and a frame with harmless
texts gives the ids that the tokenizer itself gives for the whole.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from nlrewrite.errors import SettingError

REMEMBERED = 1024
"""Texts whose ids are kept: the instructions and the shots are the same in every prompt."""
Place = Literal["begin", "later", "inside"]


@dataclass(frozen=True)
class Special:
    """One added token, by its id."""

    id: int


class Encoder:
    """A tokenizer that neither adds, cuts nor pads."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise SettingError(
                f"prompts need a fast tokenizer, with a tokenizer.json: this is a {type(tokenizer).__name__}. "
                f"Convert it with transformers, or name another model"
            )
        self.bos: int | None = tokenizer.bos_token_id
        added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self._signs = {token.content: (number, token) for number, token in added.items() if not _blank(token.content)}
        alternatives = "|".join(re.escape(sign) for sign in sorted(self._signs, key=len, reverse=True))
        self._sign = re.compile(f"({alternatives})") if alternatives else None
        described = json.loads(backend.to_str())
        for token in described.get("added_tokens", []):
            token["special"] = not _blank(token["content"])
        texts: dict[Place, str] = {
            "begin": json.dumps(described),
            "later": json.dumps(_without_prefix(described, schemes=("first",))),
            "inside": json.dumps(_without_prefix(described, schemes=("first", "always"))),
        }
        made = {text: _made(text) for text in set(texts.values())}
        at = {place: made[text] for place, text in texts.items()}

        def encoded(text: str, place: Place) -> tuple[int, ...]:
            return tuple(at[place].encode(text, add_special_tokens=False).ids)

        self._remembered = lru_cache(REMEMBERED)(encoded)

    @property
    def signs(self) -> tuple[str, ...]:
        """The texts of the added tokens that no text may give."""
        return tuple(self._signs)

    @property
    def hidden(self) -> frozenset[int]:
        """Their ids."""
        return frozenset(number for number, _ in self._signs.values())

    def sign_of(self, number: int) -> str:
        return next(sign for sign, (each, _) in self._signs.items() if each == number)

    def ids(self, text: str, place: Place) -> tuple[int, ...]:
        """The ids of a text at the `begin` of all, `later` behind a special token, or `inside` of more text."""
        return self._remembered(text, place) if text else ()

    def framed(self, frame: str) -> list[Special | str]:
        """A frame as special tokens and the texts between them."""
        if self._sign is None:
            return [frame] if frame else []
        parts: list[Special | str] = []
        pieces = self._sign.split(frame)
        for index, piece in enumerate(pieces):
            if index % 2:
                parts.append(Special(self._signs[piece][0]))
                continue
            if index and self._signs[pieces[index - 1]][1].rstrip:
                piece = piece.lstrip()
            if index + 1 < len(pieces) and self._signs[pieces[index + 1]][1].lstrip:
                piece = piece.rstrip()
            parts.append(piece)
        return [part for part in parts if part != ""]


def _blank(content: str) -> bool:
    return not content.replace("▁", " ").strip()


def _made(description: str) -> Tokenizer:
    made = Tokenizer.from_str(description)
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    return made


def _without_prefix(node: Any, schemes: tuple[str, ...]) -> Any:
    """A description of a tokenizer that puts no space before a text that is not the first."""
    if isinstance(node, list):
        return [_without_prefix(each, schemes) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Sequence" and "normalizers" in node and "always" in schemes:
        kept = [each for each in node["normalizers"] if each.get("type") != "Prepend"]
        return {**node, "normalizers": [_without_prefix(each, schemes) for each in kept]}
    changed = {
        name: _without_prefix(value, schemes) if name in ("normalizer", "pre_tokenizer", "pretokenizers") else value
        for name, value in node.items()
    }
    if node.get("type") == "Metaspace" and node.get("prepend_scheme") in schemes:
        changed["prepend_scheme"] = "never"
    if node.get("type") == "ByteLevel" and "always" in schemes:
        changed["add_prefix_space"] = False
    if "normalizer" in node and "always" in schemes and (node["normalizer"] or {}).get("type") == "Prepend":
        changed["normalizer"] = None
    return changed
