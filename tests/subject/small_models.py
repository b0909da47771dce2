"""One small random model of each family, and folders that hold them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY, WIDTH, LAYERS, LONGEST = 64, 32, 3, 48
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def config(family: str) -> PreTrainedConfig:
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=2,
            n_positions=LONGEST,
            initializer_range=0.2,
            **ENDS,
        )
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.2,
        **ENDS,
    }
    match family:
        case "gpt_neox":
            return GPTNeoXConfig(**shape)
        case "gpt_neox-sequential":
            return GPTNeoXConfig(**shape, use_parallel_residual=False)
        case "llama":
            return LlamaConfig(**shape, num_key_value_heads=1)
        case "gemma2":
            return Gemma2Config(**shape, num_key_value_heads=1, head_dim=16, sliding_window=4, query_pre_attn_scalar=16)
    raise AssertionError(family)


def fresh(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose norms are random too, so that no norm can be mistaken for the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family), attn_implementation="eager").eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def ids(batch: int = 3, tokens: int = 12) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(1))


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    """`model` and a word tokenizer in `folder`, as save_pretrained leaves them."""
    model.save_pretrained(folder, **options)
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<end>", eos_token="<end>").save_pretrained(folder)
    return folder
