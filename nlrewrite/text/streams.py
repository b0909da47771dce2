"""Streams of token ids to train a coder on: documents tokenized and packed in shards, or a file of ids as it lies.

In: a dataset, a folder of text or a file of ids, and the subject's tokenizer. Out: `stream.json` and, for text, shards
(`tokens`, `documents`) in safetensors. Invariant: memory holds one shard and one batch of documents; a shard is
finished once, whoever goes on after a kill, and the shards are the same bit for bit as of a build that nobody broke.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from nlrewrite.artifacts import Folder, Work
from nlrewrite.coding import CoderTokens, FolderTokens, HubTokens, SplitTokens, TokenRows
from nlrewrite.errors import CorruptArtifact, SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import HubDataset, TextFolder
from nlrewrite.steps import Running
from nlrewrite.text import rowfile, sources
from nlrewrite.text.documents import hash_files
from nlrewrite.text.packing import Piece, Place, pack
from nlrewrite.text.rows import STREAM, Shard, Stream
from nlrewrite.text.tokenizer import end_of_text, load_tokenizer, token_texts

log = logging.getLogger(__name__)

IDS_IN_A_SHARD = 1 << 24
DOCUMENTS_AT_ONCE = 512
CHARACTERS_AT_ONCE = 1 << 22
SECTION = "coder.data"
STATE = "state.json"

AnyTokens = TypeVar("AnyTokens", SplitTokens, HubTokens, FolderTokens, TokenRows, CoderTokens)


def identified(data: AnyTokens, execution: Execution) -> AnyTokens:
    """`data` with its content filled in. One that names a content already, or a revision, stays as it is."""
    match data:
        case FolderTokens(content=""):
            return data.model_copy(update={"content": _fingerprint(_folder(execution))})
        case TokenRows(content=""):
            return data.model_copy(update={"content": rowfile.content(rowfile.located(data, execution), execution)})
        case _:
            return data


def refuse_overlap(text: sources.Source, data: CoderTokens) -> None:
    """A coder must not learn from documents that it is judged on later, as those of the corpus are."""
    if isinstance(text, TextFolder) and isinstance(data, FolderTokens) and text.content == data.content:
        raise SettingError(
            f"a coder must not be trained on all of the corpus, for parts of it are kept to measure on: {SECTION} and "
            f"text.source are the same folder of texts. Use --set {SECTION}.kind=split, or name another --stream-folder"
        )
    if isinstance(text, HubDataset) and isinstance(data, HubTokens):
        same = ("dataset", "revision", "config", "split", "field")
        if all(getattr(text, name) == getattr(data, name) for name in same) and data.first < text.documents:
            raise SettingError(
                f"a coder must not be trained on all of the corpus, for parts of it are kept to measure on: the corpus "
                f"is the first {text.documents:,} documents of {text.dataset}, and {SECTION}.first={data.first:,}. "
                f"Use --set {SECTION}.first={text.documents}"
            )


def build(
    spec: HubTokens | FolderTokens | TokenRows, inputs: Mapping[str, Folder], out: Path, running: Running
) -> None:
    subject = inputs["subject"].root()
    vocabulary, separator = len(token_texts(subject)), end_of_text(subject)
    if isinstance(spec, TokenRows):
        stream = _measured(spec, vocabulary, separator, running)
    else:
        stream = _packed(spec, load_tokenizer(subject), vocabulary, separator, out, running)
    (out / STREAM).write_text(stream.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _measured(spec: TokenRows, vocabulary: int, separator: int, running: Running) -> Stream:
    """The file of ids, read once from one end to the other; it stays where it is."""
    path = rowfile.located(spec, running.execution)
    total = path.stat().st_size // rowfile.dtype(spec).itemsize
    with running.progress.stage("check the file of token ids", total=total) as advance:
        counts = rowfile.scan(spec, running.execution, vocabulary, separator, advance)
    rowfile.refuse_other(spec, path, counts.content)
    return Stream(
        kind="rows",
        ids=counts.ids,
        documents=counts.documents,
        vocabulary=vocabulary,
        end_of_text=separator,
        read=counts.rows,
        rows=spec,
    )


def _packed(
    spec: HubTokens | FolderTokens, tokenizer: Tokenizer, vocabulary: int, separator: int, out: Path, running: Running
) -> Stream:
    limit = spec.tokens if isinstance(spec, HubTokens) else None
    finished = _Finished(running.work, out)
    done = finished.ids
    with running.progress.stage("tokenize the stream", total=limit or 0) as advance:
        if done:
            advance(done, "finished before")
        source = _Source(spec, running.execution, finished.place, finished.reader)
        pieces = pack(
            _tokenized(tokenizer, source, advance),
            IDS_IN_A_SHARD,
            separator,
            np.uint16 if vocabulary <= 1 << 16 else np.uint32,
            used=finished.place.used,
            most=None if limit is None else limit - done,
        )
        for piece in pieces:
            finished.add(piece, source.before)
    if not finished.shards:
        raise SettingError(
            f"there is no text to train the coder on: no document of {SECTION} is more than white space. "
            f"Name another source with --set {SECTION}.kind=..., or lower --set {SECTION}.first"
        )
    if limit is not None and finished.ids < limit:
        log.warning("the documents of the stream have %d ids, and %s.tokens asks for %d", finished.ids, SECTION, limit)
    return Stream(
        kind=spec.kind,
        ids=finished.ids,
        documents=sum(shard.documents for shard in finished.shards),
        vocabulary=vocabulary,
        end_of_text=separator,
        read=finished.place.document + 1,
        shards=tuple(finished.shards),
    )


# -- documents --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A place in front of a batch of documents: the number of its first one and, of a dataset, its own state."""

    document: int = 0
    state: dict[str, Any] | None = None


