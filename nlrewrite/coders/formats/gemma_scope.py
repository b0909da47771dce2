"""Coders as Gemma Scope keeps them: `params.npz` of the first, `params.safetensors` and `config.json` of the second.

In: such a folder or file. Out: the coder in its one form, a JumpReLU. Invariant: nothing is subtracted from the input;
what only names of folders say, and files do not (layer, place, L0, and that a coder of embeddings reads and writes them
times the root of their width), is taken from the names.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from nlrewrite.coders.form import Coder
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
from nlrewrite.coders.formats.tensors import TensorFile, open_npz, open_safetensors
from nlrewrite.errors import CorruptArtifact, SettingError

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
SPELLINGS = {
    **dict.fromkeys(("w_enc", "wenc", "w_e"), "encoder"),
    **dict.fromkeys(("b_enc", "benc", "b_e"), "encoder bias"),
    **dict.fromkeys(("w_dec", "wdec", "w_d"), "decoder"),
    **dict.fromkeys(("b_dec", "bdec", "b_d"), "decoder bias"),
    **dict.fromkeys(("w_skip", "affine_skip_connection"), "skip"),
    "threshold": "threshold",
    "scaling_factor": "scaling",
}
NEEDED = ("encoder", "encoder bias", "decoder", "decoder bias", "threshold")
TRANSCODERS = re.compile(r"(?:^|[/-])gemma-scope-[^/]*-transcoders/|(?:^|/)transcoder(?:_all)?/layer_")
READ = {
    "architecture",
    "model_name",
    "hf_hook_point_in",
    "hf_hook_point_out",
    "affine_connection",
    "width",
    "l0",
    "type",
}


def load(path: Path, dtype: torch.dtype) -> Loaded:
    folder = folder_of(path)
    first = (folder / FIRST).is_file() and path.name != SECOND
    file = open_npz(folder / FIRST) if first else open_safetensors(folder / SECOND)
    said = settings_of(folder / CONFIG) if not first and (folder / CONFIG).is_file() else {}
    _refuse(said, folder / CONFIG)
    names = _names(file)
    held = one_dtype({names[each]: file.dtypes[names[each]] for each in NEEDED}, file.path)
    coder = Coder(
        file.read(names["encoder"], dtype, transposed=True),
        file.read(names["encoder bias"], dtype),
        file.read(names["decoder"], dtype),
        file.read(names["decoder bias"], dtype),
        file.read(names["skip"], dtype, transposed=True) if "skip" in names else None,
        0,
        "jumprelu",
        file.read(names["threshold"], dtype),
    )
    if bool(said.get("affine_connection", coder.skip_ED is not None)) != (coder.skip_ED is not None):
        raise CorruptArtifact(
            f"{folder / CONFIG} says affine_connection={json.dumps(said['affine_connection'])}, and {file.path.name} "
            f"has {'a' if coder.skip_ED is not None else 'no'} skip term. Download both again"
        )
    if "width" in said and said["width"] != coder.latents:
        raise CorruptArtifact(f"{file.path} has {coder.latents} latents, and {CONFIG} says {said['width']}")
    notes: list[str] = []
    if first and re.search(r"(?:^|/)embedding/width_", folder.resolve().as_posix()):
        root = math.sqrt(coder.enc_LD.shape[1])
        coder.enc_LD.div_(root)
        coder.dec_LE.mul_(root)
        notes.append("a coder of embeddings: its encoder was divided by the root of its width, its decoder multiplied")
    about = _about(coder, said, folder.resolve())
    coder.k = about.k or 0
    return Loaded(
        coder, "gemma-scope", about.model_copy(update={"dtype": spelled(held), "said": said, "notes": tuple(notes)})
    )


def _names(file: TensorFile) -> dict[str, str]:
    """The file's own name for each tensor; refused when one is missing, strange or there twice."""
    if any(len(shape) > 2 for shape in file.shapes.values()):
        raise SettingError(
            f"{file.path} writes several layers at once (a crosscoder). Only one of one place can be read"
        )
    names: dict[str, str] = {}
    for name in file.shapes:
        meant = SPELLINGS.get(name.lower())
        if meant is None:
            raise SettingError(
                f"{file.path} has a tensor that Gemma Scope's coders do not have: {name}. It may change what the coder "
                f"writes; take it out if it does not"
            )
        if meant in names:
            raise CorruptArtifact(f"{file.path} has its {meant} twice, as {names[meant]} and {name}. Download it again")
        names[meant] = name
    if missing := [each for each in NEEDED if each not in names]:
        raise CorruptArtifact(f"{file.path} lacks: {', '.join(missing)}; it has {', '.join(file.shapes)}")
    if "scaling" in names and bool((file.read(names["scaling"], torch.float32) != 1).any()):
        raise SettingError(f"{file.path} has a scaling_factor that is not one. Multiply W_dec by it and take it out")
    return names


def _refuse(said: dict[str, Any], path: Path) -> None:
    if strange := set(said) - READ:
        raise SettingError(
            f"{path} has settings that are not known here, and they may change what the coder writes: "
            f"{', '.join(sorted(strange))}. Take them out if they do not"
        )
    if (architecture := said.get("architecture", "jump_relu")) != "jump_relu":
        raise SettingError(f"{path} has architecture={architecture}. Only jump_relu can be read")
    if (kind := said.get("type", "sae")) not in ("sae", "transcoder"):
        raise SettingError(f"{path} is of type={kind}, of several layers at once. Only sae and transcoder can be read")


def _about(coder: Coder, said: dict[str, Any], folder: Path) -> About:
    """What the settings say, and what the names of the folders say where they do not."""
    where = folder.as_posix()
    below = "/".join(folder.parts[-3:])
    hook_in, hook_out = said.get("hf_hook_point_in"), said.get("hf_hook_point_out")
    layer = layer_of(hook_in) if hook_in else layer_of(below)
    transcoder = (
        said.get("type") == "transcoder"
        or (hook_out or hook_in) != hook_in
        or coder.enc_LD.shape[1] != coder.dec_LE.shape[1]
        or (not said and TRANSCODERS.search(where) is not None)
    )
    measured = re.search(r"average_l0_(\d+)", below)
    l0 = said.get("l0", int(measured[1]) if measured else None)
    return About(
        kind="skip-transcoder" if coder.skip_ED is not None else "transcoder" if transcoder else "sae",
        model=said.get("model_name") or _model(where),
        hook_in=hook_in or _hook(where, layer),
        hook_out=hook_out or (f"blocks.{layer}.hook_mlp_out" if transcoder else _hook(where, layer)),
        layer=layer,
        k=max(1, round(l0)) if l0 is not None else None,
    )


def _model(where: str) -> str | None:
    """The model that the name of a repository of the first Gemma Scope speaks of."""
    found = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)-", where)
    return f"google/gemma-2-{found[1]}" + ("-it" if found[2] == "it" else "") if found else None


def _hook(where: str, layer: int | None) -> str | None:
    found = re.search(r"gemma-scope-\w+-\w+-(res|mlp|att|transcoders)\b", where)
    if found is None or layer is None:
        return None
    place = {
        "res": "hook_resid_post",
        "mlp": "hook_mlp_out",
        "att": "attn.hook_z",
        "transcoders": "ln2.hook_normalized",
    }
    return f"blocks.{layer}.{place[found[1]]}"


FORMAT = FileFormat(
    "gemma-scope",
    f"{FIRST}, or {SECOND} (and {CONFIG})",
    lambda path: has(path, FIRST) or has(path, SECOND),
    load,
)
