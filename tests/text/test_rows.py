import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.coding import TokenRows
from nlrewrite.errors import CorruptArtifact, SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import TokensSpec
from nlrewrite.text import rowfile
from nlrewrite.text.rows import STREAM, Part, Rows, Shard, Stream, _file, _shard, rows

SPARSE = 200 * 1000 * 1000
ROOM = 20 * 1000 * 1000
Made = Callable[[str, dict[str, bytes]], Folder]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """An artifact of a kind with these files."""
    store = Store(str(tmp_path / "store"))

    def make(kind: str, files: dict[str, bytes]) -> Folder:
        artifact = Artifact(kind=kind, digest="0" * 16)
        with store.attempt(artifact) as attempt:
            for name, data in files.items():
                (attempt.folder / name).write_bytes(data)
            how = steps.provenance(steps.STEPS[kind], Execution(), "test", 0.0)
            store.commit(attempt, version=1, spec=TokensSpec(), inputs={}, made=how)
        return store.folder(artifact)

    return make


def held(ids_N: np.ndarray, documents: list[int]) -> Part:
    return Part(len(ids_N), lambda begin, end: ids_N[begin:end], lambda: np.array(documents, dtype=np.int64))


def stream_json(**fields: object) -> bytes:
    known = {"kind": "folder", "documents": 3, "vocabulary": 300, "end_of_text": 0, "read": 3}
    return Stream.model_validate(known | fields).model_dump_json().encode()


def shards_of(folder: Path, sizes: list[int]) -> tuple[dict[str, bytes], tuple[Shard, ...]]:
    files, shards, at = {}, [], 0
    for number, size in enumerate(sizes):
        name = f"shard-{number:05}.safetensors"
        tokens, documents = np.arange(at, at + size, dtype=np.uint16), np.array([0, size - 1], dtype=np.int64)
        save_file({"tokens": tokens, "documents": documents}, folder / name)
        files[name] = (folder / name).read_bytes()
        shards.append(Shard(path=name, ids=size, documents=2, bytes=len(files[name]), sha256="0" * 64))
        at += size
    return files, tuple(shards)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 12), st.data())
