"""Rows of token ids to train on, whatever they come from: the train split, a stream of shards, a file of rows.

In: a tokens or a stream artifact. Out: `Rows`, which reads rows by number and windows from anywhere. Invariant: ids are
read where they lie, as many as are asked for, so that memory does not grow with the stream; the last rows are held
out, and no training order visits them.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nlrewrite.artifacts import Folder
from nlrewrite.coding import TokenRows
from nlrewrite.errors import CorruptArtifact, SettingError
from nlrewrite.execution import Execution
from nlrewrite.text import rowfile

STREAM = "stream.json"
AT_ONCE = 1 << 22  # ids that a search for documents looks at together
HELD_OUT = 4  # one row in so many is held out at most

Read = Callable[[int, int], np.ndarray]


class Shard(BaseModel):
    """One file of a stream: `tokens` and `documents`, the places in `tokens` where documents begin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    ids: int
    documents: int
    bytes: int
    sha256: str


class Stream(BaseModel):
    """What `stream.json` says: shards of packed documents, or a file of rows that lies elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["hub", "folder", "rows"]
    ids: int
    documents: int
    vocabulary: int
    end_of_text: int
    read: int
    """Rows of the dataset, files or rows of ids that were read to make it."""
    shards: tuple[Shard, ...] = ()
    rows: TokenRows | None = None


@dataclass(frozen=True)
class Part:
    """Ids that lie together: how many, how to read some, and where documents begin among them."""

    ids: int
    read: Read
    documents: Callable[[], np.ndarray]


class Rows:
    """A stream of ids as rows of equal length."""

    def __init__(
        self, parts: Sequence[Part], window: int, end_of_text: int, vocabulary: int, length: int | None = None
    ):
        self.window, self.end_of_text, self.vocabulary = window, end_of_text, vocabulary
        self.length = length or window
        """Ids in a row: the window, or what the file says."""
        self.ids = sum(part.ids for part in parts)
        self.count = self.ids // self.length
        self._parts = parts
        self._begins = [0, *np.cumsum([part.ids for part in parts]).tolist()][:-1]
        if self.ids < window or self.count < 2:
            raise SettingError(
                f"the text is too short to train a coder on: it has {self.ids:,} tokens, a row {self.length:,} and a "
                f"window {window:,}. Give more text, or lower --set coder.window"
            )

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [B, length]: the rows of these numbers."""
        return self._gather(np.asarray(numbers) * self.length, self.length)

    def windows(self, starts: np.ndarray) -> np.ndarray:
        """int64 [B, window]: the ids from each of these places on."""
        return self._gather(np.asarray(starts), self.window)

    def held_out(self, tokens: int) -> np.ndarray:
        """Numbers of the last rows, which hold `tokens` ids: one at least, and a quarter of all at most."""
        wanted = -(-tokens // self.length)
        return np.arange(self.count - max(1, min(wanted, self.count // HELD_OUT)), self.count)

    @cached_property
    def documents(self) -> np.ndarray:
        """int64, rising: where documents begin, at their end-of-text id; in a file of rows every row begins one."""
        found = [part.documents() + begin for part, begin in zip(self._parts, self._begins, strict=True)]
        return np.concatenate(found).astype(np.int64)

    def _gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        ids_BT = np.empty((len(starts), length), np.int64)
        for row, start in enumerate(starts.tolist()):
            assert 0 <= start <= self.ids - length, f"ids {start} to {start + length} of {self.ids}"
            at = 0
            while at < length:  # a row may begin in one shard and end in the next
                number = bisect_right(self._begins, start + at) - 1
                begin = start + at - self._begins[number]
                some = self._parts[number].read(begin, min(begin + length - at, self._parts[number].ids))
                ids_BT[row, at : at + len(some)] = some
                at += len(some)
        return ids_BT


def rows(folder: Folder, execution: Execution, window: int) -> Rows:
    """The train split of a tokens artifact, or a stream artifact; windows of `window` ids."""
    if STREAM not in {entry.path for entry in folder.manifest.files}:
        summary = json.loads(folder.path("tokens.json").read_text(encoding="utf-8"))
        part = _split(folder.path("train.safetensors"), summary["end_of_text"])
        return Rows([part], window, summary["end_of_text"], summary["vocabulary"])
    stream = read_summary(folder)
    if stream.rows is None:
        parts = [_shard(folder.path(shard.path), shard.ids) for shard in stream.shards]
        return Rows(parts, window, stream.end_of_text, stream.vocabulary)
    part = _file(rowfile.checked(stream.rows, execution), stream.rows, stream.end_of_text)
    return Rows([part], window, stream.end_of_text, stream.vocabulary, length=stream.rows.row)


def read_summary(folder: Folder) -> Stream:
    path = folder.path(STREAM)
    try:
        return Stream.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptArtifact(
            f"{folder.manifest.artifact}: {STREAM} cannot be read: {error.errors()[0]['msg']}. "
            f"Rebuild it with: nlrewrite run --refresh stream"
        ) from error


# -- parts ------------------------------------------------------------------------------------------------------------


def _shard(path: Path, ids: int) -> Part:
    def documents() -> np.ndarray:
        return _tensors(path).get_tensor("documents")

    return Part(ids, _reading(path), documents)


def _split(path: Path, end_of_text: int) -> Part:
    ids, read = int(_tensors(path).get_slice("tokens").get_shape()[0]), _reading(path)

    def documents() -> np.ndarray:
        found = [np.flatnonzero(read(at, min(at + AT_ONCE, ids)) == end_of_text) + at for at in range(0, ids, AT_ONCE)]
        return np.concatenate(found)

    return Part(ids, read, documents)


def _file(path: Path, spec: TokenRows, end_of_text: int) -> Part:
    def documents() -> np.ndarray:
        found: list[np.ndarray] = []
        at = 0
        for ids_BT in rowfile.blocks(path, spec):
            begins_BT = ids_BT == end_of_text
            begins_BT[:, 0] = True
            found.append(np.flatnonzero(begins_BT) + at)
            at += ids_BT.size
        return np.concatenate(found)

    ids_N = np.memmap(path, rowfile.dtype(spec), "r")

    def read(begin: int, end: int) -> np.ndarray:
        return ids_N[begin:end]

    return Part(len(ids_N), read, documents)


def _reading(path: Path) -> Read:
    """A reader of the file's tokens that opens it when it is first needed."""
    opened: list[Any] = []

    def read(begin: int, end: int) -> np.ndarray:
        if not opened:
            opened.append(_tensors(path).get_slice("tokens"))
        return opened[0][begin:end]

    return read


def _tensors(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="np")
