import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import DATASET, REVISION, hub

from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import HubDataset
from nlrewrite.text import sources

TEXTS: list[str | None] = [f"Text number {number}." for number in range(50)]
TEXTS[3] = None

# The hub's library reads its settings when it is imported, so that each test asks in a process of its own.
READ = """
import json, sys
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.specs import HubDataset
from nlrewrite.text.sources import documents
answers = []
for fields in json.loads(sys.argv[1]):
    try:
        found = [[each.name, each.text] for each in documents(HubDataset(**fields), Execution())]
    except (SettingError, Unreachable) as error:
        found = f"{type(error).__name__}: {error}"
    answers.append(found)
json.dump(answers, sys.stdout)
"""


def read(tmp_path: Path, *fields: dict, **environment: str) -> list:
    settings = [{"dataset": DATASET, "revision": REVISION, "documents": 8, **each} for each in fields]
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(settings)],
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, list[str]]]:
    with hub(TEXTS) as (address, asked):
        yield address, asked


def test_a_hub_is_read_from_its_start_at_the_revision(tmp_path: Path, running: tuple[str, list[str]]) -> None:
    address, asked = running
    plain, named = read(tmp_path, {}, {"config": "small", "documents": 2}, HF_ENDPOINT=address)
    assert plain == [[f"{DATASET}/train/{number}", TEXTS[number]] for number in (0, 1, 2, 4, 5, 6, 7)]
    assert named == plain[:2]
    assert f"/datasets/{DATASET}/resolve/{REVISION}/data/train-00000-of-00001.parquet" in asked


def test_what_the_hub_does_not_have_is_named(tmp_path: Path, running: tuple[str, list[str]]) -> None:
    wrong = [
        ({"config": "large"}, "SettingError: .*'large' not found.*--set text.source.config"),
        ({"split": "test"}, "SettingError: .*Available splits.*train.*--set text.source.split"),
        ({"field": "body"}, "SettingError: .*'body' of someone/words is not there; its columns are id, text"),
        ({"field": "id"}, "SettingError: .*'id' of someone/words holds a int"),
        ({"revision": "f" * 40}, "Unreachable: the dataset someone/words at revision ffff.*Check the id"),
        ({"dataset": "someone/else"}, "Unreachable: the dataset someone/else at revision 0123"),
    ]
    answers = read(tmp_path, *(fields for fields, _ in wrong), HF_ENDPOINT=running[0])
    for answer, (_, message) in zip(answers, wrong, strict=True):
        assert re.match(message, answer), answer


def test_a_machine_without_a_network_says_so(tmp_path: Path) -> None:
    (answer,) = read(tmp_path, {}, HF_HUB_OFFLINE="1")
    assert answer.startswith("Unreachable: the dataset someone/words at revision 0123")
    assert "HF_ENDPOINT" in answer


def local_dataset(folder: Path) -> HubDataset:
    folder.mkdir()
    lines = [json.dumps({"text": f"Line {number}."}) for number in range(5)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    revision = sources.hash_files(folder, sources.visible_files(folder))[:40]
    return HubDataset(dataset=str(folder), revision=revision, documents=3)


def test_a_local_folder_is_a_dataset_without_a_network(tmp_path: Path) -> None:
    source = local_dataset(tmp_path / "words")
    (answer,) = read(tmp_path, source.model_dump(), HF_HUB_OFFLINE="1")
    assert [text for _, text in answer] == ["Line 0.", "Line 1.", "Line 2."]
    assert sources.fingerprint(source, Execution())[:40] == source.revision


def test_the_revision_of_a_local_folder_is_the_hash_of_its_files(tmp_path: Path) -> None:
    source = local_dataset(tmp_path / "words")
    (tmp_path / "words" / "train.jsonl").write_text(json.dumps({"text": "Changed."}))
    with pytest.raises(
        SettingError, match=rf"text\.source\.revision={source.revision}.*Use --set text.source.revision="
    ):
        sources.fingerprint(source, Execution())
    with pytest.raises(SettingError, match="hash of its files"):
        list(sources.documents(source, Execution()))


def test_the_fingerprint_of_a_hub_dataset_is_its_name_and_revision() -> None:
    first = sources.fingerprint(HubDataset(dataset="someone/words", revision="0" * 40), Execution())
    other = sources.fingerprint(HubDataset(dataset="someone/words", revision="1" * 40), Execution())
    assert first != other
