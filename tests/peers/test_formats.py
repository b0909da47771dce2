"""Round trips with the packages themselves: what they save is loaded, what is saved here they load, and both compute
the same."""

import json
from pathlib import Path

import pytest
import torch

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import About, load, save
from nlrewrite.errors import SettingError
from tests.coders.formats.dense import written
from tests.peers import formats

pytestmark = [
    pytest.mark.peers,
    # What the packages warn of when they are imported and used is theirs.
    pytest.mark.filterwarnings("ignore"),
]
CLOSE = 2e-5
ALL = [("sparsify", name) for name in formats.SPARSIFY] + [("saelens", name) for name in formats.SAELENS]
READERS = {"sparsify": formats.read_sparsify, "saelens": formats.read_saelens}


def through(coder: Coder, x_ND: torch.Tensor) -> torch.Tensor:
    return coder.decode(coder.encode(x_ND)) + coder.beside(x_ND)


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize(("package", "name"), ALL)
def test_what_a_package_writes_computes_the_same_here(tmp_path: Path, package: str, name: str) -> None:
    folder = tmp_path / "layers.6.mlp"
    folder.mkdir()
    theirs = {"sparsify": formats.SPARSIFY, "saelens": formats.SAELENS}[package][name](folder)
    loaded = load(folder)
    assert loaded.format == package
    x_ND = formats.rows(seed=7)
    assert far(written(loaded.coder, x_ND), theirs(x_ND)) < CLOSE
    assert far(through(loaded.coder, x_ND), theirs(x_ND)) < CLOSE


@pytest.mark.parametrize(("package", "name"), ALL)
def test_what_is_written_here_computes_the_same_there(tmp_path: Path, package: str, name: str) -> None:
    """A coder of every kind goes out again, to each package that has its kind."""
    (tmp_path / "in").mkdir()
    theirs = {"sparsify": formats.SPARSIFY, "saelens": formats.SAELENS}[package][name](tmp_path / "in")
    loaded = load(tmp_path / "in")
    x_ND = formats.rows(seed=7)
    took = []
    for format, read in READERS.items():
        try:
            save(loaded.coder, tmp_path / format, format, loaded.about)
        except SettingError:
            continue
        took.append(format)
        assert far(read(tmp_path / format)(x_ND), theirs(x_ND)) < CLOSE
        again = load(tmp_path / format)
        assert far(written(again.coder, x_ND), theirs(x_ND)) < CLOSE
        assert (again.about.kind, again.coder.activation) == (loaded.about.kind, loaded.coder.activation)
    assert package in took
    assert ("sparsify" in took) == (loaded.coder.activation == "topk")
    assert ("saelens" in took) == (loaded.about.kind == "sae" or loaded.coder.activation != "topk")


def test_a_file_of_half_precision_computes_what_sparsify_does_with_it_in_full(tmp_path: Path) -> None:
    formats.sparsify(tmp_path, num_latents=formats.LATENTS, dtype=torch.bfloat16)
    from sparsify import SparseCoder

    theirs = SparseCoder.load_from_disk(tmp_path).float()
    loaded = load(tmp_path)
    assert loaded.about.dtype == "bfloat16"
    x_ND = formats.rows()
    assert far(written(loaded.coder, x_ND), theirs(x_ND).sae_out.detach()) < CLOSE


def test_a_loss_of_several_k_leaves_the_coder_as_it_is(tmp_path: Path) -> None:
    """With multi_topk its forward hands out four times k latents; what it encodes and decodes are k, as here."""
    formats.sparsify(tmp_path, num_latents=formats.LATENTS, multi_topk=True)
    from sparsify import SparseCoder

    theirs, x_ND = SparseCoder.load_from_disk(tmp_path), formats.rows()
    found = theirs.encode(x_ND)
    assert far(written(load(tmp_path).coder, x_ND), theirs.decode(found.top_acts, found.top_indices).detach()) < CLOSE


def test_a_transcoder_from_before_the_setting_subtracts_its_bias_there_and_here(tmp_path: Path) -> None:
    formats.sparsify(tmp_path, num_latents=formats.LATENTS, skip_connection=True)
    settings = json.loads((tmp_path / "cfg.json").read_text())
    del settings["transcode"]
    (tmp_path / "cfg.json").write_text(json.dumps(settings | {"signed": False}))
    x_ND = formats.rows()
    loaded = load(tmp_path)
    assert loaded.about.kind == "skip-transcoder"
    assert far(written(loaded.coder, x_ND), formats.read_sparsify(tmp_path)(x_ND)) < CLOSE


def test_a_factor_that_saelens_kept_beside_the_weights_is_folded_as_saelens_folds_it(tmp_path: Path) -> None:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAE

    made, settings = get_sae_class("jumprelu")
    coder = made(settings(d_in=formats.D, d_sae=formats.LATENTS, normalize_activations="expected_average_only_in"))
    formats._fill(coder)
    coder.save_model(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37, "has_whitening": False}))
    theirs = SAE.load_from_disk(tmp_path)
    theirs.fold_activation_norm_scaling_factor(0.37)
    x_ND = formats.rows()
    assert far(written(load(tmp_path).coder, x_ND), theirs(x_ND).detach()) < CLOSE


def test_the_first_settings_of_saelens_are_read_as_saelens_reads_them(tmp_path: Path) -> None:
    """Names and defaults of before version 6: the top k by way of activation_fn, a hook by way of hook_point."""
    formats.saelens(tmp_path, "topk", k=formats.K)
    old = {"hook_point": "blocks.2.hook_resid_pre", "hook_point_layer": 2, "d_in": formats.D, "d_sae": formats.LATENTS}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "dtype": "torch.float32", "lr": 0.0004}
    (tmp_path / "cfg.json").write_text(json.dumps(old | {"model_name": "gpt2-small", "context_size": 128}))
    loaded = load(tmp_path)
    assert (loaded.coder.k, loaded.about.layer, loaded.about.hook_in) == (3, 2, "blocks.2.hook_resid_pre")
    x_ND = formats.rows()
    assert far(written(loaded.coder, x_ND), formats.read_saelens(tmp_path)(x_ND)) < CLOSE


@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder"])
def test_a_topk_transcoder_is_refused_where_saelens_would_break(tmp_path: Path, kind: str) -> None:
    formats.SPARSIFY[kind](tmp_path / "in")
    loaded = load(tmp_path / "in")
    with pytest.raises(SettingError, match="sparsify"):
        save(loaded.coder, tmp_path / "out", "saelens", loaded.about)
    from sae_lens.registry import get_sae_class

    with pytest.raises(KeyError):
        get_sae_class("topk_transcoder")


def test_words_are_kept(tmp_path: Path) -> None:
    formats.SAELENS["jumprelu-transcoder"](tmp_path / "in")
    loaded = load(tmp_path / "in")
    save(loaded.coder, tmp_path / "out", "saelens", loaded.about.model_copy(update={"k": 9}))
    from sae_lens.saes.sae import SAE

    words = SAE.load_from_disk(tmp_path / "out").cfg.metadata
    assert (words.model_name, words.hook_name, words.l0) == ("gpt2-small", "blocks.8.hook_mlp_out", 9)
    assert isinstance(About.model_validate(loaded.about.model_dump()), About)
    assert load(tmp_path / "out").about.k == 9
