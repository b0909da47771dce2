import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import About, load, save
from nlrewrite.errors import CorruptArtifact, SettingError
from tests.coders.formats.dense import written

D, LATENTS, K = 6, 24, 3


def _gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _file(folder: Path, skip: bool = False, **settings: Any) -> dict[str, Tensor]:
    """A folder as sparsify writes it, and its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        "encoder.weight": _gaussian(LATENTS, D, seed=1),
        "encoder.bias": _gaussian(LATENTS, seed=2),
        "W_dec": _gaussian(LATENTS, D, seed=3),
        "b_dec": _gaussian(D, seed=4),
    } | ({"W_skip": _gaussian(D, D, seed=5)} if skip else {})
    said = {"d_in": D, "num_latents": LATENTS, "k": K, "skip_connection": skip} | settings
    save_file(named, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(said))
    return named


def _formula(named: dict[str, Tensor], x_ND: Tensor, subtracts: bool) -> Tensor:
    """What the format says: the k largest of W (x - c) + b, through the decoder's rows."""
    read_ND = x_ND - named["b_dec"] if subtracts else x_ND
    p_NL = torch.einsum("nd,ld->nl", read_ND, named["encoder.weight"]) + named["encoder.bias"]
    kept = p_NL >= p_NL.sort(dim=1, descending=True).values[:, K - 1 : K]
    y_ND = torch.einsum("nl,ld->nd", p_NL.clamp_min(0) * kept, named["W_dec"]) + named["b_dec"]
    return y_ND + torch.einsum("nd,ed->ne", x_ND, named["W_skip"]) if "W_skip" in named else y_ND


@pytest.mark.parametrize(
    ("settings", "subtracts", "kind"),
    [
        ({}, True, "sae"),
        ({"transcode": False, "activation": "topk", "multi_topk": True, "normalize_decoder": True}, True, "sae"),
        ({"num_latents": 0, "expansion_factor": LATENTS // D}, True, "sae"),
        ({"transcode": True}, False, "transcoder"),
        ({"transcode": True, "skip": True}, False, "skip-transcoder"),
        ({"skip": True, "signed": False}, True, "skip-transcoder"),  # from before there was transcode
    ],
)
def test_the_formula_of_the_format(tmp_path: Path, settings: dict[str, Any], subtracts: bool, kind: str) -> None:
    named = _file(tmp_path / "layers.11.mlp" / "seed3", **settings)
    loaded = load(tmp_path / "layers.11.mlp" / "seed3")
    x_ND = _gaussian(50, D, seed=9)
    torch.testing.assert_close(written(loaded.coder, x_ND), _formula(named, x_ND, subtracts), atol=1e-5, rtol=0)
    about = loaded.about
    assert (about.kind, about.k, about.layer, about.hook_in) == (kind, K, 11, "layers.11.mlp")
    assert any("multi_topk" in note for note in about.notes) == ("multi_topk" in settings)


def test_what_is_written_is_read_again_to_the_bit_or_the_place_beside(tmp_path: Path) -> None:
    named = _file(tmp_path / "in")
    loaded = load(tmp_path / "in")
    save(loaded.coder, tmp_path / "out", "sparsify", loaded.about)
    again = load_file(tmp_path / "out" / "sae.safetensors")
    for name in ("encoder.weight", "W_dec", "b_dec"):
        assert torch.equal(again[name], named[name])
    torch.testing.assert_close(again["encoder.bias"], named["encoder.bias"], atol=1e-6, rtol=0)


def test_a_file_of_one_dtype_is_read_in_the_one_asked_for(tmp_path: Path) -> None:
    named = _file(tmp_path, transcode=True)
    save_file({name: each.bfloat16() for name, each in named.items()}, tmp_path / "sae.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(tmp_path, dtype=dtype)
        assert {each.dtype for each in loaded.coder.parameters()} == {dtype}
        assert loaded.about.dtype == "bfloat16"
        assert torch.equal(loaded.coder.enc_LD, named["encoder.weight"].bfloat16().to(dtype))


def test_a_file_of_several_dtypes_is_refused_with_their_names(tmp_path: Path) -> None:
    named = _file(tmp_path)
    save_file(named | {"b_dec": named["b_dec"].half()}, tmp_path / "sae.safetensors")
    with pytest.raises(SettingError, match=r"W_dec float32.*b_dec float16|b_dec float16.*W_dec float32"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"activation": "groupmax"}, "activation=groupmax"),
        ({"normalize_io": True}, "normalize_io=true"),
        ({"signed": True}, "signed=true"),
        ({"n_targets": 2}, "n_targets=2"),
        ({"latent_budget": 7}, "latent_budget"),
    ],
)
def test_a_setting_that_changes_the_output_or_is_unknown_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    _file(tmp_path, **settings)
    with pytest.raises(SettingError, match=word):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "word"), [({"num_latents": 12}, "12, 6"), ({"k": "four"}, "k="), ({"d_in": None}, "d_in=null")]
)
def test_settings_that_do_not_fit_the_tensors_are_a_damaged_file(
    tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    _file(tmp_path, **settings)
    with pytest.raises(CorruptArtifact, match=word):
        load(tmp_path)


def test_tensors_missing_strange_cut_off_or_not_finite_are_refused(tmp_path: Path) -> None:
    named = _file(tmp_path)
    weights = tmp_path / "sae.safetensors"
    save_file({name: each for name, each in named.items() if name != "W_dec"}, weights)
    with pytest.raises(CorruptArtifact, match="lacks W_dec"):
        load(tmp_path)
    save_file(named | {"gain": torch.ones(2)}, weights)
    with pytest.raises(SettingError, match="gain"):
        load(tmp_path)
    save_file(named | {"W_dec": named["W_dec"].T.contiguous()}, weights)
    with pytest.raises(CorruptArtifact, match="decoder has shape"):
        load(tmp_path)
    named["W_dec"][3, 2] = torch.inf
    save_file(named, weights)
    with pytest.raises(CorruptArtifact, match="not finite in: decoder"):
        load(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CorruptArtifact, match="not a whole safetensors file"):
        load(tmp_path)


def _coder(outputs: int = D, skip_ED: Tensor | None = None, **some: Any) -> Coder:
    enc_LD, dec_LE = _gaussian(LATENTS, D, seed=1), torch.zeros(LATENTS, outputs)
    return Coder(enc_LD, torch.zeros(LATENTS), dec_LE, torch.zeros(outputs), skip_ED, K, **some)


@pytest.mark.parametrize(
    ("coder", "word"),
    [
        (_coder(activation="relu"), "saelens"),
        (_coder(activation="jumprelu", threshold_L=torch.ones(LATENTS)), "saelens"),
        (_coder(outputs=D + 1), "6 are read and 7 written"),
        (_coder(skip_ED=torch.zeros(D, D)), "skip"),
    ],
)
def test_what_the_format_does_not_have_is_not_written(tmp_path: Path, coder: Coder, word: str) -> None:
    with pytest.raises(SettingError, match=word):
        save(coder, tmp_path, "sparsify", About(kind="sae"))
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_says_it_has_unit_rows_only_if_it_has(tmp_path: Path) -> None:
    rows_LD = torch.nn.functional.normalize(_gaussian(LATENTS, D, seed=3), dim=1)
    for name, factor in (("unit", 1.0), ("long", 1.5)):
        coder = _coder()
        coder.dec_LE = rows_LD * factor
        save(coder, tmp_path / name, "sparsify", About(kind="sae"))
        assert json.loads((tmp_path / name / "cfg.json").read_text())["normalize_decoder"] is (name == "unit")
