"""The models and engines of `accept_gpu`: the user's, or random weights in the shape of Llama-3-8B, made here."""

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from benchmarks import stand_ins
from nlrewrite.execution import Execution
from nlrewrite.llm import loading
from nlrewrite.llm.packed import Packed
from nlrewrite.llm.vllm import Vllm


def config_of(given: argparse.Namespace) -> PreTrainedConfig:
    if given.model:
        return AutoConfig.from_pretrained(given.model, local_files_only=True, trust_remote_code=False)
    widths, layers, words = ((128, 256), 4, 4096) if given.small else ((4096, 14_336), 32, 128_256)
    heads = (4, 1) if given.small else (32, 8)
    return LlamaConfig(
        vocab_size=words,
        hidden_size=widths[0],
        intermediate_size=widths[1],
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        initializer_range=0.06 if given.small else 0.02,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


def fresh(config: PreTrainedConfig, dtype: torch.dtype, device: str) -> Any:
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def cut(given: argparse.Namespace) -> Path:
    """A folder with the model's first two layers in float32."""
    folder = given.work / ("cut-small" if given.small else "cut") / (given.model.name if given.model else "random")
    if (folder / "tokenizer.json").is_file():
        return folder
    config = config_of(given)
    config.get_text_config().num_hidden_layers = 2
    if given.model:
        model = AutoModelForCausalLM.from_pretrained(
            given.model, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    else:
        model = fresh(config, torch.float32, "cpu")
    model.save_pretrained(folder)
    tokenizer_of(given).save_pretrained(folder)
    return folder


def whole(given: argparse.Namespace) -> Path:
    """A folder with the whole model, or with its shape and a tokenizer alone."""
    if given.model:
        return given.model
    folder = given.work / ("shape-small" if given.small else "shape")
    if not (folder / "tokenizer.json").is_file():
        config = config_of(given)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        tokenizer_of(given).save_pretrained(folder)
    return folder


def tokenizer_of(given: argparse.Namespace) -> PreTrainedTokenizerFast:
    return loading.tokenizer(given.model) if given.model else stand_ins.tokenizer()


@contextmanager
def packed(given: argparse.Namespace, tokens: int, mass: bool = True) -> Iterator[Packed]:
    """The whole model in bfloat16 (a CPU: float32)."""
    dtype = "float32" if given.device == "cpu" else "bfloat16"
    if given.model:
        model, tokenizer = loading.load(given.model, Execution(device=given.device), dtype)
    else:
        model, tokenizer = fresh(config_of(given), getattr(torch, dtype), given.device), stand_ins.tokenizer()
    with closing(Packed(model, tokenizer, tokens=tokens, mass=mass)) as engine:
        yield engine


@contextmanager
def vllm(given: argparse.Namespace, mode: Any = "generate") -> Iterator[Vllm]:
    dtype = "float32" if given.device == "cpu" else "bfloat16"
    made = Vllm(whole(given), mode=mode, dtype=dtype, device=given.device, gpus=1, dummy=not given.model)
    with closing(made) as engine:
        yield engine
