"""Coders as eai-sparsify keeps them: a folder per hookpoint with `cfg.json` and `sae.safetensors`.

In: such a folder, or a TopK coder. Out: the coder in its one form, or such a folder. Invariant: what sparsify 1.3.3
computes with a file is what the coder computes: the k largest latents, and a decoder bias that is subtracted from the
input unless the file says `transcode`. Transcoders from before that setting existed do subtract it, and are read so.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats.affine import reading_less, reading_more
from nlrewrite.coders.formats.loaded import (
    About,
    FileFormat,
    Loaded,
    folder_of,
    has,
    layer_of,
    one_dtype,
    settings_of,
    spelled,
)
from nlrewrite.coders.formats.tensors import open_safetensors
from nlrewrite.errors import CorruptArtifact, SettingError

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
READ = {"activation", "expansion_factor", "num_latents", "k", "skip_connection", "transcode", "d_in"}
PASSED_OVER = {
    "normalize_decoder": "the decoder stands in the file as training left it",
    "multi_topk": "a term of the loss",
    "dtype": "the tensors have their own",
    "tp_output": "how it was spread over devices",
    "train_post_encoder": "what was trained",
}
"""Settings of training that change no output, and why."""
MUST_BE: dict[str, Any] = {
    "signed": False,
    "normalize_io": False,
    "n_targets": 0,
    "n_sources": 0,
    "divide_cross_layer": False,
    "post_encoder_scale": False,
    "per_source_tied": False,
    "secondary_target_tied": False,
    "coalesce_topk": "none",
    "topk_coalesced": False,
    "matryoshka": False,
    "matryoshka_expansion_factors": [],
    "matryoshka_k_values": [],
    "use_fp8": False,
}
"""Settings of older versions and of forks, with the values at which they change no output."""
UNIT = 1e-3


def load(path: Path, dtype: torch.dtype) -> Loaded:
    folder = folder_of(path)
    said = settings_of(folder / CONFIG)
    _refuse(said, folder / CONFIG)
    inputs, latents, k = (_number(said, name, folder / CONFIG) for name in ("d_in", "num_latents", "k"))
    latents = latents or inputs * int(said.get("expansion_factor", 32))
    skip, transcode = bool(said.get("skip_connection", False)), bool(said.get("transcode", False))
    file = open_safetensors(folder / WEIGHTS)
    file.must_have({"encoder.weight", "encoder.bias", "W_dec", "b_dec"} | ({"W_skip"} if skip else set()), set())
    held = one_dtype(file.dtypes, file.path)
    if file.shapes["encoder.weight"] != (latents, inputs):
        raise CorruptArtifact(
            f"{file.path} has an encoder of shape {list(file.shapes['encoder.weight'])} where {CONFIG} says "
            f"{[latents, inputs]}. Download both again"
        )
    coder = Coder(
        file.read("encoder.weight", dtype),
        file.read("encoder.bias", dtype),
        file.read("W_dec", dtype),
        file.read("b_dec", dtype),
        file.read("W_skip", dtype) if skip else None,
        k,
    )
    notes = [
        f"{name}={json.dumps(said[name])} was passed over: {why}" for name, why in PASSED_OVER.items() if name in said
    ]
    if not transcode:
        coder = reading_less(coder, coder.dec_bias_E)
        notes.append("the decoder bias is subtracted from the input; it was folded into the encoder bias")
    if "transcode" not in said and skip:
        notes.append("written before transcode was a setting: a transcoder that subtracts its decoder bias")
    hook = _hookpoint(folder)
    return Loaded(
        coder,
        "sparsify",
        About(
            kind="skip-transcoder" if skip else "transcoder" if transcode else "sae",
            hook_in=hook,
            hook_out=hook,
            layer=layer_of(hook),
            k=k,
            dtype=spelled(held),
            said=said,
            notes=tuple(notes),
        ),
    )


def save(coder: Coder, folder: Path, about: About) -> None:
    """Write a TopK coder as sparsify 1.3.3 reads it."""
    if coder.activation != "topk":
        raise SettingError(
            f"sparsify has TopK coders only, and this one is {coder.activation}. Save it in the format saelens"
        )
    inputs, outputs = coder.enc_LD.shape[1], coder.dec_LE.shape[1]
    if inputs != outputs:
        raise SettingError(
            f"sparsify writes as many numbers as it reads: {inputs} are read and {outputs} written. No format here "
            f"holds a TopK coder of two widths; keep the artifact"
        )
    if about.kind == "sae" and coder.skip_ED is not None:
        raise SettingError("an SAE has no skip term, and this coder has one. Say that it is a skip-transcoder")
    if about.kind == "sae":
        coder = reading_more(coder, coder.dec_bias_E)
    named = {
        "encoder.weight": coder.enc_LD,
        "encoder.bias": coder.enc_bias_L,
        "W_dec": coder.dec_LE,
        "b_dec": coder.dec_bias_E,
        "W_skip": coder.skip_ED,
    }
    norms_L = coder.dec_LE.float().norm(dim=1)
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, coder.latents // inputs),
        "normalize_decoder": about.kind == "sae" and bool(((norms_L - 1).abs() < UNIT).all()),
        "num_latents": coder.latents,
        "k": coder.k,
        "multi_topk": False,
        "skip_connection": coder.skip_ED is not None,
        "transcode": about.kind != "sae",
        "d_in": inputs,
    }
    save_file({name: each.detach().contiguous() for name, each in named.items() if each is not None}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(settings))


def _refuse(said: dict[str, Any], path: Path) -> None:
    """Refuse settings that are unknown, or known to change the output in a way that a coder cannot."""
    if strange := set(said) - READ - set(PASSED_OVER) - set(MUST_BE):
        raise SettingError(
            f"{path} has settings that are not known here, and they may change what the coder writes: "
            f"{', '.join(sorted(strange))}. Take them out if they do not"
        )
    if wrong := [name for name, value in MUST_BE.items() if said.get(name, value) != value]:
        named = ", ".join(f"{name}={json.dumps(said[name])}" for name in wrong)
        raise SettingError(f"{path} asks for what a coder here cannot do: {named}. Only trained without it can be read")
    if (activation := said.get("activation", "topk")) != "topk":
        raise SettingError(
            f"{path} has activation={activation}, which is not the k largest of all latents. Only topk can be read"
        )


def _number(said: dict[str, Any], name: str, path: Path) -> int:
    value = said.get(name, 0 if name == "num_latents" else None)
    if not isinstance(value, int) or value < (0 if name == "num_latents" else 1):
        raise CorruptArtifact(f"{path} says {name}={json.dumps(value)} where a number belongs. Download it again")
    return value


def _hookpoint(folder: Path) -> str | None:
    """The folder's name, as sparsify names it by the module; of several seeds the one above."""
    name = folder.resolve().name
    if name.startswith("seed") and name[4:].isdigit():
        name = folder.resolve().parent.name
    return name if layer_of(name) is not None or name == "embed_tokens" else None


FORMAT = FileFormat("sparsify", f"{CONFIG} and {WEIGHTS}", lambda path: has(path, CONFIG, WEIGHTS), load, save)
