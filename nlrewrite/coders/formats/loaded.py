"""What a file format hands over, and what every format checks alike.

In: tensors and words as a file has them. Out: a coder in its one form, and what the files say of it. Invariant: a coder
that leaves here has tensors of agreeing shapes, one dtype and no value that is not finite; what its files say is kept
word for word beside it; nothing is made up for what they leave unsaid.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nlrewrite.coders.form import Coder
from nlrewrite.coders.record import Kind
from nlrewrite.errors import CorruptArtifact, SettingError


class About(BaseModel):
    """What the files say of a coder. None: they do not say."""

    model_config = ConfigDict(frozen=True)

    kind: Kind = "sae"
    model: str | None = None
    hook_in: str | None = None
    """Name of what the coder reads, in the words of the files."""
    hook_out: str | None = None
    """Name of what it writes, where that is another place."""
    layer: int | None = None
    k: int | None = None
    """Latents active on a row, exactly (topk) or on average."""
    dtype: str = "float32"
    """Of the tensors in the file."""
    said: dict[str, Any] = {}
    """The settings in the files, as they stand."""
    notes: tuple[str, ...] = ()
    """What was folded, and which settings were passed over because they change no output."""


@dataclass(frozen=True)
class Loaded:
    """A coder from elsewhere. Its `k` is 0 where no k is said (`about.k` is None): whoever measures L0 sets it."""

    coder: Coder
    format: str
    about: About


@dataclass(frozen=True)
class FileFormat:
    """One way in which coders are kept by others."""

    name: str
    needs: str
    """The files it is told by, in words."""
    recognises: Callable[[Path], bool]
    """Whether a folder or file is of this format, by the names of files alone."""
    load: Callable[[Path, torch.dtype], Loaded]
    save: Callable[[Coder, Path, About], None] | None = None


def has(path: Path, *names: str) -> bool:
    """Whether `path` is a folder with all these files, or the last of them with the others beside it."""
    folder = path if path.is_dir() else path.parent
    return (path.is_dir() or path.name == names[-1]) and all((folder / name).is_file() for name in names)


def layer_of(hook: str | None) -> int | None:
    """The layer that the name of a place in a model names: blocks.8.hook_mlp_out, layers.6.mlp, layer_20/width_16k."""
    found = re.search(r"(?:^|[._/])(?:blocks|layers?|h)[._](\d+)(?:$|[._/])", hook or "")
    return int(found[1]) if found else None


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def settings_of(path: Path) -> dict[str, Any]:
    """The settings in a JSON file."""
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptArtifact(f"{path} is not JSON: {error}. Download it again") from error
    if not isinstance(settings, dict):
        raise CorruptArtifact(f"{path} has a {type(settings).__name__} where settings belong. Download it again")
    return settings


def one_dtype(dtypes: Mapping[str, torch.dtype], path: Path) -> torch.dtype:
    """The dtype of all tensors; refused when they have several, for then one of them was changed by itself."""
    if len(set(dtypes.values())) > 1:
        named = ", ".join(f"{name} {spelled(dtype)}" for name, dtype in dtypes.items())
        raise SettingError(
            f"the tensors of {path} have several dtypes: {named}. Their own package reads the dtype of the first for "
            f"all of them; write the file again in one dtype"
        )
    dtype = next(iter(dtypes.values()))
    if not dtype.is_floating_point:
        raise CorruptArtifact(f"the tensors of {path} are {spelled(dtype)}, and weights are not. Download it again")
    return dtype


def spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def agreeing(coder: Coder, path: Path, subtracted_D: Tensor | None = None) -> Coder:
    """The same, once the shapes of its tensors agree, and that of a bias which its input is to be read less."""
    if coder.enc_LD.ndim != 2 or coder.dec_LE.ndim != 2:
        raise CorruptArtifact(f"{path} has encoder and decoder of {coder.enc_LD.ndim} and {coder.dec_LE.ndim} axes")
    (latents, inputs), outputs = coder.enc_LD.shape, coder.dec_LE.shape[1]
    expected = {
        "encoder bias": (coder.enc_bias_L, (latents,)),
        "decoder": (coder.dec_LE, (latents, outputs)),
        "decoder bias": (coder.dec_bias_E, (outputs,)),
        "skip": (coder.skip_ED, (outputs, inputs)),
        "threshold": (coder.threshold_L, (latents,)),
        "subtracted bias": (subtracted_D, (inputs,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise CorruptArtifact(
                f"{path}: {name} has shape {list(tensor.shape)} where the encoder, {latents} latents of {inputs} "
                f"inputs, asks for {list(shape)}. Download it again"
            )
    return coder


def told(loaded: Loaded, path: Path) -> Loaded:
    """The same, once its tensors are seen to be those of one coder."""
    coder = agreeing(loaded.coder, path)
    if (coder.activation == "jumprelu") != (coder.threshold_L is not None):
        raise CorruptArtifact(f"{path}: a threshold belongs to jumprelu and to nothing else, not to {coder.activation}")
    if coder.activation == "topk" and not 1 <= coder.k <= coder.latents:
        raise SettingError(
            f"{path}: k must be between 1 and the number of latents: k={coder.k}, latents={coder.latents}"
        )
    named = {
        "encoder": coder.enc_LD,
        "encoder bias": coder.enc_bias_L,
        "decoder": coder.dec_LE,
        "decoder bias": coder.dec_bias_E,
        "skip": coder.skip_ED,
        "threshold": coder.threshold_L,
    }
    if bad := [
        name
        for name, tensor in named.items()
        if tensor is not None and not bool(tensor.sum(dtype=torch.float32).isfinite())
    ]:
        raise CorruptArtifact(f"{path} has values that are not finite in: {', '.join(bad)}. Download it again")
    return loaded
