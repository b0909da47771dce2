"""What the vLLM engine says where it cannot run, found without vLLM; the rest is in tests/vllm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nlrewrite.errors import SettingError
from nlrewrite.llm import vllm_folder
from nlrewrite.llm.vllm import Vllm
from tests.llm import random_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_models.config("llama-tied").save_pretrained(tmp_path)
    random_models.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CONFIGURE_LOGGING", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # restored afterwards, and those that are set stay
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SettingError, match="pip install 'vllm>="):
        Vllm(folder, device="cuda")
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES=1"),
        ({"gpus": 2}, "gpus=2"),
        ({"longest": 1}, "longest=1"),
        ({"longest": random_models.LONGEST + 1}, f"2 to {random_models.LONGEST}"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(folder: Path, given: dict, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Vllm(folder, **given)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SettingError, match=name):
        Vllm(folder)


def test_a_folder_says_how_much_fits_what_ends_and_how_labels_are_spelled(folder: Path) -> None:
    assert vllm_folder.longest(folder, None) == random_models.LONGEST
    assert vllm_folder.longest(folder, 77) == 77
    assert vllm_folder.words(folder, random_models.LABELS) == [f"w{token}" for token in random_models.LABELS]
    with pytest.raises(SettingError, match="no token 999"):
        vllm_folder.words(folder, (1, 999))
    assert vllm_folder.architecture(folder) == ""
    assert vllm_folder.head_width(folder) == random_models.WIDTH // 4
    assert vllm_folder.ends(folder, None) == [1]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1]}))
    assert vllm_folder.ends(folder, 9) == [1, 7, 9]
    config = json.loads((folder / "config.json").read_text())
    for inner, longest in (({"max_position_embeddings": 1 << 20}, vllm_folder.LONGEST), ({}, vllm_folder.LONGEST)):
        rest = {key: value for key, value in config.items() if key != "max_position_embeddings"}
        (folder / "config.json").write_text(json.dumps({**rest, "text_config": {"hidden_size": 8, **inner}}))
        assert vllm_folder.longest(folder, None) == longest


def test_importing_the_engine_imports_neither_vllm_nor_torch() -> None:
    asked = "import sys, nlrewrite.llm.vllm; print(sorted({'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
