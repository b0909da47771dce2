from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from nlrewrite.calibrate import hurdle, logistic
from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Fitted, Part
from nlrewrite.calibrate.methods import Fit
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Answers
from tests.calibrate.planted import binormal, told

POOLED = {"slope": np.array(0.8), "growth": np.array(0.1), "spread": np.array(1.0)}
FITS: dict[str, Fit] = {
    "platt": logistic.platt,
    "beta": logistic.beta,
    "prior-shift": logistic.prior_shift,
    **{f"hurdle {pooling}": hurdle.fit(pooling) for pooling in ("none", "partial", "full")},
}


def evidence(score_BS: np.ndarray, truth_BS: np.ndarray, weight: np.ndarray | None = None) -> Evidence:
    """In double precision, however many cases there are."""
    weight = np.ones((1, score_BS.shape[1])) if weight is None else np.atleast_2d(weight)
    active, total = (np.where(truth_BS > 0, weight * each, 0) for each in (1, truth_BS))
    return Evidence(Answers(score_BS, None), weight, active, total, np.arange(score_BS.shape[1]) % 3)


def known(given: Evidence) -> Known:
    weight, active, total = (
        np.broadcast_to(each, given.total.shape).sum(1) for each in (given.weight, given.active, given.total)
    )
    return Known(np.ones(len(active)), active / weight, total / np.maximum(active, 1e-9))


def predicted(part: Part, given: Evidence, score: np.ndarray | None = None) -> np.ndarray:
    gain = np.ones(given.latents) if part.gain is None else part.gain
    every = Fitted("", "", part.map, part.arrays, known(given).mean, gain)
    return every.predict(given.answers if score is None else told(score))


def planted(latents: int = 8, contexts: int = 3000) -> Evidence:
    score, truth = binormal(latents, contexts)
    return evidence(score, truth.T)


# -- against an optimiser that knows nothing of Newton -----------------------------------------------------------------


@pytest.mark.parametrize("precision", [0.01, 1.0])
@pytest.mark.parametrize("lower", [-np.inf, 0.0])
def test_the_solution_is_the_posterior_mode(precision: float, lower: float) -> None:
    score, truth = binormal(5, 800)
    score[4] = -score[4]  # wants a negative slope
    given = evidence(score, truth.T)
    features = [np.minimum(score, 1), np.maximum(score, 1)]
    found = logistic.solve(features, logistic.counted(given, known(given)), mean=0.5, precision=precision, lower=lower)
    for latent in range(5):

        def worth(at: np.ndarray, latent: int = latent) -> float:
            log_odds = at[0] + at[1] * features[0][latent] + at[2] * features[1][latent]
            active = truth[:, latent] > 0
            return (
                -log_expit(np.where(active, log_odds, -log_odds)).sum() + precision * np.square(at[1:] - 0.5).sum() / 2
            )

        bounds = [(None, None), *[(None if lower < 0 else lower, None)] * 2]
        best = minimize(worth, np.zeros(3), bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-7})
        assert worth(found.coefficient[latent]) <= best.fun + 1e-3
        assert found.coefficient[latent] == pytest.approx(best.x, abs=0.02)
    assert (found.coefficient[4, 1] < 0) == (lower < 0)


def test_single_precision_is_precise_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    given = planted(6, 3000)
    double = logistic.platt(given, known(given), {}).arrays
    monkeypatch.setattr(logistic, "SMALL", 0)
    single = logistic.platt(given, known(given), {}).arrays
    for label, array in double.items():
        assert single[label] == pytest.approx(array, rel=1e-3, abs=1e-3), label


def test_separable_cases_have_a_finite_slope() -> None:
    score = np.tile(np.linspace(-3, 3, 500), (2, 1)) * np.array([[1.0], [1000.0]])
    truth = (score > 0) * 1.0
    given = evidence(score, truth)
    for name, fit in FITS.items():
        part = fit(given, known(given), POOLED)
        assert all(np.isfinite(array).all() for array in part.arrays.values()), name
        values = predicted(part, given)
        assert np.isfinite(values).all()
        if name != "prior-shift" and name != "hurdle full":
            assert values[:, -1] == pytest.approx([1, 1], abs=0.05), name


# -- what holds of every one of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITS)
def test_a_constant_score_is_worth_the_mean(name: str) -> None:
    for constant in (0.0, -3.0, 7.5):
        _, truth = binormal(5, 1000)
        given = evidence(np.full((5, 1000), constant), truth.T)
        values = predicted(FITS[name](given, known(given), POOLED), given)
        assert values == pytest.approx(np.tile(known(given).mean[:, None], (1, 1000)), rel=1e-3)