def test_rows_and_windows_are_slices_of_the_whole_whatever_the_parts(
    sizes: list[int], window: int, length: int, data: st.DataObject
) -> None:
    whole_N = np.arange(100, 100 + sum(sizes))
    ends = np.cumsum(sizes)
    parts = [held(whole_N[end - size : end], [0]) for size, end in zip(sizes, ends, strict=True)]
    if sum(sizes) < max(window, 2 * length):
        with pytest.raises(SettingError, match=f"has {sum(sizes)} tokens, a row {length} and a window {window}"):
            Rows(parts, window, 0, 300, length)
        return
    found = Rows(parts, window, 0, 300, length)
    assert (found.ids, found.count, found.length) == (sum(sizes), sum(sizes) // length, length)
    numbers = np.array(data.draw(st.lists(st.integers(0, found.count - 1), max_size=4)), dtype=np.int64)
    starts = np.array(data.draw(st.lists(st.integers(0, found.ids - window), max_size=4)), dtype=np.int64)
    read, windows = found.read(numbers), found.windows(starts)
    assert read.dtype == windows.dtype == np.int64
    assert read.tolist() == [whole_N[number * length : (number + 1) * length].tolist() for number in numbers]
    assert windows.tolist() == [whole_N[start : start + window].tolist() for start in starts]
    assert found.documents.tolist() == [0, *ends[:-1].tolist()]


@given(st.integers(2, 400), st.integers(1, 3000))
def test_the_last_rows_are_held_out_and_most_are_not(count: int, tokens: int) -> None:
    found = Rows([held(np.zeros(count * 8 + 5, dtype=np.int64), [])], 8, 0, 300)
    numbers = found.held_out(tokens)
    assert numbers.tolist() == list(range(count - len(numbers), count))
    assert len(numbers) == max(1, min(count // 4, -(-tokens // 8)))


def test_the_train_split_is_rows_of_a_window(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids_N = np.arange(1000, dtype=np.int32) % 300
    save_file({"tokens": ids_N}, tmp_path / "train.safetensors")
    files = {
        "train.safetensors": (tmp_path / "train.safetensors").read_bytes(),
        "tokens.json": json.dumps({"end_of_text": 7, "vocabulary": 300}).encode(),
    }
    monkeypatch.setattr("nlrewrite.text.rows.AT_ONCE", 64)
    found = rows(made("tokens", files), Execution(), 16)
    assert (found.ids, found.count, found.length, found.vocabulary) == (1000, 62, 16, 300)
    assert found.read(np.array([61, 0])).tolist() == [ids_N[976:992].tolist(), ids_N[:16].tolist()]
    assert found.windows(np.array([984])).tolist() == [ids_N[984:].tolist()]
    assert found.documents.tolist() == [7, 307, 607, 907]


def test_rows_go_on_from_one_shard_into_the_next(made: Made, tmp_path: Path) -> None:
    files, shards = shards_of(tmp_path, [10, 10, 3])
    folder = made("stream", files | {STREAM: stream_json(ids=23, shards=shards)})
    found = rows(folder, Execution(), 6)
    assert found.read(np.arange(3)).tolist() == np.arange(18).reshape(3, 6).tolist()
    assert found.windows(np.array([17, 8])).tolist() == [list(range(17, 23)), list(range(8, 14))]
    assert found.documents.tolist() == [0, 9, 10, 19, 20, 22]


def test_what_a_stream_says_of_itself_is_read_or_refused(made: Made) -> None:
    with pytest.raises(CorruptArtifact, match=r"stream/0{16}: stream\.json cannot be read.*--refresh stream"):
        rows(made("stream", {STREAM: b'{"kind": "folder"}'}), Execution(), 6)


def test_a_file_of_rows_keeps_its_rows_and_is_refused_when_it_changed(made: Made, tmp_path: Path) -> None:
    path, ids_BT = tmp_path / "ids.bin", np.arange(40, dtype="<u2").reshape(4, 10)
    ids_BT.tofile(path)
    execution = Execution(token_rows=str(path), scratch=str(tmp_path))
    spec = TokenRows(row=10, content=rowfile.content(path, execution))
    folder = made("stream", {STREAM: stream_json(kind="rows", ids=40, rows=spec, end_of_text=13)})
    found = rows(folder, execution, 6)
    assert (found.count, found.length, found.window) == (4, 10, 6)
    assert found.read(np.array([3])).tolist() == ids_BT[3:].tolist()
    assert found.windows(np.array([17])).tolist() == [list(range(17, 23))]
    assert found.documents.tolist() == [0, 10, 13, 20, 30]
    with pytest.raises(SettingError, match="--token-rows FILE"):
        rows(folder, Execution(), 6)
    ids_BT[2, 2] += 1
    ids_BT.tofile(path)
    with pytest.raises(SettingError, match=f"coder.data.content is {spec.content[:12]}"):
        rows(folder, execution, 6)


def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    """A file of rows and a shard of 200 MB each, all of it a hole."""
    header = json.dumps(
        {
            "tokens": {"dtype": "U16", "shape": [SPARSE // 2], "data_offsets": [0, SPARSE]},
            "documents": {"dtype": "I64", "shape": [1], "data_offsets": [SPARSE, SPARSE + 8]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    sizes = {"ids.bin": (b"", SPARSE), "shard.safetensors": (len(header).to_bytes(8, "little") + header, SPARSE + 8)}
    for name, (begin, size) in sizes.items():
        with open(tmp_path / name, "wb") as file:
            file.write(begin)
            file.truncate(len(begin) + size)
    of_file = Rows([_file(tmp_path / "ids.bin", TokenRows(row=2000), 0)], 64, 0, 300, 2000)
    of_shard = Rows([_shard(tmp_path / "shard.safetensors", SPARSE // 2)], 64, 0, 300)
    of_shard.read(np.array([0]))
    before = resident()
    for found in (of_file, of_shard):
        assert found.ids == SPARSE // 2
        numbers = np.arange(0, found.count, found.count // 50)
        assert not found.read(numbers).any() and not found.windows(numbers * 7).any()
    assert resident() - before < ROOM
