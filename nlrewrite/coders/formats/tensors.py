"""Tensors of a file, one at a time, in the dtype and the orientation that a coder has them in.

In: a safetensors file or an npz file of arrays. Out: names, shapes, dtypes, and tensors of our own memory. Invariant:
reading holds what was read and a few megabytes more; a file that needs unpickling is refused, never read.
"""

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from nlrewrite.errors import CorruptArtifact, SettingError

AT_ONCE = 1 << 21
"""Numbers copied at a time."""
SIP = 1 << 20
"""Bytes read at a time, for a member of an archive is copied once more on the way."""
SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NUMPY = tuple(np.dtype(each) for each in (np.float64, np.float32, np.float16))  # of this machine's byte order
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file, read when asked for."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    blocks: Callable[[str], Iterator[torch.Tensor]]
    """A tensor in blocks of its rows, each good until the next is asked for; one with fewer than two axes in one."""

    def read(self, name: str, dtype: torch.dtype, transposed: bool = False) -> torch.Tensor:
        """A tensor, or its transpose laid out anew."""
        shape = self.shapes[name]
        if transposed and len(shape) != 2:
            raise CorruptArtifact(f"{self.path}: {name} has {len(shape)} axes where it needs two. Download it again")
        out = torch.empty(shape[::-1] if transposed else shape, dtype=dtype)
        filled = 0
        for block in self.blocks(name):
            if len(shape) < 2:
                out.copy_(block)
                continue
            part = slice(filled, filled + len(block))
            if transposed:
                out[:, part].copy_(block.T)
            else:
                out[part].copy_(block)
            filled += len(block)
        return out

    def must_have(self, names: set[str], known: set[str]) -> None:
        """Refused when a tensor is missing, or when there is one that nobody here would read."""
        if missing := names - set(self.shapes):
            raise CorruptArtifact(
                f"{self.path} lacks {', '.join(sorted(missing))}, and has {', '.join(sorted(self.shapes)) or 'nothing'}"
                f". Download it again, or name its format"
            )
        if strange := set(self.shapes) - names - known:
            raise SettingError(
                f"{self.path} has tensors that this format does not know, and they may change what the coder writes: "
                f"{', '.join(sorted(strange))}. Read it with the package that wrote it, and save it without them"
            )


def open_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            kinds = {name: each.get_dtype() for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CorruptArtifact(f"{path} is not a whole safetensors file: {error}. Download it again") from error
    if strange := {name: kind for name, kind in kinds.items() if kind not in SAFETENSORS}:
        named = ", ".join(f"{name} {kind}" for name, kind in strange.items())
        raise SettingError(f"{path} has tensors of a kind that weights here cannot have: {named}. Convert them")

    places = _places(path)

    def blocks(name: str) -> Iterator[torch.Tensor]:
        # Read and not mapped: the pages of a mapped file count as the process's own while it is open.
        try:
            with open(path, "rb") as file:
                file.seek(places[name])
                yield from _blocks(file, shapes[name], SAFETENSORS[kinds[name]])
        except EOFError as error:
            raise CorruptArtifact(f"{path}: {name} cannot be read: {error}. Download it again") from error

    return TensorFile(path, shapes, {name: SAFETENSORS[kind] for name, kind in kinds.items()}, blocks)


def _places(path: Path) -> dict[str, int]:
    """Where each tensor's bytes begin: behind eight bytes with the length of the header, and the header."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: 8 + length + each["data_offsets"][0] for name, each in header.items() if name != "__metadata__"}


def open_npz(path: Path) -> TensorFile:
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, np.dtype] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    header = HEADERS[np.lib.format.read_magic(file)]
                    shape, _, kinds[member.removesuffix(".npy")] = header(file)
                    shapes[member.removesuffix(".npy")] = shape
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        raise CorruptArtifact(f"{path} is not a whole npz file: {error}. Download it again") from error
    if strange := {name: kind for name, kind in kinds.items() if kind not in NUMPY}:
        named = ", ".join(f"{name} {kind}" for name, kind in strange.items())
        raise SettingError(f"{path} has arrays of a kind that weights cannot have: {named}. Nothing of it was read")

    dtypes = {name: getattr(torch, kind.name) for name, kind in kinds.items()}

    def blocks(name: str) -> Iterator[torch.Tensor]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
                shape, by_columns, _ = HEADERS[np.lib.format.read_magic(file)](file)
                if not by_columns:
                    yield from _blocks(file, shape, dtypes[name])
                else:  # rows are known when the last column is
                    yield torch.cat([each.clone() for each in _blocks(file, shape[::-1], dtypes[name])]).T
                file.read(1)  # at the end of a member its checksum is compared
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorruptArtifact(f"{path}: {name} cannot be read: {error}. Download it again") from error

    return TensorFile(path, shapes, dtypes, blocks)


def _blocks(file: IO[bytes], shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """What stands in a file from here on, in blocks of rows, one after the other in the same memory."""
    parts = [(stop - start, *shape[1:]) for start, stop in _parts(shape)] if len(shape) > 1 else [shape]
    held = torch.empty(max(map(math.prod, parts), default=0), dtype=dtype)
    for part in parts:
        block = held[: math.prod(part)]
        view, filled = block.view(torch.uint8).numpy().data, 0
        while filled < len(view) and (more := file.readinto(view[filled : filled + SIP])):  # type: ignore[attr-defined]
            filled += more
        if filled < len(view):
            raise EOFError(f"it ends {len(view) - filled} bytes early")
        yield block.view(part)


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    rows = max(1, AT_ONCE // max(1, int(np.prod(shape[1:]))))
    return ((start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))
