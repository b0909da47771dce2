"""A LayerNorm's gain and bias taken into a transcoder: exact, and the numbers of the program that trained such ones."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import folding
from nlrewrite.coders.formats.affine import reading_less
from nlrewrite.errors import SettingError
from nlrewrite.specs import Site
from nlrewrite.subject import sites
from tests.coders.formats import dense
from tests.subject import small_models

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden/formats/transcoder_circuits.json").read_text())
LATENTS = 32


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    state = np.random.RandomState(zlib.crc32(name.encode()) ^ 20240430)
    return torch.from_numpy(state.standard_normal(shape))


def scale_of(name: str) -> tuple[float, float]:
    if name.endswith("bias"):
        return 0.1, 0.0
    if any(norm in name for norm in ("ln_1", "ln_2", "ln_f")):
        return 0.1, 1.0
    return (0.3 if "wpe" in name else 0.7 if "wte" in name else 0.35), 0.0


@pytest.fixture(scope="module")
def subject() -> nn.Module:
    """The golden file's GPT-2, in double precision."""
    with torch.random.fork_rng(devices=[]):
        config = GPT2Config(**GOLDEN["meta"]["gpt2_config"], attn_implementation="eager")
        model = GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scale, shift = scale_of(name)
        parameter.copy_(drawn(name, tuple(parameter.shape)) * scale + shift)
    for name, check in GOLDEN["weight_checks"].items():
        tensor = model.get_parameter(name)
        assert (float(tensor.sum()), float(tensor.flatten()[0])) == pytest.approx((check["sum"], check["first"]))
    return model


def transcoder(layer: int, width: int = 16) -> Coder:
    """Of the normalised input, as the golden file's recipe draws it."""
    W_enc = drawn(f"tc.{layer}.W_enc", (width, LATENTS)) * 0.5
    W_dec = drawn(f"tc.{layer}.W_dec", (LATENTS, width))
    b_enc = drawn(f"tc.{layer}.b_enc", (LATENTS,)) * 0.2 - 0.5
    b_dec, b_out = drawn(f"tc.{layer}.b_dec", (width,)) * 0.1, drawn(f"tc.{layer}.b_dec_out", (width,)) * 0.1
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return reading_less(Coder(W_enc.T.contiguous(), b_enc, W_dec, b_out, None, 0, "relu"), b_dec)


def at(layer: int) -> Site:
    return Site(kind="mlp", layer=layer)


def fitted(subject: nn.Module, layer: int) -> Coder:
    return folding.folded(transcoder(layer), *folding.norm_before(subject, sites.locate(subject, at(layer))))


def inputs(subject: nn.Module, ids_BT: Tensor) -> list[Tensor]:
    """What the MLP of every layer reads, in double precision."""
    read: list[Tensor] = []
    handles = [
        layer.mlp.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        for layer in subject.transformer.h  # type: ignore[union-attr]
    ]
    subject(input_ids=ids_BT)
    for handle in handles:
        handle.remove()
    return read


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_latents_are_those_of_the_program_that_trained_them(subject: nn.Module, layer: int) -> None:
    x_ND = inputs(subject, torch.tensor([GOLDEN["meta"]["tokens"]]))[layer][0]
    active_NL = dense.active(fitted(subject, layer), x_ND)
    expected = torch.tensor(GOLDEN["feature_acts_last"][str(layer)], dtype=torch.float64)
    torch.testing.assert_close(active_NL[-1], expected, rtol=1e-9, atol=1e-9)
    assert (active_NL > 0).sum(-1).tolist() == GOLDEN["l0"][str(layer)]
    unfolded_NL = dense.active(transcoder(layer), x_ND)
    assert float((unfolded_NL[-1] - expected).abs().max()) > 0.05, "reading x as it stands would be seen here"


