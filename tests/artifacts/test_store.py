"""What the store promises, on a folder, on moto's server and on Ceph's gateway."""

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from nlrewrite.artifacts import Artifact, Store
from nlrewrite.artifacts import store as store_module
from nlrewrite.errors import CorruptArtifact, StoreError
from tests.artifacts.builder import POINTS
from tests.artifacts.making import FILES, Recipe, artifact, make, manifest_key, object_keys

CODER = artifact("coder")
FLIPPED = b"cOlumns"


def overwrite(store: Store, key: str, data: bytes) -> None:
    store.place.write(key, data)


def builder(*arguments: str) -> Any:
    """What builders in processes of their own answered."""
    command = [sys.executable, "-m", "tests.artifacts.builder", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- what was made can be read ----------------------------------------------------------------------------------------


def test_what_is_made_is_found_and_read(store: Store) -> None:
    assert store.find(CODER).state == "missing"
    made = make(store, CODER)
    finding = store.find(CODER)
    assert finding.hit == made
    assert finding.why == "built 2026-01-02T03:04:05Z by test"
    assert [entry.path for entry in made.files] == sorted(FILES)
    assert made.bytes == sum(len(data) for data in FILES.values())
    folder = store.folder(CODER)
    assert {name: folder.path(name).read_bytes() for name in FILES} == FILES
    assert {name: (folder.root() / name).read_bytes() for name in FILES} == FILES
    assert store.listed() == [CODER]
    assert store.listed("subject") == []
    assert store.verify(CODER) == []


def test_names_of_files_may_be_any_text(store: Store) -> None:
    files = {"with space.json": b"1", "naïve – 名.txt": b"2", "a+b&c=d%20.bin": b"3"}
    make(store, CODER, files)
    assert {name: store.folder(CODER).path(name).read_bytes() for name in files} == files
    assert store.verify(CODER) == []


def test_a_large_file_survives_the_way(store: Store) -> None:
    data = bytes(range(256)) * 40_000
    make(store, CODER, {"large": data})
    assert store.folder(CODER).path("large").read_bytes() == data


def test_what_is_not_there_is_said(store: Store) -> None:
    with pytest.raises(StoreError, match=f"{CODER} is not in .* Build it with: nlrewrite run"):
        store.folder(CODER)
    make(store, CODER)
    with pytest.raises(FileNotFoundError, match="has no file 'other'"):
        store.folder(CODER).path("other")


def test_an_attempt_that_is_not_committed_is_not_there(store: Store) -> None:
    with store.attempt(CODER) as attempt:
        (attempt.folder / "numbers").write_bytes(b"1")
    assert store.find(CODER).state == "missing"


def test_an_attempt_without_files_is_a_defect(store: Store) -> None:
    with pytest.raises(AssertionError, match="left no files"):
        make(store, CODER, {})


# -- damage -----------------------------------------------------------------------------------------------------------


def test_deleted_data_is_a_miss_and_can_be_rebuilt(store: Store) -> None:
    broken = make(store, CODER)
    store.place.remove([object_keys(store, broken)["table.parquet"]])
    finding = store.find(CODER)
    assert (finding.state, finding.why) == ("damaged", f"{CODER} lacks its file table.parquet")
    assert finding.hit is None
    with pytest.raises(CorruptArtifact, match=r"lacks its file table\.parquet"):
        store.folder(CODER).path("table.parquet")
    assert store.verify(CODER) == [f"{CODER} lacks its file table.parquet"]
    rebuilt = make(store, CODER, instead_of=finding.manifest)
    assert rebuilt.attempt != broken.attempt
    assert store.find(CODER).hit == rebuilt


def test_a_truncated_file_is_a_miss(store: Store) -> None:
    made = make(store, CODER)
    overwrite(store, object_keys(store, made)["table.parquet"], b"col")
    assert store.find(CODER).why == f"{CODER}: table.parquet has 3 bytes where the manifest says 7"
    assert store.verify(CODER) == [store.find(CODER).why]


def test_verify_reads_every_byte(store: Store) -> None:
    made = make(store, CODER)
    overwrite(store, object_keys(store, made)["table.parquet"], FLIPPED)
    assert store.find(CODER).state == "hit"
    (line,) = store.verify(CODER)
    assert "table.parquet does not have the content that was written" in line
    assert "--refresh coder" in line


@pytest.mark.parametrize("content", [b"", b"{", b'{"artifact": 1}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_damage_and_no_miss(store: Store, content: bytes) -> None:
    make(store, CODER)
    overwrite(store, manifest_key(CODER), content)
    with pytest.raises(CorruptArtifact, match=f"Remove {manifest_key(CODER)}"):
        store.find(CODER)
    (line,) = store.verify(CODER)
    assert "cannot be read" in line


def test_a_manifest_under_another_name_is_damage(store: Store) -> None:
    make(store, CODER)
    overwrite(store, manifest_key(artifact("other")), store.place.read(manifest_key(CODER)))
    with pytest.raises(CorruptArtifact, match=f"it is the manifest of {CODER}"):
        store.find(artifact("other"))


# -- staleness --------------------------------------------------------------------------------------------------------


def test_a_rebuilt_input_makes_stale_what_was_made_from_it(store: Store) -> None:
    subject, coder = artifact("subject", "subject"), CODER
    first = make(store, subject)
    old = make(store, coder, inputs={"subject": first})
    assert store.find(coder).state == "hit"
    second = make(store, subject, instead_of=first)
    finding = store.find(coder)
    assert (finding.state, finding.why) == ("stale", f"its input subject ({subject}) was rebuilt since")
    make(store, coder, inputs={"subject": second}, instead_of=old)
    assert store.find(coder).state == "hit"


def test_a_forgotten_input_makes_stale_what_was_made_from_it(store: Store) -> None:
    subject = make(store, artifact("subject", "subject"))
    make(store, CODER, inputs={"subject": subject})
    store.forget(subject.artifact)
    finding = store.find(CODER)
    assert finding.state == "stale"
    assert finding.why.endswith("is no longer in the store")


def test_an_input_is_recorded_with_its_attempt_and_its_files(store: Store) -> None:
    first = make(store, artifact("subject", "subject"))
    same = make(store, first.artifact, instead_of=first)
    other = make(store, first.artifact, {"a": b"1"}, instead_of=same)
    records = [make(store, artifact(each.attempt), inputs={"s": each}).inputs["s"] for each in (first, same, other)]
    assert [record.attempt for record in records] == [first.attempt, same.attempt, other.attempt]
    assert records[0].files == records[1].files != records[2].files


# -- two builders -----------------------------------------------------------------------------------------------------


def test_the_first_of_two_builders_counts(store: Store) -> None:
    with store.attempt(CODER) as slow:
        (slow.folder / "numbers").write_bytes(b"slow")
        winner = make(store, CODER, {"numbers": b"fast"})
        given = store.commit(slow, version=1, spec=Recipe(), inputs={}, made=winner.made)
    assert given == winner
    assert store.folder(CODER).path("numbers").read_bytes() == b"fast"


def test_a_builder_leaves_alone_what_another_has_replaced_already(store: Store) -> None:
    broken = make(store, CODER)
    rebuilt = make(store, CODER, instead_of=broken)
    assert make(store, CODER, instead_of=broken) == rebuilt
    assert store.find(CODER).hit == rebuilt


def test_builders_in_processes_agree(store: Store) -> None:
    rounds, builders = 8, 3
    answers = builder("race", store.uri, str(rounds), str(builders))
    found = [store.find(artifact(f"race {turn}")).hit for turn in range(rounds)]
    assert answers == [[manifest.attempt for manifest in found if manifest]] * builders


def test_nobody_sees_half_a_manifest(store: Store) -> None:
    sizes, ended = set(), threading.Event()
    data = [bytes([65 + n]) * 2_000_000 for n in range(4)]

    def watch() -> None:
        while not ended.is_set():
            try:
                sizes.add(len(store.place.read("manifests/coder/big")))
            except FileNotFoundError:
                sizes.add(0)

    def write(each: bytes) -> None:
        if store.place.write_once("manifests/coder/big", each):
            won.append(each)

    won: list[bytes] = []
    writers = [threading.Thread(target=write, args=(each,)) for each in data]
    watcher = threading.Thread(target=watch)
    watcher.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ended.set()
    watcher.join()
    assert sizes <= {0, 2_000_000}
    assert [store.place.read("manifests/coder/big")] == won


# -- killed -----------------------------------------------------------------------------------------------------------


def test_a_killed_builder_leaves_no_half_artifact(store: Store) -> None:
    assert builder("kill", store.uri) == dict.fromkeys(POINTS, -signal.SIGKILL)
    for point in POINTS:
        finding = store.find(artifact(point))
        assert finding.state == ("hit" if point == "after-commit" else "missing"), point
    for point in POINTS[:-1]:
        make(store, artifact(point))
        assert store.verify(artifact(point)) == []
    orphans = store.garbage(older_than=0)
    # On S3 files go up only when they are complete, so that the first two left nothing there.
    assert len(orphans) == len(POINTS) - (1 if store.place.local("") else 3)
    store.collect(orphans, older_than=0)
    assert store.garbage(older_than=0) == {}
    assert store.place.keys("tmp") == []
    assert all(store.find(artifact(point)).hit and store.verify(artifact(point)) == [] for point in POINTS)


# -- another process --------------------------------------------------------------------------------------------------


def test_what_another_process_writes_is_seen(store: Store) -> None:
    assert store.listed() == []
    assert store.find(artifact("elsewhere")).state == "missing"
    attempt = builder("build", store.uri, "elsewhere")
    assert store.listed() == [artifact("elsewhere")]
    finding = store.find(artifact("elsewhere"))
    assert finding.hit is not None
    assert finding.hit.attempt == attempt
    assert store.folder(artifact("elsewhere")).path("numbers").read_bytes() == bytes(400_000)


# -- garbage ----------------------------------------------------------------------------------------------------------


def test_garbage_is_what_no_manifest_names(store: Store) -> None:
    first = make(store, artifact("subject", "subject"))
    coder = make(store, CODER, inputs={"subject": first})
    second = make(store, first.artifact, instead_of=first)
    lost = make(store, artifact("lost"))
    store.forget(lost.artifact)
    garbage = store.garbage(older_than=-60)
    assert garbage == {f"{lost.artifact}/{lost.attempt}": sorted(object_keys(store, lost).values())}
    assert store.collect(garbage) == len(FILES)
    assert [store.find(each.artifact).state for each in (second, coder, lost)] == ["hit", "stale", "missing"]
    # The subject's first attempt goes once the coder that was made from it is rebuilt.
    make(store, CODER, inputs={"subject": second}, instead_of=coder)
    assert set(store.garbage(older_than=-60)) == {f"{each.artifact}/{each.attempt}" for each in (first, coder)}


def test_young_attempts_are_no_garbage(store: Store) -> None:
    lost = make(store, artifact("lost"))
    store.forget(lost.artifact)
    assert store.garbage(older_than=3600) == {}
    assert store.garbage() == {}


def test_a_heartbeat_keeps_an_attempt_alive(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.1)
    with store.attempt(CODER) as attempt:
        key = f"objects/{CODER}/{attempt.name}/.heartbeat"
        deadline = time.monotonic() + 20
        while key not in dict(store.place.keys("objects")) and time.monotonic() < deadline:
            time.sleep(0.02)
        (attempt.folder / "numbers").write_bytes(b"1")
        first = dict(store.place.keys("objects"))[key]
        while dict(store.place.keys("objects"))[key] == first and time.monotonic() < deadline:
            time.sleep(0.1)
        assert dict(store.place.keys("objects"))[key] > first
        made = store.commit(attempt, version=1, spec=Recipe(), inputs={}, made=make(store, artifact("x")).made)
    assert [entry.path for entry in made.files] == ["numbers"]
    assert key not in dict(store.place.keys("objects"))


def test_an_unreadable_manifest_stops_the_collection(store: Store) -> None:
    make(store, CODER)
    overwrite(store, manifest_key(artifact("other")), b"{")
    with pytest.raises(CorruptArtifact):
        store.garbage(older_than=-60)


def test_files_that_are_no_manifests_are_not_listed(store: Store) -> None:
    make(store, CODER)
    for key in ("manifests/coder/README.txt", "manifests/coder/0123.json", "manifests/notes.json"):
        overwrite(store, key, b"hello")
    assert store.listed() == [CODER]


# -- why an artifact is missing ---------------------------------------------------------------------------------------


def test_the_nearest_artifact_explains_a_miss(store: Store) -> None:
    subject = make(store, artifact("subject", "subject"))
    make(store, artifact("far"), spec=Recipe(samples=1, fractions=(0.1,)), inputs={"subject": subject})
    near = make(store, artifact("near"), spec=Recipe(samples=10_000), inputs={"subject": subject})
    found = store.nearest(CODER, Recipe(samples=20_000), {"subject": subject.artifact}, version=1)
    assert found is not None
    assert found.manifest == near
    assert found.differences == ["coder.samples: 10000 -> 20000"]
    assert store.nearest(Artifact(kind="scores", digest=CODER.digest), Recipe()) is None


def test_an_unreadable_manifest_does_not_explain(store: Store) -> None:
    overwrite(store, manifest_key(artifact("broken")), b"{")
    assert store.nearest(CODER, Recipe()) is None
