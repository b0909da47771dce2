"""A subject's tokenizer: loading it, its end-of-text id, and the exact bytes of each of its tokens.

In: a folder in Hugging Face's format. Out: a `tokenizers.Tokenizer`, ids and bytes. Invariant: the bytes of a
document's tokens, one after another, are the document's bytes (for byte-level tokenizers, which are those we train).
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nlrewrite.errors import SettingError


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. It neither cuts nor pads, and no text can spell a special token."""
    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_text(folder: Path) -> int:
    """The id that stands before a document: the tokenizer's beginning-of-text token, else its end-of-text token."""
    tokenizer = load_tokenizer(folder)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (folder / file).is_file():
            continue
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        for role in ("bos_token", "eos_token"):
            token = settings.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            number = tokenizer.token_to_id(token) if token else None
            if number is not None:
                return number
    raise SettingError(
        f"a subject's tokenizer needs a token that stands before a text: neither bos_token nor eos_token of {folder} "
        f"is in its vocabulary. Add one to tokenizer_config.json"
    )


def token_texts(path: Path) -> list[bytes]:
    """The bytes of every id of the tokenizer in the folder (or file) `path`; ids without a token have none."""
    tokenizer = load_tokenizer(path if path.is_dir() else path.parent)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = set(tokenizer.get_added_tokens_decoder())
    kinds = set(_kinds(json.loads(tokenizer.to_str()).get("decoder")))
    texts = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if number in added:
            texts[number] = token.encode()
        elif "ByteLevel" in kinds:
            texts[number] = bytes(BYTE_OF[letter] for letter in token)
        elif "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            texts[number] = bytes([int(token[3:5], 16)])
        else:
            texts[number] = token.replace("▁", " ").encode()
    return texts


def _byte_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if it is printable, else one from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def _kinds(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [decoder["type"], *(kind for inner in decoder.get("decoders", []) for kind in _kinds(inner))]


BYTE_OF = _byte_alphabet()
