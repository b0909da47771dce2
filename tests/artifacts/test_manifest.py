"""Manifests of earlier versions go on being read, whatever has become of the classes that wrote them."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from nlrewrite.artifacts import Artifact, Manifest, Store
from nlrewrite.errors import SettingError
from tests.artifacts.making import artifact, make

OLD = Path(__file__).parents[1] / "golden" / "manifest-1.json"


def test_a_manifest_whose_classes_are_gone_still_loads_and_verifies(tmp_path: Path) -> None:
    old = Manifest.model_validate_json(OLD.read_bytes())
    root = tmp_path / "store"
    (root / "manifests" / "retired-coder").mkdir(parents=True)
    (root / "manifests" / f"{old.artifact}.json").write_bytes(OLD.read_bytes())
    data = root / "objects" / str(old.artifact) / old.attempt / "coder.safetensors"
    data.parent.mkdir(parents=True)
    data.write_bytes(b"Hello world")
    store = Store(str(root))
    assert store.listed() == [Artifact.parse("retired-coder/0123456789abcdef")]
    assert store.verify(old.artifact) == []
    assert store.folder(old.artifact).path("coder.safetensors") == data
    assert store.find(old.artifact).state == "stale"  # its input was never here
    assert old.spec["site"] == {"module": "layers.2.mlp"}


def test_a_manifest_is_plain_json_that_says_everything(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = make(store, artifact("coder"), inputs={"subject": make(store, artifact("subject", "subject"))})
    written = json.loads((tmp_path / "manifests" / f"{made.artifact}.json").read_text())
    assert set(written) == {"artifact", "version", "attempt", "spec", "inputs", "files", "made"}
    assert written == made.model_dump(mode="json")
    assert Manifest.model_validate(written) == made


def test_what_a_later_version_adds_is_passed_over() -> None:
    written = json.loads(OLD.read_bytes())
    written["colour"] = written["made"]["colour"] = written["files"][0]["colour"] = "blue"
    assert Manifest.model_validate(written) == Manifest.model_validate_json(OLD.read_bytes())


@pytest.mark.parametrize("field", ["artifact", "attempt", "files", "inputs", "made"])
def test_a_manifest_without_an_essential_is_refused(field: str) -> None:
    written = json.loads(OLD.read_bytes())
    del written[field]
    with pytest.raises(ValidationError, match=field):
        Manifest.model_validate(written)


def test_a_name_is_read_back() -> None:
    assert Artifact.parse(str(artifact("x"))) == artifact("x")


@pytest.mark.parametrize(
    "name", ["coder", "coder/12", "coder/0123456789abcdeg", "../0123456789abcdef", "coder/" * 2, ""]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="kind/digest"):
        Artifact.parse(name)
