from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nlrewrite.coders import form
from nlrewrite.errors import CorruptArtifact
from nlrewrite.seeds import torch_generator


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
    return torch.zeros(len(values), made.latents).scatter(1, indices, values)


@pytest.mark.parametrize("at_once", [1 << 24, 70, 1])
def test_encoding_keeps_the_k_largest_in_chunks_of_any_size(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "ENCODED_AT_ONCE", at_once)
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
    values, indices = made.encode(x_ND).padded()
    assert (values == 0).all()
    assert torch.equal(made.decode(made.encode(x_ND)), torch.zeros(30, 4))


def test_exactly_k_latents_are_active_where_enough_are_positive() -> None:
    made = coder(latents=200, k=5)
    values, _ = made.encode(inputs()).padded()
    assert ((values > 0).sum(1) == 5).all()


def test_decoding_is_linear_in_the_latents() -> None:
    made, x_ND = coder(), inputs()
    values, indices = made.encode(x_ND).padded()
    assert torch.allclose(made.decode(made.encode(x_ND)), dense(made, x_ND) @ made.dec_LE, atol=1e-5)
    assert made.skip_ED is not None
    assert torch.allclose(made.beside(x_ND), x_ND @ made.skip_ED.T + made.dec_bias_E, atol=1e-5)


def test_without_a_skip_term_the_bias_stands_beside_the_latents() -> None:
    made = coder(skip=False)
    assert torch.equal(made.beside(inputs()), made.dec_bias_E.expand(30, -1))
    assert len(made.parameters()) == 4


def test_gradients_are_those_of_the_dense_formula() -> None:
    x_ND, target = inputs(), torch.randn(30, 4, generator=torch_generator(0, "y"))
    grads = []
    for sparse in (True, False):
        made = coder()
        for parameter in made.parameters():
            parameter.requires_grad_(True)
        written = made.decode(made.encode(x_ND)) if sparse else dense(made, x_ND) @ made.dec_LE
        (written + made.beside(x_ND) - target).square().sum().backward()
        grads.append([parameter.grad for parameter in made.parameters()])
    assert len(grads[0]) == 5
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("skip", [True, False])
def test_a_coder_is_read_back_as_it_was_saved(tmp_path: Path, skip: bool) -> None:
    made = coder(skip=skip)
    form.save(made, tmp_path)
    read = form.load(tmp_path / form.WEIGHTS, tmp_path / form.CONFIG)
    assert (read.k, read.latents) == (5, 20)
    assert (read.skip_ED is not None) == skip
    for one, other in zip(made.parameters(), read.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_no_topk_coder_is_refused(tmp_path: Path) -> None:
    form.save(coder(), tmp_path)
    config, weights = tmp_path / form.CONFIG, tmp_path / form.WEIGHTS
    config.write_text('{"activation": "jumprelu", "k": 5}')
    with pytest.raises(CorruptArtifact, match=r"is no TopK coder: it lacks activation=topk"):
        form.load(weights, config)
    config.write_text('{"k": 5}')
    with pytest.raises(CorruptArtifact, match="activation=topk"):
        form.load(weights, config)
    config.write_text('{"activation": "topk", "k": 5}')
    save_file({"W_enc": torch.zeros(2, 2), "W_dec": torch.zeros(2, 2)}, weights)
    with pytest.raises(CorruptArtifact, match=r"it lacks \['b_dec', 'b_enc'\]"):
        form.load(weights, config)
