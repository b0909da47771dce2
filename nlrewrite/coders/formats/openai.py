"""SAEs as openai/sparse_autoencoder keeps them: one pickled state dict, `<layer>.pt`.

In: such a file. Out: the coder in its one form. Invariant: latents are relu(W_enc (x - pre_bias) + latent_bias) and the
output is W_dec latents + pre_bias. The TopK ones (v5) normalise every row before and undo that afterwards, so that what
they write grows with the row they read; no coder here does, and they are refused with that reason.
"""

from pathlib import Path

import torch

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import pickled
from nlrewrite.coders.formats.affine import reading_less
from nlrewrite.coders.formats.loaded import About, FileFormat, Loaded, agreeing, one_dtype, spelled
from nlrewrite.errors import CorruptArtifact, SettingError

NEEDED = {"pre_bias", "encoder.weight", "latent_bias", "decoder.weight"}
COUNTED = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
SETTINGS = {"activation", "activation_state_dict"}


def recognises(path: Path) -> bool:
    """A file named by a layer; a folder with exactly one such."""
    if path.is_dir():
        return len([each for each in path.glob("*.pt") if each.stem.isdecimal()]) == 1
    return path.suffix == ".pt" and path.stem.isdecimal()


def load(path: Path, dtype: torch.dtype) -> Loaded:
    path = next(each for each in path.glob("*.pt") if each.stem.isdecimal()) if path.is_dir() else path
    value = pickled.read(path)
    if not isinstance(value, dict):
        raise CorruptArtifact(f"{path} has no state dict. Name its format, or download it again")
    said = pickled.plain({name: value[name] for name in SETTINGS & set(value)})
    activation = said.get("activation", "ReLU")
    if activation == "TopK":
        raise SettingError(
            f"{path} normalises every row that it reads (its TopK coders do, by LayerNorm) and scales what it writes "
            f"back: that does not fold into weights, and is not read. Use a ReLU one (v1, v4), or train a coder here"
        )
    if activation != "ReLU":
        raise SettingError(f"{path} has the activation {activation}, which no coder here has. Choose a ReLU one")
    tensors = pickled.tensors(value, path, NEEDED, COUNTED | SETTINGS)
    held = one_dtype({name: tensors[name].dtype for name in NEEDED}, path)
    bias = tensors["pre_bias"].to(dtype)
    coder = Coder(
        tensors["encoder.weight"].to(dtype),
        tensors["latent_bias"].to(dtype),
        tensors["decoder.weight"].to(dtype).T.contiguous(),
        bias,
        None,
        0,
        "relu",
    )
    notes = ("pre_bias is subtracted from the input; it was folded into the encoder bias",)
    about = About(kind="sae", layer=int(path.stem), dtype=spelled(held), said=said, notes=notes)
    return Loaded(reading_less(agreeing(coder, path, bias), bias), FORMAT.name, about)


FORMAT = FileFormat("openai", "a file <layer>.pt", recognises, load)
