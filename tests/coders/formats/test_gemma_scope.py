import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nlrewrite.coders.formats import load, save
from nlrewrite.errors import CorruptArtifact, SettingError
from tests.coders.formats.dense import written

D, E, LATENTS = 6, 5, 24
HOOKS = "model.layers.17.pre_feedforward_layernorm.output", "model.layers.17.post_feedforward_layernorm.output"


def _gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tensors(outputs: int = D) -> dict[str, Tensor]:
    return {
        "w_enc": _gaussian(D, LATENTS, seed=1),
        "w_dec": _gaussian(LATENTS, outputs, seed=3),
        "b_enc": _gaussian(LATENTS, seed=2),
        "b_dec": _gaussian(outputs, seed=4),
        "threshold": _gaussian(LATENTS, seed=5).abs(),
    }


def _formula(named: dict[str, Tensor], x_ND: Tensor) -> Tensor:
    p_NL = torch.einsum("nd,dl->nl", x_ND, named["w_enc"]) + named["b_enc"]
    return torch.einsum("nl,le->ne", p_NL * (p_NL > named["threshold"]), named["w_dec"]) + named["b_dec"]


def _npz(folder: Path, named: dict[str, Tensor], spelling: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    named = {(spelling or {}).get(name, name): each for name, each in named.items()}
    np.savez(folder / "params.npz", **{name: each.numpy() for name, each in named.items()})
    return folder


def _second(folder: Path, named: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named, folder / "params.safetensors")
    said = {"architecture": "jump_relu", "model_name": "google/gemma-3-4b-pt", "width": LATENTS, "l0": 150}
    said |= {"hf_hook_point_in": HOOKS[0], "hf_hook_point_out": HOOKS[1], "affine_connection": False}
    (folder / "config.json").write_text(json.dumps(said | {"type": "transcoder"} | settings))
    return folder


@pytest.mark.parametrize(
    "spelling",
    [
        {name: "W" + name[1:] for name in ("w_enc", "w_dec")},
        {},
        {"w_enc": "wenc", "b_enc": "benc", "w_dec": "W_D", "b_dec": "bdec"},
    ],
)
def test_the_formula_of_the_first(tmp_path: Path, spelling: dict[str, str]) -> None:
    named = _tensors()
    folder = _npz(tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71", named, spelling)
    x_ND = _gaussian(50, D, seed=9)
    for path in (folder, folder / "params.npz"):
        loaded = load(path)
        torch.testing.assert_close(written(loaded.coder, x_ND), _formula(named, x_ND), atol=1e-5, rtol=0)
        about = loaded.about
        assert (about.kind, about.layer, about.k, loaded.coder.k) == ("sae", 20, 71, 71)
        assert (about.model, about.hook_in) == ("google/gemma-2-2b", "blocks.20.hook_resid_post")
        assert about.hook_out == about.hook_in


def test_a_transcoder_of_the_first_is_told_by_its_widths_or_its_folders(tmp_path: Path) -> None:
    named = _tensors(E)
    x_ND = _gaussian(50, D, seed=9)
    loaded = load(_npz(tmp_path / "layer_3" / "width_16k" / "average_l0_9", named))
    torch.testing.assert_close(written(loaded.coder, x_ND), _formula(named, x_ND), atol=1e-5, rtol=0)
    assert loaded.about.kind == "transcoder"
    loaded = load(_npz(tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3" / "width_16k", _tensors()))
    assert loaded.about.kind == "transcoder"
    assert (loaded.about.hook_in, loaded.about.hook_out) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    assert (loaded.about.k, loaded.coder.k) == (None, 0)


def test_a_coder_of_embeddings_reads_and_writes_them_times_the_root_of_their_width(tmp_path: Path) -> None:
    named = _tensors()
    loaded = load(_npz(tmp_path / "embedding" / "width_4k" / "average_l0_6", named))
    scaled = named | {"w_enc": named["w_enc"] / math.sqrt(D), "w_dec": named["w_dec"] * math.sqrt(D)}
    x_ND = _gaussian(50, D, seed=9)
    torch.testing.assert_close(written(loaded.coder, x_ND), _formula(scaled, x_ND), atol=1e-5, rtol=0)
    assert loaded.about.layer is None
    assert any("embeddings" in note for note in loaded.about.notes)
    # A folder of that name elsewhere in a path says nothing.
    loaded = load(_npz(tmp_path / "embedding" / "mine" / "layer_2" / "width_4k", named))
    torch.testing.assert_close(written(loaded.coder, x_ND), _formula(named, x_ND), atol=1e-5, rtol=0)
    assert loaded.about.layer == 2


@pytest.mark.parametrize("affine", [False, True])
def test_the_formula_of_the_second(tmp_path: Path, affine: bool) -> None:
    named = _tensors(E)
    skip_DE = _gaussian(D, E, seed=6)
    held = named | {"affine_skip_connection": skip_DE} if affine else named
    loaded = load(_second(tmp_path, held, affine_connection=affine))
    x_ND = _gaussian(50, D, seed=9)
    expected = _formula(named, x_ND) + (torch.einsum("nd,de->ne", x_ND, skip_DE) if affine else 0)
    torch.testing.assert_close(written(loaded.coder, x_ND), expected, atol=1e-5, rtol=0)
    about = loaded.about
    assert about.kind == ("skip-transcoder" if affine else "transcoder")
    assert (about.hook_in, about.hook_out, about.layer, about.k) == (*HOOKS, 17, 150)


def test_an_autoencoder_of_the_second_names_one_place(tmp_path: Path) -> None:
    hook = "model.layers.9.output"
    settings = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "type": "sae"}
    about = load(_second(tmp_path / "resid_post" / "layer_9_width_16k_l0_big", _tensors(), **settings)).about
    assert (about.kind, about.hook_in, about.hook_out, about.layer) == ("sae", hook, hook, 9)
    # Without settings the names of the folders are all there is.
    folder = tmp_path / "transcoder" / "layer_5_width_16k_l0_big"
    _second(folder, _tensors())
    (folder / "config.json").unlink()
    about = load(folder).about
    assert (about.kind, about.layer, about.k) == ("transcoder", 5, None)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"architecture": "topk"}, "architecture=topk"),
        ({"type": "clt"}, "type=clt"),
        ({"type": "crosscoder"}, "type=crosscoder"),
        ({"normalize_inputs": True}, "normalize_inputs"),
    ],
)
def test_what_is_no_jumprelu_of_one_place_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    with pytest.raises(SettingError, match=word):
        load(_second(tmp_path, _tensors(), **settings))