class _Source:
    """Batches of documents with their numbers, from some place on."""

    def __init__(self, spec: HubTokens | FolderTokens, execution: Execution, place: Place, reader: Reader) -> None:
        self.before = reader
        self._place = place
        if isinstance(spec, HubTokens):
            self._texts = self._of_dataset(spec)
        else:
            self._texts = self._of_folder(spec, execution)

    def batches(self) -> Iterator[list[tuple[int, str]]]:
        """Documents that are more than white space; while one batch is used, `before` is the place in front of it."""
        batch: list[tuple[int, str]] = []
        characters, before = 0, self.before
        for number, text, after in self._texts:
            if number >= self._place.document and text and not text.isspace():
                batch.append((number, text))
                characters += len(text)
            if len(batch) == DOCUMENTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
                self.before = before
                yield batch
                batch, characters, before = [], 0, Reader(number + 1, after())
        if batch:
            self.before = before
            yield batch

    def _of_dataset(self, spec: HubTokens) -> Iterator[tuple[int, str, Callable[[], dict[str, Any] | None]]]:
        from nlrewrite.text import hub

        reading = hub.Reading(spec, SECTION, spec.first)
        if self.before.state is not None:
            reading.go_on(self.before.state)
        for number, row in enumerate(reading, start=self.before.document):
            yield number, hub.text_of(row, spec, SECTION), reading.state

    def _of_folder(
        self, spec: FolderTokens, execution: Execution
    ) -> Iterator[tuple[int, str, Callable[[], dict[str, Any] | None]]]:
        root, first = _folder(execution), self._place.document
        found = _fingerprint(root)
        if found != spec.content:
            expected = f"{spec.content[:12]}..." if spec.content else "empty"
            raise SettingError(
                f"the text is not the one this stream is named after: {SECTION}.content is {expected}, {root} has "
                f"{found[:12]}.... Run again with {SECTION}.content left out, so that it is filled in"
            )
        for number, document in enumerate(sources.folder_documents(root, first), start=first):
            yield number, document.text, lambda: None


def _tokenized(
    tokenizer: Tokenizer, source: _Source, advance: Callable[[int], None]
) -> Iterator[tuple[int, np.ndarray]]:
    for batch in source.batches():
        encoded = tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        for (number, _), each in zip(batch, encoded, strict=True):
            ids = np.array(each.ids, dtype=np.int64)
            yield number, ids
            advance(len(ids) + 1)


def _folder(execution: Execution) -> Path:
    return sources.named_folder(execution.stream_folder, f"{SECTION}.kind", "stream_folder", "--stream-folder")


def _fingerprint(root: Path) -> str:
    return hash_files(root, sources.text_files(root))


# -- shards -----------------------------------------------------------------------------------------------------------


class _State(BaseModel):
    """What is finished, and where the documents behind it are found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    shards: tuple[Shard, ...]
    document: int
    used: int
    reader_document: int
    reader_state: dict[str, Any] | None


class _Finished:
    """The shards that are finished: in the artifact's folder and, for who goes on after a kill, in its work."""

    def __init__(self, work: Work | None, out: Path) -> None:
        self.shards: list[Shard] = []
        self.place, self.reader = Place(), Reader()
        self._work, self._out = work, out
        state = self._read_state()
        if state is not None and state.length == IDS_IN_A_SHARD:
            for shard in state.shards:
                (out / shard.path).write_bytes(self._kept(shard))
            self.shards = list(state.shards)
            self.place = Place(state.document, state.used)
            self.reader = Reader(state.reader_document, state.reader_state)
            log.info("going on behind %d finished shards, %d ids", len(self.shards), self.ids)

    @property
    def ids(self) -> int:
        return sum(shard.ids for shard in self.shards)

    def add(self, piece: Piece, reader: Reader) -> None:
        from safetensors.numpy import save

        data = save({"tokens": piece.ids_T, "documents": piece.starts_D})
        shard = Shard(
            path=f"shard-{len(self.shards):05}.safetensors",
            ids=len(piece.ids_T),
            documents=len(piece.starts_D),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        (self._out / shard.path).write_bytes(data)
        self.shards.append(shard)
        self.place, self.reader = piece.after, reader
        if self._work is not None:
            self._work.write(shard.path, data)  # first the shard, then the state that names it
            self._work.write(STATE, self._state().model_dump_json().encode())

    def _state(self) -> _State:
        return _State(
            length=IDS_IN_A_SHARD,
            shards=tuple(self.shards),
            document=self.place.document,
            used=self.place.used,
            reader_document=self.reader.document,
            reader_state=self.reader.state,
        )

    def _read_state(self) -> _State | None:
        data = self._work.read(STATE) if self._work is not None else None
        if data is None:
            return None
        try:
            return _State.model_validate_json(data)
        except ValidationError as error:
            raise CorruptArtifact(
                f"what an unfinished stream left behind cannot be read: its {STATE}: {error.errors()[0]['msg']}. "
                f"Remove its folder below work/stream in the store, and run again"
            ) from error

    def _kept(self, shard: Shard) -> bytes:
        assert self._work is not None
        data = self._work.read(shard.path)
        if data is None or hashlib.sha256(data).hexdigest() != shard.sha256:
            found = "is not there" if data is None else "has other bytes than were written"
            raise CorruptArtifact(
                f"what an unfinished stream left behind is damaged: {shard.path} {found}. "
                f"Remove its folder below work/stream in the store, and run again"
            )
        return data
