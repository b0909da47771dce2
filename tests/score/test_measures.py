import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.score import measures

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


def test_latents_do_not_mix() -> None:
    some = [tables([(9, True), (0, False)]), tables([(9, False), (0, True)]), tables([(0, False), (2, False)])]
    said, active = (np.concatenate(parts) for parts in zip(*some, strict=True))
    assert measures.matthews(said, active).tolist() == [1.0, -1.0, 0.0]
    assert measures.sensitivity(active).tolist()[:2] == [1.0, 0.0]
    assert measures.specificity(said, active).tolist() == [1.0, 0.0, 0.5]