def test_settings_that_do_not_fit_the_tensors_are_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match="affine_connection=true"):
        load(_second(tmp_path / "a", _tensors(), affine_connection=True))
    with pytest.raises(CorruptArtifact, match="24 latents"):
        load(_second(tmp_path / "b", _tensors(), width=16384))
    with pytest.raises(CorruptArtifact, match="lacks: threshold"):
        load(_npz(tmp_path / "c", {name: each for name, each in _tensors().items() if name != "threshold"}))
    with pytest.raises(SettingError, match="gain"):
        load(_npz(tmp_path / "d", _tensors() | {"gain": torch.ones(1)}))
    with pytest.raises(CorruptArtifact, match="twice"):
        load(_npz(tmp_path / "e", _tensors() | {"W_enc": torch.ones(D, LATENTS)}))
    with pytest.raises(SettingError, match="scaling_factor"):
        load(_npz(tmp_path / "f", _tensors() | {"scaling_factor": torch.full((LATENTS,), 2.0)}))


class Ran:
    """Unpickling one leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_an_array_of_objects_is_refused_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Ran(str(mark)))).close()  # noqa: S301 (our own)
    assert mark.exists()
    mark.unlink()
    bad = np.array([Ran(str(mark))], dtype=object)
    arrays = {name: each.numpy() for name, each in _tensors().items()} | {"threshold": bad}
    np.savez(tmp_path / "params.npz", **arrays)
    with pytest.raises(SettingError, match="threshold object"):
        load(tmp_path)
    assert not mark.exists()


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    whole = (_npz(tmp_path, _tensors()) / "params.npz").read_bytes()
    for kept in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "params.npz").write_bytes(whole[:kept])
        with pytest.raises(CorruptArtifact, match="npz"):
            load(tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    (tmp_path / "params.npz").write_bytes(flipped)
    with pytest.raises(CorruptArtifact, match="CRC"):
        load(tmp_path)


def test_nothing_is_written_in_it(tmp_path: Path) -> None:
    loaded = load(_npz(tmp_path / "in", _tensors()))
    with pytest.raises(SettingError, match="sparsify, saelens"):
        save(loaded.coder, tmp_path / "out", "gemma-scope", loaded.about)
    save(loaded.coder, tmp_path / "out", "saelens", loaded.about)
    x_ND = _gaussian(20, D, seed=9)
    assert torch.equal(written(load(tmp_path / "out").coder, x_ND), written(loaded.coder, x_ND))