@pytest.mark.parametrize("name", FITS)
def test_they_never_fall_with_the_score(name: str) -> None:
    given = planted()
    score = np.tile(np.linspace(-30, 30, 301), (given.latents, 1))
    for turned in (given, replace(given, answers=Answers(-given.answers.score_BS, None))):
        part = FITS[name](turned, known(turned), POOLED)
        if name == "platt" and turned is not given:
            assert (part.arrays["slope"] < 0).any()
            continue
        assert (np.diff(predicted(part, turned, score), axis=1) >= 0).all()


@pytest.mark.parametrize("name", FITS)
@given(st.integers(0, 5), st.integers(2, 40), st.floats(0, 1))
@settings(max_examples=15)
def test_a_weight_is_so_many_equal_cases(name: str, seed: int, cases: int, inactive: float) -> None:
    draws = generator(seed, "weights", cases)
    score, weight = draws.normal(size=(3, cases)), draws.integers(0, 4, cases)
    weight[draws.integers(cases)] = 2
    truth = draws.gamma(2.0, 1.0, (3, cases)) * (draws.random((3, cases)) > inactive)
    whole = evidence(score, truth, weight.astype(float))
    repeated = evidence(np.repeat(score, weight, axis=1), np.repeat(truth, weight, axis=1))
    found = [FITS[name](each, known(repeated), POOLED) for each in (whole, repeated)]
    values = [predicted(part, repeated, score) for part in found]
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4)
    assert np.isfinite(values[0]).all()


