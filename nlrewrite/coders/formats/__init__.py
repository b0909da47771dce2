"""Coders in the files of others: read into the one form, and written where a kind exists there.

In: a folder or file somebody else's package wrote. Out: a coder, and what its files say of it. Invariant: a format is
told by the names of files, never by trying to read them; a setting that changes an output is honoured or refused by
name; nothing in a file is run. One module per format; the table below is the only place that knows them all.
"""

from pathlib import Path

import torch

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import dictionary_learning, gemma_scope, gpt2_transcoders, openai, saelens, sparsify
from nlrewrite.coders.formats.loaded import About, FileFormat, Loaded, folder_of, told
from nlrewrite.errors import SettingError, Unreachable

__all__ = ["FORMATS", "About", "FileFormat", "Loaded", "load", "recognise", "save"]

FORMATS: dict[str, FileFormat] = {
    each.FORMAT.name: each.FORMAT
    for each in (sparsify, saelens, gemma_scope, gpt2_transcoders, dictionary_learning, openai)
}
NAMED_AT_MOST = 8


def load(path: Path, format: str = "auto", dtype: torch.dtype = torch.float32) -> Loaded:
    """The coder in a folder or file, its tensors in this dtype."""
    known = FORMATS[recognise(path) if format == "auto" else _known(format)]
    if not known.recognises(_there(path)):
        raise SettingError(f"{path} is not of the format {known.name}, which needs {known.needs}. {_found(path)}")
    return told(known.load(path, dtype), path)


def save(coder: Coder, folder: Path, format: str, about: About) -> None:
    """Write a coder as others read it; refused where the format has no such coder."""
    known = FORMATS[_known(format)]
    if known.save is None:
        able = ", ".join(each.name for each in FORMATS.values() if each.save is not None)
        raise SettingError(f"coders are not written in the format {format}. Choose one of: {able}")
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder} is a file, and a coder is written as a folder. Name another")
    folder.mkdir(parents=True, exist_ok=True)
    if there := [each.name for each in FORMATS.values() if each.recognises(folder)]:
        raise SettingError(f"{folder} holds a coder already, in the format {there[0]}. Name another folder")
    known.save(coder, folder, about)


def recognise(path: Path) -> str:
    """The name of the format that a folder or file is of."""
    names = [each.name for each in FORMATS.values() if each.recognises(_there(path))]
    if len(names) == 1:
        return names[0]
    if names:
        raise SettingError(f"{path} could be of any of the formats {', '.join(names)}. Name one: format={names[0]}")
    if inside := _inside(path):
        shown = ", ".join(str(each.relative_to(path)) for each in inside[:NAMED_AT_MOST])
        more = f" and {len(inside) - NAMED_AT_MOST} more" if len(inside) > NAMED_AT_MOST else ""
        raise SettingError(f"{path} holds several coders: {shown}{more}. Name one of these folders")
    needs = "; ".join(f"{each.name} needs {each.needs}" for each in FORMATS.values())
    raise SettingError(f"{path} is of no known format: {needs}. {_found(path)}")


def _known(format: str) -> str:
    if format not in FORMATS:
        raise SettingError(f"there is no format {format!r}. Choose one of: auto, {', '.join(FORMATS)}")
    return format


def _there(path: Path) -> Path:
    if not path.exists():
        raise Unreachable(f"there is no {path}. Name a folder or file that holds a coder")
    return path


def _found(path: Path) -> str:
    names = sorted(each.name + ("/" if each.is_dir() else "") for each in folder_of(path).iterdir())
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return f"Found: {', '.join(names[:NAMED_AT_MOST]) or 'nothing'}{more}"


def _inside(path: Path) -> list[Path]:
    """Folders below this one that hold a coder: hookpoints, and seeds below them."""
    if not path.is_dir():
        return []
    below = sorted(each for pattern in ("*", "*/*") for each in path.glob(pattern) if each.is_dir())
    return [each for each in below if any(known.recognises(each) for known in FORMATS.values())]
