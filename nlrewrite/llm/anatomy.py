"""What a language model is made of, and whether packed rows reproduce it.

In: a causal language model of transformers. Out: its embedding, layers, final norm, rotary angles and head under the
same names for every family; or a refusal. Invariant: a model that computes anything which the packed pass leaves out
(windows, capped scores, sinks, biases of scores or of the head, states) is refused with the name of the field that says
so. Nothing is approximated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from nlrewrite.errors import SettingError

INSTEAD = "Use engine reference or vllm"
FAMILIES = {
    "llama": ("LlamaForCausalLM", "embed_tokens", "norm"),
    "mistral": ("MistralForCausalLM", "embed_tokens", "norm"),
    "qwen2": ("Qwen2ForCausalLM", "embed_tokens", "norm"),
    "qwen3": ("Qwen3ForCausalLM", "embed_tokens", "norm"),
    "gpt_neox": ("GPTNeoXForCausalLM", "embed_in", "final_layer_norm"),
}
"""Of each family the class, its embedding and its final norm."""
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on how long the text is."""
FIELDS: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("attn_logit_softcapping", (None,), "caps attention scores"),
    ("final_logit_softcapping", (None,), "caps the head's logits"),
    ("logit_scale", (None, 1), "scales the head's logits"),
    ("logits_scaling", (None, 1), "scales the head's logits"),
    ("alibi", (None, False), "biases attention scores by distance"),
    ("attention_chunk_size", (None,), "attends in chunks"),
    ("attention_sink_size", (None, 0), "has attention sinks"),
    ("num_kv_shared_layers", (None, 0), "shares keys and values between layers"),
)
"""Fields of a config, the values at which they do nothing, and what any other makes the model do."""


@dataclass
class Anatomy:
    """The parts of a model, in the order in which data flows."""

    embed: nn.Module
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    layers: list[Callable[..., Tensor]]
    """The benchmark of host time puts others in their place."""
    norm: nn.Module
    head: nn.Linear
    width: int
    key_heads: int
    head_size: int
    longest: int | None
    """Positions that the model has, if it says."""
    window: int | None
    rotation_limit: int | None
    """Length of text beyond which the rotary angles of all tokens change."""

    def check(self, length: int) -> None:
        """Raise if texts of this many tokens are not reproduced."""
        if self.window is not None and self.window < length:
            raise SettingError(
                f"sliding_window must be at least the text, for packed rows have no windows: "
                f"sliding_window={self.window}, text={length} tokens. {INSTEAD}, or shorten the prompt"
            )
        if self.rotation_limit is not None and self.rotation_limit < length:
            raise SettingError(
                f"rope_parameters change all angles with the length of the text, which packed rows share: "
                f"original_max_position_embeddings={self.rotation_limit}, text={length} tokens. "
                f"{INSTEAD}, or shorten the prompt"
            )


def longest(model: nn.Module) -> int | None:
    """How many tokens of text the model has positions for, if it says."""
    return cast("int | None", getattr(model.config, "max_position_embeddings", None))


def refuse_training(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise SettingError("a model in training mode drops units at random: training=True. Call model.eval() first")


def of(model: nn.Module) -> Anatomy:
    """The parts of a model that packed rows reproduce, or SettingError."""
    config: Any = model.config
    refuse_training(model)
    kind = getattr(config, "model_type", None)
    known = FAMILIES.get(kind or "")
    if known is None or type(model).__name__ != known[0] or not type(model).__module__.startswith("transformers."):
        raise SettingError(
            f"packed knows the families {', '.join(FAMILIES)}: model_type={kind!r}, class {type(model).__name__}. "
            f"{INSTEAD}"
        )
    for name, neutral, effect in FIELDS:
        if getattr(config, name, None) not in neutral:
            raise _refused(name, getattr(config, name), effect)
    body: Any = getattr(model, str(model.base_model_prefix))
    head: Any = cast(Any, model).get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise _refused("lm_head.bias", "a vector", "adds to the head's logits")
    for module in body.modules():
        if getattr(module, "sinks", None) is not None:
            raise _refused("sinks", "a vector", "has attention sinks")
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if types - {"full_attention", "sliding_attention"}:
        raise _refused("layer_types", sorted(types), "has layers that keep more, or less, than keys and values")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    value_size = getattr(config, "v_head_dim", None)
    if value_size not in (None, head_size):
        raise _refused("v_head_dim", value_size, f"has value heads of another size than its query heads' {head_size}")
    rotation: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    varies = rotation.get("rope_type", "default") not in FIXED_ROTATIONS
    limit = rotation.get("original_max_position_embeddings") or longest(model)
    return Anatomy(
        embed=getattr(body, known[1]),
        rotary=body.rotary_emb,
        layers=list(body.layers),
        norm=getattr(body, known[2]),
        head=head,
        width=config.hidden_size,
        key_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=head_size,
        longest=longest(model),
        window=getattr(config, "sliding_window", None),
        rotation_limit=limit if varies else None,
    )


def _refused(name: str, value: object, effect: str) -> SettingError:
    return SettingError(f"packed rows do not reproduce a model that {effect}: {name}={value}. {INSTEAD}")
