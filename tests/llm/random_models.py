"""Small random language models of every family, with a tokenizer of words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from nlrewrite.llm.engine import PrefixBlock

VOCABULARY, WIDTH, LAYERS, LONGEST = 160, 64, 3, 256
LABELS = tuple(range(10, 20))
FAMILIES = ("llama", "llama-grouped", "llama-tied", "mistral", "qwen2", "qwen3", "gpt_neox")


def config(family: str, **changed: Any) -> PreTrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        **changed,
    }
    match family:
        case "llama":
            return LlamaConfig(**shape)
        case "llama-grouped":
            return LlamaConfig(**{"num_key_value_heads": 1, **shape})
        case "llama-tied":
            return LlamaConfig(**{**shape, "num_key_value_heads": 2, "tie_word_embeddings": True})
        case "mistral":
            return MistralConfig(**{"num_key_value_heads": 2, "sliding_window": LONGEST, **shape})
        case "qwen2":
            return Qwen2Config(**{"num_key_value_heads": 2, **shape})
        case "qwen3":
            return Qwen3Config(**{"num_key_value_heads": 2, "head_dim": 24, **shape})
        case "gpt_neox":
            return GPTNeoXConfig(**{"rotary_pct": 0.25, **shape})
    raise AssertionError(family)


def fresh(family: str = "llama-grouped", seed: int = 0, **changed: Any) -> Any:
    """A random model whose norms and biases are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, **changed), attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1")


def ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, VOCABULARY, length).astype(np.int32)


def block(prefix: int, lengths: Sequence[int], seed: int = 0, start: np.ndarray | None = None) -> PrefixBlock:
    """Random suffixes of these lengths behind a random prefix, or behind `start`."""
    suffixes = [ids(length, 1000 * (seed + 1) + row).tolist() for row, length in enumerate(lengths)]
    return PrefixBlock.of((ids(prefix, seed) if start is None else start).tolist(), suffixes, LABELS)
