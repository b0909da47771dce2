import hashlib
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import DATASET, REVISION, hub, parquet_of
from tokenizers import Tokenizer, models, pre_tokenizers

from nlrewrite import profiles, steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.coding import FolderTokens, HubTokens, SplitTokens, TokenRows
from nlrewrite.errors import CorruptArtifact, SettingError
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Advance, Progress
from nlrewrite.specs import Spec, TinySubject
from nlrewrite.text import sources, streams
from nlrewrite.text.packing import unpack
from nlrewrite.text.rows import read_summary, rows
from nlrewrite.text.tokenizer import load_tokenizer

WORDS = ["the", "cat", "reads,", "a", "dog", "writes:", "café", "木", "of", "seven\nhouses"]
TEXTS = [" ".join(WORDS[(number * step) % len(WORDS)] for step in range(10 + 7 * number)) for number in range(40)]
TEXTS[5] = " \n"
TEXTS[9] = "<|endoftext|> is spelled out here"
SHARD = 500
LONG = {"first": 2, "tokens": 6000}
SUBJECT = Artifact(kind="subject", digest="0" * 16)

# In a process of its own: that library of datasets reads its settings on import, and this one may be killed.
BUILD = """
import json, os, signal, sys
from pathlib import Path
from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Store, Work
from nlrewrite.coding import FolderTokens, HubTokens
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.text import streams
asked = json.loads(sys.argv[1])
streams.IDS_IN_A_SHARD, streams.DOCUMENTS_AT_ONCE = asked["shard"], 3
writes, written = [], Work.write
def write(self, name, data):
    if len(writes) == asked["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)
    writes.append(name)
    written(self, name, data)
Work.write = write
kinds = {"hub": HubTokens, "folder": FolderTokens}
store, execution = Store(asked["store"]), Execution(**asked["execution"])
subject = {"subject": Artifact.parse(asked["subject"])}
answers = []
for fields in asked["specs"]:
    spec = kinds[fields["kind"]](**fields)
    artifact = steps.name("stream", spec, subject)
    try:
        steps.build(artifact, spec, subject, store, execution, Progress(), "test", store.find(artifact))
        answers.append(str(artifact))
    except (SettingError, Unreachable) as error:
        answers.append(f"{type(error).__name__}: {error}")
json.dump(answers, sys.stdout)
"""


