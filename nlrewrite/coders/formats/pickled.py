"""Tensors out of a pickle that a foreign program wrote with torch.save, without running anything the pickle names.

In: a file. Out: its tensors, containers and numbers; an object of a foreign class as a `Foreign` that holds its state.
Invariant: no name in the file is ever imported or looked up. The few names that tensors are made of stand for functions
of this module, every other name for an empty class that can hold a state and cannot be called: a file that calls it is
refused with that name. A storage is read only if the file has exactly as many bytes as the tensor's type asks for.

torch's own reader for weights takes no foreign class unless it is entered in a list of the whole process, and hands out
its real functions, whose attributes a pickle can set; here there is no such list and nothing real to set.
"""

import io
import json
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlrewrite.errors import CorruptArtifact, SettingError, Unreachable

LARGEST_PICKLE = 1 << 22  # bytes; the pickle of a file names its tensors and settings; their bytes lie beside it
MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # what torch.save began with before it wrote zip files
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGES.values()}


class Settings(dict[Any, Any]):
    """A dictionary that, like the ordered one it stands for, may carry attributes."""


class Inert(type):
    """The class of foreign classes: calling one, which is how a pickle runs a function, is refused."""

    name: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise _Refused(cls.name)


class Foreign(metaclass=Inert):
    """An object of a class that is not here. Its attributes are in `state`."""

    name = "a foreign class"
    state: dict[str, Any]

    def __repr__(self) -> str:
        return f"<{type(self).name}>"

    def __new__(cls, *args: Any, **kwargs: Any) -> "Foreign":
        made = object.__new__(cls)
        object.__setattr__(made, "state", {})
        return made

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if part is not None and not isinstance(part, dict):
                raise _Refused(type(self).name)
            self.state.update(part or {})


def read(path: Path) -> Any:
    """What `path` holds."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if not zipfile.is_zipfile(path):
            raise _unreadable(path, start)
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).read()
    except FileNotFoundError as error:
        raise Unreachable(f"there is no file {path}. Check the path") from error
    except _Refused as error:
        raise SettingError(
            f"{path} is not read, for loading it would call {error}: a coder's file holds tensors and settings alone. "
            f"Get it from whoever made it, as safetensors"
        ) from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise CorruptArtifact(f"{path} is cut short or damaged ({error}). Fetch it again") from error


def tensors(
    state: Any, path: Path, needed: set[str], others: frozenset[str] | set[str] = frozenset()
) -> dict[str, Tensor]:
    """The tensors of a state dict; refused when one is missing, or when there is one that nobody here would read."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CorruptArtifact(f"{path} has no tensors by name. Name its format, or download it again")
    if missing := needed - set(state):
        raise CorruptArtifact(
            f"{path} lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(state)) or 'nothing'}. "
            f"Name its format, or download it again"
        )
    if strange := set(state) - needed - others:
        raise SettingError(
            f"{path} has entries that this format does not know, and they may change what the coder writes: "
            f"{', '.join(sorted(strange))}. Read it with the package that wrote it, and save it without them"
        )
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if wrong := needed - set(found):
        raise CorruptArtifact(f"{path}: {', '.join(sorted(wrong))} is no tensor. Download it again")
    return found


def plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON has them; what it has no word for as text."""
    if not isinstance(settings, dict):
        return {}
    return json.loads(json.dumps({str(name): value for name, value in settings.items()}, default=str))


class _Refused(Exception):
    """A pickle calls something that is not here; says what."""


class _Storage:
    """What a storage's class in a pickle stands for: a type of numbers."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Callable:
    """A function of this module, as a pickle may hold it: it can be called and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Reader(pickle.Unpickler):
    """Reads one archive of torch.save."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        named = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(named) != 1:
            raise SettingError(f"{path} is a zip file, but none that torch.save wrote. Check the path")
        self._root = named[0].removesuffix("data.pkl")
        if f"{self._root}constants.pkl" in self._entries:
            raise SettingError(f"{path} is a program (TorchScript), not a coder's tensors. Save its state_dict instead")
        if f"{self._root}byteorder" in self._entries and self._bytes("byteorder", 6) != b"little":
            raise SettingError(f"{path} was written on a machine of other byte order. Save it on this one")
        self._storages: dict[str, Tensor] = {}
        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): Settings,
            ("torch._utils", "_rebuild_tensor_v2"): _Callable(self._tensor),
            ("torch._utils", "_rebuild_parameter"): _Callable(_parameter),
            ("torch", "device"): _Callable(_device),
            ("torch", "Size"): _Callable(tuple),
            ("_codecs", "encode"): _Callable(_encoded),
            **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
            **{("torch", name): dtype for name, dtype in DTYPES.items()},
        }
        self._pickle = self._bytes("data.pkl", LARGEST_PICKLE)
        super().__init__(io.BytesIO(self._pickle))

    def read(self) -> Any:
        try:
            for code, argument, _ in pickletools.genops(self._pickle):
                if "PUT" in code.name and argument is not None and argument > len(self._pickle):
                    raise pickle.UnpicklingError(f"it has no {argument} objects to remember")  # memory for so many
                if code.name.startswith("EXT"):
                    raise _Refused("a function by its number")
            return self.load()
        except (_Refused, SettingError, CorruptArtifact):
            raise
        except (
            *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
            *(UnicodeDecodeError, OverflowError, MemoryError, RecursionError),
        ) as error:
            raise CorruptArtifact(
                f"{self._path} is damaged or no file of torch.save: its pickle cannot be read "
                f"({type(error).__name__}: {error}). Fetch it again"
            ) from error

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = self._allowed.get((module_name, global_name))
        return known if known is not None else Inert("Foreign", (Foreign,), {"name": f"{module_name}.{global_name}"})

    def persistent_load(self, pid: Any) -> Any:
        """The storage that a tensor is a view of, as one flat tensor."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _Storage)):
            raise pickle.UnpicklingError(f"{pid!r} is no storage")
        _, kind, key, _, count = pid
        if not (isinstance(key, str) and key.isdecimal() and isinstance(count, int) and count >= 0):
            raise pickle.UnpicklingError(f"storage {key!r} of {count!r} numbers is none")
        if key not in self._storages:
            self._storages[key] = self._storage(key, count, kind.dtype)
        return self._storages[key]

    def _storage(self, key: str, count: int, dtype: torch.dtype) -> Tensor:
        size = count * dtype.itemsize
        data = self._bytes(f"data/{key}", size)
        if len(data) != size:
            raise CorruptArtifact(
                f"{self._path} is cut short or damaged: storage {key} has {len(data)} bytes, and its {count} numbers "
                f"of {dtype} take {size}. Fetch it again"
            )
        return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def _bytes(self, name: str, most: int) -> bytes:
        entry = self._entries.get(f"{self._root}{name}")
        if entry is None:
            raise CorruptArtifact(f"{self._path} is cut short or damaged: it lacks {name}. Fetch it again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
            raise CorruptArtifact(
                f"{self._path} is damaged or no file of torch.save: {name} is compressed or has {entry.file_size} "
                f"bytes, more than {most}. Fetch it again"
            )
        return self._archive.read(entry)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
        """A view of a storage, within its bounds."""
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Tensor) or not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise pickle.UnpicklingError("a tensor is no view of a storage")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= len(storage):
            raise CorruptArtifact(
                f"{self._path} is damaged: a tensor of shape {tuple(shape)} goes beyond its storage of {len(storage)} "
                f"numbers. Fetch it again"
            )
        return storage.as_strided(shape, strides, offset)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _encoded(text: Any, *encoding: Any) -> bytes:
    """Bytes, as protocol 2 writes them."""
    return text.encode("latin-1")


def _device(*words: Any) -> str:
    return ":".join(map(str, words))


def _unreadable(path: Path, start: bytes) -> SettingError | CorruptArtifact:
    if MAGIC in start or start[257:262] == b"ustar":
        return SettingError(
            f"{path} is in the format that torch.save had before 1.6, which is not read here. "
            f"Load it with torch and save it again"
        )
    if start[:2] == b"\x1f\x8b":
        return SettingError(f"{path} is compressed with gzip. Decompress it first: gunzip {path.name}")
    if start[:2] == b"PK":
        return CorruptArtifact(f"{path} is cut short or damaged: its table of contents is missing. Fetch it again")
    return SettingError(f"{path} is no file that torch.save wrote. Check the path")