@pytest.mark.parametrize(("which", "layers"), [("all", (0, 1, 2)), ("layer1", (1,)), ("original", ())])
def test_loss_with_transcoders_in_place_is_that_of_the_centred_model(
    subject: nn.Module, which: str, layers: tuple[int, ...]
) -> None:
    """The golden losses are those of a model with centred weights, where the transcoders write without the mean."""
    ids = np.random.RandomState(7).randint(1, 40, (12, 8))
    ids_BT = torch.from_numpy(np.concatenate([np.zeros((12, 1), dtype=ids.dtype), ids], axis=1))

    def writes(coder: Coder) -> Any:
        return lambda module, args, out: dense.written(coder, args[0].flatten(0, 1)).view_as(out)

    handles = [
        subject.get_submodule(sites.locate(subject, at(layer)).name).register_forward_hook(
            writes(fitted(subject, layer))
        )
        for layer in layers
    ]
    logits_BTV = subject(input_ids=ids_BT).logits
    for handle in handles:
        handle.remove()
    loss = nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    assert float(loss) == pytest.approx(GOLDEN["replacement"][which], abs=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gpt_neox-sequential"])
def test_a_mean_over_the_width_is_seen_by_no_reader(family: str) -> None:
    """Adding any number to all channels of what the MLP writes changes no logit: every reader is a LayerNorm."""
    model, ids_BT = small_models.fresh(family).double(), small_models.ids()
    located = sites.locate(model, at(1))
    shift = torch.randn(ids_BT.shape[1], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    plain = model(input_ids=ids_BT).logits
    handle = model.get_submodule(located.name).register_forward_hook(lambda m, args, out: out + 5 * shift)
    shifted = model(input_ids=ids_BT).logits
    handle.remove()
    torch.testing.assert_close(shifted, plain, rtol=1e-8, atol=1e-8)


def random_coder(inputs: int, outputs: int, latents: int, seed: int, skip: bool) -> Coder:
    draws = torch.Generator().manual_seed(seed)
    shapes = [(latents, inputs), (latents,), (latents, outputs), (outputs,), (outputs, inputs)]
    enc, enc_bias, dec, dec_bias, skip_ED = (
        torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes
    )
    return Coder(enc, enc_bias, dec, dec_bias, skip_ED if skip else None, 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), skip=st.booleans())
def test_folding_changes_neither_latents_nor_output(seed: int, skip: bool) -> None:
    coder, draws = random_coder(7, 5, 20, seed, skip), torch.Generator().manual_seed(seed)
    z_ND, gain_D, bias_D = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in ((9, 7), (7,), (7,)))
    gain_D = gain_D.sign() * (gain_D.abs() + 0.05)  # gains may be negative
    kept = coder.enc_LD.clone(), coder.dec_bias_E.clone()
    folded = folding.folded(coder, gain_D, bias_D)
    torch.testing.assert_close(dense.active(folded, gain_D * z_ND + bias_D), dense.active(coder, z_ND))
    torch.testing.assert_close(dense.written(folded, gain_D * z_ND + bias_D), dense.written(coder, z_ND))
    assert torch.equal(coder.enc_LD, kept[0]) and torch.equal(coder.dec_bias_E, kept[1])


@pytest.mark.parametrize("ratio", [1.0, 100.0, 4000.0])
def test_rounding_stays_within_its_bound(ratio: float) -> None:
    """In single precision: an error of at most e (1 + |bias / gain|) max(1, |z|) for every channel's input."""
    draws = torch.Generator().manual_seed(0)
    width = 64
    coder = Coder(torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width), None, 0, "relu")
    gain_D = torch.full((width,), 0.5)
    bias_D = gain_D * ratio * (torch.rand(width, generator=draws) * 2 - 1)
    z_ND = torch.randn(500, width, generator=draws, dtype=torch.float64)
    folded = folding.folded(coder, gain_D, bias_D)
    x_ND = (gain_D.double() * z_ND + bias_D.double()).float()
    error = (x_ND @ folded.enc_LD.T + folded.enc_bias_L - z_ND).abs()
    bound = 3 * torch.finfo(torch.float32).eps * (1 + (bias_D / gain_D).abs()) * z_ND.abs().clamp_min(1)
    assert bool((error <= bound).all())


@pytest.mark.parametrize(("gain", "bias"), [(0.0, 0.1), (0.0, 0.0), (1e-6, 0.1), (-1e-7, 1.0)])
def test_a_silenced_channel_is_refused(gain: float, bias: float) -> None:
    gain_D, bias_D = torch.ones(7), torch.zeros(7)
    gain_D[4], bias_D[4] = gain, bias
    with pytest.raises(SettingError, match=r"nearly silences channel 4 .*at most 4096"):
        folding.folded(random_coder(7, 5, 20, 0, False), gain_D, bias_D)


def test_it_is_refused_where_no_layer_norm_is_read() -> None:
    gpt2, llama = small_models.fresh("gpt2"), small_models.fresh("llama")
    with pytest.raises(SettingError, match=r"no residual site has.*coder\.site\.kind=mlp"):
        folding.norm_before(gpt2, sites.locate(gpt2, Site(kind="residual", layer=1)))
    with pytest.raises(SettingError, match="model_type 'llama' has none"):
        folding.norm_before(llama, sites.locate(llama, at(1)))
    with pytest.raises(SettingError, match=r"reads 7 numbers.*has 32"):
        folding.folded(random_coder(7, 5, 20, 0, False), *folding.norm_before(gpt2, sites.locate(gpt2, at(1))))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gpt_neox-sequential"])
def test_the_norm_found_is_the_one_the_site_reads(family: str) -> None:
    model, ids_BT = small_models.fresh(family), small_models.ids()
    located = sites.locate(model, at(1))
    gain_D, bias_D = folding.norm_before(model, located)
    x_ND = sites.activations_upto(model, located, ids_BT).x.flatten(0, 1)
    z_ND = (x_ND - bias_D) / gain_D
    torch.testing.assert_close(z_ND.mean(-1), torch.zeros(len(z_ND)), rtol=0, atol=1e-5)
    torch.testing.assert_close(z_ND.var(-1, unbiased=False), torch.ones(len(z_ND)), rtol=0, atol=2e-3)
