"""An early exit: the probe, its thresholds, and the packed engine behind them."""

import numpy as np
import pytest

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome, PrefixBlock
from nlrewrite.llm.packed import Packed
from nlrewrite.seeds import generator
from nlrewrite.simulate import cascade, screen
from nlrewrite.simulate.screen import Screened
from tests.llm import random_models

LATENTS, CONTEXTS = 24, 60


def planted(correlation: float, seed: int = 0, contexts: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of 12 features, of which a direction goes with the digit within latents, and latents differ."""
    draws = generator(seed, "screen")
    hidden = draws.standard_normal((LATENTS, contexts, 12))
    direction = generator(0, "direction").standard_normal(12)
    direction /= np.linalg.norm(direction)
    signal = hidden @ direction
    digit = correlation * signal + np.sqrt(1 - correlation**2) * draws.standard_normal(signal.shape)
    return hidden * np.linspace(0.1, 30, 12) + 5 * draws.standard_normal((LATENTS, 1, 12)), digit


def test_a_probe_finds_what_is_planted_whatever_the_scales_and_the_latents_means() -> None:
    hidden, digit = planted(0.9)
    digit = digit + 100 * generator(1, "means").standard_normal((LATENTS, 1))  # says nothing within a latent
    found = screen.fit(hidden, digit, layer=2)
    assert found.correlation == pytest.approx(0.9, abs=0.01) and found.layer == 2
    new, digits = planted(0.9, seed=1)
    told = found(new)
    each = [np.corrcoef(told[row], digits[row])[0, 1] for row in range(LATENTS)]
    assert np.mean(each) == pytest.approx(0.9, abs=0.01)


def test_a_probe_of_noise_says_that_it_is_one() -> None:
    hidden, digit = planted(0.0)
    found = screen.fit(hidden, digit, layer=1)
    assert abs(found.correlation) < 0.05


def test_missing_answers_are_left_out() -> None:
    hidden, digit = planted(0.9)
    holes = generator(0, "holes").random(digit.shape) < 0.3
    spoiled = np.where(holes[..., None], 1e6, hidden)
    assert screen.fit(spoiled, np.where(holes, np.nan, digit), 1).correlation == pytest.approx(0.9, abs=0.01)
    with pytest.raises(SettingError, match=r"at least 8 answers.*there are 0"):
        screen.fit(hidden, np.full(digit.shape, np.nan), 1)


def test_cost_in_layers() -> None:
    assert screen.cost(12, 32, 0.05) == pytest.approx(0.41, abs=0.005)
    assert screen.cost(8, 32, 0.05) == pytest.approx(0.29, abs=0.005)
    with pytest.raises(SettingError, match="layers 1 to 3: layer=4"):
        screen.cost(4, 4, 0.5)


# -- with a model ------------------------------------------------------------------------------------------------------


def blocks(contexts: int, seed: int = 0) -> list[PrefixBlock]:
    """Every latent's suffix behind a context of its own for each block."""
    suffixes = [random_models.ids(3 + latent % 3, 50 + latent).tolist() for latent in range(LATENTS)]
    start = random_models.ids(10).tolist()
    return [
        PrefixBlock.of(start + random_models.ids(6, 1000 * (seed + 1) + each).tolist(), suffixes, random_models.LABELS)
        for each in range(contexts)
    ]


@pytest.fixture(scope="module")
def engine() -> Packed:
    return Packed(random_models.fresh(seed=3), random_models.tokenizer())


@pytest.fixture(scope="module")
def fitted(engine: Packed) -> screen.Fitted:
    frequency = np.full(LATENTS, 0.1)
    first, second = (screen.pilot(engine, blocks(CONTEXTS, seed), layer=2) for seed in (0, 1))
    return screen.fitted(first, second, frequency, 0.8, layers=random_models.LAYERS)


def test_a_pilot_is_answered_as_without_one(engine: Packed) -> None:
    some = blocks(2)
    found = screen.pilot(engine, some, layer=1)
    assert found.hidden_LSD.shape == (LATENTS, 2, random_models.WIDTH)
    for at, block in enumerate(some):
        plain = cascade.expected_digit(engine.digits(block))
        assert np.allclose(found.digit_LS[:, at], plain, atol=1e-4)
    assert not np.allclose(found.hidden_LSD[:, 0], found.hidden_LSD[:, 1])
    assert np.array_equal(found.at(np.array([1])).digit_LS, found.digit_LS[:, 1:])
    turned = screen.pilot(engine, some, layer=1, by_prefix=True)
    assert np.array_equal(turned.hidden_LSD, found.hidden_LSD.swapaxes(0, 1))


def test_a_screen_keeps_what_matters_and_drops_the_rest(engine: Packed, fitted: screen.Fitted) -> None:
    assert fitted.recall >= 0.75 and fitted.kept < 0.8
    assert fitted.cost == pytest.approx(2 / 3 + fitted.kept / 3)
    some = blocks(CONTEXTS, seed=2)
    suffixes = [some[0].suffix(latent) for latent in range(LATENTS)]
    asked = Screened(engine, fitted.probe, cascade.filed(suffixes, fitted.threshold_L))
    whole = np.stack([cascade.expected_digit(engine.digits(block)) for block in some], axis=1)
    found = [asked.digits(block) for block in some]
    kept = np.stack([each.outcome == Outcome.OK for each in found], axis=1)
    assert np.allclose(np.stack([cascade.expected_digit(each) for each in found], axis=1)[kept], whole[kept], atol=1e-4)
    assert all(np.isnan(each.logp[each.outcome == Outcome.SKIPPED]).all() for each in found)
    assert 0.2 < kept.mean() < 0.85
    assert cascade.recalled(kept, whole, np.full(LATENTS, 0.1)) > kept.mean() + 0.1


def test_a_block_with_a_question_that_is_too_long_is_not_screened(engine: Packed, fitted: screen.Fitted) -> None:
    block = random_models.block(20, [4, random_models.LONGEST, 5])
    suffixes = [block.suffix(index) for index in range(3)]
    found = Screened(engine, fitted.probe, cascade.filed(suffixes, np.full(3, np.inf))).digits(block)
    assert found.outcome.tolist() == [Outcome.OK, Outcome.REFUSED, Outcome.OK]


def test_the_cheapest_screen_is_taken() -> None:
    hidden, digit = planted(0.9)
    half = screen.Pilot(hidden, digit, 1)
    frequency = np.full(LATENTS, 0.05)
    good = screen.fitted(half.at(np.arange(200)), half.at(np.arange(200, 400)), frequency, 0.9, layers=8)
    noisy = screen.Pilot(planted(0.3)[0], planted(0.3)[1], 1)
    bad = screen.fitted(noisy.at(np.arange(200)), noisy.at(np.arange(200, 400)), frequency, 0.9, layers=8)
    assert good.kept < bad.kept and screen.cheapest([bad, good]) is good
    assert good.recall >= 0.9
