"""Foldings are tried in double precision, where they are identities, on inputs that know nothing of them."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats.affine import projected, reading_less, reading_more, scaled_input, scaled_latents
from tests.coders.formats.dense import active, written

D, LATENTS = 5, 17


def _coder(seed: int, activation: str = "topk", skip: bool = False) -> Coder:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    threshold_L = drawn(LATENTS) if activation == "jumprelu" else None
    parts = drawn(LATENTS, D), drawn(LATENTS), drawn(LATENTS, D), drawn(D), drawn(D, D) if skip else None
    return Coder(*parts, 3, activation, threshold_L)  # type: ignore[arg-type]


def _rows(seed: int) -> Tensor:
    return torch.randn(11, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _copy(coder: Coder) -> Coder:
    return replace(coder, enc_LD=coder.enc_LD.clone(), dec_LE=coder.dec_LE.clone(), dec_bias_E=coder.dec_bias_E.clone(),
                   enc_bias_L=coder.enc_bias_L.clone())  # fmt: skip


kinds = st.sampled_from(("topk", "jumprelu", "relu"))


@given(st.integers(0, 1 << 20), kinds)
def test_a_bias_that_is_subtracted_folds_in_and_out(seed: int, activation: str) -> None:
    coder, x_ND, shift_D = _coder(seed, activation), _rows(seed), _rows(seed + 1)[0]
    folded = reading_less(coder, shift_D)
    torch.testing.assert_close(active(folded, x_ND), active(coder, x_ND - shift_D))
    torch.testing.assert_close(reading_more(folded, shift_D).enc_bias_L, coder.enc_bias_L)


@given(st.integers(0, 1 << 20), kinds, st.floats(0.01, 100), st.booleans())
def test_a_factor_of_the_input_folds_in(seed: int, activation: str, factor: float, skip: bool) -> None:
    coder, x_ND = _coder(seed, activation, skip), _rows(seed)
    expected = written(coder, factor * x_ND) / factor
    torch.testing.assert_close(written(scaled_input(_copy(coder), factor), x_ND), expected)


@given(st.integers(0, 1 << 20))
def test_sizes_of_latents_that_are_not_chosen_among_change_nothing(seed: int) -> None:
    coder, x_ND = _coder(seed, "relu"), _rows(seed)
    factor_L = torch.rand(LATENTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    scaled = scaled_latents(_copy(coder), factor_L)
    torch.testing.assert_close(written(scaled, x_ND), written(coder, x_ND))
    torch.testing.assert_close(active(scaled, x_ND), active(coder, x_ND) * factor_L)


def test_a_latent_of_factor_zero_is_silent() -> None:
    coder, x_ND = _coder(0, "relu"), _rows(0)
    factor_L = torch.ones(LATENTS, dtype=torch.float64)
    factor_L[4] = 0
    scaled = scaled_latents(_copy(coder), factor_L)
    assert float(active(scaled, x_ND)[:, 4].abs().max()) == 0
    assert bool(written(scaled, x_ND).isfinite().all())


def test_a_projection_in_parts_is_that_of_the_whole() -> None:
    """Of more numbers than are taken at once, in single precision: the sums are double."""
    enc_LD = torch.randn(1500, 3000, generator=torch.Generator().manual_seed(0))
    shift_D = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    expected = enc_LD.double() @ shift_D.double()
    torch.testing.assert_close(projected(enc_LD, shift_D), expected, atol=1e-11, rtol=0)
