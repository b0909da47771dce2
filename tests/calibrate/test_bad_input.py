"""What is wrong with some latents gives a defined answer: theirs is the mean, and the others' numbers stay."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate import apply, gain, methods
from nlrewrite.calibrate.cases import case_control
from nlrewrite.calibrate.fit import cross_fitted_error, fit_on
from nlrewrite.calibrate.known import Statistics
from nlrewrite.calibrate.pairing import Pairing
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Reading
from tests.calibrate.planted import Told

LATENTS, CONTEXTS, FOLDS = 4, 80, 4
FOLDS_P = np.arange(CONTEXTS) // (CONTEXTS // FOLDS)
DECODER = generator(0, "decoder of bad input").normal(size=(LATENTS, 3)).astype(np.float32)
NAMES = (
    "none",
    "quantile-2",
    "quantile-6",
    "prior-shift",
    "platt",
    "beta",
    "isotonic",
    "isotonic-shrunk",
    "digit-values",
    "hurdle-none",
    "hurdle",
    "hurdle-full",
    "hurdle@centred",
    "levels",
    "quantile-6+gain",
    "isotonic+output-gain",
    "hurdle+gain+refit",
)
WRONG = ("nothing", "missing", "missing outside a fold", "tied", "never active", "one positive", "always active")


def planted(wrong: str, seed: int = 0) -> tuple[Told, np.ndarray]:
    """Levels with digits, and activations; latent 1 is wrong."""
    draws = generator(seed, "bad input")
    score = draws.integers(0, 5, (LATENTS, CONTEXTS)).astype(np.float32)
    truth = np.where(draws.random(score.shape) < 0.02 + 0.1 * score, draws.gamma(4.0, 0.25, score.shape), 0)
    if wrong in ("never active", "one positive"):
        truth[1] = 0
    if wrong == "one positive":
        truth[1, 7] = 1
    if wrong == "always active":
        truth[1] = 1
    if wrong == "tied":
        score[1] = 2
    digits = generator(0, "digits of bad input").dirichlet(np.ones(10), 5)[score.astype(int)].astype(np.float32)
    gone = {"missing": slice(0, None), "missing outside a fold": FOLDS_P != 2}.get(wrong, slice(0, 0))
    score[1, gone], digits[1, gone] = np.nan, np.nan
    return Told(score, digits), truth.T


def statistics(truth_PL: np.ndarray, folds_P: np.ndarray = FOLDS_P) -> Statistics:
    every = np.tile(np.arange(LATENTS, dtype=np.int32), (len(truth_PL), 1))
    active = Active(every, truth_PL.astype(np.float32))
    return Statistics(active, sparse.csr_matrix(truth_PL.astype(np.float32)), folds_P, LATENTS, seed=0)


def pairing(said: Told, truth_PL: np.ndarray, drawn: tuple[int, int] | None = None) -> Pairing:
    truth = sparse.csr_matrix(truth_PL.astype(np.float32))
    cases = case_control(truth, FOLDS_P, *drawn, seed=0).evidence(said, truth) if drawn else None
    return Pairing(said, truth, FOLDS_P, cases=cases)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(WRONG), st.sampled_from([None, (1, 1), (2, 3)]), st.integers(0, 3))
def test_every_calibrator_gives_numbers(name: str, wrong: str, drawn: tuple[int, int] | None, seed: int) -> None:
    said, truth = planted(wrong, seed)
    both, known = pairing(said, truth, drawn), statistics(truth)
    known_of = partial(known.known_of, methods.method(methods.parse(name)).target)
    fitted = fit_on(name, both, known_of(None), DECODER)
    values = apply.dense(fitted, said).values_PL
    assert np.isfinite(values).all() and values.max() < 100
    if wrong == "missing":
        assert fitted.gain[1] == 0 and np.allclose(values[:, 1], fitted.mean[1])
    assert np.isfinite(cross_fitted_error(name, both, known_of, DECODER))


@pytest.mark.parametrize("name", ["hurdle", "isotonic", "quantile-6", "quantile-6+gain", "levels"])
def test_a_latent_without_an_answer_outside_a_fold_has_its_mean_there(name: str) -> None:
    said, truth = planted("missing outside a fold")
    known_of = statistics(truth).known_of(methods.method(methods.parse(name)).target, 2)
    fitted = fit_on(name, pairing(said, truth), known_of, without=(2,))
    whole = fit_on(name, pairing(said, truth), statistics(truth).known_of(methods.method(methods.parse(name)).target))
    assert fitted.gain[1] == 0 and fitted.gain[0] > 0
    assert "+gain" in name or whole.gain[1] > 0
    assert np.allclose(apply.dense(fitted, said).values_PL[:, 1], known_of(slice(1, 2)).mean)


def test_the_gain_of_a_latent_does_not_depend_on_what_another_is_lacking() -> None:
    found = {}
    for wrong in ("nothing", "missing outside a fold"):
        said, truth = planted(wrong)
        both, known = pairing(said, truth), statistics(truth).known_of("corpus")(slice(0, LATENTS))
        method = methods.method(methods.parse("quantile-6"))
        evidence = both.evidence(slice(0, LATENTS), Reading())
        found[wrong] = gain.per_latent(method.fit, evidence, known, {}).gain
    assert np.array_equal(found["nothing"][[0, 2, 3]], found["missing outside a fold"][[0, 2, 3]])
    assert 0 < found["nothing"][0] < 1


def test_a_level_above_all_that_were_seen_is_worth_the_highest_one() -> None:
    said, truth = planted("nothing")
    fitted = fit_on("levels", pairing(said, truth), statistics(truth).known_of(None))
    assert fitted.arrays["value"].shape == (LATENTS, 5)
    higher = Told(np.where(said.score_LP == 4, 9, said.score_LP))
    assert np.array_equal(apply.dense(fitted, higher).values_PL, apply.dense(fitted, said).values_PL)


@pytest.mark.parametrize("name", ["hurdle", "hurdle@centred", "isotonic"])
@pytest.mark.parametrize("drawn", [None, (2, 3)])
def test_an_infinite_answer_is_refused(name: str, drawn: tuple[int, int] | None) -> None:
    said, truth = planted("nothing")
    said.score_LP[2, 5] = np.inf
    with pytest.raises(SettingError, match="there is inf of latent 2 in context 5"):
        fit_on(name, pairing(said, truth, drawn), statistics(truth).known_of(None))


def test_a_single_fold_cannot_be_held_out() -> None:
    said, truth = planted("nothing")
    one = np.zeros(CONTEXTS, dtype=np.int64)
    both = Pairing(said, sparse.csr_matrix(truth.astype(np.float32)), one)
    with pytest.raises(SettingError, match="at least 2 folds: there is 1"):
        cross_fitted_error("hurdle", both, partial(statistics(truth, one).known_of, None), DECODER)


def test_a_fold_that_holds_every_case_cannot_be_held_out() -> None:
    said, truth = planted("nothing")
    found = pairing(said, truth, (1, 1)).evidence(slice(0, LATENTS), Reading())
    with pytest.raises(SettingError, match="no case is left for any latent"):
        found.where(np.zeros(len(found.fold), dtype=bool)).with_a_case()
