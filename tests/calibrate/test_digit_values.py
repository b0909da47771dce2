import numpy as np
import pytest

from nlrewrite.calibrate import digit_values
from nlrewrite.calibrate.digit_values import STRENGTHS
from nlrewrite.calibrate.evidence import Evidence, Known, dense
from nlrewrite.calibrate.fitted import Part
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Answers
from tests.calibrate.making import (
    CASES,
    DIGITS,
    FOLDS,
    LATENTS,
    aggregated,
    error,
    evidence,
    known,
    levels,
    mean_error,
    predicted,
    replicated,
    scores,
)

CURVE = np.array([0, 0, 0, 0.1, 0.1, 0.2, 0.3, 0.5, 0.8, 0.9])
"""What digits are worth here: far from a line."""


def distributions(seed: int, latents: int, cases: int) -> np.ndarray:
    """Digits mostly 0, each with a distribution of its own."""
    draws = generator(seed, "distributions")
    digits = draws.dirichlet(np.full(10, 0.3), (latents, cases))
    digits[..., 0] += draws.gamma(4.0, 2.0, (latents, cases))
    return (digits / digits.sum(-1, keepdims=True)).astype(np.float32)


def planted(seed: int = 0, latents: int = 30, cases: int = CASES) -> tuple[Evidence, Known, np.ndarray]:
    """Latents of different sizes whose expected activation is linear in what their digits are worth."""
    draws = generator(seed, "planted digits")
    digits, size = distributions(seed, latents, cases), np.exp(generator(0, "sizes").normal(size=latents))
    expected = digits @ CURVE * size[:, None]
    truth = np.where(
        draws.random((latents, cases)) < digits @ CURVE, draws.gamma(8.0, size[:, None] / 8, digits.shape[:2]), 0
    )
    fold = np.arange(cases) * FOLDS // cases
    rate = (digits @ CURVE).mean(1)
    return dense(Answers(np.zeros((latents, cases)), digits), truth, fold), Known(10 * size, rate, size), expected


def fit(found: Evidence, told: Known) -> Part:
    return digit_values.fit(found, told, digit_values.share(found, told))


def test_the_shared_curve_is_found_in_multiples_of_the_magnitude() -> None:
    found, told, _ = planted(cases=2000)
    value = digit_values.share(found, told)["value"]
    assert value[0] == 0
    assert (value >= 0).all()
    assert value == pytest.approx(CURVE, abs=0.12)
    assert np.corrcoef(value, CURVE)[0, 1] > 0.97 > np.corrcoef(np.arange(10), CURVE)[0, 1]


def test_other_cases_are_predicted_better_than_by_the_mean_and_than_by_the_expected_digit() -> None:
    seen, told, _ = planted()
    other, _, expected = planted(1)
    part = fit(seen, told)
    values = predicted(part, other)
    straight = {"value": np.arange(10) / 9, "strength": np.array(100.0)}
    by_line = predicted(digit_values.fit(seen, told, straight), other)
    size = told.magnitude[:, None]

    def lost(guess: np.ndarray) -> float:
        return float(np.square((guess - expected) / size).sum())

    assert lost(values) < 0.3 * lost(seen.mean()[:, None])
    assert lost(values) < lost(by_line)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("informative", [True, False])
def test_within_its_cases_no_latent_does_worse_than_its_mean(seed: int, informative: bool) -> None:
    found, told, _ = planted(seed, cases=60)
    if not informative:
        truth = found.total[:, generator(seed, "order").permutation(60)]
        found = dense(found.answers, truth, found.fold)
    better = mean_error(found) - error(fit(found, told), found)
    assert (better >= -1e-5 * np.abs(mean_error(found))).all()
    assert (better > 1e-3).any()
    counted = aggregated(evidence(*levels(seed)))
    told = known(levels(seed)[1])
    assert (error(fit(counted, told), counted) <= mean_error(counted) + 1e-5).all()


