"""Where training starts: scales and lengths of each kind, and the mean that all begin with."""

import pytest
import torch

from nlrewrite.coders import initial
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec, Site

WIDTH, LATENTS = 64, 512


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch_generator(0, "data")
    return 3 + torch.randn(400, WIDTH, generator=draws), 1 + torch.randn(400, WIDTH, generator=draws)


@pytest.mark.parametrize("init", ["constant", "uniform", "random"])
def test_a_transcoder_starts_from_the_mean_and_centred(init: str) -> None:
    x_ND, y_NE = data()
    spec = CoderSpec.model_validate({"width": LATENTS, "init": init, "unit_decoder": init == "random"})
    made = initial.weights(spec, x_ND, y_NE)
    assert torch.equal(made["dec_bias"], y_NE.mean(0))
    assert (x_ND @ made["enc"].T + made["enc_bias"]).mean(0).abs().max() < 1e-4
    largest = made["enc"].abs().max() * WIDTH**0.5
    if init == "uniform":
        assert 0.99 < largest <= 1
    elif init == "random":
        assert 0.99 < made["enc"].abs().max() / (6 / LATENTS) ** 0.5 <= 1
        assert torch.allclose(made["dec"].norm(dim=1), torch.ones(LATENTS))
        cosine = torch.nn.functional.cosine_similarity(made["enc"], made["dec"])
        assert cosine.abs().mean() < 0.15  # drawn apart
    else:
        assert torch.allclose(made["enc"].norm(dim=1), 1 / x_ND.std(0).mean())
    assert bool((made["dec"] == 0).all()) == (init != "random")
    assert bool((made["skip"] == 0).all())


def test_an_sae_starts_with_its_encoder_as_decoder() -> None:
    x_ND, _ = data()
    site = Site(kind="residual")
    spec = CoderSpec(site=site, width=LATENTS, skip=False, init="tied", tied_bias=True, unit_decoder=True)
    made = initial.weights(spec, x_ND, x_ND)
    assert torch.allclose(made["dec"], torch.nn.functional.normalize(made["enc"], dim=1))
    assert bool((made["enc_bias"] == 0).all())


@pytest.mark.parametrize(("kind", "better"), [("mlp", "random"), ("residual", "tied")])
def test_a_unit_decoder_that_would_start_from_zero_is_refused(kind: str, better: str) -> None:
    with pytest.raises(ValueError, match=f"init=uniform. Use --set coder.init={better}"):
        CoderSpec.model_validate({"site": {"kind": kind}, "skip": False, "unit_decoder": True, "init": "uniform"})
