from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from nlrewrite.activations.codes import Codes, Kept
from nlrewrite.calibrate import fitted as fitted_module
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.evaluate import latents
from nlrewrite.language.reading import distributions
from nlrewrite.seeds import generator
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Reading, Spoken, answers

CONTEXTS, LATENTS = 60, 5


def planted() -> tuple[Codes, Spoken]:
    draws = generator(0, "planted")
    true = np.where(draws.random((CONTEXTS, LATENTS)) < 0.2, draws.random((CONTEXTS, LATENTS)) + 0.1, 0)
    level = np.where(draws.random((CONTEXTS, LATENTS)) < 0.3, draws.integers(1, 10, (CONTEXTS, LATENTS)), 0)
    latent, position = np.nonzero(level.T)
    said = Simulated(latent, position, level.T[latent, position], distributions(), np.ones(LATENTS, bool))
    return Codes(np.zeros(LATENTS, np.float32), sparse.csr_matrix(true.astype(np.float32))), Spoken(said, CONTEXTS)


def logistic(reading: Reading) -> Fitted:
    draws = generator(0, "logistic")
    arrays = {
        "intercept": -2 + draws.random(LATENTS),
        "slope": draws.random(LATENTS),
        "size": np.ones(LATENTS),
        "growth": np.zeros(LATENTS),
    }
    return Fitted("hurdle", "paired", "logistic", arrays, np.full(LATENTS, 0.1), np.ones(LATENTS), reading)


def as_dense(values: Codes) -> Kept:
    """The same values in a form that is no pairs."""
    return Kept(values, LATENTS, np.zeros(LATENTS))


@pytest.mark.parametrize("number", ["own", "expected", "log-odds"])
def test_chances_by_level_are_those_of_every_context(number) -> None:
    truth, said = planted()
    fitted, rate = logistic(Reading(number)), np.full(LATENTS, 0.2)
    by_level, expected = latents.diagnose(latents._chance_codes(fitted, said, rate), truth, rate)
    everywhere, also_expected = latents._by_latents(fitted, said, truth, rate)
    assert expected == pytest.approx(also_expected, rel=1e-5)
    one, two = by_level.summary(), everywhere.summary()
    assert one["brier_skill"] == pytest.approx(two["brier_skill"], rel=1e-5)
    assert one["log_loss"] == pytest.approx(two["log_loss"], rel=1e-5)
    assert one["cases"] == CONTEXTS * LATENTS
    assert one["base_rate"] == pytest.approx((truth.extra_PL.toarray() > 0).mean())


def test_only_maps_with_a_chance_say_that_they_have_one() -> None:
    _, said = planted()
    fitted = logistic(Reading())
    some = answers(said, slice(0, LATENTS), fitted.reading)
    for name in fitted_module._MAPS:
        each = replace(fitted, map=name)
        has = name in fitted_module._CHANCES
        assert latents.has_chance(each) == has
        if name == "logistic" or not has:
            assert (each.active(some) is not None) == has


def test_a_latent_of_which_nothing_was_said_has_its_base_rate() -> None:
    _, said = planted()
    said.simulated.explained[2] = False
    rate = np.linspace(0.1, 0.3, LATENTS)
    chance = latents._chance_codes(logistic(Reading()), said, rate).dense(np.arange(CONTEXTS))
    assert chance[:, 2] == pytest.approx(np.full(CONTEXTS, rate[2]))


def test_activations_become_chances_in_units_of_the_magnitude() -> None:
    truth, _ = planted()
    values = Codes(np.full(LATENTS, 0.05, np.float32), truth.extra_PL)
    magnitude, rate = np.full(LATENTS, 0.5), np.full(LATENTS, 0.2)
    by_pairs, expected = latents.diagnose(latents._in_magnitudes(values, magnitude), truth, rate)
    by_context, also_expected = latents._by_contexts(as_dense(values), truth, rate, magnitude)
    assert expected == pytest.approx(also_expected, rel=1e-5)
    assert by_pairs.summary()["brier"] == pytest.approx(by_context.summary()["brier"], rel=1e-5)
    dense = np.clip(values.dense(np.arange(CONTEXTS)) / 0.5, 0, 1)
    assert expected == pytest.approx(dense.sum(1), rel=1e-5)


@pytest.mark.parametrize("silent", [0.0, 0.3])
def test_calls_are_counted_alike_in_pairs_and_in_full(silent) -> None:
    truth, said = planted()
    pairs = said.simulated
    data = (pairs.level > 4).astype(np.float32) - silent
    extra = sparse.csr_matrix((data, (pairs.position, pairs.latent)), shape=(CONTEXTS, LATENTS))
    values = Codes(np.full(LATENTS, silent, np.float32), extra)
    sensitivity, specificity = latents.calls(values, truth)
    called, true = values.dense(np.arange(CONTEXTS)) > 0, truth.extra_PL.toarray() > 0
    for latent in range(LATENTS):
        assert sensitivity[latent] == pytest.approx(called[true[:, latent], latent].mean())
        assert specificity[latent] == pytest.approx(1 - called[~true[:, latent], latent].mean())
    assert np.array(latents.calls(as_dense(values), truth)) == pytest.approx(np.array([sensitivity, specificity]))


def test_histograms_count_every_pair_once() -> None:
    truth, _ = planted()
    values = Codes(np.full(LATENTS, 0.02, np.float32), truth.extra_PL)
    unit = np.full(LATENTS, 1.1)
    found = latents.histogram(values, unit, CONTEXTS)
    assert found.sum() == CONTEXTS * LATENTS
    assert found.tolist() == latents.histogram(as_dense(values), unit, CONTEXTS).tolist()
    shares = values.dense(np.arange(CONTEXTS)) / unit
    assert found.tolist() == np.histogram(shares, latents.EDGES)[0].tolist()
