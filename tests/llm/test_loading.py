import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.llm import loading
from nlrewrite.llm.packed import Packed
from nlrewrite.llm.reference import Reference
from tests.llm import random_models as making


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    making.fresh().save_pretrained(folder)
    making.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "reader")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_loaded_model_says_what_the_saved_one_said(saved, attention):
    model, tokenizer = loading.load(saved, Execution(), "float32", attention=attention)
    block = making.block(20, [3, 1, 8])
    expected = Reference(making.fresh(), making.tokenizer()).digits(block)
    for engine in (Reference(model, tokenizer), Packed(model, tokenizer)):
        torch.testing.assert_close(
            torch.tensor(engine.digits(block).logp), torch.tensor(expected.logp), atol=1e-5, rtol=0
        )
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_the_dtype_is_the_one_asked_for(saved):
    assert next(loading.load(saved, Execution(), "bfloat16")[0].parameters()).dtype == torch.bfloat16
    with pytest.raises(SettingError, match="dtype=int8"):
        loading.load(saved, Execution(), "int8")


def test_the_tokenizer_is_the_one_of_the_file(saved):
    found = loading.tokenizer(saved)
    assert found.is_fast and found.encode("w5 w7", add_special_tokens=False) == [5, 7]
    assert (found.bos_token_id, found.eos_token_id) == (0, 1)


def test_a_weight_that_is_missing_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"lack 1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        loading.load(folder, Execution(), "float32")


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SettingError, match=r"only safetensors weights are read.*pytorch_model\.bin"):
        loading.load(folder, Execution(), "float32")


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Own: pass\n")
    for name, entry in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        described = json.loads((folder / name).read_text())
        described["auto_map"] = {"AutoConfig": "own.Own", entry: "own.Own"}
        (folder / name).write_text(json.dumps(described))
    loading.load(folder, Execution(), "float32")
    assert not ran.exists()


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(Unreachable, match="there is no folder"):
        loading.load(tmp_path / "nowhere", Execution(), "float32")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SettingError, match=r"has no tokenizer\.json"):
        loading.load(folder, Execution(), "float32")
    with pytest.raises(SettingError, match=r"has no tokenizer\.json"):
        loading.tokenizer(folder)


def test_a_gpu_that_is_not_there_is_refused(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=r"device=cuda:1.*Use --device cpu"):
        loading.load(saved, Execution(device="cuda:1"), "float32")
