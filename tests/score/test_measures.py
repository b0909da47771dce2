import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.score import measures
from nlrewrite.seeds import generator

DIGITS = 10
cases = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40)


def tables(cases: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Counts per level of one latent: all cases, and the active ones."""
    said, active = np.zeros((1, DIGITS)), np.zeros((1, DIGITS))
    for level, is_active in cases:
        said[0, level] += 1
        active[0, level] += is_active
    return said, active


@given(cases, st.integers(1, 9))
def test_rates_are_those_of_the_cases(cases: list[tuple[int, bool]], least: int) -> None:
    said, active = tables(cases)
    level, true = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    guess = level >= least
    sensitivity, specificity = measures.sensitivity(active, least)[0], measures.specificity(said, active, least)[0]
    if true.any():
        assert sensitivity == pytest.approx(guess[true].mean())
    else:
        assert np.isnan(sensitivity)
    if (~true).any():
        assert specificity == pytest.approx((~guess[~true]).mean())
    else:
        assert np.isnan(specificity)
    correlation = measures.matthews(said, active, least)[0]
    if guess.std() and true.std():
        assert correlation == pytest.approx(np.corrcoef(guess, true)[0, 1])
    else:
        assert correlation == 0


@given(cases)
def test_average_precision_is_the_area_over_distinct_thresholds(cases: list[tuple[int, bool]]) -> None:
    said, active = tables(cases)
    level, true = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    found = measures.average_precision(said, active)[0]
    if not true.any():
        assert np.isnan(found)
        return
    area, recall = 0.0, 0.0
    for threshold in sorted(set(level.tolist()), reverse=True):
        chosen = level >= threshold
        reached = (chosen & true).sum() / true.sum()
        area += (reached - recall) * true[chosen].mean()
        recall = reached
    assert found == pytest.approx(area)


def test_average_precision_in_closed_form() -> None:
    said, active = tables([(9, True), (5, False), (3, True), (0, False)])
    assert measures.average_precision(said, active)[0] == pytest.approx((1 + 2 / 3) / 2)
    tied = tables([(4, True), (4, False), (4, False), (4, False)])
    assert measures.average_precision(*tied)[0] == pytest.approx(0.25)
    nothing_said = tables([(0, True)] + [(0, False)] * 9)
    assert measures.average_precision(*nothing_said)[0] == pytest.approx(0.1)


def test_f1_in_closed_form() -> None:
    true, false, missed = np.array([8.0, 0, 0, 5]), np.array([2.0, 3, 0, 0]), np.array([4.0, 5, 0, 0])
    found = measures.f1(true, false, missed)
    precision, recall = 8 / 10, 8 / 12
    assert found[0] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert found[1] == 0
    assert np.isnan(found[2])
    assert found[3] == 1


def test_precision_is_that_of_text_and_not_of_the_quiz() -> None:
    rate, counts = (
        np.array([0.001, 0.5, 0.001, 0.2]),
        np.array([[40, 10, 10, 40]] * 2 + [[0, 0, 50, 50], [50, 0, 0, 0]]),
    )
    found = measures.precision_at(rate, *counts.T.astype(float))
    assert found[0] == pytest.approx(0.8 * 0.001 / (0.8 * 0.001 + 0.2 * 0.999))
    assert found[0] < 0.0041
    assert found[1] == pytest.approx(0.8)  # at the quiz's own rate it is the quiz's precision
    assert np.isnan(found[2]), "nothing was called active"
    assert np.isnan(found[3]), "no inactive case was asked about"
    assert measures.balanced_accuracy(*counts.T.astype(float))[:3] == pytest.approx([0.8, 0.8, 0.5])


def test_squared_mcc_is_the_variance_that_flags_explain() -> None:
    """A flag of sensitivity .5 and specificity .99 on lognormal activations with CV .6: against the best guess."""
    draws = generator(0, "flags")
    count, rate, s, c, spread = 400_000, 0.02, 0.5, 0.99, 0.6
    active = draws.random(count) < rate
    sigma = np.sqrt(np.log(1 + spread**2))
    value = np.where(active, np.exp(sigma * draws.standard_normal(count) - sigma**2 / 2), 0)
    flag = np.where(active, draws.random(count) < s, draws.random(count) >= c)
    guess = np.where(flag, value[flag].mean(), value[~flag].mean())
    reached = 1 - np.square(value - guess).mean() / value.var()
    correlation = np.corrcoef(flag, active)[0, 1]
    found = measures.explained_by_flags(np.array([correlation]), np.array([rate]), np.array([spread]))
    assert found[0] == pytest.approx(reached, rel=0.03)


def test_latents_do_not_mix() -> None:
    some = [tables([(9, True), (0, False)]), tables([(9, False), (0, True)]), tables([(0, False), (2, False)])]
    said, active = (np.concatenate(parts) for parts in zip(*some, strict=True))
    assert measures.matthews(said, active).tolist() == [1.0, -1.0, 0.0]
    assert measures.sensitivity(active).tolist()[:2] == [1.0, 0.0]
    assert measures.specificity(said, active).tolist() == [1.0, 0.0, 0.5]
