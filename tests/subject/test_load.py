import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.specs import Site
from nlrewrite.subject import load, sites
from tests.subject import small_models

FAMILIES = ("gpt_neox", "gpt2", "llama", "gemma2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: small_models.save(small_models.fresh(name), root / name) for name in FAMILIES}


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(saved["gpt_neox"], tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return small_models.save(small_models.fresh("llama"), tmp_path / "sharded", max_shard_size="20KB")


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_is_frozen_and_says_what_the_saved_one_said(saved, name):
    loaded = load.model(saved[name], Execution())
    ids = small_models.ids()
    assert torch.equal(sites.logits(loaded, ids), sites.logits(small_models.fresh(name), ids))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded(input_ids=ids).past_key_values is None
    assert sites.locate(loaded, Site(layer=2)).name in dict(loaded.named_modules())


def test_shards_are_read_together(sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    ids = small_models.ids()
    assert torch.equal(
        sites.logits(load.model(sharded, Execution()), ids), sites.logits(small_models.fresh("llama"), ids)
    )


def test_loading_leaves_the_global_generator_alone(saved):
    before = torch.get_rng_state()
    load.model(saved["gpt2"], Execution())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dtype_is_the_one_the_reference_names(folder):
    assert next(load.model(folder, Execution()).parameters()).dtype == torch.float32
    (folder / load.REFERENCE).write_text(json.dumps({"kind": "folder", "dtype": "bfloat16"}))
    assert next(load.model(folder, Execution()).parameters()).dtype == torch.bfloat16


def test_a_weight_that_is_missing_is_refused_and_not_drawn(folder):
    tensors = load_file(folder / load.WEIGHTS)
    del tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(tensors, folder / load.WEIGHTS, metadata={"format": "pt"})
    before = torch.get_rng_state()
    with pytest.raises(SettingError, match=r"lack 1 tensors .* gpt_neox\.layers\.1\.mlp\.dense_h_to_4h\.weight"):
        load.model(folder, Execution())
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_heads_are_no_missing_weights(saved):
    assert "lm_head.weight" not in load_file(saved["gpt2"] / load.WEIGHTS)
    loaded = load.model(saved["gpt2"], Execution())
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


# -- what a folder holds ----------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_names_and_bytes_and_of_nothing_else(folder, tmp_path):
    first = load.fingerprint(folder)
    assert load.fingerprint(shutil.copytree(folder, tmp_path / "elsewhere")) == first
    (folder / "README.md").write_text("about")
    (folder / "optimizer.pt").write_bytes(b"no weights of the model")
    assert load.fingerprint(folder) == first
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", load.WEIGHTS):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert load.fingerprint(folder) != first, name
        (folder / name).write_bytes(data)
    assert load.fingerprint(folder) == first


def test_equal_bytes_under_another_name_are_another_folder(folder):
    shutil.copyfile(folder / "tokenizer.json", folder / "tokenizer_config.json")
    first = load.fingerprint(folder)
    (folder / "tokenizer_config.json").rename(folder / "special_tokens_map.json")
    assert load.fingerprint(folder) != first


def test_a_changed_shard_changes_the_fingerprint(sharded):
    first = load.fingerprint(sharded)
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert load.fingerprint(sharded) != first


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused(folder, pickled):
    (folder / load.WEIGHTS).rename(folder / pickled)
    with pytest.raises(SettingError, match=f"only safetensors weights are read.*{pickled}"):
        load.fingerprint(folder)


def test_pickled_weights_beside_safetensors_are_never_opened(folder):
    (folder / "pytorch_model.bin").write_bytes(b"this is no pickle")
    assert "pytorch_model.bin" not in load.model_files(folder)
    load.model(folder, Execution())


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/weights.safetensors", "weights.bin"])
def test_an_index_that_points_elsewhere_is_refused(sharded, shard):
    (sharded / load.INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(SettingError, match="names a shard that is no safetensors file beside it"):
        load.fingerprint(sharded)


def test_a_folder_that_is_not_there_cannot_be_reached(tmp_path):
    with pytest.raises(Unreachable, match=r"there is no folder .*nowhere"):
        load.fingerprint(tmp_path / "nowhere")
    with pytest.raises(Unreachable, match="Change --reader-folder"):
        load.fingerprint(tmp_path / "nowhere", "--reader-folder")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", load.WEIGHTS])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(SettingError, match=f"has no {name}"):
        load.fingerprint(folder)


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(Unreachable, match=f"lacks the shard {shard.name}"):
        load.fingerprint(sharded)


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Own: pass\n")
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(described))
    load.model(folder, Execution())
    assert not ran.exists()
