"""Low-rank adapters on the linear maps of a language model, merged into its weights when they are done.

In: a causal language model of transformers. Out: the same model with small trainable maps beside its frozen ones, and
in the end with plain weights again. Invariants: before its first step an adapted model says what the model said; only
adapters have gradients; a merged model says what the adapted one said, is saved as any model is, and can be run by any
engine.
"""

import math
from typing import Any

import torch
from torch import nn

from nlrewrite.errors import SettingError
from nlrewrite.seeds import torch_generator

TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
)
"""Names of the linear maps of attention and of the MLP, by family."""


class Adapted(nn.Module):
    """W x + scale B A x, with W frozen; B begins at zero."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, draws: torch.Generator) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        bound = 1 / math.sqrt(linear.in_features)
        down_RI = (torch.rand(rank, linear.in_features, generator=draws) * 2 - 1) * bound
        device = linear.weight.device
        self.down_RI = nn.Parameter(down_RI.to(device))
        self.up_OR = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside = (x.to(self.down_RI.dtype) @ self.down_RI.T) @ self.up_OR.T
        return self.linear(x) + (self.scale * beside).to(x.dtype)

    def merged(self) -> nn.Linear:
        """The one linear map that does both, in the precision of the frozen one."""
        with torch.no_grad():
            both = self.linear.weight.float() + self.scale * (self.up_OR.float() @ self.down_RI.float())
            self.linear.weight.copy_(both.to(self.linear.weight.dtype))
        return self.linear


def adapt(model: nn.Module, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Freeze the model, put adapters beside its linear maps, and return what is to be trained."""
    model.requires_grad_(False)
    found = [(name, module) for name, module in model.named_modules() if _wanted(name, module)]
    if not found:
        raise SettingError(
            f"adapters go beside linear maps called {', '.join(TARGETS)}: {type(model).__name__} has none. "
            f"Fine-tune a Llama, Qwen or GPT-NeoX model"
        )
    parameters: list[nn.Parameter] = []
    for name, module in found:
        assert isinstance(module, nn.Linear)
        adapted = Adapted(module, rank, alpha / rank, torch_generator(seed, "lora", name))
        _replace(model, name, adapted)
        parameters += [adapted.down_RI, adapted.up_OR]
    return parameters


def merge(model: nn.Module) -> None:
    """Take the adapters out again, their work in the weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            _replace(model, name, module.merged())


def _wanted(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS


def _replace(model: nn.Module, name: str, by: Any) -> None:
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above) if above else model, last, by)
