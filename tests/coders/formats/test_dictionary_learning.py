"""Coders of dictionary_learning against what its classes compute, written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nlrewrite.coders import formats
from nlrewrite.errors import CorruptArtifact, SettingError
from tests.coders.formats import dense, pickles

INPUTS, LATENTS, K = 5, 13, 3
LINEAR: dict[str, tuple[int, ...]] = {
    "encoder.weight": (LATENTS, INPUTS),
    "encoder.bias": (LATENTS,),
    "decoder.weight": (INPUTS, LATENTS),
}
PLAIN: dict[str, tuple[int, ...]] = {
    "W_enc": (INPUTS, LATENTS),
    "b_enc": (LATENTS,),
    "W_dec": (LATENTS, INPUTS),
    "b_dec": (INPUTS,),
}


def saved(folder: Path, name: str, weights: dict[str, Tensor], **trainer: Any) -> Path:
    torch.save(weights, folder / "ae.pt")
    settings = {
        "dict_class": name,
        "layer": 4,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid",
        **trainer,
    }
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"d_submodule": INPUTS}}))
    return folder


def linear(bias: str) -> dict[str, Tensor]:
    return pickles.drawn(1, **LINEAR, **{bias: (INPUTS,)})


def rows() -> Tensor:
    return torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(2))


def test_an_autoencoder(tmp_path: Path) -> None:
    w, x_ND = linear("bias"), rows()
    loaded = formats.load(saved(tmp_path, "AutoEncoder", w))
    latents_NL = ((x_ND - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    torch.testing.assert_close(dense.active(loaded.coder, x_ND), latents_NL)
    torch.testing.assert_close(dense.written(loaded.coder, x_ND), latents_NL @ w["decoder.weight"].T + w["bias"])
    assert (loaded.format, loaded.about.kind, loaded.about.layer) == ("dictionary-learning", "sae", 4)
    assert (loaded.about.model, loaded.about.hook_in) == ("EleutherAI/pythia-70m", "resid")


def test_a_new_autoencoder_subtracts_nothing(tmp_path: Path) -> None:
    w, x_ND = linear("decoder.bias"), rows()
    coder = formats.load(saved(tmp_path, "AutoEncoderNew", w)).coder
    latents_NL = (x_ND @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    torch.testing.assert_close(dense.written(coder, x_ND), latents_NL @ w["decoder.weight"].T + w["decoder.bias"])


def test_a_topk_one_keeps_the_k_largest_above_zero(tmp_path: Path) -> None:
    w, x_ND = linear("b_dec"), rows()
    w |= {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    loaded = formats.load(saved(tmp_path, "AutoEncoderTopK", w, k=K))
    before_NL = ((x_ND - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    kept = before_NL.topk(K, dim=-1)
    latents_NL = torch.zeros_like(before_NL).scatter(-1, kept.indices, kept.values)
    torch.testing.assert_close(dense.active(loaded.coder, x_ND), latents_NL)
    assert loaded.coder.k == loaded.about.k == K


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_batchtopk_one_keeps_what_is_above_its_threshold(name: str, tmp_path: Path) -> None:
    x_ND, threshold = rows(), 0.7
    if name == "BatchTopKSAE":
        w = linear("b_dec")
        encoder, bias, decoder = w["encoder.weight"].T, w["encoder.bias"], w["decoder.weight"].T
    else:
        w = pickles.drawn(1, **PLAIN) | {"group_sizes": torch.tensor([5, 8])}
        encoder, bias, decoder = w["W_enc"], w["b_enc"], w["W_dec"]
    w |= {"k": torch.tensor(K), "threshold": torch.tensor(threshold)}
    loaded = formats.load(saved(tmp_path, name, w, k=K))
    before_NL = ((x_ND - w["b_dec"]) @ encoder + bias).relu()
    latents_NL = before_NL * (before_NL > threshold)
    assert 0 < int((latents_NL > 0).sum()) < int((before_NL > 0).sum())
    torch.testing.assert_close(dense.active(loaded.coder, x_ND), latents_NL)
    torch.testing.assert_close(dense.written(loaded.coder, x_ND), latents_NL @ decoder + w["b_dec"])
    assert loaded.coder.activation == "jumprelu" and loaded.about.k == K


def test_a_jumprelu_one_counts_latents_in_lengths_of_their_rows(tmp_path: Path) -> None:
    w, x_ND = pickles.drawn(1, **PLAIN), rows()
    w["threshold"] = torch.linspace(0, 1, LATENTS)
    coder = formats.load(saved(tmp_path, "JumpReluAutoEncoder", w)).coder
    before_NL = x_ND @ w["W_enc"] + w["b_enc"]
    kept_NL = before_NL.relu() * (before_NL > w["threshold"])
    torch.testing.assert_close(dense.active(coder, x_ND), kept_NL * w["W_dec"].norm(dim=1))
    torch.testing.assert_close(dense.written(coder, x_ND), kept_NL @ w["W_dec"] + w["b_dec"])


def test_what_has_no_form_here_is_refused_by_name(tmp_path: Path) -> None:
    w = linear("b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    with pytest.raises(SettingError, match="class GatedAutoEncoder are not read"):
        formats.load(saved(tmp_path, "GatedAutoEncoder", w))
    with pytest.raises(SettingError, match=r"has no threshold yet \(-1\)"):
        formats.load(saved(tmp_path, "BatchTopKSAE", w, k=K))
    with pytest.raises(CorruptArtifact, match=r"name as k: \[3, 4\]"):
        formats.load(saved(tmp_path, "AutoEncoderTopK", w, k=4))
    with pytest.raises(SettingError, match=r"does not know.*: act_mean"):
        formats.load(saved(tmp_path, "AutoEncoderTopK", {**w, "act_mean": torch.ones(2)}, k=K))
    with pytest.raises(CorruptArtifact, match="lacks bias"):
        formats.load(saved(tmp_path, "AutoEncoder", linear("b_dec")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"names no trainer\.dict_class"):
        formats.load(tmp_path)
