from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nlrewrite.coders import form, ops
from nlrewrite.errors import CorruptArtifact
from nlrewrite.seeds import torch_generator
from tests.coders.sizes import Sizes


def coder(latents: int = 20, width: int = 6, out: int = 4, k: int = 5, skip: bool = True) -> form.Coder:
    draws = torch_generator(0, "coder")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws)

    skips = normal(out, width) if skip else None
    return form.Coder(normal(latents, width), normal(latents), normal(latents, out), normal(out), skips, k)


def inputs(rows: int = 30) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch_generator(0, "x"))


def dense(made: form.Coder, x_ND: torch.Tensor) -> torch.Tensor:
    """[N, L]: the k largest pre-activations of each row, negative ones and the rest zero."""
    before = x_ND @ made.enc_LD.T + made.enc_bias_L
    kept = before.argsort(dim=1, descending=True)[:, : made.k]
    return torch.zeros_like(before).scatter(1, kept, before.gather(1, kept).clamp_min(0))


def scattered(made: form.Coder, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(values), made.latents).scatter_add(1, indices, values)


@pytest.mark.parametrize("at_once", [1 << 21, 70, 1])
def test_encoding_keeps_the_k_largest_in_chunks_of_any_size(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "AT_ONCE", {"cpu": at_once})
    monkeypatch.setattr(ops, "LEAST_ROWS", 1)
    made, x_ND = coder(), inputs()
    values, indices = made.encode(x_ND).padded()
    assert values.shape == indices.shape == (30, 5)
    assert all(len(set(row)) == 5 for row in indices.tolist())
    assert torch.allclose(scattered(made, values, indices), dense(made, x_ND), atol=1e-5)


def test_negative_values_among_the_k_largest_are_inactive() -> None:
    made, x_ND = coder(k=20), inputs()
    values, _ = made.encode(x_ND).padded()
    active = (values > 0).sum(1)
    assert (active < 20).all()
    assert (values >= 0).all()
    made.enc_bias_L += 100
    assert (made.encode(x_ND).values > 0).all()
    made.enc_bias_L -= 200
    values, _ = made.encode(x_ND).padded()
    assert (values == 0).all()
    assert torch.equal(made.decode(made.encode(x_ND)), torch.zeros(30, 4))


def test_exactly_k_latents_are_active_where_enough_are_positive() -> None:
    made = coder(latents=200, k=5)
    values, _ = made.encode(inputs()).padded()
    assert ((values > 0).sum(1) == 5).all()


def test_decoding_is_linear_in_the_latents() -> None:
    made, x_ND = coder(), inputs()
    assert torch.allclose(made.decode(made.encode(x_ND)), dense(made, x_ND) @ made.dec_LE, atol=1e-5)
    assert made.skip_ED is not None
    assert torch.allclose(made.beside(x_ND), x_ND @ made.skip_ED.T + made.dec_bias_E, atol=1e-5)


def test_without_a_skip_term_the_bias_stands_beside_the_latents() -> None:
    made = coder(skip=False)
    assert torch.equal(made.beside(inputs()), made.dec_bias_E.expand(30, -1))
    assert len(made.parameters()) == 4


def test_decoding_learns_the_decoder_and_the_values() -> None:
    made, x_ND, target = coder(), inputs(), torch.randn(30, 4, generator=torch_generator(0, "y"))
    code = made.encode(x_ND)
    values_P = code.values.clone().requires_grad_(True)
    made.dec_LE.requires_grad_(True)
    written = made.decode(form.Code(code.indices, values_P, code.offsets, code.width))
    given = torch.autograd.grad((written - target).square().sum(), [made.dec_LE, values_P])
    g_NE = 2 * (written.detach() - target)
    assert torch.allclose(given[0], dense(made, x_ND).T @ g_NE, rtol=1e-4, atol=1e-4)
    rows = code.rows()
    assert torch.allclose(given[1], (g_NE @ made.dec_LE.detach().T)[rows, code.indices], rtol=1e-4, atol=1e-4)


THRESHOLDS = {"relu": None, "jumprelu": torch.linspace(-1.0, 3.0, 20)}


@pytest.mark.parametrize("at_once", [1 << 21, 70])
@pytest.mark.parametrize("activation", THRESHOLDS)
def test_a_threshold_keeps_what_exceeds_it_and_zero(
    activation: form.Activation, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "AT_ONCE", {"cpu": at_once})
    monkeypatch.setattr(ops, "LEAST_ROWS", 1)
    made, x_ND = coder(), inputs()
    made.activation, made.threshold_L = activation, THRESHOLDS[activation]
    before = x_ND @ made.enc_LD.T + made.enc_bias_L
    bound = torch.zeros(20) if made.threshold_L is None else made.threshold_L
    expected = before * (before > bound) * (before > 0)
    code = made.encode(x_ND)
    assert len(code) == 30 and (code.values > 0).all()
    assert torch.equal(code.lengths, (expected > 0).sum(1))
    assert torch.allclose(scattered(made, *code.padded()), expected, atol=1e-5)
    assert torch.allclose(made.decode(code), expected @ made.dec_LE, atol=1e-4)


