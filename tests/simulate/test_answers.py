import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nlrewrite.calibrate.cases import case_control
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.fit import cross_fitted_error, fit_on
from nlrewrite.calibrate.known import KnownOf
from nlrewrite.calibrate.pairing import Pairing, paired
from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome
from nlrewrite.seeds import generator
from nlrewrite.simulate import answers
from nlrewrite.simulate.answers import Answered, Columned
from nlrewrite.simulate.ask import NOTHING, Asked
from nlrewrite.simulate.expectation import Flavour
from nlrewrite.simulate.oracle import Manner, Oracle, Scored
from nlrewrite.simulate.said import log_odds

LATENTS, CONTEXTS = 6, 800
FOLDS_P = np.arange(CONTEXTS) // 10 % 4
NAMES = ("hurdle@log-odds", "isotonic-shrunk@expected", "digit-values", "platt@log-odds-centred", "none")


def truth() -> sparse.csr_matrix:
    draws = generator(0, "answers", "truth")
    dense = np.where(draws.random((CONTEXTS, LATENTS)) < 0.06, draws.random((CONTEXTS, LATENTS)) + 0.5, 0)
    return sparse.csr_matrix(dense.astype(np.float32))


def oracle(truth_PL: sparse.csr_matrix) -> Oracle:
    explained = np.array([True] * (LATENTS - 1) + [False])
    magnitude = np.full(LATENTS, 1.0)
    manner = Manner(failed=0.05)
    return Oracle(sparse.csr_matrix(truth_PL.T), magnitude, Scored.of_auc(0.85), manner, 0, "calibrate", explained)


def asked(said: Oracle, position_LS: np.ndarray) -> Answered:
    """What the oracle says at these positions, as a language model's answers would be kept."""
    digits = said.digits(slice(None))
    assert digits is not None
    place = np.broadcast_to(position_LS, (LATENTS, position_LS.shape[1]))
    digits_LSZ = np.take_along_axis(digits, np.maximum(place, 0)[..., None], axis=1)
    digits_LSZ[place == NOTHING] = np.nan
    with np.errstate(divide="ignore"):
        logp = np.log(digits_LSZ)
    outcome = np.zeros(place.shape, dtype=np.int8)
    return Answered(position_LS, Asked(logp, None, outcome), said.explained, CONTEXTS, "renormalised")


def known_of(truth_PL: sparse.csr_matrix) -> KnownOf:
    dense = truth_PL.toarray()

    def known(latents: slice) -> Known:
        part = dense[:, latents]
        rate = (part > 0).mean(0)
        return Known(part.max(0), rate, part.sum(0) / np.maximum((part > 0).sum(0), 1), ())

    return known


def sorted_cases(truth_PL: sparse.csr_matrix, drawn_LS: np.ndarray) -> np.ndarray:
    order = np.sort(np.where(drawn_LS == NOTHING, CONTEXTS, drawn_LS), axis=1)
    return np.where(order == CONTEXTS, NOTHING, order).astype(np.int32)


