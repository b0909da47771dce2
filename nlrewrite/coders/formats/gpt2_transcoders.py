"""Coders as the program of "Transcoders Enable Fine-Grained Interpretable Circuit Analysis" keeps them: a pickle each.

In: `...sparse_autoencoder_<model>_<hook>_<latents>.pt`, a torch pickle of {"cfg": its configuration, "state_dict"}.
Out: the coder in its one form. Invariant: latents are relu((x - b_dec) W_enc + b_enc); a transcoder writes with W_dec
and adds b_dec_out, an SAE (early SAELens kept them in the same files) adds b_dec again. x is what the hook in it names:
where that is a LayerNorm's normalised input, `folding` makes it the input of the subject's MLP.
"""

from pathlib import Path
from typing import Any

import torch

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import pickled
from nlrewrite.coders.formats.affine import reading_less
from nlrewrite.coders.formats.loaded import About, FileFormat, Loaded, agreeing, layer_of, one_dtype, spelled
from nlrewrite.errors import CorruptArtifact, SettingError

PATTERN = "*sparse_autoencoder*.pt"


def recognises(path: Path) -> bool:
    return any(path.glob(PATTERN)) if path.is_dir() else path.match(PATTERN)


def load(path: Path, dtype: torch.dtype) -> Loaded:
    path = _file(path)
    value = pickled.read(path)
    if not (isinstance(value, dict) and "cfg" in value and isinstance(value.get("state_dict"), dict)):
        raise CorruptArtifact(f"{path} has no cfg and state_dict. Name its format, or download it again")
    cfg = value["cfg"]
    said = pickled.plain(cfg.state if isinstance(cfg, pickled.Foreign) else cfg)
    transcoder = "b_dec_out" in value["state_dict"]
    names = {"W_enc", "b_enc", "W_dec", "b_dec"} | ({"b_dec_out"} if transcoder else set())
    tensors = pickled.tensors(value["state_dict"], path, names)
    _agree(said, transcoder, path)
    held = one_dtype({name: tensor.dtype for name, tensor in tensors.items()}, path)
    W_enc, b_enc, W_dec, b_dec = (tensors[name].to(dtype) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    written = tensors["b_dec_out"].to(dtype) if transcoder else b_dec
    coder = agreeing(Coder(W_enc.T.contiguous(), b_enc, W_dec, written, None, 0, "relu"), path, b_dec)
    hook_in = said.get("hook_point")
    return Loaded(
        reading_less(coder, b_dec),
        FORMAT.name,
        About(
            kind="transcoder" if transcoder else "sae",
            model=said.get("model_name"),
            hook_in=hook_in,
            hook_out=said.get("out_hook_point") if transcoder else None,
            layer=layer_of(hook_in),
            dtype=spelled(held),
            said=said,
            notes=("b_dec is subtracted from the input; it was folded into the encoder bias",),
        ),
    )


def _agree(said: dict[str, Any], transcoder: bool, path: Path) -> None:
    if bool(said.get("is_transcoder", transcoder)) != transcoder:
        raise CorruptArtifact(
            f"{path} says is_transcoder={said['is_transcoder']} and its tensors differ. Fetch it again"
        )
    if said.get("hook_point_head_index") is not None:
        raise SettingError(
            f"{path} reads one attention head ({said['hook_point_head_index']}), which is no site here. Choose another"
        )


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(each.name for each in path.glob(PATTERN))
    if len(found) > 1:
        raise SettingError(f"{path} holds {len(found)} coders, first {found[0]}. Name one of the files")
    return path / found[0]


FORMAT = FileFormat("gpt2-transcoders", f"a file {PATTERN}", recognises, load)
