import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nlrewrite.calibrate import quantile
from nlrewrite.calibrate.quantile import TYPES, Sample
from nlrewrite.seeds import generator

METHODS = {
    1: "inverted_cdf",
    2: "averaged_inverted_cdf",
    3: "closest_observation",
    4: "interpolated_inverted_cdf",
    5: "hazen",
    6: "weibull",
    7: "linear",
    8: "median_unbiased",
    9: "normal_unbiased",
}


def sample(dense: np.ndarray) -> Sample:
    return Sample(np.sort(dense[dense > 0]), len(dense))


@pytest.mark.parametrize("type_", TYPES)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 5))
def test_quantiles_are_numpys_with_the_zeros_only_counted(type_: int, positives: int, zeros: int, seed: int) -> None:
    draws = generator(seed, positives, zeros)
    dense = draws.permutation(np.concatenate([np.round(draws.gamma(2.0, 1.0, positives), 2), np.zeros(zeros)]))
    steps = np.arange(len(dense) + 1) / len(dense)
    share = np.concatenate([[0.0, 1.0], draws.random(20), steps, np.clip(steps + 0.25 / len(dense), 0, 1)])
    found = quantile.quantile(sample(dense), share, type_)
    expected = np.quantile(dense, share, method=METHODS[type_])
    if type_ in (1, 2, 3):  # where n * p is a whole number up to rounding, either side is right
        exact = np.abs(len(dense) * share - np.round(len(dense) * share)) < 1e-9
        halves = np.abs(len(dense) * share % 1 - 0.5) < 1e-9
        assert found[~exact & ~halves] == pytest.approx(expected[~exact & ~halves])
        ordered = np.sort(dense)
        rank = np.clip(np.round(len(dense) * share).astype(int), 1, len(dense))
        value = {1: ordered[rank - 1], 2: (ordered[rank - 1] + ordered[np.minimum(rank, len(dense) - 1)]) / 2}
        inside = exact & (share > 0)
        if type_ in value:
            assert found[inside] == pytest.approx(value[type_][inside])
    else:
        assert found == pytest.approx(expected, abs=1e-9)


def test_an_empty_sample_is_all_zeros() -> None:
    for type_ in TYPES:
        assert quantile.quantile(Sample(np.zeros(0), 10), np.array([0.0, 0.3, 1.0]), type_).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("type_", "first", "last"),
    [
        (1, 0.1, 1.0),
        (2, 0.05, 0.95),
        (3, 0.1, 1.0),
        (4, 0.1, 1.0),
        (5, 0.05, 0.95),
        (6, 1 / 11, 10 / 11),
        (7, 0.0, 1.0),
        (8, 2 / 31, 29 / 31),
        (9, 2.5 / 41, 38.5 / 41),
    ],
)
def test_plotting_positions_in_closed_form(type_: int, first: float, last: float) -> None:
    found = quantile.plotting_position(np.array([1.0, 10.0]), 10.0, type_)
    assert found == pytest.approx([first, last])


def test_the_weibull_position_is_the_mean_of_a_uniform_order_statistic() -> None:
    ranks = np.arange(1, 8)
    expected = stats.beta(ranks, 8 - ranks).mean()
    assert quantile.plotting_position(ranks.astype(float), 7.0, 6) == pytest.approx(expected)
    median = stats.beta(ranks, 8 - ranks).median()
    assert quantile.plotting_position(ranks.astype(float), 7.0, 8) == pytest.approx(median, abs=0.004)


counts = st.lists(st.integers(0, 30), min_size=10, max_size=10).filter(any)


@pytest.mark.parametrize("type_", TYPES)
@given(counts, st.integers(0, 30), st.integers(0, 3))
def test_the_map_is_monotone_and_within_the_target(type_: int, said: list[int], positives: int, seed: int) -> None:
    target = Sample(np.sort(generator(seed, "target").gamma(2.0, 1.0, positives)), 60)
    values = quantile.fit(np.array(said, dtype=float), target, type_)
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= target.positive.max(initial=0.0)


@pytest.mark.parametrize("type_", TYPES)
def test_untied_predictions_carry_over_the_marginal_exactly(type_: int) -> None:
    for positives in (10, 4, 0):
        dense = np.zeros(10)
        dense[:positives] = np.arange(1, positives + 1) ** 2
        assert quantile.fit(np.ones(10), sample(dense), type_).tolist() == np.sort(dense).tolist()


@pytest.mark.parametrize("type_", TYPES)
def test_tied_predictions_take_the_quantile_of_their_middle_rank(type_: int) -> None:
    dense = np.arange(1.0, 101.0)
    said = np.array([89.0, 0, 0, 0, 0, 0, 0, 0, 0, 11.0])
    values = quantile.fit(said, sample(dense), type_)
    assert values[0] == 45
    assert values[9] == 95
    assert values[1:9].tolist() == [45.0] * 8


def test_too_few_positives_of_a_mostly_silent_latent_are_silence() -> None:
    said = np.array([990.0] + [0] * 8 + [10.0])
    rare = Sample(np.array([1.0, 2.0]), 1000)
    assert quantile.fit(said, rare, 6).tolist() == [0.0] * 10
    common = Sample(np.linspace(1, 2, 10), 1000)
    assert quantile.fit(said, common, 6)[9] == pytest.approx(1.5, abs=0.06)


def test_uninformed_quantile_normalisation_costs_twice_the_variance() -> None:
    """Equal marginals: the error is 2 Var(a) (1 - rho), twice that of the mean at rho = 0."""
    draws = generator(0, "binormal")
    count, shared = 400_000, draws.normal(size=400_000)
    for weight in (0.0, 0.5, 0.9):
        score = weight * shared + np.sqrt(1 - weight**2) * draws.normal(size=count)
        truth = np.exp(shared)
        rank = np.argsort(np.argsort(score)) + 1.0
        position = quantile.plotting_position(rank, float(count), 6)
        predicted = quantile.quantile(sample(truth), position, 6)
        rho = np.corrcoef(predicted, truth)[0, 1]
        assert np.square(predicted - truth).mean() == pytest.approx(2 * truth.var() * (1 - rho), rel=1e-6)
        lognormal = (np.exp(weight) - 1) / (np.exp(1) - 1)
        assert rho == pytest.approx(lognormal, abs=0.05)