def test_a_value_at_its_threshold_is_not_active_and_one_just_above_it_is() -> None:
    made = form.Coder(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), None, 1, "jumprelu", torch.ones(3))
    above = torch.nextafter(torch.ones(()), torch.full((), 2.0))
    code = made.encode(torch.stack([torch.ones(()), above, torch.full((), 0.99)])[None])
    assert code.indices.tolist() == [1]
    assert torch.equal(code.values, above[None])


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_many_latents_are_encoded_in_bounded_memory(activation: form.Activation) -> None:
    latents, rows = 1 << 17, 200
    draws = torch_generator(0, "many")
    enc_LD = torch.randn(latents, 4, generator=draws)
    made = form.Coder(enc_LD, torch.zeros(latents), enc_LD, torch.zeros(4), None, 8, activation)
    made.threshold_L = torch.full((latents,), 7.0)
    x_ND = torch.randn(rows, 4, generator=draws)
    with Sizes() as sizes:
        code = made.encode(x_ND)
    assert sizes.most <= ops.LEAST_ROWS * latents < rows * latents / 3
    if activation == "jumprelu":
        assert 0 < len(code.values) < rows * latents / 100
        assert torch.allclose(code.values, (x_ND[code.rows()] * enc_LD[code.indices]).sum(1), atol=1e-4)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_rows_that_are_silent_or_absent_have_a_code(activation: form.Activation) -> None:
    made = coder()
    made.activation, made.enc_bias_L = activation, torch.full((20,), -100.0)
    assert torch.equal(made.decode(made.encode(inputs())), torch.zeros(30, 4))
    assert len(made.encode(inputs(0))) == 0
    assert made.decode(made.encode(inputs(0))).shape == (0, 4)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_leading_dimensions_count_as_rows(activation: form.Activation) -> None:
    made, x_ND = coder(), inputs()
    made.activation = activation
    one, other = made.encode(x_ND), made.encode(x_ND.view(5, 6, 6))
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.offsets, other.offsets)
    assert torch.equal(made.beside(x_ND), made.beside(x_ND.view(5, 6, 6)))


def test_the_form_alone_asks_for_no_gradient() -> None:
    made = coder()
    made.enc_LD.requires_grad_(True)
    assert not made.encode(inputs()).values.requires_grad


@pytest.mark.parametrize("skip", [True, False])
def test_a_coder_is_read_back_as_it_was_saved(tmp_path: Path, skip: bool) -> None:
    made = coder(skip=skip)
    form.save(made, tmp_path)
    read = form.load(tmp_path / form.WEIGHTS, tmp_path / form.CONFIG)
    assert (read.k, read.latents) == (5, 20)
    assert (read.skip_ED is not None) == skip
    for one, other in zip(made.parameters(), read.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_jumprelu_is_read_back_with_its_thresholds(tmp_path: Path) -> None:
    made = coder()
    made.activation, made.threshold_L = "jumprelu", THRESHOLDS["jumprelu"]
    form.save(made, tmp_path)
    read = form.load(tmp_path / form.WEIGHTS, tmp_path / form.CONFIG)
    assert read.activation == "jumprelu" and read.threshold_L is not None
    assert torch.equal(read.threshold_L, torch.linspace(-1.0, 3.0, 20))


def test_what_is_no_coder_is_refused(tmp_path: Path) -> None:
    form.save(coder(), tmp_path)
    config, weights = tmp_path / form.CONFIG, tmp_path / form.WEIGHTS
    config.write_text('{"activation": "jumprelu", "k": 5}')
    with pytest.raises(CorruptArtifact, match=r"it lacks \['threshold'\]"):
        form.load(weights, config)
    config.write_text('{"k": 5}')
    with pytest.raises(CorruptArtifact, match="names no activation that a coder has: None"):
        form.load(weights, config)
    config.write_text('{"activation": "topk", "k": 5}')
    save_file({"W_enc": torch.zeros(2, 2), "W_dec": torch.zeros(2, 2)}, weights)
    with pytest.raises(CorruptArtifact, match=r"it lacks \['b_dec', 'b_enc'\]"):
        form.load(weights, config)
