"""What vLLM has to be told of a model's folder, read from its JSON files.

In: a folder in Hugging Face's format. Out: how much fits, which tokens end a reply, and how labels are spelled.
Invariant: no weights are read.
"""

import json
from pathlib import Path

from nlrewrite.errors import SettingError

LONGEST = 8192
"""Tokens of prompt and reply, unless the model's positions end earlier: its whole range may not fit into the memory."""


def longest(folder: Path, asked: int | None) -> int:
    """Tokens that the engine takes, within the model's positions."""
    config = json.loads((folder / "config.json").read_text())
    inner = config.get("text_config") or config
    positions = next((inner[key] for key in ("max_position_embeddings", "n_positions") if inner.get(key)), None)
    if asked is None:
        return min(positions or LONGEST, LONGEST)
    if asked < 2 or (positions and asked > positions):
        bound = f"2 to {positions}" if positions else "2 or more"
        raise SettingError(f"longest must be {bound}, the model's positions: longest={asked}. Lower it")
    return asked


def words(folder: Path, labels: tuple[int, ...]) -> list[str]:
    """The labels as the tokenizer's file spells them: vLLM looks rows of the head up by spelling."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = [tokenizer.id_to_token(label) for label in labels]
    if None in words:
        raise SettingError(f"the tokenizer of {folder} has no token {labels[words.index(None)]}. Use its own ids")
    return [word for word in words if word is not None]


def ends(folder: Path, of_tokenizer: int | None) -> list[int]:
    """Ids of the tokens that end a reply, as the model's configurations and its tokenizer name them."""
    found = set() if of_tokenizer is None else {of_tokenizer}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = json.loads((folder / name).read_text()).get("eos_token_id")
            found.update([value] if isinstance(value, int) else value or [])
    return sorted(found)


def architecture(folder: Path) -> str:
    """The model's class, as its configuration names it."""
    named = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    return str(named[0])


def head_width(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text())
    inner = config.get("text_config") or config
    heads = inner.get("num_attention_heads")
    return inner.get("head_dim") or (inner.get("hidden_size", 0) // heads if heads else None)