@pytest.mark.parametrize("name", NAMES)
def test_answers_by_cases_fit_as_an_oracle_that_was_asked_for_all(name: str) -> None:
    truth_PL = truth()
    said = oracle(truth_PL)
    drawn = case_control(truth_PL, FOLDS_P, 20, 60, seed=3)
    answered = asked(said, sorted_cases(truth_PL, drawn.context_LS))
    right = fit_on(name, Pairing(said, truth_PL, FOLDS_P, cases=drawn.evidence(said, truth_PL)), known_of(truth_PL))
    found = fit_on(name, paired(answered, truth_PL, FOLDS_P), known_of(truth_PL))
    assert answered.by_cases and right.map == found.map
    for label, array in right.arrays.items():
        np.testing.assert_allclose(found.arrays[label], array, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found.mean, right.mean, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_answers_at_the_same_positions_fit_as_an_oracle_that_has_no_others(name: str) -> None:
    truth_PL = truth()
    said = oracle(truth_PL)
    rows = np.arange(3, CONTEXTS, 5, dtype=np.int32)
    answered = asked(said, rows[None])
    pairing = paired(answered, truth_PL, FOLDS_P)
    np.testing.assert_array_equal(pairing.said.scores(slice(None)), answered.scores(slice(None))[:, rows])
    there = Oracle(
        said.truth_LP[:, rows], said.magnitude_L, said.knows, Manner(), 0, "calibrate", said.explained
    )  # another draw of the same law: what is compared is that the truth was taken at the right rows
    assert pairing.truth_PL.get_shape() == (len(rows), LATENTS)
    np.testing.assert_array_equal(pairing.truth_PL.toarray(), there.truth_LP.toarray().T)
    assert np.isfinite(fit_on(name, pairing, known_of(truth_PL)).mean).all()


def test_a_position_that_was_not_asked_about_is_missing() -> None:
    answered = asked(oracle(truth()), np.array([[4, 9]], dtype=np.int32))
    scores = answered.scores(slice(0, 3))
    assert scores.shape == (3, CONTEXTS)
    assert np.isnan(np.delete(scores, [4, 9], axis=1)).all()


def test_each_case_is_found_in_its_column() -> None:
    truth_PL = truth()
    drawn = case_control(truth_PL, FOLDS_P, 20, 60, seed=3)
    answered = asked(oracle(truth_PL), sorted_cases(truth_PL, drawn.context_LS))
    column = answered.columns(slice(1, 4), drawn.context_LS[1:4])
    found = np.take_along_axis(answered.position_LS[1:4], column, axis=1)
    there = drawn.context_LS[1:4] != NOTHING
    np.testing.assert_array_equal(found[there], drawn.context_LS[1:4][there])


def test_errors_of_latents_add_up_and_joint_fits_are_refused() -> None:
    truth_PL = truth()
    drawn = case_control(truth_PL, FOLDS_P, 20, 60, seed=3)
    pairing = paired(asked(oracle(truth_PL), sorted_cases(truth_PL, drawn.context_LS)), truth_PL, FOLDS_P)
    dec_LE = np.eye(LATENTS, dtype=np.float32)

    def error(name: str) -> float:
        return cross_fitted_error(name, pairing, lambda fold: known_of(truth_PL), dec_LE)

    variance = truth_PL.toarray().var(0).sum()
    assert error("mean") == pytest.approx(variance, rel=0.15)
    assert error("hurdle@log-odds") < error("mean") < error("none")
    with pytest.raises(SettingError, match="contexts of its own"):
        fit_on("hurdle+output-gain", pairing, known_of(truth_PL), dec_LE)
    with pytest.raises(SettingError, match=r"ask\.contexts=last"):
        _ = pairing.said.rows  # type: ignore[attr-defined]


def test_whole_digits_to_look_at() -> None:
    logp = np.log(np.full((1, 2, 10), 1e-30))
    logp[0, 0, 7] = 0
    logp[0, 1, 0] = 0
    answered = Answered(np.array([[5, 6]]), Asked(logp, None, np.zeros((1, 2))), np.ones(1, bool), 9, "renormalised")
    levels = answered.at_rows().levels()
    assert levels.position.tolist() == [0] and levels.level.tolist() == [7]
    np.testing.assert_allclose(answered.at_rows().scores(slice(None)), [[7, 0]], atol=1e-6)


def test_only_questions_are_counted(tmp_path) -> None:
    position_LS = np.array([[1, 4, NOTHING], [0, 2, 3], [5, NOTHING, NOTHING]])
    outcome = np.full((3, 3), Outcome.SKIPPED, dtype=np.int8)
    outcome[0, 0], outcome[1, 0] = Outcome.OK, Outcome.TRANSPORT
    logp = np.full((3, 3, 10), np.nan, dtype=np.float16)
    logp[0, 0] = -np.log(10)
    explained = np.array([True, True, False])
    answers.write(tmp_path, Asked(logp, None, outcome), position_LS, explained, np.arange(3))
    table = pd.read_parquet(tmp_path / "outcomes.parquet")
    assert table["ok"].tolist() == [1, 0, 0] and table["transport"].tolist() == [0, 1, 0]
    assert table["skipped"].tolist() == [1, 2, 0]  # no empty column, and nothing of a latent without a sentence


@pytest.mark.parametrize("flavour", ["renormalised", "full", "paper_top10"])
def test_log_odds_are_among_the_digits_whatever_the_mass(flavour: Flavour) -> None:
    logp = np.log(np.array([[[0.9, *[0.1 / 9] * 9], [0.2, *[0.8 / 9] * 9], [np.nan] * 10]])).astype(np.float16)
    mass = np.log(np.array([[0.01, 0.5, np.nan]])).astype(np.float16)
    asked = Asked(logp, mass, np.zeros((1, 3), dtype=np.int8), np.ones(logp.shape, dtype=bool))
    found = log_odds(Columned(asked, np.ones(1, dtype=bool), flavour).digits(slice(None)))
    np.testing.assert_allclose(found, [[np.log(1 / 9), np.log(4), np.nan]], atol=2e-3)
    assert log_odds(np.zeros((1, 10))) < -13  # no digit among the likeliest tokens: an expected digit of 0
