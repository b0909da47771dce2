"""Small random models with heads of 32, the narrowest that vLLM's attention on a CPU takes, and questions to them."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from nlrewrite.llm.engine import PrefixBlock, Scores
from nlrewrite.seeds import derive, generator

VOCABULARY, WIDTH, LONGEST = 300, 128, 512
LABELS = tuple(range(1, 11))
"""The ten digits' ids."""
SHAPES = {
    "ragged": (70, [20, 45, 1, 33, 7] * 8),
    "whole blocks": (64, [5, 6, 7]),
    "one token before": (1, [3, 30, 4]),
    "one question": (100, [9]),
    "one token behind": (40, [1]),
}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def config(family: str, layers: int = 2) -> PreTrainedConfig:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": WIDTH // 32,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.1,
        **ENDS,
    }
    match family:
        case "llama-tied":
            return LlamaConfig(**shape, num_key_value_heads=1, tie_word_embeddings=True)
        case "llama":
            return LlamaConfig(**shape, num_key_value_heads=WIDTH // 32, tie_word_embeddings=False)
        case "qwen3":
            return Qwen3Config(**shape, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True)
        case "gpt_neox":
            return GPTNeoXConfig(**shape)
    raise AssertionError(family)


def fresh(family: str, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model", family))
        model = AutoModelForCausalLM.from_config(config(family), attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """`model` in `folder`, with a tokenizer of words in which the digits are tokens 1 to 10."""
    model.save_pretrained(folder)
    words = {"<end>": 0, **{str(digit): digit + 1 for digit in range(10)}}
    words |= {f"w{index}": index for index in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>").save_pretrained(folder)
    return folder


def block(prefix: int, lengths: list[int], seed: int = 0) -> PrefixBlock:
    rng = generator(seed, "block", prefix, len(lengths))
    suffixes = [rng.integers(11, VOCABULARY, length).tolist() for length in lengths]
    return PrefixBlock.of(rng.integers(11, VOCABULARY, prefix).tolist(), suffixes, LABELS)


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
