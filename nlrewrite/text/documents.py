"""A document, and the files that documents are read from.

In: a folder. Out: the files in it that a person would see, and one hash over their names and bytes. Invariant: the hash
depends on the content alone, never on the folder's place or on times.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Document:
    name: str
    text: str


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """One hash over the names below `root` and the bytes of `files`, in the order given."""
    total = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        total.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()


def visible_files(root: Path) -> list[Path]:
    """Every file below `root` in the order of its name, without hidden files and what lies in hidden folders."""
    files = (path for path in root.rglob("*") if path.is_file())
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return sorted(visible, key=lambda path: path.relative_to(root).as_posix())
