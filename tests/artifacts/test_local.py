"""A store in a folder: what survives a crash, and what a failing disk looks like."""

import errno
import os
import resource
import threading
import time
from pathlib import Path

import pytest

from nlrewrite.artifacts import Store
from nlrewrite.artifacts import store as store_module
from nlrewrite.artifacts.local import LocalPlace
from nlrewrite.errors import SettingError, StoreError
from tests.artifacts.making import FILES, Recipe, artifact, make, manifest_key, object_keys

CODER = artifact("coder")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_the_layout_on_disk(root: Path) -> None:
    made = make(Store(str(root)), CODER)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    objects = [f"objects/{CODER}/{made.attempt}/{name}" for name in sorted(FILES)]
    assert files == [f"manifests/{CODER}.json", *objects]


def test_files_are_read_where_they_lie(root: Path) -> None:
    made = make(Store(str(root)), CODER)
    lying = root / "objects" / "coder" / CODER.digest / made.attempt / "table.parquet"
    assert Store(str(root)).folder(CODER).path("table.parquet") == lying


def test_a_manifest_is_synced_before_it_appears_and_its_folders_after(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded, not replaced: every call goes through to the system."""
    events: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def syncing(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def linking(source: Path, target: Path) -> None:
        events.append(("link", str(source)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "link", linking)
    made = make(Store(str(root)), CODER)
    (at,) = (number for number, event in enumerate(events) if event[0] == "link")
    before = {path for what, path in events[:at] if what == "sync"}
    after = {path for what, path in events[at:] if what == "sync"}
    attempt = root / "objects" / "coder" / CODER.digest / made.attempt
    assert {events[at][1], *(str(attempt / name) for name in FILES)} <= before
    assert {
        str(folder) for folder in (attempt / "deep" / "er", attempt / "deep", attempt, *attempt.parents[:4])
    } <= before
    assert {str(folder) for folder in (root / "manifests" / "coder", root / "manifests", root)} <= after


def test_a_hit_is_found_in_a_few_milliseconds_without_threads(root: Path) -> None:
    store = Store(str(root))
    inputs = {f"input-{number}": make(store, artifact(f"input {number}")) for number in range(12)}
    make(store, CODER, {f"part-{number}": b"1" for number in range(20)}, inputs)
    threads, times = threading.active_count(), []
    for _ in range(20):
        start = time.perf_counter()
        assert store.find(CODER).state == "hit"
        times.append(time.perf_counter() - start)
        assert threading.active_count() == threads
    assert min(times) < 0.01


def test_a_store_that_is_not_there_yet_is_empty(root: Path) -> None:
    store = Store(str(root))
    assert store.find(CODER).state == "missing"
    assert store.listed() == []
    assert store.garbage(older_than=0) == {}
    assert not root.exists()


def test_the_latest_artifacts_are_listed_last_and_explain_a_miss(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(root))
    for age, name in ((3, "nearest"), (1, "new"), (2, "middle")):
        made = make(store, artifact(name), spec=Recipe(samples=10 if name == "nearest" else age, fractions=(0.1,)))
        written = time.time() - age * 100
        os.utime(root / manifest_key(made.artifact), (written, written))
    assert store.listed() == [artifact("nearest"), artifact("middle"), artifact("new")]
    wanted = Recipe(samples=10, fractions=(0.2,))
    found = store.nearest(CODER, wanted)
    assert found is not None
    assert found.manifest.artifact == artifact("nearest")
    monkeypatch.setattr(store_module, "COMPARED", 2)
    found = store.nearest(CODER, wanted)
    assert found is not None
    assert found.manifest.artifact != artifact("nearest")


# -- failures are never misses ----------------------------------------------------------------------------------------


def test_a_file_where_a_folder_should_be_is_no_miss(root: Path) -> None:
    root.write_text("not a store")
    store = Store(str(root))
    with pytest.raises(StoreError, match="Not a directory"):
        store.find(CODER)
    with pytest.raises(StoreError, match=r"cannot write to .* choose another with --store"):
        make(store, CODER)


def test_a_folder_where_the_manifest_should_be_is_no_miss(root: Path) -> None:
    (root / manifest_key(CODER)).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot read .* Is a directory"):
        Store(str(root)).find(CODER)


def test_manifests_that_cannot_be_listed_make_nothing_garbage(root: Path) -> None:
    store = Store(str(root))
    make(store, CODER)
    (root / "manifests").rename(root / "elsewhere")
    (root / "manifests").write_text("in the way")
    with pytest.raises(StoreError, match="Not a directory"):
        store.garbage(older_than=-60)


@pytest.mark.parametrize("refusing", ["/proc/store", "/sys/store"])
def test_a_system_that_refuses_is_no_miss_when_writing(refusing: str) -> None:
    with pytest.raises(StoreError, match="Check its permissions"):
        make(Store(refusing), CODER)


def test_a_full_disk_leaves_no_manifest(root: Path) -> None:
    place = LocalPlace(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match=r"File too large.*free space"):
            place.write_once("manifests/coder/big.json", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert place.keys("manifests") == place.keys("tmp") == []
    assert place.write_once("manifests/coder/big.json", bytes(5000))


def test_a_folder_in_the_way_of_a_write_is_an_error(root: Path) -> None:
    place = LocalPlace(root)
    (root / "manifests").mkdir(parents=True)
    (root / "manifests" / "coder").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        place.write_once(manifest_key(CODER), b"1")
    with pytest.raises(StoreError, match="cannot write"):
        place.write(manifest_key(CODER), b"1")


# -- file systems without hard links ----------------------------------------------------------------------------------


def test_without_hard_links_a_second_writer_still_loses(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # no file system without links can be had here
    place = LocalPlace(root)
    assert place.write_once("manifests/coder/x.json", b"first")
    assert "no hard links" in caplog.text
    assert not place.write_once("manifests/coder/x.json", b"second")
    assert place.read("manifests/coder/x.json") == b"first"
    assert place.keys("tmp") == []


# -- keeping ----------------------------------------------------------------------------------------------------------


def test_what_killed_writers_left_is_cleared_when_it_is_old(root: Path) -> None:
    store = Store(str(root))
    make(store, CODER)
    left = root / "tmp" / "half"
    left.write_bytes(b"{")
    assert store.collect({}) == 0
    long_ago = time.time() - 8 * 86400
    os.utime(left, (long_ago, long_ago))
    assert store.collect({}) == 1
    assert not left.exists()
    assert store.find(CODER).state == "hit"


def test_one_young_file_keeps_an_old_attempt(root: Path) -> None:
    """As a heartbeat does, when the step wrote its last file long ago."""
    store = Store(str(root))
    lost = make(store, artifact("lost"))
    store.forget(lost.artifact)
    keys = object_keys(store, lost)
    long_ago = time.time() - 8 * 86400
    for key in keys.values():
        os.utime(root / key, (long_ago, long_ago))
    store.place.write(f"objects/{lost.artifact}/{lost.attempt}/.heartbeat", b"")
    assert store.garbage() == {}
    os.utime(root / f"objects/{lost.artifact}/{lost.attempt}/.heartbeat", (long_ago, long_ago))
    assert len(store.garbage()[f"{lost.artifact}/{lost.attempt}"]) == len(keys) + 1


def test_the_folders_of_an_attempt_go_with_its_files(root: Path) -> None:
    store = Store(str(root))
    lost = make(store, artifact("lost"))
    store.forget(lost.artifact)
    store.collect(store.garbage(older_than=-60))
    assert not (root / "objects" / str(lost.artifact) / lost.attempt).exists()
    assert (root / "objects" / str(lost.artifact)).exists()


def test_an_artifact_holds_no_links_to_elsewhere(root: Path, tmp_path: Path) -> None:
    store = Store(str(root))
    (tmp_path / "elsewhere").write_bytes(b"1")
    made = make(store, artifact("other")).made
    with store.attempt(CODER) as attempt:
        (attempt.folder / "numbers").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(AssertionError, match="not links to them"):
            store.commit(attempt, version=1, spec=Recipe(), inputs={}, made=made)


@pytest.mark.parametrize("uri", ["gs://bucket/prefix", "s3://", "s3:///prefix", "", " "])
def test_a_store_that_cannot_be_meant_is_a_setting_error(uri: str) -> None:
    with pytest.raises(SettingError):
        Store(uri)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/store").uri == str(tmp_path / "store")
