import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import TokensSpec
from nlrewrite.text import corpus, tokens
from nlrewrite.text.corpus import Documents

EOT = 0
SPLITS = ("explain", "calibrate", "report")

lengths = st.lists(st.integers(0, 60), max_size=8)
token_specs = st.builds(
    lambda shortest, more, per_document, limit, seed: TokensSpec(
        window=max(8, shortest + more),
        shortest=shortest,
        windows_per_document=per_document,
        limits={} if limit is None else {"report": limit},
        seed=seed,
    ),
    st.integers(4, 12),
    st.integers(0, 8),
    st.integers(1, 8),
    st.none() | st.integers(1, 12),
    st.integers(0, 1000),
)


def made(lengths: list[int]) -> tuple[Documents, list[np.ndarray]]:
    """Documents whose tokens all differ: token t of document d is 1000 d + t + 1."""
    ids = [1000 * place + 1 + np.arange(length, dtype=np.int32) for place, length in enumerate(lengths)]
    numbers = np.arange(len(lengths), dtype=np.int32) + 40
    return Documents(numbers, [""] * len(lengths), [""] * len(lengths), numbers // 2), ids


@given(lengths, token_specs)
def test_windows_hold_the_tokens_of_their_document(lengths: list[int], spec: TokensSpec) -> None:
    documents, ids = made(lengths)
    windows = tokens.cut(spec, "report", documents, ids, EOT)
    assert windows.tokens.shape == (len(windows), spec.window + 1)
    for row in range(len(windows)):
        length, start = windows.lengths[row], windows.start[row]
        text = np.concatenate([[EOT], ids[windows.document[row] - 40]])
        assert spec.shortest <= length <= spec.window
        assert start % spec.window == 0
        assert (windows.tokens[row, : length + 1] == text[start : start + length + 1]).all()
        assert len(text[start : start + length + 1]) == length + 1
        assert (windows.tokens[row, length + 1 :] == EOT).all()
        assert windows.group[row] == windows.document[row] // 2


@given(lengths, token_specs)
def test_limits_hold_and_every_label_is_used_at_most_once(lengths: list[int], spec: TokensSpec) -> None:
    documents, ids = made(lengths)
    windows = tokens.cut(spec, "report", documents, ids, EOT)
    labels = [label for row in range(len(windows)) for label in windows.tokens[row, 1 : windows.lengths[row] + 1]]
    assert len(labels) == len(set(labels))
    assert len(windows) <= spec.limits.get("report", len(windows))
    assert np.bincount(windows.document, minlength=1).max() <= spec.windows_per_document
    order = list(zip(windows.document.tolist(), windows.start.tolist(), strict=True))
    assert order == sorted(order)


@given(lengths, token_specs)
def test_nothing_is_left_out_but_for_a_limit_or_for_being_short(lengths: list[int], spec: TokensSpec) -> None:
    documents, ids = made(lengths)
    free = spec.model_copy(update={"limits": {}, "windows_per_document": 1024})
    windows = tokens.cut(free, "report", documents, ids, EOT)
    for number, text in zip(documents.document, ids, strict=True):
        rest = len(text) % spec.window
        expected = len(text) if rest >= spec.shortest else len(text) - rest
        assert windows.lengths[windows.document == number].sum() == expected
    per_document = spec.model_copy(update={"limits": {}})
    counts = np.bincount(windows.document, minlength=1).clip(max=spec.windows_per_document)
    assert len(tokens.cut(per_document, "report", documents, ids, EOT)) == counts.sum()
    limited = tokens.cut(spec, "report", documents, ids, EOT)
    assert len(limited) == min(counts.sum(), spec.limits.get("report", counts.sum()))


@pytest.mark.parametrize(
    "fields", [{"windows_per_document": 10}, {"windows_per_document": 80, "limits": {"report": 20, "calibrate": 20}}]
)
def test_the_seed_chooses_which_windows_stay_and_another_split_chooses_others(fields: dict) -> None:
    documents, ids = made([640, 640])
    chosen = set()
    for seed in (0, 1):
        spec = TokensSpec(window=8, shortest=8, seed=seed, **fields)
        for split in ("report", "calibrate"):
            windows = tokens.cut(spec, split, documents, ids, EOT)
            first = set(windows.start[windows.document == 40].tolist())
            assert first != set(windows.start[windows.document == 41].tolist())
            assert len(windows) == 20
            assert windows.start.max() >= 160
            chosen.add(tuple(windows.start.tolist()))
    assert len(chosen) == 4


@given(st.lists(st.integers(1, 60), max_size=8), st.none() | st.integers(1, 20), st.integers(0, 1000))
def test_the_train_stream_is_every_document_after_an_end_of_text(
    lengths: list[int], limit: int | None, seed: int
) -> None:
    _, ids = made([*lengths, 5])
    spec = TokensSpec(window=8, shortest=4, limits={} if limit is None else {"train": limit}, seed=seed)
    stream = tokens.train_stream(spec, ids, EOT)
    assert stream.dtype == np.int32
    if limit is None:
        assert stream.tolist() == [number for each in ids for number in [EOT, *each.tolist()]]
        return
    assert len(stream) == min(8 * limit, sum(len(each) + 1 for each in ids))
    parts = [part.tolist() for part in np.split(stream, np.flatnonzero(stream == EOT))][1:]
    assert [part[1:] for part in parts if part[1:]] == sorted(part[1:] for part in parts if part[1:])
    whole = [part for part in parts if any(part[1:] == each.tolist() for each in ids)]
    assert len(whole) >= len(parts) - 1
    assert all(any(part[1:] == each[: len(part) - 1].tolist() for each in ids) for part in parts)


@pytest.fixture(scope="module")
def built(store: Store, corpus_folder: Folder, subject_folder: Folder, execution: Execution) -> Folder:
    spec = TokensSpec(window=16, shortest=8)
    inputs: dict[str, Artifact] = {
        "corpus": corpus_folder.manifest.artifact,
        "subject": subject_folder.manifest.artifact,
    }
    artifact = steps.name("tokens", spec, inputs)
    steps.build(artifact, spec, inputs, store, execution, Progress(), "test", store.find(artifact))
    return store.folder(artifact)


def test_windows_read_back_spell_their_documents(built: Folder, corpus_folder: Folder, subject_folder: Folder) -> None:
    spelled = tokens.token_texts(subject_folder.root())
    everything = corpus.read_documents(corpus_folder)
    seen: dict[str, set[int]] = {"train": set(corpus.read_documents(corpus_folder, "train").group.tolist())}
    for split in SPLITS:
        windows = tokens.read_windows(built, split)
        for row in range(len(windows)):
            ids = windows.tokens[row, : windows.lengths[row] + 1]
            text = b"".join(spelled[number] for number in ids).removeprefix(b"<|endoftext|>")
            assert text in everything.text[windows.document[row]].encode()
            assert windows.group[row] == everything.group[windows.document[row]]
            assert (ids[0] == EOT) == (windows.start[row] == 0)
        seen[split] = set(windows.group.tolist())
    for one in seen:
        for other in seen:
            assert one == other or not seen[one] & seen[other]
    stream = b"".join(spelled[number] for number in tokens.read_stream(built))
    train = corpus.read_documents(corpus_folder, "train").text
    assert stream.decode() == "".join("<|endoftext|>" + text for text in train)


def test_counts_are_those_of_the_files(built: Folder) -> None:
    counts = json.loads(built.path("tokens.json").read_text())
    assert (counts["end_of_text"], counts["vocabulary"], counts["window"]) == (EOT, 300, 16)
    assert counts["splits"]["train"]["tokens"] == len(tokens.read_stream(built))
    for split in SPLITS:
        windows = tokens.read_windows(built, split)
        assert counts["splits"][split] == {
            "documents": len(set(windows.document.tolist())),
            "groups": len(set(windows.group.tolist())),
            "windows": len(windows),
            "tokens": windows.lengths.sum(),
        }


def test_some_windows_are_taken_out_row_by_row(built: Folder) -> None:
    windows = tokens.read_windows(built, "explain")
    rows = np.array([3, 1])
    some = windows[rows]
    assert len(some) == 2
    assert (some.tokens == windows.tokens[rows]).all()
    assert (some.start == windows.start[rows]).all()
    assert (windows[1:3].lengths == windows.lengths[1:3]).all()


def test_two_builds_have_the_same_bytes(
    tmp_path: Path, built: Folder, corpus_folder: Folder, subject_folder: Folder, execution: Execution
) -> None:
    spec = TokensSpec(window=16, shortest=8)
    inputs = {"corpus": corpus_folder, "subject": subject_folder}
    tokens.build(spec, inputs, tmp_path, steps.Running(execution, Progress()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(entry.path for entry in built.manifest.files)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == built.path(path.name).read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limits": {"report": 0}}, "report has 0"),
        ({"window": 4096, "shortest": 4096}, r"none of the \d+ documents of explain has tokens.shortest=4096"),
    ],
)
def test_settings_that_leave_a_split_empty_are_refused(
    tmp_path: Path, corpus_folder: Folder, subject_folder: Folder, fields: dict, message: str
) -> None:
    inputs = {"corpus": corpus_folder, "subject": subject_folder}
    with pytest.raises(SettingError, match=message):
        tokens.build(TokensSpec(**fields), inputs, tmp_path, steps.Running(Execution(), Progress()))
