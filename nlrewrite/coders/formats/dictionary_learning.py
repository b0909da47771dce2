"""Coders as dictionary_learning keeps them: a folder with `ae.pt`, the pickled weights, and `config.json`.

In: such a folder. Out: the coder in its one form. Invariant: what its classes' `encode` and `decode` compute is what
the coder computes. AutoEncoder: relu, reads x less its bias. AutoEncoderNew: relu, subtracts nothing. AutoEncoderTopK:
the k largest. BatchTopKSAE and its Matryoshka kind: after training, what is above a threshold learned.
JumpReluAutoEncoder: a threshold for every latent, whose value is counted times the length of its decoder row.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlrewrite.coders.form import Activation, Coder
from nlrewrite.coders.formats import pickled
from nlrewrite.coders.formats.affine import reading_less, scaled_latents
from nlrewrite.coders.formats.loaded import (
    About,
    FileFormat,
    Loaded,
    agreeing,
    folder_of,
    has,
    layer_of,
    one_dtype,
    settings_of,
    spelled,
)
from nlrewrite.errors import CorruptArtifact, SettingError

WEIGHTS, CONFIG = "ae.pt", "config.json"
LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
PLAIN = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
CLASSES: dict[str, tuple[Activation, set[str], set[str]]] = {
    "AutoEncoder": ("relu", LINEAR | {"bias"}, set()),
    "AutoEncoderNew": ("relu", LINEAR | {"decoder.bias"}, set()),
    "AutoEncoderTopK": ("topk", LINEAR | {"b_dec"}, {"k", "threshold"}),
    "BatchTopKSAE": ("jumprelu", LINEAR | {"b_dec", "threshold"}, {"k"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", PLAIN, {"k", "group_sizes"}),
    "JumpReluAutoEncoder": ("jumprelu", PLAIN, set()),
}
"""Of each class: what its latents become active by, its tensors, and others that its files may have."""
NOT_SUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def load(path: Path, dtype: torch.dtype) -> Loaded:
    folder = folder_of(path)
    settings = settings_of(folder / CONFIG)
    said = settings.get("trainer")
    if not isinstance(said, dict) or not isinstance(said.get("dict_class"), str):
        raise CorruptArtifact(f"{folder / CONFIG} names no trainer.dict_class. Fetch it again")
    name = said["dict_class"]
    if name not in CLASSES:
        raise SettingError(
            f"{folder / CONFIG}: coders of the class {name} are not read, for what they compute has no form here. "
            f"Classes that are read: {', '.join(CLASSES)}"
        )
    activation, needed, others = CLASSES[name]
    tensors = pickled.tensors(pickled.read(folder / WEIGHTS), folder / WEIGHTS, needed, others)
    held = one_dtype({each: tensors[each].dtype for each in needed - {"threshold"}}, folder / WEIGHTS)
    bias = next(tensors[each] for each in ("b_dec", "bias", "decoder.bias") if each in tensors).to(dtype)
    k = _k(said, tensors, folder) if activation == "topk" else 0
    W_enc, b_enc, W_dec = _matrices(tensors, dtype)
    threshold_L = _threshold(tensors, len(W_enc), folder).to(dtype) if activation == "jumprelu" else None
    coder = agreeing(Coder(W_enc, b_enc, W_dec, bias, None, k, activation, threshold_L), folder / WEIGHTS, bias)
    notes: list[str] = []
    if name not in NOT_SUBTRACTED:
        coder = reading_less(coder, bias)
        notes.append("the bias is subtracted from the input; it was folded into the encoder bias")
    if name == "JumpReluAutoEncoder":
        norms_L = coder.dec_LE.norm(dim=1)
        assert threshold_L is not None
        coder = replace(scaled_latents(coder, norms_L), threshold_L=threshold_L * norms_L)
        notes.append("latents are counted in lengths of their decoder rows, which were folded into the encoder")
    hook, layer = said.get("submodule_name"), said.get("layer")
    return Loaded(
        coder,
        FORMAT.name,
        About(
            kind="sae",
            model=said.get("lm_name"),
            hook_in=hook,
            layer=layer if isinstance(layer, int) else layer_of(hook),
            k=k or (said.get("k") if isinstance(said.get("k"), int) else None),
            dtype=spelled(held),
            said=settings,
            notes=tuple(notes),
        ),
    )


def _matrices(tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    if "encoder.weight" in tensors:
        decoder = tensors["decoder.weight"].to(dtype).T.contiguous()
        return tensors["encoder.weight"].to(dtype), tensors["encoder.bias"].to(dtype), decoder
    encoder = tensors["W_enc"].to(dtype).T.contiguous()
    return encoder, tensors["b_enc"].to(dtype), tensors["W_dec"].to(dtype)


def _k(said: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> int:
    found = {int(tensors["k"])} if "k" in tensors else set()
    found |= {said["k"]} if isinstance(said.get("k"), int) else set()
    if len(found) != 1:
        raise CorruptArtifact(
            f"{folder}: {CONFIG} and {WEIGHTS} name as k: {sorted(found) or 'none'}. Fetch both again"
        )
    return found.pop()


def _threshold(tensors: dict[str, Tensor], latents: int, folder: Path) -> Tensor:
    """Of every latent; one that training has not set yet is below zero."""
    threshold = tensors["threshold"].float()
    if threshold.ndim == 0:
        if float(threshold) < 0:
            raise SettingError(
                f"{folder / WEIGHTS} has no threshold yet ({float(threshold):g}): training stopped before it was set, "
                f"and without it what is active depends on the batch. Train on, or choose a later checkpoint"
            )
        threshold = threshold.expand(latents)
    return threshold.clone()


FORMAT = FileFormat("dictionary-learning", f"{WEIGHTS} and {CONFIG}", lambda path: has(path, CONFIG, WEIGHTS), load)
