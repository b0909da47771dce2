"""The shape of a decoder: as much of a language model as decides what a question to it costs in arithmetic.

In: a config.json, or a reader of which something is known without the network. Out: a `Shape`, which counts. Invariant:
a model whose arithmetic is not that of a dense decoder is refused, and one that is not known has no shape.

    lin  = 2 layers (2 width heads_width + 2 width keys_width + matrices width inner)   FLOP per token
    att  = 4 layers heads_width                                                         FLOP per (query, key) pair
    head = 2 vocabulary width                                                           FLOP per answer
    question(n new, p cached, g decoded) = (n + g) lin + att sum_{i < n + g} (p + i + 1) + (1 + g) head
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nlrewrite.errors import SettingError

if TYPE_CHECKING:
    from nlrewrite.questions import ReaderSpec

TRAINED_INNER = 4
"""Times the width: the inner width of a reader that is trained here."""


class Shape(BaseModel):
    """As much of a decoder as decides its arithmetic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads_width: int = Field(ge=1, description="All query heads together.")
    keys_width: int = Field(ge=1, description="All key heads together; values are as wide.")
    inner: int = Field(ge=1, description="Width between the matrices of an MLP.")
    matrices: Literal[2, 3] = Field(default=3, description="Of an MLP: three if it is gated.")
    vocabulary: int = Field(ge=1)

    @property
    def per_token(self) -> float:
        """FLOP of the body for one token, attention to others left out."""
        attention = 2 * self.width * (self.heads_width + self.keys_width)
        return 2.0 * self.layers * (attention + self.matrices * self.width * self.inner)

    @property
    def per_pair(self) -> float:
        """FLOP for one token's look at another."""
        return 4.0 * self.layers * self.heads_width

    @property
    def per_answer(self) -> float:
        """FLOP of the output matrix for one position."""
        return 2.0 * self.vocabulary * self.width

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token, two bytes a number."""
        return 2 * self.layers * self.keys_width * 2

    def flop(self, new: float, cached: float, decoded: int = 0, answers: float = 1.0) -> float:
        """Of running `new` tokens behind `cached` ones and writing `decoded` more."""
        steps = new + decoded
        pairs = steps * cached + steps * (steps + 1) / 2
        return steps * self.per_token + self.per_pair * pairs + (answers + decoded) * self.per_answer

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """Of a Hugging Face config.json."""

        def field(*names: str, default: int | None = None) -> int:
            for name in names:
                if isinstance(config.get(name), int):
                    return int(config[name])
            if default is None:
                raise SettingError(
                    f"the model's config.json has no {names[0]}, so that its arithmetic is unknown. "
                    f"It has: {', '.join(sorted(config)[:12])}"
                )
            return default

        experts = [name for name in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(name)]
        if experts:
            raise SettingError(
                f"the arithmetic of a mixture of experts is not known here: {experts[0]}={config[experts[0]]}. "
                f"Plan by what was measured, or name a dense model"
            )
        width = field("hidden_size", "n_embd")
        heads = field("num_attention_heads", "n_head")
        head = field("head_dim", default=width // heads)
        plain = config.get("model_type") in ("gpt_neox", "gpt2", "opt", "gptj", "bloom", "phi")
        return cls(
            layers=field("num_hidden_layers", "n_layer"),
            width=width,
            heads_width=heads * head,
            keys_width=field("num_key_value_heads", default=heads) * head,
            inner=field("intermediate_size", "n_inner", default=4 * width),
            matrices=2 if plain else 3,
            vocabulary=field("vocab_size"),
        )


LLAMA_3_8B = Shape(
    layers=32, width=4096, heads_width=4096, keys_width=1024, inner=14_336, matrices=3, vocabulary=128_256
)
LLAMA_3_70B = Shape(
    layers=80, width=8192, heads_width=8192, keys_width=1024, inner=28_672, matrices=3, vocabulary=128_256
)
LLAMA_3_1B = Shape(layers=16, width=2048, heads_width=2048, keys_width=512, inner=8192, matrices=3, vocabulary=128_256)
KNOWN: dict[str, Shape] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3_8B,
    "meta-llama/Llama-3.1-70B-Instruct": LLAMA_3_70B,
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_3_1B,
}
"""Models whose shape is known without their files."""


def shape(reader: "ReaderSpec", folder: str | None = None, vocabulary: int = 512) -> Shape | None:
    """Of a reader's model, as far as it is known without asking the network; `folder` is a local model's."""
    match reader.kind:
        case "rules":
            return None
        case "trained":
            return Shape(
                layers=reader.layers,
                width=reader.width,
                heads_width=reader.width,
                keys_width=reader.width,
                inner=TRAINED_INNER * reader.width,
                vocabulary=vocabulary,
            )
        case "folder":
            path = Path(folder) / "config.json" if folder is not None else None
        case "hub":
            path = _downloaded(reader.model, reader.revision)
        case "served":
            path = None
    name = "" if reader.kind == "folder" else reader.model
    if name in KNOWN:
        return KNOWN[name]
    if path is None or not path.is_file():
        return None
    return Shape.of(json.loads(path.read_text(encoding="utf-8")))


def _downloaded(model: str, revision: str) -> Path | None:
    """The config of a model that was fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None
