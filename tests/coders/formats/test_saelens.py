import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import About, load, save
from nlrewrite.errors import CorruptArtifact, SettingError
from tests.coders.formats.dense import written

D, E, LATENTS, K = 6, 5, 24, 3
HOOK = "blocks.8.hook_mlp_out"


def _gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _file(
    folder: Path, architecture: str, outputs: int = D, more: dict[str, Tensor] | None = None, **settings: Any
) -> dict[str, Tensor]:
    """A folder as SAELens 6 writes it, and its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        "W_enc": _gaussian(D, LATENTS, seed=1),
        "b_enc": _gaussian(LATENTS, seed=2),
        "W_dec": _gaussian(LATENTS, outputs, seed=3),
        "b_dec": _gaussian(outputs, seed=4),
    } | (more or {})
    said: dict[str, Any] = {"architecture": architecture, "d_in": D, "d_sae": LATENTS, "dtype": "float32"}
    said |= {"device": "cpu", "normalize_activations": "none", "reshape_activations": "none"}
    said |= {"metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2-small", "hook_name": HOOK}}
    save_file(named, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(said | settings))
    return named


def _change(folder: Path, **settings: Any) -> None:
    said = json.loads((folder / "cfg.json").read_text()) | settings
    (folder / "cfg.json").write_text(json.dumps({name: each for name, each in said.items() if each is not ...}))


def _largest(p_NL: Tensor) -> Tensor:
    return p_NL.clamp_min(0) * (p_NL >= p_NL.sort(dim=1, descending=True).values[:, K - 1 : K])


def test_the_formula_of_every_architecture(tmp_path: Path) -> None:
    """Subtracted bias or not, thresholds, a gate with magnitudes of its own, a skip term, two widths."""
    x_ND = _gaussian(50, D, seed=9)
    above_L, gate_L, mag_L, ratio_L = (_gaussian(LATENTS, seed=seed) for seed in (5, 6, 7, 8))
    above_L = above_L.abs()

    def p_NL(named: dict[str, Tensor], read_ND: Tensor) -> Tensor:
        return torch.einsum("nd,dl->nl", read_ND, named["W_enc"]) + named["b_enc"]

    def close(folder: Path, z_NL: Tensor, named: dict[str, Tensor], beside: Tensor | float = 0.0) -> None:
        y_NE = torch.einsum("nl,le->ne", z_NL, named["W_dec"]) + named["b_dec"] + beside
        torch.testing.assert_close(written(load(folder).coder, x_ND), y_NE, atol=2e-5, rtol=0)

    for subtracts in (True, False):
        folder = tmp_path / f"sae-{subtracts}"
        apply = {"apply_b_dec_to_input": subtracts}
        named = _file(folder / "topk", "topk", k=K, rescale_acts_by_decoder_norm=False, **apply)
        read_ND = x_ND - named["b_dec"] if subtracts else x_ND
        close(folder / "topk", _largest(p_NL(named, read_ND)), named)
        named = _file(folder / "standard", "standard", **apply)
        close(folder / "standard", p_NL(named, read_ND).relu(), named)
        named = _file(folder / "jumprelu", "jumprelu", more={"threshold": above_L}, **apply)
        found = p_NL(named, read_ND)
        close(folder / "jumprelu", found * (found > above_L), named)
        gate = {"b_gate": gate_L, "b_mag": mag_L, "r_mag": ratio_L}
        named = _file(folder / "gated", "gated", more=gate, **apply)
        del named["b_enc"]
        save_file(named, folder / "gated" / "sae_weights.safetensors")
        found = torch.einsum("nd,dl->nl", read_ND, named["W_enc"])
        close(folder / "gated", (found + gate_L > 0) * (found * ratio_L.exp() + mag_L).relu(), named)
        # Chosen by size times the norm of the decoder's row, and divided by it again.
        named = _file(folder / "rescaled", "topk", k=K, rescale_acts_by_decoder_norm=True, **apply)
        norm_L = named["W_dec"].norm(dim=1)
        close(folder / "rescaled", _largest(p_NL(named, read_ND) * norm_L) / norm_L, named)

    wide = {"apply_b_dec_to_input": False, "d_out": E}
    skip_ED = _gaussian(E, D, seed=10)
    beside = torch.einsum("nd,ed->ne", x_ND, skip_ED)
    named = _file(tmp_path / "t", "transcoder", E, **wide)
    close(tmp_path / "t", p_NL(named, x_ND).relu(), named)
    named = _file(tmp_path / "s", "skip_transcoder", E, more={"W_skip": skip_ED}, **wide)
    close(tmp_path / "s", p_NL(named, x_ND).relu(), named, beside)
    named = _file(tmp_path / "jt", "jumprelu_transcoder", E, more={"threshold": above_L}, **wide)
    found = p_NL(named, x_ND)
    close(tmp_path / "jt", found * (found > above_L), named)
    both = {"W_skip": skip_ED, "threshold": above_L}
    named = _file(tmp_path / "js", "jumprelu_skip_transcoder", E, more=both, **wide)
    close(tmp_path / "js", found * (found > above_L), named, beside)


def test_a_batchtopk_in_training_is_the_jumprelu_of_its_threshold(tmp_path: Path) -> None:
    more = {"topk_threshold": torch.tensor(0.8, dtype=torch.float64)}
    named = _file(tmp_path, "batchtopk", more=more, k=2.6, rescale_acts_by_decoder_norm=True, topk_threshold_lr=0.01)
    x_ND = _gaussian(50, D, seed=9)
    norm_L = named["W_dec"].norm(dim=1)
    p_NL = (torch.einsum("nd,dl->nl", x_ND - named["b_dec"], named["W_enc"]) + named["b_enc"]) * norm_L
    expected = (p_NL * (p_NL > 0.8) / norm_L) @ named["W_dec"] + named["b_dec"]
    loaded = load(tmp_path)
    assert (loaded.coder.activation, loaded.about.k) == ("jumprelu", 3)
    torch.testing.assert_close(written(loaded.coder, x_ND), expected, atol=2e-5, rtol=0)


def test_a_factor_beside_the_weights_scales_what_is_read_and_what_is_written(tmp_path: Path) -> None:
    named = _file(tmp_path, "standard", normalize_activations="expected_average_only_in", apply_b_dec_to_input=True)
    with pytest.raises(SettingError, match=r"activation_scaler.json"):
        load(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.4, "has_whitening": False}))
    x_ND = _gaussian(50, D, seed=9)
    z_NL = (torch.einsum("nd,dl->nl", 0.4 * x_ND - named["b_dec"], named["W_enc"]) + named["b_enc"]).relu()
    expected = (z_NL @ named["W_dec"] + named["b_dec"]) / 0.4
    torch.testing.assert_close(written(load(tmp_path).coder, x_ND), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"normalize_activations": "layer_norm"}, "layer_norm: it divides every input by its own deviation"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
        ({"normalize_activations": "covariance_whitening"}, "middle of training"),
        ({"normalize_activations": "tanh"}, "tanh"),
        ({"architecture": "abstopk"}, "abstopk"),
        ({"architecture": "temporal"}, "temporal"),
        ({"architecture": "topk_transcoder"}, "topk_transcoder"),
        ({"latent_budget": 3}, "latent_budget"),
        ({"reshape_activations": "windows"}, "windows"),
        ({"metadata": {}, "activation_fn": "tanh-relu"}, "tanh-relu"),
    ],
)
def test_what_no_fixed_weights_do_or_nobody_knows_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    _file(tmp_path, "standard")
    _change(tmp_path, **settings)
    with pytest.raises(SettingError, match=word):
        load(tmp_path)


def test_a_transcoder_that_subtracts_what_it_writes_is_refused(tmp_path: Path) -> None:
    _file(tmp_path, "transcoder", E, d_out=E, apply_b_dec_to_input=True)
    with pytest.raises(SettingError, match="apply_b_dec_to_input"):
        load(tmp_path)


def test_a_scaling_of_latents_is_passed_over_only_where_it_is_one(tmp_path: Path) -> None:
    named = _file(tmp_path, "standard", more={"scaling_factor": torch.ones(LATENTS)})
    load(tmp_path)
    save_file(named | {"scaling_factor": torch.full((LATENTS,), 1.1)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SettingError, match="scaling_factor"):
        load(tmp_path)


def test_words_of_before_version_6(tmp_path: Path) -> None:
    _file(tmp_path, "standard")
    old = {"hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3, "model_name": "gpt2", "lr": 1e-4}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "normalize_activations": False}
    _change(tmp_path, **old, metadata=..., architecture=..., reshape_activations=...)
    about = load(tmp_path).about
    assert (about.model, about.hook_in, about.hook_out, about.layer) == (
        "gpt2",
        old["hook_point"],
        old["hook_point"],
        3,
    )
    assert (about.k, about.said["lr"]) == (2, 1e-4)
    _change(tmp_path, hook_point="blocks.3.attn.hook_z")
    assert any("heads" in note for note in load(tmp_path).about.notes)


def test_a_mean_of_active_latents_is_what_the_files_measured(tmp_path: Path) -> None:
    _file(tmp_path, "standard")
    loaded = load(tmp_path)
    assert (loaded.about.k, loaded.coder.k) == (None, 0)
    frequencies = torch.cat([torch.full((10,), 0.42), torch.zeros(LATENTS - 10)])
    save_file({"sparsity": torch.log10(frequencies + 1e-10)}, tmp_path / "sparsity.safetensors")
    assert load(tmp_path).about.k == 4
    _change(tmp_path, metadata={"sae_lens_version": "6.1.0", "l0": 17.6})
    loaded = load(tmp_path)
    assert (loaded.about.k, loaded.coder.k) == (18, 18)
    _change(tmp_path, metadata={"sae_lens_version": "6.1.0", "l0": math.nan})
    assert load(tmp_path).about.k is None


def test_settings_that_do_not_fit_the_tensors_are_a_damaged_file(tmp_path: Path) -> None:
    _file(tmp_path, "jumprelu")
    with pytest.raises(CorruptArtifact, match="lacks threshold"):
        load(tmp_path)
    _file(tmp_path, "standard", more={"threshold": torch.ones(LATENTS)})
    with pytest.raises(SettingError, match="threshold"):
        load(tmp_path)
    _file(tmp_path, "standard", d_sae=LATENTS + 1)
    with pytest.raises(CorruptArtifact, match="25 of 6"):
        load(tmp_path)
    _file(tmp_path, "topk")
    with pytest.raises(CorruptArtifact, match="k=null"):
        load(tmp_path)


def _coder(activation: Any, outputs: int = D, skip_ED: Tensor | None = None) -> Coder:
    return Coder(
        _gaussian(LATENTS, D, seed=1),
        _gaussian(LATENTS, seed=2),
        _gaussian(LATENTS, outputs, seed=3),
        _gaussian(outputs, seed=4),
        skip_ED,
        K,
        activation,
        _gaussian(LATENTS, seed=5).abs() if activation == "jumprelu" else None,
    )


@pytest.mark.parametrize(
    ("kind", "activation", "architecture"),
    [
        ("sae", "topk", "topk"),
        ("sae", "relu", "standard"),
        ("sae", "jumprelu", "jumprelu"),
        ("transcoder", "relu", "transcoder"),
        ("skip-transcoder", "relu", "skip_transcoder"),
        ("transcoder", "jumprelu", "jumprelu_transcoder"),
        ("skip-transcoder", "jumprelu", "jumprelu_skip_transcoder"),
    ],
)
def test_every_kind_it_has_is_written_and_read_again_bit_for_bit(
    tmp_path: Path, kind: Any, activation: Any, architecture: str
) -> None:
    outputs = D if kind == "sae" else E
    coder = _coder(activation, outputs, _gaussian(outputs, D, seed=6) if kind == "skip-transcoder" else None)
    about = About(kind=kind, model="gpt2-small", hook_in=HOOK, hook_out=HOOK, k=K)
    save(coder, tmp_path, "saelens", about)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == architecture
    again = load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.coder.parameters(), coder.parameters(), strict=True))
    assert (again.coder.k, again.coder.activation) == (K, activation)
    assert again.about.model_copy(update={"said": {}}) == about.model_copy(update={"layer": 8})


@pytest.mark.parametrize(
    ("kind", "coder", "word"),
    [
        ("transcoder", _coder("topk", E), "Save it in the format sparsify"),
        ("skip-transcoder", _coder("topk", D, torch.zeros(D, D)), "no TopK transcoder"),
        ("sae", _coder("relu", E), "6 are read, 5 written"),
        ("sae", _coder("relu", D, torch.zeros(D, D)), "no skip term"),
    ],
)
def test_what_the_format_does_not_have_is_not_written(tmp_path: Path, kind: Any, coder: Coder, word: str) -> None:
    with pytest.raises(SettingError, match=word):
        save(coder, tmp_path, "saelens", About(kind=kind))
    assert list(tmp_path.iterdir()) == []
