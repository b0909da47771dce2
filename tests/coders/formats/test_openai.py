"""SAEs of openai/sparse_autoencoder against what its class computes, written out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nlrewrite.coders import formats
from nlrewrite.errors import SettingError
from tests.coders.formats import dense, pickles

INPUTS, LATENTS = 5, 13
SHAPES: dict[str, tuple[int, ...]] = {
    "pre_bias": (INPUTS,),
    "encoder.weight": (LATENTS, INPUTS),
    "latent_bias": (LATENTS,),
    "decoder.weight": (INPUTS, LATENTS),
    "latents_mean_square": (LATENTS,),
}


def saved(folder: Path, name: str = "8.pt", **settings: Any) -> Path:
    torch.save(
        {**pickles.drawn(0, **SHAPES), "stats_last_nonzero": torch.zeros(LATENTS).long(), **settings}, folder / name
    )
    return folder / name


def test_an_sae_computes_what_its_class_computes(tmp_path: Path) -> None:
    w = pickles.drawn(0, **SHAPES)
    x_ND = torch.randn(20, INPUTS, generator=torch.Generator().manual_seed(1))
    loaded = formats.load(saved(tmp_path, activation="ReLU", activation_state_dict={}))
    latents_NL = ((x_ND - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]).relu()
    torch.testing.assert_close(dense.active(loaded.coder, x_ND), latents_NL)
    torch.testing.assert_close(dense.written(loaded.coder, x_ND), latents_NL @ w["decoder.weight"].T + w["pre_bias"])
    assert (loaded.format, loaded.about.kind, loaded.about.layer) == ("openai", "sae", 8)


def test_one_that_normalises_its_rows_is_refused_with_the_reason(tmp_path: Path) -> None:
    state = {"k": 32, "postact_fn": "ReLU"}
    with pytest.raises(SettingError, match=r"normalises every row.*LayerNorm.*does not fold"):
        formats.load(saved(tmp_path, activation="TopK", activation_state_dict=state))
    with pytest.raises(SettingError, match="has the activation Identity"):
        formats.load(saved(tmp_path, activation="Identity"))


def test_other_names_are_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"openai needs a file <layer>\.pt"):
        formats.load(saved(tmp_path, "weights.pt"))