@pytest.mark.parametrize("name", FITS)
def test_the_order_of_cases_changes_nothing(name: str) -> None:
    given = planted()
    order = generator(0, "order").permutation(len(given.fold))
    moved = given.where(order)
    first, second = (predicted(FITS[name](each, known(each), POOLED), given) for each in (given, moved))
    assert second == pytest.approx(first, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", FITS)
def test_never_active_always_active_and_active_once_are_finite(name: str) -> None:
    draws = generator(0, "edges")
    score = draws.normal(size=(4, 400))
    truth = np.zeros((4, 400))
    truth[1] = 2.0
    truth[2, 17] = 3.0
    truth[3, np.argmax(score[3])] = 3.0
    given = evidence(score, truth)
    values = predicted(FITS[name](given, known(given), POOLED), given)
    assert (values[0] == 0).all()
    if name != "hurdle full":  # there it grows with the score as others do
        assert values[1] == pytest.approx(np.full(400, 2.0), rel=0.01)
    assert values[1].mean() == pytest.approx(2, rel=0.01)
    assert np.isfinite(values).all() and values.min() >= 0 and values[2:].max() <= 3.001


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_evidence_that_cannot_be_meant_is_refused(bad: float) -> None:
    weight = np.ones(30)
    weight[3] = bad
    with pytest.raises(SettingError, match="a weight must"):
        evidence(np.zeros((2, 30)), np.ones((2, 30)), weight).checked()
    with pytest.raises(SettingError, match="weights must add up to more than 0"):
        evidence(np.zeros((2, 30)), np.zeros((2, 30)), np.zeros(30)).checked()


# -- each by itself ----------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 0.9), st.floats(-5, 5), st.floats(0.1, 5), st.integers(0, 20))
def test_prior_shift_has_the_known_rate_on_average(rate: float, centre: float, width: float, seed: int) -> None:
    score = generator(seed, "shift").normal(centre, width, (2, 300))
    given = evidence(score, np.ones((2, 300)))
    part = logistic.prior_shift(given, Known(np.ones(2), np.array([rate, 0.0]), np.array([3.0, 0.0])), {})
    chance = expit(part.arrays["intercept"][:, None] + score)
    assert chance[0].mean() == pytest.approx(rate, rel=1e-3)
    assert chance[1].max() < 1e-9
    assert part.arrays["size"].tolist() == [3.0, 0.0]


def test_prior_shift_looks_at_no_pair() -> None:
    given = planted()
    other = replace(given, active=given.active[:, ::-1], total=given.total[:, ::-1] * 2)
    first, second = (logistic.prior_shift(each, known(given), {}).arrays for each in (given, other))
    assert all((first[label] == second[label]).all() for label in first)


def test_log_odds_that_are_right_are_left_as_they_are() -> None:
    draws = generator(0, "right")
    score = draws.normal(-2, 1.5, (3, 20_000))
    given = evidence(score, (draws.random(score.shape) < expit(score)) * 1.0)
    platt, beta = logistic.platt(given, known(given), {}).arrays, logistic.beta(given, known(given), {}).arrays
    assert platt["slope"] == pytest.approx([1, 1, 1], abs=0.1)
    assert platt["intercept"] == pytest.approx([0, 0, 0], abs=0.15)
    assert (beta["rise"], beta["fall"]) == (pytest.approx([1, 1, 1], abs=0.15), pytest.approx([1, 1, 1], abs=0.8))


def test_cases_drawn_by_activity_give_the_intercept_of_all_cases() -> None:
    """King and Zeng: the slope needs no correction, the intercept is moved by the drawing alone."""
    score, truth = binormal(4, 60_000, seed=3)
    whole = evidence(score, truth.T)
    every = known(whole)
    full = logistic.platt(whole, every, {}).arrays
    draws = generator(0, "drawn")
    for latent in range(4):
        active = truth[:, latent] > 0
        rows = np.concatenate([np.flatnonzero(active), draws.permutation(np.flatnonzero(~active))[:4000]])
        share = np.array([[4000 / (~active).sum(), 1.0]])
        weight = np.where(active, 1, 1 / share[0, 0])[rows]
        part = replace(evidence(score[[latent]][:, rows], truth.T[[latent]][:, rows], weight), drawn=share)
        of_latent = Known(every.largest[[latent]], every.rate[[latent]], every.magnitude[[latent]])
        found = logistic.platt(part, of_latent, {}).arrays
        assert found["slope"][0] == pytest.approx(full["slope"][latent], abs=0.15)
        assert found["intercept"][0] == pytest.approx(full["intercept"][latent], abs=0.2)
        assert found["size"][0] == pytest.approx(full["size"][latent])


# -- the hurdle --------------------------------------------------------------------------------------------------------


def test_the_shared_slope_is_the_mean_of_the_slopes() -> None:
    score, truth = binormal(60, 2000, d_prime=1.2)
    given = evidence(score, truth.T)
    shared = hurdle.share("partial")(given, known(given))
    slopes = logistic.solve(
        [score], logistic.counted(given, known(given)), mean=float(shared["slope"]), precision=1.0
    ).coefficient[:, 1]
    assert slopes.mean() == pytest.approx(float(shared["slope"]), abs=0.01)
    assert float(shared["slope"]) == pytest.approx(1.2, abs=0.15)
    assert float(shared["growth"]) > 0.05


def test_pooling_fits_a_handful_of_active_cases_better() -> None:
    score, truth = binormal(300, 800, d_prime=1.8, seed=5)
    given, rest = evidence(score[:, :300], truth.T[:, :300]), evidence(score[:, 300:], truth.T[:, 300:])
    whole = known(evidence(score, truth.T))

    def error(pooling: hurdle.Pooling) -> float:
        shared = {} if pooling == "none" else hurdle.share(pooling)(given, whole)
        part = hurdle.fit(pooling)(given, whole, shared)
        gain = np.ones(300) if part.gain is None else part.gain
        values = Fitted("", "", part.map, part.arrays, whole.mean, gain).predict(rest.answers)
        return float(np.square(values - rest.total).mean())

    mean = float(np.square(whole.mean[:, None] - rest.total).mean())
    assert error("partial") < error("none")
    assert error("full") < error("none")
    assert error("partial") < 0.97 * mean


def test_without_pooling_the_magnitude_is_least_squares_on_the_active_cases() -> None:
    given = planted(3, 4000)
    arrays = hurdle.fit("none")(given, known(given), POOLED).arrays
    for latent in range(3):
        active = given.active[latent] > 0
        growth, size = np.polyfit(given.answers.score_BS[latent, active], given.total[latent, active], 1)
        if growth > 0:
            assert (arrays["growth"][latent], arrays["size"][latent]) == (pytest.approx(growth), pytest.approx(size))
        else:
            assert arrays["growth"][latent] == 0


def test_loud_and_quiet_latents_grow_alike() -> None:
    given = planted(40, 2000)
    loud = np.where(np.arange(40) % 2, 1.0, 50.0)[:, None]
    other = replace(given, total=given.total * loud)
    first, second = (hurdle.share("partial")(each, known(each)) for each in (given, other))
    assert float(second["growth"]) == pytest.approx(float(first["growth"]))
    values = [predicted(hurdle.fit("partial")(each, known(each), first), each) for each in (given, other)]
    assert values[1] == pytest.approx(values[0] * loud, rel=1e-4)
