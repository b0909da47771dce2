"""Files as foreign programs pickle them, made without those programs."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG = "sae_training.config"


def drawn(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def save_with_config(make: Callable[[Any], Any], path: Path) -> Path:
    """Save what `make` makes of a configuration class whose package is there while the file is written, then gone."""
    package, module = types.ModuleType("sae_training"), types.ModuleType(CONFIG)

    class LanguageModelSAERunnerConfig:
        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)

    LanguageModelSAERunnerConfig.__module__ = CONFIG
    LanguageModelSAERunnerConfig.__qualname__ = LanguageModelSAERunnerConfig.__name__
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig  # type: ignore[attr-defined]
    assert not {"sae_training", CONFIG} & set(sys.modules)
    sys.modules |= {"sae_training": package, CONFIG: module}
    try:
        torch.save(make(LanguageModelSAERunnerConfig), path)
    finally:
        del sys.modules["sae_training"], sys.modules[CONFIG]
    return path


def transcoder(folder: Path, layer: int, inputs: int, outputs: int, latents: int, **settings: Any) -> Path:
    """A transcoder as the gpt2-transcoders are kept: of the normalised input of an MLP."""
    fields = {
        "model_name": "gpt2-small",
        "hook_point": f"blocks.{layer}.ln2.hook_normalized",
        "out_hook_point": f"blocks.{layer}.hook_mlp_out",
        "hook_point_head_index": None,
        "is_transcoder": True,
        "dataset_path": "Skylion007/openwebtext",
        "total_training_tokens": 60_000_000,
        "d_in": inputs,
        "device": torch.device("cuda"),
        "dtype": torch.float32,
        "use_ghost_grads": (False,),
    } | settings
    tensors = drawn(
        layer,
        W_enc=(inputs, latents),
        b_enc=(latents,),
        W_dec=(latents, outputs),
        b_dec=(inputs,),
        **({"b_dec_out": (outputs,)} if fields["is_transcoder"] else {}),
    )
    name = f"final_sparse_autoencoder_gpt2-small_{fields['hook_point']}_{latents}.pt"
    state = {key: torch.nn.Parameter(value) for key, value in tensors.items()}
    return save_with_config(lambda config: {"cfg": config(**fields), "state_dict": state}, folder / name)
