import numpy as np
import pytest
from scipy import special, stats

from nlrewrite.evaluate.bands import area, max_t
from nlrewrite.seeds import generator

ROWS = 40_000


def normal(correlation: float, count: int, seed: int = 0) -> np.ndarray:
    """Resamples of `count` equally correlated normal contrasts of unequal spread."""
    draws = generator(seed, "bands", count)
    common = draws.normal(size=(ROWS, 1))
    own = draws.normal(size=(ROWS, count))
    return (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own) * np.arange(1, count + 1)


def critical_of(level: float, count: int, correlation: float) -> float:
    """Dunnett's two-sided critical value for known variances, by quadrature over what the contrasts share."""
    shared, weight = np.polynomial.hermite_e.hermegauss(60)
    weight = weight / weight.sum()

    def covered(critical: float) -> float:
        scale = np.sqrt(1 - correlation)
        ends = [special.ndtr((side * critical - np.sqrt(correlation) * shared) / scale) for side in (1, -1)]
        return float(weight @ (ends[0] - ends[1]) ** count)

    grid = np.linspace(1.5, 4, 2501)
    return float(grid[np.searchsorted([covered(each) for each in grid], level)])


def test_one_contrast_has_its_percentile_end() -> None:
    drawn = generator(0, "one").gamma(2.0, 1.0, (2000, 1))
    upper = max_t(drawn.mean(0), drawn, side="upper")
    assert upper.high_K == pytest.approx(np.quantile(drawn, 0.95))
    assert upper.low_K.tolist() == [-np.inf]
    lower = max_t(drawn.mean(0), drawn, side="lower")
    assert lower.low_K == pytest.approx(np.quantile(drawn, 0.05))
    assert lower.high_K.tolist() == [np.inf]


def test_independent_contrasts_stand_near_bonferroni_and_exactly_at_sidak() -> None:
    drawn = normal(0.0, 5)
    found = max_t(np.zeros(5), drawn)
    bonferroni = stats.norm.isf(0.025 / 5)
    sidak = stats.norm.isf((1 - 0.95 ** (1 / 5)) / 2)
    assert found.critical == pytest.approx(sidak, abs=0.03)
    assert found.critical < bonferroni + 0.03
    assert found.high_K == pytest.approx(-found.low_K)
    assert found.high_K == pytest.approx(found.critical * np.arange(1, 6), rel=0.02)
    one_side = max_t(np.zeros(5), drawn, side="upper").critical
    assert one_side == pytest.approx(stats.norm.isf(1 - 0.95 ** (1 / 5)), abs=0.03)


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_correlated_contrasts_need_less(correlation: float) -> None:
    found = max_t(np.zeros(6), normal(correlation, 6)).critical
    assert found == pytest.approx(critical_of(0.95, 6, correlation), abs=0.03)
    assert found < stats.norm.isf((1 - 0.95 ** (1 / 6)) / 2)


def test_the_same_contrast_many_times_is_one_contrast() -> None:
    drawn = np.repeat(normal(0.0, 1), 7, axis=1) * np.arange(1, 8)
    assert max_t(np.zeros(7), drawn).critical == pytest.approx(max_t(np.zeros(1), drawn[:, :1]).critical)


def test_more_contrasts_never_narrow_a_band_and_their_order_does_not_matter() -> None:
    drawn = normal(0.3, 8)
    widths = [max_t(np.zeros(count), drawn[:, :count]).critical for count in range(1, 9)]
    assert widths == sorted(widths)
    assert max_t(np.zeros(8), drawn[:, ::-1]).high_K == pytest.approx(max_t(np.zeros(8), drawn).high_K[::-1])


def test_few_groups_widen() -> None:
    drawn = normal(0.0, 1)
    found = max_t(np.zeros(1), drawn, groups=10)
    assert found.critical == pytest.approx(np.sqrt(10 / 9) * stats.t.isf(0.025, 9), abs=0.03)
    assert max_t(np.zeros(1), drawn, groups=1e9).critical == pytest.approx(max_t(np.zeros(1), drawn).critical)


def test_what_no_resample_moves_is_its_own_band() -> None:
    drawn = normal(0.0, 2)
    still = np.column_stack([np.full(ROWS, 0.3), drawn[:, 0]])
    found = max_t(np.array([0.3, 0.0]), still)
    assert (found.low_K[0], found.high_K[0]) == (0.3, 0.3)
    assert found.critical == pytest.approx(max_t(np.zeros(1), drawn[:, :1]).critical)
    nothing = max_t(np.array([0.3]), still[:, :1], groups=5)
    assert (nothing.low_K.tolist(), nothing.high_K.tolist(), nothing.critical) == ([0.3], [0.3], 0.0)


def test_resamples_that_lack_a_contrast_are_left_out() -> None:
    drawn = normal(0.0, 2)
    missing = drawn.copy()
    missing[::2, 1] = np.nan
    assert max_t(np.zeros(2), missing).high_K == pytest.approx(max_t(np.zeros(2), drawn[1::2]).high_K)


def test_the_area_is_that_of_trapezoids_from_nothing_at_zero() -> None:
    fractions = np.array([0.25, 0.5, 1.0])
    assert area(fractions, fractions) == pytest.approx(0.5)
    assert area(fractions, np.array([1.0, 1.0, 1.0])) == pytest.approx(0.125 + 0.25 + 0.5)
    rows = np.stack([fractions, 2 * fractions, np.zeros(3)])
    assert area(fractions, rows) == pytest.approx([0.5, 1.0, 0.0])
    with pytest.raises(AssertionError, match="fractions must rise"):
        area(np.array([0.5, 0.25]), np.zeros(2))
