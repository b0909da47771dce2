"""Coders as SAELens keeps them: `cfg.json` and `sae_weights.safetensors`, settings of version 6 or of those before.

In: such a folder, or a coder. Out: the coder in its one form, or such a folder. Invariant: what sae-lens 6.54 computes
with a file is what the coder computes; an architecture, normalisation or scaling that no coder here can repeat for
every input is refused by name. Matrices lie transposed: W_enc is [inputs, latents] there.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nlrewrite.coders.form import Activation, Coder
from nlrewrite.coders.formats.affine import reading_less, scaled_input, scaled_latents
from nlrewrite.coders.formats.loaded import (
    About,
    FileFormat,
    Loaded,
    folder_of,
    has,
    layer_of,
    settings_of,
    spelled,
)
from nlrewrite.coders.formats.tensors import TensorFile, open_safetensors
from nlrewrite.coders.record import Kind
from nlrewrite.errors import CorruptArtifact, SettingError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SPARSITY, SCALER = "sparsity.safetensors", "activation_scaler.json"
LAYOUT = "6.0.0"
"""The version of SAELens whose settings are written; without one it reads them as those of version 5."""

ARCHITECTURES: dict[str, tuple[Kind, Activation]] = {
    "standard": ("sae", "relu"),
    "topk": ("sae", "topk"),
    "jumprelu": ("sae", "jumprelu"),
    "gated": ("sae", "jumprelu"),
    "batchtopk": ("sae", "jumprelu"),
    "matryoshka_batchtopk": ("sae", "jumprelu"),
    "transcoder": ("transcoder", "relu"),
    "skip_transcoder": ("skip-transcoder", "relu"),
    "jumprelu_transcoder": ("transcoder", "jumprelu"),
    "jumprelu_skip_transcoder": ("skip-transcoder", "jumprelu"),
}
WRITTEN = {
    known: name for name, known in ARCHITECTURES.items() if name not in ("gated", "batchtopk", "matryoshka_batchtopk")
}
READ = {
    *("architecture", "d_in", "d_out", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations"),
    *("reshape_activations", "metadata", "k", "rescale_acts_by_decoder_norm", "sae_lens_version"),
}
OF_TRAINING = {
    *("decoder_init_norm", "lp_norm", "l1_coefficient", "l1_warm_up_steps", "aux_loss_coefficient"),
    *("use_sparse_activations", "topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss", "target_l0"),
    *("jumprelu_init_threshold", "jumprelu_tanh_scale", "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input"),
    *("jumprelu_bandwidth", "l0_coefficient", "l0_warm_up_steps", "pre_act_loss_coefficient"),
    "sae_lens_training_version",
}
"""Settings of version 6 that training alone reads."""
NEVER_SCALED = "none"


def load(path: Path, dtype: torch.dtype) -> Loaded:
    folder = folder_of(path)
    said = settings_of(folder / CONFIG)
    settings = _of_version_6(said) if _is_old(said) else said
    _refuse(settings, folder / CONFIG, old=settings is not said)
    architecture = settings["architecture"]
    kind, activation = ARCHITECTURES[architecture]
    file = open_safetensors(folder / WEIGHTS)
    _check_tensors(file, architecture, kind)
    notes: list[str] = []
    coder = _coder(file, settings, dtype, architecture, activation)
    if kind == "sae" and settings.get("rescale_acts_by_decoder_norm", False):
        coder = scaled_latents(coder, coder.dec_LE.norm(dim=-1))
        notes.append("latents chosen by the norms of their decoder rows; the norms were folded into the encoder")
    if (factor := _factor(settings, folder)) is not None:
        coder = scaled_input(coder, factor)
        notes.append(f"trained on inputs times {factor:g}; the factor was folded in")
    if kind == "sae" and settings.get("apply_b_dec_to_input", True):
        coder = reading_less(coder, coder.dec_bias_E)
        notes.append("the decoder bias is subtracted from the input; it was folded into the encoder bias")
    if architecture in ("gated", "batchtopk", "matryoshka_batchtopk"):
        notes.append(f"{architecture} was read as the jumprelu that it is")
    if settings.get("reshape_activations", "none") == "hook_z":
        notes.append("reads the heads of an attention layer, one after another")
    words = {**settings, **(settings.get("metadata") or {})}
    k = coder.k if activation == "topk" else _measured(words, folder)
    hook = words.get("hook_name")
    return Loaded(
        replace(coder, k=k or 0),
        "saelens",
        About(
            kind=kind,
            model=words.get("model_name"),
            hook_in=hook,
            hook_out=words.get("hook_name_out") or (hook if kind == "sae" else None),
            layer=words["hook_layer"] if isinstance(words.get("hook_layer"), int) else layer_of(hook),
            k=k,
            dtype=spelled(file.dtypes["W_enc"]),
            said=said,
            notes=tuple(notes),
        ),
    )


def save(coder: Coder, folder: Path, about: About) -> None:
    """Write a coder as sae-lens 6.54 reads it. The input bias stays folded: `apply_b_dec_to_input` is false."""
    inputs, outputs = coder.enc_LD.shape[1], coder.dec_LE.shape[1]
    kind = "skip-transcoder" if coder.skip_ED is not None else about.kind
    if coder.skip_ED is not None and about.kind == "sae":
        raise SettingError("an SAE has no skip term, and this coder has one. Say that it is a skip-transcoder")
    if (kind, coder.activation) not in WRITTEN:
        raise SettingError(
            f"SAELens has no TopK transcoder (architectures: {', '.join(WRITTEN.values())}), and this is a {kind} "
            f"with {coder.activation}. Save it in the format sparsify"
        )
    if kind == "sae" and inputs != outputs:
        raise SettingError(f"an SAE writes what it reads: {inputs} are read, {outputs} written. Say it is a transcoder")
    named = {
        "W_enc": coder.enc_LD.T,
        "b_enc": coder.enc_bias_L,
        "W_dec": coder.dec_LE,
        "b_dec": coder.dec_bias_E,
        "threshold": coder.threshold_L,
        "W_skip": coder.skip_ED,
    }
    words = {
        "model_name": about.model,
        "hook_name": about.hook_in,
        "l0": about.k if coder.activation != "topk" else None,
    }
    words |= {"hook_name_out": about.hook_out} if kind != "sae" else {}
    settings: dict[str, Any] = {
        "architecture": WRITTEN[kind, coder.activation],
        "d_in": inputs,
        "d_sae": coder.latents,
        "dtype": spelled(coder.enc_LD.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {name: word for name, word in words.items() if word is not None} | {"sae_lens_version": LAYOUT},
    }
    settings |= {"k": coder.k, "rescale_acts_by_decoder_norm": False} if coder.activation == "topk" else {}
    settings |= {"d_out": outputs} if kind != "sae" else {}
    save_file({name: each.detach().contiguous() for name, each in named.items() if each is not None}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(settings))


# -- settings ---------------------------------------------------------------------------------------------------------


def _is_old(said: dict[str, Any]) -> bool:
    """Whether SAELens itself takes these settings for those of a version before 6."""
    version = said.get("sae_lens_version") or (said.get("metadata") or {}).get("sae_lens_version")
    return not version or not str(version).split(".")[0].isdigit() or int(str(version).split(".")[0]) < 6


def _of_version_6(said: dict[str, Any]) -> dict[str, Any]:
    """Settings of versions before 6 in the words of version 6; those of training go with the metadata."""
    settings = dict(said)
    for old, new in (("hook_point", "hook_name"), ("hook_point_layer", "hook_layer")):
        if old in settings:
            settings.setdefault(new, settings.pop(old))
    activation = settings.get("activation_fn", settings.get("activation_fn_str", "relu"))
    settings.setdefault("architecture", "standard")
    if activation == "topk":
        settings["architecture"] = "topk"
        settings["k"] = (settings.get("activation_fn_kwargs") or {}).get("k")
    elif activation not in ("relu", None):
        settings["activation_fn"] = activation
    normalized = settings.get("normalize_activations")
    if normalized is None or isinstance(normalized, bool):
        settings["normalize_activations"] = "expected_average_only_in" if normalized else "none"
    settings.setdefault("reshape_activations", "hook_z" if "hook_z" in str(settings.get("hook_name")) else "none")
    return settings


def _refuse(settings: dict[str, Any], path: Path, old: bool) -> None:
    architecture = settings.get("architecture")
    if architecture not in ARCHITECTURES:
        raise SettingError(
            f"{path} has architecture={architecture}, which no coder here can repeat. Those that can be read: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if not old and (strange := set(settings) - READ - OF_TRAINING):
        raise SettingError(
            f"{path} has settings that are not known here, and they may change what the coder writes: "
            f"{', '.join(sorted(strange))}. Take them out if they do not"
        )
    if old and settings.get("activation_fn", "relu") not in ("relu", "topk"):
        raise SettingError(f"{path} has activation_fn={settings['activation_fn']}. Only relu and topk can be read")
    reasons = {
        "layer_norm": "it divides every input by its own deviation, which no fixed weights do",
        "constant_norm_rescale": "it divides every input by its own norm, which no fixed weights do",
        "covariance_whitening": "the coder was saved in the middle of training; SAELens folds it in at the end",
    }
    normalized = settings.get("normalize_activations") or NEVER_SCALED
    if normalized in reasons:
        raise SettingError(f"{path} has normalize_activations={normalized}: {reasons[normalized]}. It cannot be read")
    if normalized not in (NEVER_SCALED, "expected_average_only_in"):
        raise SettingError(f"{path} has normalize_activations={normalized}, which is not known here")
    if normalized != NEVER_SCALED and ARCHITECTURES[architecture][0] != "sae":
        raise SettingError(
            f"{path} has normalize_activations={normalized} in a {architecture}, and does not say by how much its "
            f"output is scaled. It cannot be read"
        )
    if settings.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise SettingError(f"{path} has reshape_activations={settings['reshape_activations']}, which is not known here")
    if settings.get("apply_b_dec_to_input", True) and ARCHITECTURES[architecture][0] != "sae":
        raise SettingError(
            f"{path} asks a {architecture} to subtract what it writes from what it reads (apply_b_dec_to_input). "
            f"SAELens refuses that too; set it to false"
        )


def _factor(settings: dict[str, Any], folder: Path) -> float | None:
    """What the inputs are multiplied by, where training had not folded it in when this was saved."""
    if (settings.get("normalize_activations") or NEVER_SCALED) == NEVER_SCALED:
        return None
    factor = settings_of(folder / SCALER).get("scaling_factor") if (folder / SCALER).is_file() else None
    if not isinstance(factor, int | float) or factor <= 0:
        raise SettingError(
            f"{folder / CONFIG} has normalize_activations=expected_average_only_in, and its factor is not there: "
            f"SAELens keeps it in {SCALER}, as scaling_factor, or in its own list of releases. Write that file"
        )
    return float(factor)


def _measured(words: dict[str, Any], folder: Path) -> int | None:
    """Mean latents active on a row, as the settings say it or as the frequencies beside the weights add up to it."""
    l0 = words.get("l0", words.get("k"))
    if l0 is None and (folder / SPARSITY).is_file():
        file = open_safetensors(folder / SPARSITY)
        l0 = float((10.0 ** file.read("sparsity", torch.float64)).sum()) if "sparsity" in file.shapes else None
    return max(1, round(l0)) if isinstance(l0, int | float) and math.isfinite(l0) else None


# -- tensors ----------------------------------------------------------------------------------------------------------


def _check_tensors(file: TensorFile, architecture: str, kind: Kind) -> None:
    needed = {"W_enc", "W_dec", "b_dec"}
    needed |= {"b_gate", "b_mag", "r_mag"} if architecture == "gated" else {"b_enc"}
    needed |= {"W_skip"} if kind == "skip-transcoder" else set()
    needed |= {"threshold"} if architecture.startswith("jumprelu") else set()
    needed |= {"topk_threshold"} if architecture.endswith("batchtopk") else set()
    file.must_have(needed, {"scaling_factor"})
    if "scaling_factor" in file.shapes and bool((file.read("scaling_factor", torch.float32) != 1).any()):
        raise SettingError(
            f"{file.path} has a scaling_factor that is not one: latents fine-tuned after training. SAELens 6 cannot "
            f"read them either; multiply W_dec by it and take it out"
        )


def _coder(
    file: TensorFile, settings: dict[str, Any], dtype: torch.dtype, architecture: str, activation: Activation
) -> Coder:
    enc_LD = file.read("W_enc", dtype, transposed=True)
    latents, inputs = enc_LD.shape
    if (latents, inputs) != (settings.get("d_sae"), settings.get("d_in")):
        raise CorruptArtifact(
            f"{file.path} has {latents} latents of {inputs} inputs where {CONFIG} says "
            f"{settings.get('d_sae')} of {settings.get('d_in')}. Download both again"
        )
    dec_LE, dec_bias_E = file.read("W_dec", dtype), file.read("b_dec", dtype)
    if architecture == "gated":
        bias_L, threshold_L = _gate(file, enc_LD, dtype)
    else:
        bias_L, threshold_L = file.read("b_enc", dtype), None
    if architecture.startswith("jumprelu"):
        threshold_L = file.read("threshold", dtype)
    if architecture.endswith("batchtopk"):
        threshold_L = file.read("topk_threshold", dtype).expand(latents).clone()
    k = settings.get("k") if activation == "topk" else 0
    if not isinstance(k, int):
        raise CorruptArtifact(f"{CONFIG} says k={json.dumps(k)} where a number belongs. Download it again")
    skip_ED = file.read("W_skip", dtype) if "W_skip" in file.shapes else None
    return Coder(enc_LD, bias_L, dec_LE, dec_bias_E, skip_ED, k, activation, threshold_L)


def _gate(file: TensorFile, enc_LD: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias and threshold of the jumprelu that a gated SAE is; the encoder becomes that of its magnitudes.

    A gate W x + b_gate is open exactly where the magnitude e^r W x + b_mag is above b_mag - e^r b_gate.
    """
    gate_L, mag_L, ratio_L = (file.read(name, torch.float32) for name in ("b_gate", "b_mag", "r_mag"))
    ratio_L = ratio_L.exp()
    enc_LD.mul_(ratio_L[:, None])
    return mag_L.to(dtype), (mag_L - ratio_L * gate_L).to(dtype)


FORMAT = FileFormat("saelens", f"{CONFIG} and {WEIGHTS}", lambda path: has(path, CONFIG, WEIGHTS), load, save)
