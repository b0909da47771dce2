import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import SPLITS, PythonDocs, Shares, TextFolder, TextSpec
from nlrewrite.steps import Running
from nlrewrite.text import corpus, sources


def build(spec: TextSpec, execution: Execution, out: Path) -> dict:
    out.mkdir()
    corpus.build(spec, {}, out, Running(execution, Progress()))
    return json.loads((out / "corpus.json").read_text())


def rows(out: Path) -> list[dict]:
    import pyarrow.parquet as parquet

    return parquet.read_table(out / corpus.DOCUMENTS).to_pylist()


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[begin : begin + 8]) for begin in range(len(words) - 7)}


def test_no_document_of_python_shares_half_of_its_words_with_another_split(tmp_path: Path) -> None:
    spec = TextSpec(source=sources.identified(PythonDocs(), Execution()))
    summary = build(spec, Execution(), tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["document"] for row in found] == list(range(len(found)))
    assert len({" ".join(row["text"].split()) for row in found}) == len(found)

    splits_of_group: dict[int, set[str]] = {}
    holders: dict[tuple[str, ...], list[int]] = {}
    own = [shingles(row["text"]) for row in found]
    for index, row in enumerate(found):
        splits_of_group.setdefault(row["group"], set()).add(row["split"])
        for shingle in own[index]:
            holders.setdefault(shingle, []).append(index)
    assert all(len(splits) == 1 for splits in splits_of_group.values())
    for index, row in enumerate(found):
        count: dict[int, int] = {}
        for shingle in own[index]:
            for other in holders[shingle]:
                count[other] = count.get(other, 0) + 1
        for other, shared in count.items():
            if found[other]["split"] != row["split"]:
                assert shared <= min(len(own[index]), len(own[other])) / 2, (row["name"], found[other]["name"])

    for split, share in spec.shares:
        groups = summary["splits"][split]["groups"]
        assert abs(groups / len(splits_of_group) - share) < 0.03
        assert summary["splits"][split]["documents"] == sum(row["split"] == split for row in found)
    assert summary["read"] == len(found) + summary["duplicates"]


def test_two_builds_have_the_same_bytes_and_another_seed_does_not(
    tmp_path: Path, text_spec: TextSpec, execution: Execution
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        build(text_spec.model_copy(update={"seed": seed}), execution, tmp_path / name)
    for file in ("documents.parquet", "corpus.json"):
        one, two, three = ((tmp_path / name / file).read_bytes() for name in ("one", "two", "three"))
        assert one == two
        assert one != three


texts = st.lists(st.text("ab ", min_size=1, max_size=6), min_size=1, max_size=20)


@given(texts, st.integers(0, 100), st.integers(1, 20))
def test_the_split_of_a_group_depends_on_no_other_group(texts: list[str], seed: int, many: int) -> None:
    group = np.array([index % many for index in range(len(texts))])
    together = corpus.split_groups(texts, group, Shares(), seed)
    for number in set(group.tolist()):
        members = [text for text, its in zip(texts, group, strict=True) if its == number]
        alone = corpus.split_groups(members[::-1], np.zeros(len(members), dtype=int), Shares(), seed)
        assert alone[0] == together[number]


def test_shares_are_kept_over_many_groups() -> None:
    shares = Shares(train=0.4, explain=0.3, calibrate=0.2, report=0.1)
    chosen = corpus.split_groups([f"text {number}" for number in range(5000)], np.arange(5000), shares, seed=3)
    for split in SPLITS:
        assert abs(list(chosen.values()).count(split) / 5000 - getattr(shares, split)) < 0.025


def test_equal_documents_are_kept_once_and_near_ones_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        text = " ".join(f"w{number}.{place}" for place in range(20))
        (folder / f"{number:02}a.txt").write_text(text)
        (folder / f"{number:02}b.txt").write_text(text.replace(" ", "\n"))
        (folder / f"{number:02}c.txt").write_text(text + " and some words more")
    execution = Execution(text_folder=str(folder))
    summary = build(TextSpec(source=sources.identified(TextFolder(), execution)), execution, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert (summary["read"], summary["duplicates"]) == (180, 60)
    assert sorted(row["name"] for row in found) == sorted(f"{n:02}{kind}.txt" for n in range(60) for kind in "ac")
    assert [row["group"] for row in found] == [int(row["name"][:2]) for row in found]
    assert len({(row["group"], row["split"]) for row in found}) == 60


def test_text_that_changed_since_it_was_named_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("before")
    execution = Execution(text_folder=str(folder))
    spec = TextSpec(source=sources.identified(TextFolder(), execution))
    (folder / "a.txt").write_text("after")
    with pytest.raises(SettingError, match="not the one this corpus is named after"):
        build(spec, execution, tmp_path / "out")
    with pytest.raises(SettingError, match=r"text\.source\.content is empty"):
        build(TextSpec(source=TextFolder()), execution, tmp_path / "again")


def test_a_split_without_a_document_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the only one")
    execution = Execution(text_folder=str(folder))
    with pytest.raises(SettingError, match=r"every split needs a document: .* got none of 1 groups"):
        build(TextSpec(source=sources.identified(TextFolder(), execution)), execution, tmp_path / "out")


def test_documents_are_read_back_by_split(corpus_folder: Folder) -> None:
    everything = corpus.read_documents(corpus_folder)
    parts = [corpus.read_documents(corpus_folder, split) for split in SPLITS]
    assert sum(len(part.text) for part in parts) == len(everything.text) == 60
    assert sorted(number for part in parts for number in part.document.tolist()) == list(range(60))
    for part in parts:
        assert part.text == [everything.text[number] for number in part.document]
        assert (part.group == everything.group[part.document]).all()
