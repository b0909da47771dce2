import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nlrewrite.coding import TokenRows
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.text import rowfile

SPARSE = 200 * 1000 * 1000


def file_of(path: Path, ids: np.ndarray, dtype: str = "<u2") -> Execution:
    ids.astype(dtype).tofile(path)
    return Execution(token_rows=str(path), scratch=str(path.parent / "scratch"))


def scanned(spec: TokenRows, execution: Execution, vocabulary: int, end_of_text: int = 0) -> rowfile.Counts:
    return rowfile.scan(spec, execution, vocabulary, end_of_text, lambda amount: None)


def test_a_file_is_whole_rows_of_ids(tmp_path: Path) -> None:
    spec = TokenRows(row=5)
    execution = file_of(tmp_path / "ids.bin", np.arange(10))
    assert rowfile.located(spec, execution) == tmp_path / "ids.bin"
    with pytest.raises(SettingError, match=r"20 bytes, and a row of coder\.data\.row=6 uint16 ids has 12.*size=12 "):
        rowfile.located(TokenRows(row=6), execution)
    (tmp_path / "empty.bin").touch()
    with pytest.raises(SettingError, match="holds whole rows"):
        rowfile.located(spec, Execution(token_rows=str(tmp_path / "empty.bin")))
    with pytest.raises(SettingError, match="--token-rows FILE"):
        rowfile.located(spec, Execution())
    with pytest.raises(Unreachable, match=r"else\.bin is not there\. Change --token-rows"):
        rowfile.located(spec, Execution(token_rows=str(tmp_path / "else.bin")))
    with pytest.raises(Unreachable, match="is a folder"):
        rowfile.located(spec, Execution(token_rows=str(tmp_path)))


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32"])
def test_one_pass_hashes_counts_and_checks(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfile, "AT_ONCE", 100)
    spec = TokenRows(row=4, dtype=dtype)  # pyright: ignore[reportArgumentType]
    ids_BT = np.arange(4 * 50).reshape(50, 4) % 97
    ids_BT[7] = [0, 0, 5, 0]  # a row begins a document whatever it begins with
    execution = file_of(tmp_path / "ids.bin", ids_BT, np.dtype(dtype).newbyteorder("<").str)
    counts = scanned(spec, execution, vocabulary=97)
    assert counts.content == rowfile.content(tmp_path / "ids.bin", execution)
    assert (counts.rows, counts.ids, counts.documents) == (50, 200, 50 + np.count_nonzero(ids_BT[:, 1:] == 0))
    assert np.concatenate([block.copy() for block in rowfile.blocks(tmp_path / "ids.bin", spec)]).tolist() == (
        ids_BT.tolist()
    )
    with pytest.raises(SettingError, match=r"vocabulary: 96 in row 24 of .*the vocabulary has 96 ids"):
        scanned(spec, execution, vocabulary=96)


def test_an_id_below_zero_is_refused(tmp_path: Path) -> None:
    execution = file_of(tmp_path / "ids.bin", np.array([[1, 2], [3, -1]]), "<i4")
    with pytest.raises(SettingError, match="vocabulary: -1 in row 1"):
        scanned(TokenRows(row=2, dtype="int32"), execution, vocabulary=10)


def test_ids_are_little_endian(tmp_path: Path) -> None:
    (tmp_path / "ids.bin").write_bytes(bytes([1, 0, 0, 1]))
    (block,) = rowfile.blocks(tmp_path / "ids.bin", TokenRows(row=2))
    assert block.tolist() == [[1, 256]]


def test_a_hash_is_remembered_until_the_file_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ids.bin"
    execution = file_of(path, np.arange(10))
    first = rowfile.content(path, execution)
    assert not (tmp_path / "scratch").exists(), "it was written too shortly before to be sure"
    monkeypatch.setattr(rowfile, "SETTLED", 0)
    assert rowfile.content(path, execution) == first
    (note,) = (tmp_path / "scratch" / "hashed").iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": "as remembered"}))
    assert rowfile.content(path, execution) == "as remembered"
    before = path.stat()
    file_of(path, np.arange(10) + 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as large and as old as before, and another file
    changed = rowfile.content(path, execution)
    assert changed not in (first, "as remembered")
    assert scanned(TokenRows(row=5), execution, 20).content == changed


def test_a_large_file_is_checked_within_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "ids.bin"
    with open(path, "wb") as file:
        file.truncate(SPARSE)
    tracemalloc.start()
    counts = scanned(TokenRows(row=2000), Execution(token_rows=str(path), scratch=str(tmp_path)), vocabulary=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.ids == counts.documents == SPARSE // 2
    assert peak < 3 * rowfile.AT_ONCE
