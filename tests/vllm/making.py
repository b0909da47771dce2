"""The random models of the other engines' tests with heads of 32, the narrowest that vLLM takes on a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nlrewrite.llm.engine import PrefixBlock, Scores
from nlrewrite.seeds import generator
from tests.llm import random_models

VOCABULARY, LONGEST = 300, 512
LABELS = tuple(range(2, 12))
"""The ten digits' ids."""
SHAPES = {
    "ragged": (70, [20, 45, 1, 33, 7] * 8),
    "whole blocks": (64, [5, 6, 7]),
    "one token before": (1, [3, 30, 4]),
    "one question": (100, [9]),
    "one token behind": (40, [1]),
}


def fresh(family: str, **changed: Any) -> PreTrainedModel:
    heads = {"head_dim": 32} if family == "qwen3" else {}
    shape = {"num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": LONGEST}
    shape |= {
        "initializer_range": 0.1
    }  # log-probabilities of a few nats, whose rounding is well below what is compared
    return random_models.fresh(family, **{**shape, **heads, **changed})


def tokenizer() -> PreTrainedTokenizerFast:
    """Words, of which the digits are tokens 2 to 11; the ends are those of the models."""
    words = {"<start>": 0, "<end>": 1, **{str(digit): digit + 2 for digit in range(10)}}
    words |= {f"w{index}": index for index in range(len(words), VOCABULARY)}
    table = Tokenizer(models.WordLevel(words, unk_token="<start>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=table, bos_token="<start>", eos_token="<end>")


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def block(prefix: int, lengths: list[int], seed: int = 0) -> PrefixBlock:
    rng = generator(seed, "block", prefix, len(lengths))
    suffixes = [rng.integers(12, VOCABULARY, length).tolist() for length in lengths]
    return PrefixBlock.of(rng.integers(12, VOCABULARY, prefix).tolist(), suffixes, LABELS)


def one_by_one(model: PreTrainedModel, asked: PrefixBlock) -> np.ndarray:
    """Log-probabilities of the whole vocabulary behind each suffix [N, V], one prompt at a time."""
    rows = []
    with torch.no_grad():
        for index in range(len(asked)):
            ids = torch.tensor([[*asked.prefix, *asked.suffix(index)]], dtype=torch.long)
            rows.append(torch.log_softmax(model(ids).logits[0, -1].float(), dim=-1).numpy())
    return np.stack(rows)


def full(scores: Scores) -> np.ndarray:
    """Log-probabilities over the whole vocabulary again."""
    assert scores.logmass is not None
    return scores.logp + scores.logmass[:, None]
