"""Transcoders of the program that found circuits with them, against what that program computes."""

from pathlib import Path

import pytest
import torch

from nlrewrite.coders import formats
from nlrewrite.errors import CorruptArtifact, SettingError
from tests.coders.formats import dense, pickles

INPUTS, OUTPUTS, LATENTS = 5, 4, 11


def rows(width: int = INPUTS) -> torch.Tensor:
    return torch.randn(20, width, generator=torch.Generator().manual_seed(9))


def test_a_transcoder_computes_what_its_program_computes(tmp_path: Path) -> None:
    path, x_ND = pickles.transcoder(tmp_path, 8, INPUTS, OUTPUTS, LATENTS), rows()
    w = pickles.drawn(
        8, W_enc=(INPUTS, LATENTS), b_enc=(LATENTS,), W_dec=(LATENTS, OUTPUTS), b_dec=(INPUTS,), out=(OUTPUTS,)
    )
    loaded = formats.load(path)
    latents_NL = ((x_ND - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(dense.active(loaded.coder, x_ND), latents_NL)
    torch.testing.assert_close(dense.written(loaded.coder, x_ND), latents_NL @ w["W_dec"] + w["out"])
    assert loaded.format == "gpt2-transcoders" and loaded.coder.activation == "relu"
    about = loaded.about
    assert (about.kind, about.layer, about.model) == ("transcoder", 8, "gpt2-small")
    assert (about.hook_in, about.hook_out) == ("blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out")
    assert about.said["device"] == "cuda" and about.said["dtype"] == "torch.float32" and about.k is None


def test_an_sae_in_such_a_file_adds_what_it_subtracts(tmp_path: Path) -> None:
    path = pickles.transcoder(
        tmp_path, 3, INPUTS, INPUTS, LATENTS, is_transcoder=False, hook_point="blocks.3.hook_resid_pre"
    )
    w = pickles.drawn(3, W_enc=(INPUTS, LATENTS), b_enc=(LATENTS,), W_dec=(LATENTS, INPUTS), b_dec=(INPUTS,))
    loaded, x_ND = formats.load(path), rows()
    latents_NL = ((x_ND - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(dense.written(loaded.coder, x_ND), latents_NL @ w["W_dec"] + w["b_dec"])
    assert (loaded.about.kind, loaded.about.hook_out) == ("sae", None)


def test_a_folder_with_one_is_enough_and_with_several_is_not(tmp_path: Path) -> None:
    first = pickles.transcoder(tmp_path, 0, INPUTS, OUTPUTS, LATENTS)
    assert formats.load(tmp_path).about.layer == 0
    pickles.transcoder(tmp_path, 1, INPUTS, OUTPUTS, LATENTS)
    with pytest.raises(SettingError, match=rf"holds 2 coders, first {first.name}"):
        formats.load(tmp_path)
    assert formats.load(first).about.layer == 0


def test_what_is_no_such_coder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"reads one attention head \(3\)"):
        formats.load(pickles.transcoder(tmp_path, 0, INPUTS, OUTPUTS, LATENTS, hook_point_head_index=3))
    path = tmp_path / "sparse_autoencoder.pt"
    torch.save({"cfg": {"is_transcoder": True}, "state_dict": pickles.drawn(0, W_enc=(2, 3))}, path)
    with pytest.raises(CorruptArtifact, match="lacks W_dec, b_dec, b_enc; it has W_enc"):
        formats.load(path)
    w = pickles.drawn(0, W_enc=(5, 11), b_enc=(11,), W_dec=(11, 5), b_dec=(5,))
    torch.save({"cfg": {"is_transcoder": True}, "state_dict": w}, path)
    with pytest.raises(CorruptArtifact, match="says is_transcoder=True and its tensors differ"):
        formats.load(path)
    torch.save({"cfg": {}, "state_dict": {**w, "gate": torch.ones(1)}}, path)
    with pytest.raises(SettingError, match=r"does not know.*: gate"):
        formats.load(path)
    torch.save(w, path)
    with pytest.raises(CorruptArtifact, match="has no cfg and state_dict"):
        formats.load(path)
    torch.save({"cfg": {}, "state_dict": {**w, "b_enc": torch.ones(9)}}, path)
    with pytest.raises(CorruptArtifact, match="encoder bias has shape"):
        formats.load(path)
