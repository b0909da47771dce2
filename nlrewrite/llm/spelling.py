"""The tokenizer of the reader that is trained here: each token of the subject is one token in each form it is shown in.

In: the bytes of the subject's tokens, and the words of the prompt. Out: a fast tokenizer for `tokenizers`, Transformers
and vLLM. Invariants: a token of the subject is one token wherever it is quoted, in a sentence or in a context, and
one more where it is marked, so that reading is matching; any text can be spelled, by its bytes where nothing longer is
known; digits are single tokens.

Outside of quotes, spaces, commas, "or" and "and" are not heard: a list of the rule language means the same without.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nlrewrite.language.context import marked
from nlrewrite.language.vocabulary import KINDS, quote
from nlrewrite.text.tokenizer import BYTE_OF

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|end|>"
FARTHEST = 64
"""Tokens back that the rule language can name."""
PLACES = (
    "right after",
    *(f"{count} tokens after" for count in range(2, FARTHEST + 1)),
    *(f"within {count} tokens after" for count in range(1, FARTHEST + 1)),
)
LANGUAGE = ("Never fires", "Fires on", "Fires", "when strengthened on", "Stronger", "Weaker", "Silent", *PLACES, *KINDS)
AMOUNTS = tuple(f"({sign}{digit})" for sign in ("", "+", "-") for digit in range(10))
UNHEARD = ("or", "and")

_LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}


def tokenizer(texts: Iterable[bytes], words: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    """`texts` are tokens of the subject, `words` what else the prompts say, each to be one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    whole = [*LANGUAGE, *AMOUNTS, *words]
    for text in sorted({text for text in texts if text}):
        whole += forms(text)
    letters = [_LETTER_OF[byte] for byte in range(256)]
    names = list(dict.fromkeys([END, *letters, *(spelled(text) for text in whole)]))
    result = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], ignore_merges=True))
    result.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(pieces(words)), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=result, eos_token=END, pad_token=END)


def forms(text: bytes) -> tuple[str, str]:
    """A token as sentences and contexts quote it, and as a context marks it."""
    return quote(text), marked([text], (0,), "tokens")


def words_of(text: str) -> list[str]:
    """The words and signs of a prompt's own text, as they are told apart."""
    return list(dict.fromkeys(found for found in re.findall(pieces(()), text) if not found.isdigit()))


def pieces(words: Sequence[str]) -> str:
    """A regular expression of everything that is heard; what lies between its matches is not."""
    known = sorted(
        {*LANGUAGE, *(word for word in words if not word.startswith('"'))}, key=lambda word: (-len(word), word)
    )
    phrases = "|".join(rf"\b{re.escape(word)}\b" if word[0].isalpha() else re.escape(word) for word in known)
    unheard = "|".join(UNHEARD)
    quoted = r'"(?:\\.|[^"\\])*"'
    word = rf"(?<![^\W\d_])(?!(?:{unheard})\b)[^\W\d_]+"
    return rf"<<{quoted}>>|{quoted}|\([+-]?[0-9]\)|{phrases}|[0-9]|{word}|(?!,)[^\w\s]|_"


def spelled(text: str) -> str:
    """`text` in the alphabet of byte-level vocabularies."""
    return "".join(_LETTER_OF[byte] for byte in text.encode())