def test_a_slope_is_the_latents_own_or_the_shared_one_or_between_and_never_beyond_twice_its_own() -> None:
    worth = np.array([[0.0, 1.0, 0.0, 1.0]] * 4)
    truth = np.array([[0.0, 1.0, 0.0, 1.0], [0, 0.4, 0, 0.4], [1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5]])
    found = dense(Answers(worth), truth, np.arange(4))
    line = digit_values.Line.of(worth, found, np.ones(4))
    assert line.slope(0.0) == pytest.approx([1.0, 0.4, 0.0, 0.0])
    assert line.slope(1e9) == pytest.approx([1.0, 0.8, 0.0, 0.0])
    assert line.slope(2.0)[1] == pytest.approx((0.4 + 2 * 0.2) / (1 + 2 * 0.2))


def test_the_strength_is_the_one_that_best_predicts_each_fold_from_the_others() -> None:
    found, told, _ = planted(latents=8, cases=80)
    shared = digit_values.share(found, told)

    def lost(strength: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            rest, held = found.where(found.fold != fold), found.where(found.fold == fold)
            part = digit_values.fit(rest, told, {**shared, "strength": np.array(strength)})
            total += float(np.square(predicted(part, held) - held.total).sum())
        return total

    errors = [lost(strength) for strength in STRENGTHS]
    assert errors[STRENGTHS.index(float(shared["strength"]))] == pytest.approx(min(errors), rel=1e-6)
    assert max(errors) > 1.001 * min(errors)


# -- what evidence may look like --------------------------------------------------------------------------------------


def test_counted_levels_are_worth_what_their_contexts_are() -> None:
    score, truth = levels()
    found, told = evidence(score, truth), known(truth)
    counted, each = fit(aggregated(found), told), fit(found, told)
    assert counted.arrays["value"] == pytest.approx(each.arrays["value"], rel=1e-6, abs=1e-9)
    assert np.ptp(each.arrays["value"] @ DIGITS.T, axis=1).min() > 1e-3


def test_a_weight_of_n_is_n_cases_and_their_order_is_nothing() -> None:
    draws = generator(0, "weights")
    found, told, _ = planted()
    weighed, repeated = replicated(found, draws.integers(0, 4, CASES))
    moved = repeated.where(draws.permutation(len(repeated.fold)))
    expected = fit(repeated, told).arrays["value"]
    assert fit(weighed, told).arrays["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert fit(moved, told).arrays["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_hostile_cases_have_a_defined_answer() -> None:
    found, _, _ = planted(latents=5, cases=50)
    digits, truth, weight = found.answers.digits_BSZ.copy(), np.zeros((5, 50)), np.ones((5, 50))
    truth[1, 7] = 3.0
    truth[2] = 1.0
    digits[3], truth[3, :20] = digits[3, 0], 2.0
    truth[4], weight[4, 1:] = 2.0, 0
    hostile = dense(Answers(np.zeros((5, 50)), digits), truth, found.fold, weight)
    values = predicted(fit(hostile, known(truth)), hostile)
    assert (values[0] == 0).all(), "never active"
    assert np.isfinite(values).all()
    assert values[1].mean() == pytest.approx(3.0 / 50, rel=1e-4), "one activation"
    assert values[2] == pytest.approx(1.0), "always active"
    assert values[3] == pytest.approx(20 * 2.0 / 50, rel=1e-5), "the same digits everywhere"
    assert values[4] == pytest.approx(2.0), "a single case"
    silent = dense(hostile.answers, np.zeros((5, 50)), found.fold)
    assert (predicted(fit(silent, known(np.zeros((5, 50)))), silent) == 0).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    score, truth = scores()
    with pytest.raises(SettingError, match=r"gives no digits, .* Leave it out of --set calibrate.calibrators"):
        fit(evidence(score, truth), known(truth))
    score, truth = levels()
    missing = evidence(score, np.where(np.arange(CASES) == 5, np.nan, truth))
    with pytest.raises(SettingError, match=r"activation must be a finite number: latent 0 .* in case 5"):
        fit(missing, known(truth))
    failed = evidence(score, truth)
    failed.answers.digits_BSZ[2, 7, 3] = np.nan
    for attempt in (digit_values.share, lambda *given: digit_values.fit(*given, digit_values.share(*planted()[:2]))):
        with pytest.raises(SettingError, match=r"finite probabilities: latent 2 .* in case 7"):
            attempt(failed, known(truth))
    with pytest.raises(SettingError, match=f"latent {LATENTS - 1} of the block has none"):
        fit(evidence(score, truth, np.arange(LATENTS)[::-1, None] * np.ones(CASES)), known(truth))