class Noted(Progress):
    """What was done, by the note beside it."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        def advance(amount: int = 1, note: str = "") -> None:
            self.done[note] = self.done.get(note, 0) + amount

        yield advance


def subject_in(store: Store, source: Folder) -> None:
    with store.attempt(SUBJECT) as attempt:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (attempt.folder / name).write_bytes(source.path(name).read_bytes())
        how = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
        store.commit(attempt, version=1, spec=TinySubject(), inputs={}, made=how)


@pytest.fixture
def place(tmp_path: Path, subject_folder: Folder) -> Store:
    """An empty store that has the subject."""
    store = Store(str(tmp_path / "store"))
    subject_in(store, subject_folder)
    return store


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stream")
    for number, text in enumerate(TEXTS):
        (root / f"{number:02}.txt").write_text(text, encoding="utf-8")
    (root / "other.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HubTokens:
    """A local folder as a dataset: two files in groups of ten rows, and a row without a text."""
    root = tmp_path_factory.mktemp("dataset")
    rows = [None if number == 7 else text for number, text in enumerate(TEXTS)]
    (root / "train-0.parquet").write_bytes(parquet_of(rows[:25]))
    (root / "train-1.parquet").write_bytes(parquet_of(rows[25:]))
    revision = sources.hash_files(root, sources.visible_files(root))[:40]
    return HubTokens(dataset=str(root), revision=revision)


def built(
    store: Store, spec: Spec, execution: Execution, progress: Progress | None = None, digest: str = SUBJECT.digest
) -> Folder:
    subject = {"subject": Artifact(kind="subject", digest=digest)}
    artifact = steps.name("stream", spec, subject)
    found = store.find(artifact)
    steps.build(artifact, spec, subject, store, execution, progress or Progress(), "test", found)
    return store.folder(artifact)


def apart(
    store: Store, *specs: Spec, execution: Execution | None = None, kill: int = -1, **environment: str
) -> "subprocess.CompletedProcess[str]":
    asked = {
        "store": store.uri,
        "subject": str(SUBJECT),
        "specs": [spec.model_dump() for spec in specs],
        "execution": (execution or Execution()).model_dump(),
        "shard": SHARD,
        "kill": kill,
    }
    return subprocess.run(
        [sys.executable, "-c", BUILD, json.dumps(asked)],
        env={**os.environ, "HF_HOME": f"{store.uri}/cache", **environment},
        capture_output=True,
        text=True,
    )


def documents_of(folder: Folder) -> list[list[int]]:
    """The documents as they stand in the stream, put together from its rows."""
    found = rows(folder, Execution(), 1)
    return [each.tolist() for each in unpack(found.read(np.arange(found.count))[:, 0], found.documents)]


def expected(subject: Folder, texts: list[str]) -> list[list[int]]:
    tokenizer = load_tokenizer(subject.root())
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts if text.strip()]


def contents(folder: Folder) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in folder.manifest.files}


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_packed_whole_with_an_end_of_text_before_each_document(
    place: Store, subject_folder: Folder, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = Execution(stream_folder=str(texts))
    spec = streams.identified(FolderTokens(), execution)
    whole = built(place, spec, execution)
    summary = read_summary(whole)
    wanted = expected(subject_folder, TEXTS)
    assert documents_of(whole) == wanted
    assert (summary.kind, summary.documents, summary.read) == ("folder", len(TEXTS) - 1, len(TEXTS))
    assert summary.ids == sum(len(each) + 1 for each in wanted)
    assert (summary.end_of_text, summary.vocabulary, len(summary.shards)) == (0, 300, 1)
    # The id before each document is 0, an id like any other: it stands there and nowhere else.
    found = rows(whole, execution, 1)
    assert np.flatnonzero(found.read(np.arange(found.count)) == 0).tolist() == found.documents.tolist()

    monkeypatch.setattr(streams, "IDS_IN_A_SHARD", SHARD)
    place.forget(whole.manifest.artifact)
    cut = built(place, spec, execution)
    shards = read_summary(cut).shards
    assert [shard.ids for shard in shards] == [SHARD] * (summary.ids // SHARD) + [summary.ids % SHARD]
    assert documents_of(cut) == documents_of(whole)
    listed = {entry.path: (entry.bytes, entry.sha256) for entry in cut.manifest.files if entry.path != "stream.json"}
    assert listed == {shard.path: (shard.bytes, shard.sha256) for shard in shards}
    assert all(shard.bytes < 2 * SHARD + 8 * shard.documents + 500 for shard in shards), "ids of 300 need two bytes"


def test_a_large_vocabulary_takes_wider_ids(place: Store, tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, 70_000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    artifact = Artifact(kind="subject", digest="1" * 16)
    with place.attempt(artifact) as attempt:
        tokenizer.save(str(attempt.folder / "tokenizer.json"))
        (attempt.folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
        how = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
        place.commit(attempt, version=1, spec=TinySubject(), inputs={}, made=how)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("w5 w65536 w69999")
    execution = Execution(stream_folder=str(tmp_path / "words"))
    folder = built(place, streams.identified(FolderTokens(), execution), execution, digest=artifact.digest)
    assert documents_of(folder) == [[5, 65536, 69999]]


def test_another_folder_than_the_named_one_is_refused(place: Store, texts: Path, tmp_path: Path) -> None:
    spec = streams.identified(FolderTokens(), Execution(stream_folder=str(texts)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("something else")
    with pytest.raises(SettingError, match=rf"coder\.data\.content is {spec.content[:12]}\.\.\..*left out"):
        built(place, spec, Execution(stream_folder=str(tmp_path / "other")))
    (tmp_path / "other" / "a.txt").write_text(" ")
    execution = Execution(stream_folder=str(tmp_path / "other"))
    with pytest.raises(SettingError, match=r"no document of coder\.data is more than white space"):
        built(place, streams.identified(FolderTokens(), execution), execution)


def test_memory_holds_a_shard_and_a_batch(place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long").mkdir()
    for number in range(40):
        (tmp_path / "long" / f"{number:02}.txt").write_text(f"{number} cat reads " * 2000)
    execution = Execution(stream_folder=str(tmp_path / "long"))
    spec = streams.identified(FolderTokens(), execution)
    monkeypatch.setattr(streams, "IDS_IN_A_SHARD", 1 << 14)
    monkeypatch.setattr(streams, "CHARACTERS_AT_ONCE", 1)
    tracemalloc.start()
    folder = built(place, spec, execution)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    bytes_in_all = 8 * read_summary(folder).ids
    assert peak < bytes_in_all / 3, f"{peak:,} of {bytes_in_all:,}"


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, subject_folder: Folder, texts: Path) -> tuple[Folder, int]:
    """A stream that nobody broke, and how many ids it has."""
    store = Store(str(tmp_path_factory.mktemp("unbroken")))
    subject_in(store, subject_folder)
    execution = Execution(stream_folder=str(texts))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streams, "IDS_IN_A_SHARD", SHARD)
        folder = built(store, streams.identified(FolderTokens(), execution), execution)
    return folder, read_summary(folder).ids


@pytest.mark.parametrize("writes", [1, 2, 5, 8])
def test_killed_while_a_shard_is_kept_it_goes_on_behind_the_last_one(
    place: Store, texts: Path, unbroken: tuple[Folder, int], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the write of that number; a shard takes two: itself, then the state that names it."""
    execution = Execution(stream_folder=str(texts))
    spec = streams.identified(FolderTokens(), execution)
    assert apart(place, spec, execution=execution, kill=writes).returncode == -signal.SIGKILL
    monkeypatch.setattr(streams, "IDS_IN_A_SHARD", SHARD)
    noted = Noted()
    folder = built(place, spec, execution, noted)
    whole, ids = unbroken
    assert contents(folder) == contents(whole)
    kept = writes // 2 * SHARD
    assert noted.done.get("finished before", 0) == kept
    cut = noted.done[""] - (ids - kept)  # a document that was cut at the end of a shard is read again
    assert 0 <= cut <= max(len(each) for each in documents_of(whole))
    assert not list(Path(place.uri, "work").rglob("*.*")), "what is committed leaves nothing behind"


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "state.json"])
def test_what_a_kill_left_behind_is_refused_when_it_is_damaged(
    place: Store, texts: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = Execution(stream_folder=str(texts))
    spec = streams.identified(FolderTokens(), execution)
    assert apart(place, spec, execution=execution, kill=3).returncode == -signal.SIGKILL
    (kept,) = Path(place.uri, "work").rglob(name)
    kept.write_bytes(kept.read_bytes()[:-1])
    monkeypatch.setattr(streams, "IDS_IN_A_SHARD", SHARD)
    with pytest.raises(CorruptArtifact, match=f"{name}.*below work/stream in the store, and run again"):
        built(place, spec, execution)


# -- datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streamed(
    tmp_path_factory: pytest.TempPathFactory, subject_folder: Folder, dataset: HubTokens
) -> tuple[Store, list[str], str]:
    """Streams of parts of one dataset, what was answered for each, and the log."""
    store = Store(str(tmp_path_factory.mktemp("streamed")))
    subject_in(store, subject_folder)
    parts: list[dict[str, Any]] = [{"first": 4, "documents": 6}, {"first": 20, "tokens": 2000}, {"field": "body"}, LONG]
    done = apart(store, *(dataset.model_copy(update=part) for part in parts), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    return store, json.loads(done.stdout), done.stderr


def test_documents_are_passed_over_and_read_up_to_a_number(
    streamed: tuple[Store, list[str], str], subject_folder: Folder
) -> None:
    store, answers, log = streamed
    folder = store.folder(Artifact.parse(answers[0]))
    # Rows 5 and 7 hold no text; they count among those read.
    assert documents_of(folder) == expected(subject_folder, [TEXTS[number] for number in (4, 6, 8, 9)])
    assert read_summary(folder).read == 6
    assert f"the stream have {read_summary(folder).ids} ids, and coder.data.tokens asks for 10000000" in log


def test_a_stream_ends_with_its_last_id_in_the_middle_of_a_document(
    streamed: tuple[Store, list[str], str], subject_folder: Folder
) -> None:
    folder = streamed[0].folder(Artifact.parse(streamed[1][1]))
    ids = [0]
    for text in expected(subject_folder, TEXTS[20:]):
        ids += [*text, 0]
    found = rows(folder, Execution(), 100)
    assert found.ids == 2000 and found.read(np.arange(20)).ravel().tolist() == ids[:2000]
    assert found.documents.tolist() == np.flatnonzero(np.array(ids[:2000]) == 0).tolist()


def test_a_column_that_is_not_there_is_named_by_its_setting(streamed: tuple[Store, list[str], str]) -> None:
    error = streamed[1][2]
    assert error.startswith("SettingError: coder.data.field must be a column of text: 'body'")
    assert error.endswith("Change --set coder.data.field")


def test_a_dataset_killed_on_its_way_goes_on_where_it_was(
    place: Store, streamed: tuple[Store, list[str], str], dataset: HubTokens
) -> None:
    spec = dataset.model_copy(update=LONG)
    assert apart(place, spec, kill=13, HF_HUB_OFFLINE="1").returncode == -signal.SIGKILL
    (state,) = Path(place.uri, "work").rglob("state.json")
    reader = json.loads(state.read_text())
    assert len(reader["shards"]) == 6
    assert reader["reader_state"] is not None and 0 < reader["reader_document"] <= reader["document"]
    done = apart(place, spec, HF_HUB_OFFLINE="1")
    artifact = Artifact.parse(json.loads(done.stdout)[0])
    assert str(artifact) == streamed[1][3]
    assert contents(place.folder(artifact)) == contents(streamed[0].folder(artifact))


def test_a_hub_is_streamed_and_what_it_lacks_is_named_by_its_setting(place: Store, subject_folder: Folder) -> None:
    there: list[str | None] = [*TEXTS[:20]]
    with hub(there) as (address, asked):
        spec = HubTokens(dataset=DATASET, revision=REVISION, first=1, tokens=1024)
        done = apart(place, spec, spec.model_copy(update={"config": "large"}), HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    name, error = json.loads(done.stdout)
    folder = place.folder(Artifact.parse(name))
    wanted = [0, *(number for each in expected(subject_folder, TEXTS[1:20]) for number in [*each, 0])]
    assert rows(folder, Execution(), 32).read(np.arange(32)).ravel().tolist() == wanted[:1024]
    assert error.startswith("SettingError") and "--set coder.data.config" in error
    assert f"/datasets/{DATASET}/resolve/{REVISION}/data/train-00000-of-00001.parquet" in asked


# -- files of ids -----------------------------------------------------------------------------------------------------


def test_a_file_of_rows_is_a_reference_and_not_a_copy(place: Store, tmp_path: Path) -> None:
    path = tmp_path / "ids.bin"
    ids_BT = np.arange(6 * 50, dtype="<u2").reshape(6, 50) % 300
    ids_BT.tofile(path)
    execution = Execution(token_rows=str(path), scratch=str(tmp_path))
    spec = streams.identified(TokenRows(row=50), execution)
    folder = built(place, spec, execution)
    assert [entry.path for entry in folder.manifest.files] == ["stream.json"]
    assert rows(folder, execution, 8).read(np.arange(6)).tolist() == ids_BT.tolist()
    summary = read_summary(folder)
    assert (summary.kind, summary.ids, summary.read, summary.documents) == ("rows", 300, 6, 6)
    other = path.with_name("other.bin")
    (ids_BT + 1).tofile(other)
    place.forget(folder.manifest.artifact)
    elsewhere = execution.model_copy(update={"token_rows": str(other)})
    with pytest.raises(SettingError, match=r"vocabulary: 300 in row 5 .*the vocabulary has 300 ids"):
        built(place, spec, elsewhere)
    (ids_BT // 2).tofile(other)
    with pytest.raises(SettingError, match=f"coder.data.content is {spec.content[:12]}"):
        built(place, spec, elsewhere)


# -- settings ---------------------------------------------------------------------------------------------------------


def resolved(execution: Execution, *settings: str) -> Any:
    return profiles.resolve("smoke", Overrides(settings=settings), execution).coder


def test_content_is_filled_in_where_the_coder_is_trained_on_it(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.bin").write_bytes(bytes(40))
    execution = Execution(stream_folder=str(texts), token_rows=str(tmp_path / "ids.bin"), scratch=str(tmp_path))
    folder = resolved(execution, "coder.data.kind=folder").data
    assert folder.content == sources.hash_files(texts, sources.text_files(texts))
    file = resolved(execution, "coder.data.kind=rows", "coder.data.row=10").data
    assert file.content == hashlib.sha256(bytes(40)).hexdigest()
    assert streams.identified(file, Execution()) == file, "what is named already needs no file"
    assert resolved(execution).data == SplitTokens()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", r"coder\.data\.kind=folder needs a folder: execution\.stream_folder is empty.*--stream-folder"),
        ("rows", r"coder\.data\.kind=rows needs a file.*--token-rows FILE"),
    ],
)
def test_a_source_without_a_place_is_asked_for(kind: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        resolved(Execution(), f"coder.data.kind={kind}")


def test_what_is_measured_on_is_not_learned_from(texts: Path) -> None:
    execution = Execution(stream_folder=str(texts), text_folder=str(texts))
    with pytest.raises(SettingError, match=r"the same folder of texts.*coder\.data\.kind=split"):
        resolved(execution, "coder.data.kind=folder", "text.source.kind=folder")
    fields = {"dataset": "a/b", "revision": "0" * 40}
    both = [f"{path}={json.dumps({'kind': 'hub', **fields})}" for path in ("text.source", "coder.data")]
    with pytest.raises(SettingError, match=r"the first 100,000 documents of a/b.*--set coder\.data\.first=100000"):
        resolved(Execution(), *both)
    assert resolved(Execution(), *both, "coder.data.first=100000").data.first == 100_000
    assert resolved(Execution(), *both, "coder.data.field=other").data.first == 0
