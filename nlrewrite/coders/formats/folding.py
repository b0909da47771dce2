"""A LayerNorm's gain and bias taken into the coder behind it, so that it reads what the MLP reads.

In: a coder of a LayerNorm's normalised input z, and the gain and bias of that LayerNorm in the subject. Out: the coder
of x = gain z + bias, the input of the MLP, with the same latents and the same output: z = (x - bias) / gain, so
W_enc' = W_enc / gain and b_enc' = b_enc - W_enc (bias / gain), and the skip term alike. Invariant: it is exact but for
rounding, and rounding is bounded: x is given to a relative precision e, which makes an error of at most
e (1 + |bias / gain|) max(1, |z|) in z, and channels in which that is more than `WORST` e are refused.

What is written needs nothing. A transcoder trained where weights were centred (every vector that is written to the
residual stream has its mean over d taken off) writes y - mean(y) and not y. In a subject whose every reader of the
residual stream is a LayerNorm, which takes the mean off again, no logit changes by that; only the error at the site
does, by the variance of that mean, so `fit` compares both without their means over d.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats.affine import AT_ONCE, projected
from nlrewrite.errors import SettingError

if TYPE_CHECKING:
    from nlrewrite.subject.sites import Located

NORMALISED = "ln2.hook_normalized"
"""How TransformerLens calls the normalised input of a layer's MLP, without gain and bias."""
NORMS = {"gpt2": "ln_2", "gpt_neox": "post_attention_layernorm"}
WORST = 4096.0  # most that the rounding of x may grow by


def reads_normalised(hook: str | None) -> bool:
    """Whether a hook's name says that it is a LayerNorm's normalised input."""
    return hook is not None and hook.rpartition(".")[2] == "hook_normalized"


def norm_before(model: nn.Module, located: "Located") -> tuple[Tensor, Tensor]:
    """Gain and bias of the LayerNorm whose output the site reads."""
    config: Any = model.config
    if located.site.kind != "mlp":
        raise SettingError(
            f"this coder reads the normalised input of an MLP, which no {located.site.kind} site has. "
            f"Use --set coder.site.kind=mlp"
        )
    name = NORMS.get(config.model_type)
    norm = model.get_submodule(f"{located.layer_name}.{name}") if name else None
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine:
        raise SettingError(
            f"this coder reads what a LayerNorm normalised, and a subject of model_type {config.model_type!r} has none "
            f"before its MLP. It belongs to one of: {', '.join(NORMS)}. Change --set subject.model"
        )
    named = dict(norm.named_parameters())
    return norm.weight.detach(), named["bias"].detach() if "bias" in named else torch.zeros_like(norm.weight)


def folded(coder: Coder, gain_D: Tensor, bias_D: Tensor) -> Coder:
    """The coder of gain z + bias, from the coder of z; its weights are its own."""
    if len(gain_D) != coder.enc_LD.shape[1]:
        raise SettingError(
            f"the coder reads {coder.enc_LD.shape[1]} numbers, and the subject's LayerNorm has {len(gain_D)}. "
            f"It belongs to another model: change --set subject.model or the coder"
        )
    gain_D, bias_D = gain_D.double().cpu(), bias_D.double().cpu()
    growth_D = 1 + (bias_D / gain_D).abs()
    worst = int(torch.where(growth_D.isnan(), torch.inf, growth_D).argmax())
    if not growth_D[worst] <= WORST:
        raise SettingError(
            f"the LayerNorm before the MLP nearly silences channel {worst} (gain {gain_D[worst]:.3g}, bias "
            f"{bias_D[worst]:.3g}): what the coder reads there cannot be told from the MLP's input, for rounding grows "
            f"by {growth_D[worst]:.3g}, and at most {WORST:g} is taken. Choose another layer, or train a coder here"
        )
    shift_D = bias_D / gain_D
    enc_bias_L = coder.enc_bias_L.double() - projected(coder.enc_LD, shift_D)
    changed: dict[str, Any] = {"enc_LD": _divided(coder.enc_LD, gain_D)}
    changed["enc_bias_L"] = enc_bias_L.to(coder.enc_bias_L.dtype)
    if coder.skip_ED is not None:
        dec_bias_E = coder.dec_bias_E.double() - projected(coder.skip_ED, shift_D)
        changed["dec_bias_E"] = dec_bias_E.to(coder.dec_bias_E.dtype)
        changed["skip_ED"] = _divided(coder.skip_ED, gain_D)
    return replace(coder, **changed)


def _divided(W_LD: Tensor, gain_D: Tensor) -> Tensor:
    """W / gain by columns, in double precision, some rows at a time."""
    parts = W_LD.split(max(1, AT_ONCE // W_LD.shape[1]))
    return torch.cat([(rows.double() / gain_D).to(W_LD.dtype) for rows in parts])
