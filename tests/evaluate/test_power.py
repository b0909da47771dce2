import numpy as np
import pytest
from scipy import stats

from nlrewrite.evaluate.power import POWER, TEST, contexts_needed, detectable
from nlrewrite.seeds import generator


def test_the_two_quantiles() -> None:
    assert pytest.approx((stats.norm.ppf(0.975), stats.norm.ppf(0.8))) == (TEST, POWER)


def test_the_published_example() -> None:
    """A spread of 0.49 nats and a difference of 0.02 take about 4,700 prompts; with KL's 0.29 about 1,650."""
    assert contexts_needed(0.49, 0.02) == pytest.approx(4711, abs=2)
    assert contexts_needed(0.29, 0.02) == pytest.approx(1650, abs=2)
    assert contexts_needed(0.49, -0.02) == contexts_needed(0.49, 0.02)
    assert contexts_needed(0.49, 0.02, design_effect=2.0) == pytest.approx(2 * 4711, abs=3)


def test_no_difference_is_never_seen_and_a_certain_one_at_once() -> None:
    assert contexts_needed(0.5, 0.0) is None
    assert contexts_needed(0.5, 1e-12) is None
    assert contexts_needed(0.0, 0.1) == 2


def test_both_answers_are_one_formula() -> None:
    needed = contexts_needed(0.7, 0.05, 1.7)
    assert needed is not None
    assert detectable(0.7, needed, 1.7) == pytest.approx(0.05, rel=1e-3)


def test_so_many_contexts_find_it_in_four_studies_of_five() -> None:
    needed = contexts_needed(1.0, 0.2)
    assert needed is not None
    draws = generator(0, "power").normal(0.2, 1.0, (4000, needed))
    found = np.abs(draws.mean(1)) > TEST * draws.std(1, ddof=1) / np.sqrt(needed)
    assert found.mean() == pytest.approx(0.8, abs=0.02)
