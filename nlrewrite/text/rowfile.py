"""A file of token ids without a header: where it is, what is in it, and that it is still the same.

In: the spec of such a file and the execution that says where it lies. Out: its path, its sha256 and, read once from
one end to the other, its counts. Invariant: nothing is held but a block, and a file is used only if its bytes have the
hash that its name says. The hash is remembered for a file that has not been touched since it was read.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlrewrite.coding import TokenRows
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution

log = logging.getLogger(__name__)

AT_ONCE = 1 << 24  # bytes in memory at a time
SETTLED = 2 * 10**9  # ns: a file written in the same tick of the clock as it was read may change without a trace


@dataclass(frozen=True)
class Counts:
    content: str
    rows: int
    ids: int
    documents: int


def located(spec: TokenRows, execution: Execution) -> Path:
    """The file that the execution names; whole rows of it."""
    if not execution.token_rows:
        raise SettingError(
            "coder.data.kind=rows needs a file of token ids: execution.token_rows is empty. "
            "Name one with --token-rows FILE"
        )
    path = Path(execution.token_rows)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "not there"
        raise Unreachable(f"the file of token ids {path} is {found}. Change --token-rows")
    size, of_a_row = path.stat().st_size, spec.row * dtype(spec).itemsize
    if not size or size % of_a_row:
        raise SettingError(
            f"a file of token ids holds whole rows: {path} has {size:,} bytes, and a row of coder.data.row={spec.row} "
            f"{spec.dtype} ids has {of_a_row:,}. Change --set coder.data.row or coder.data.dtype, or cut off the "
            f"{size % of_a_row:,} bytes of the last, unfinished row: truncate --size={size - size % of_a_row} {path}"
        )
    return path


def dtype(spec: TokenRows) -> np.dtype:
    return np.dtype(spec.dtype).newbyteorder("<")


def content(path: Path, execution: Execution) -> str:
    """sha256 of the file, remembered on this machine."""
    note = _note(path, execution)
    before = _state(path)
    if note.is_file() and (known := json.loads(note.read_text(encoding="utf-8")))["state"] == before:
        return known["sha256"]
    log.info("hashing %s, %.1f GB", path, path.stat().st_size / 1e9)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _remember(path, before, found, execution)
    return found


def checked(spec: TokenRows, execution: Execution) -> Path:
    """The file, if it is the one that `spec` names by its hash."""
    path = located(spec, execution)
    refuse_other(spec, path, content(path, execution))
    return path


def refuse_other(spec: TokenRows, path: Path, found: str) -> None:
    if found != spec.content:
        expected = f"{spec.content[:12]}..." if spec.content else "empty"
        raise SettingError(
            f"the file of token ids is not the one this stream is named after: coder.data.content is {expected}, "
            f"{path} has {found[:12]}.... Name the right one with --token-rows, or leave coder.data.content out"
        )


def scan(
    spec: TokenRows, execution: Execution, vocabulary: int, end_of_text: int, advance: Callable[[int], None]
) -> Counts:
    """Hash, count and check the whole file in one pass. A document begins with a row, and at an end-of-text id."""
    path = located(spec, execution)
    before, total, rows, documents = _state(path), hashlib.sha256(), 0, 0
    for ids_BT in blocks(path, spec):
        total.update(ids_BT.data)
        _check(ids_BT, rows, path, vocabulary)
        documents += len(ids_BT) + int(np.count_nonzero(ids_BT[:, 1:] == end_of_text))
        rows += len(ids_BT)
        advance(ids_BT.size)
    _remember(path, before, total.hexdigest(), execution)
    return Counts(total.hexdigest(), rows, rows * spec.row, documents)


def blocks(path: Path, spec: TokenRows) -> Iterator[np.ndarray]:
    """The file's rows, some at a time, in one buffer that is used again."""
    of_a_row = spec.row * dtype(spec).itemsize
    buffer = bytearray(max(1, AT_ONCE // of_a_row) * of_a_row)
    with open(path, "rb") as file:
        while count := file.readinto(buffer):
            assert count % of_a_row == 0, f"{path} was cut off while it was read"
            yield np.frombuffer(buffer, dtype(spec), count // dtype(spec).itemsize).reshape(-1, spec.row)


# -- within -----------------------------------------------------------------------------------------------------------


def _check(ids_BT: np.ndarray, first: int, path: Path, vocabulary: int) -> None:
    for value in (int(ids_BT.max()), int(ids_BT.min())):
        if not 0 <= value < vocabulary:
            row = first + int(np.argwhere(ids_BT == value)[0, 0])
            raise SettingError(
                f"an id must be one of the subject's vocabulary: {value} in row {row} of {path}, the vocabulary has "
                f"{vocabulary:,} ids. The file is of another tokenizer, or --set coder.data.dtype is not its own"
            )


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "bytes": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "device": found.st_dev,
        "inode": found.st_ino,
    }


def _note(path: Path, execution: Execution) -> Path:
    root = Path(execution.scratch) if execution.scratch else Path(tempfile.gettempdir()) / f"nlrewrite-{os.getuid()}"
    return root / "hashed" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def _remember(path: Path, before: dict[str, int], found: str, execution: Execution) -> None:
    """Write down the hash of a file that nobody wrote to while it was read, or just before it, which may not show."""
    if _state(path) != before or time.time_ns() - max(before["modified"], before["changed"]) < SETTLED:
        return
    note = _note(path, execution)
    note.parent.mkdir(parents=True, exist_ok=True)
    complete = note.with_suffix(f".{uuid.uuid4().hex}")
    complete.write_text(json.dumps({"path": str(path.resolve()), "state": before, "sha256": found}), encoding="utf-8")
    complete.replace(note)
