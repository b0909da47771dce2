from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate import quantile
from nlrewrite.calibrate.evidence import Evidence
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.quantile import TYPES, Sample
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Answers
from tests.calibrate.making import CASES, aggregated, evidence, known, levels, predicted, replicated, sample, scores

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


# -- the map ----------------------------------------------------------------------------------------------------------

counts = st.lists(st.integers(0, 30), min_size=10, max_size=10).filter(any)


def of_counts(said: list[float], target: Sample, type_: int) -> np.ndarray:
    """The map at each level, where level z was said `said[z]` times."""
    every = np.arange(10.0)[None]
    found = Evidence(Answers(every), np.array([said]), np.zeros((1, 10)), np.zeros((1, 10)), np.zeros(10, int))
    mapped = quantile.fit(found, replace(known(np.zeros((1, 1))), targets=(target,)), {}, type_)
    return np.interp(every[0], mapped.arrays["x"], mapped.arrays["y"])


def by_ranks(score: np.ndarray, target: Sample, type_: int) -> np.ndarray:
    """The rule in words: the target's quantile at the position of the middle rank of all cases with this score."""
    middle = np.array([(np.sum(score < each) + np.sum(score <= each) + 1) / 2 for each in score])
    return quantile.quantile(target, quantile.plotting_position(middle, float(len(score)), type_), type_)


@pytest.mark.parametrize("type_", TYPES)
@given(counts, st.integers(0, 30), st.integers(0, 3))
def test_the_map_is_monotone_and_within_the_target(type_: int, said: list[int], positives: int, seed: int) -> None:
    target = Sample(np.sort(generator(seed, "target").gamma(2.0, 1.0, positives)), 60)
    values = of_counts(said, target, type_)
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= target.positive.max(initial=0.0)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_case_gets_the_quantile_of_its_middle_rank(type_: int, tied: bool, seed: int) -> None:
    """However few knots are kept."""
    score, truth = (levels if tied else scores)(seed)
    target = np.concatenate([truth, truth[:, :77] * 1.5], axis=1) * np.array([1, 1, 0, 3, 1, 1])[:, None]
    found = evidence(score, truth)
    mapped = predicted(quantile.fit(found, known(truth, target), {}, type_), found)
    for row in range(len(score)):
        assert mapped[row] == pytest.approx(by_ranks(score[row], sample(target[row]), type_), abs=1e-6)
    assert (mapped[2] == 0).all()
    assert (mapped[[0, 1, 3, 4, 5]].max(1) > 0).all()


@pytest.mark.parametrize("type_", TYPES)
def test_untied_predictions_carry_over_the_marginal_exactly(type_: int) -> None:
    for positives in (10, 4, 0):
        dense = np.zeros(10)
        dense[:positives] = np.arange(1, positives + 1) ** 2
        assert of_counts([1] * 10, sample(dense), type_).tolist() == np.sort(dense).tolist()


@pytest.mark.parametrize("type_", TYPES)
def test_as_many_untied_cases_as_the_target_has_take_its_values_over(type_: int) -> None:
    score, truth = scores()
    found = evidence(score, truth[::-1])
    mapped = predicted(quantile.fit(found, known(truth), {}, type_), found)
    assert np.sort(mapped) == pytest.approx(np.sort(truth), abs=1e-6)
    assert (np.take_along_axis(mapped, np.argsort(score), axis=1)[:, -1] == truth.max(1).astype(np.float32)).all()


@pytest.mark.parametrize("type_", TYPES)
def test_tied_predictions_take_the_quantile_of_their_middle_rank(type_: int) -> None:
    values = of_counts([89.0, *[0] * 8, 11.0], sample(np.arange(1.0, 101.0)), type_)
    assert values[0] == 45
    assert values[9] == 95
    assert values[1:9] == pytest.approx(45 + np.arange(1, 9) * 50 / 9)


def test_too_few_positives_of_a_mostly_silent_latent_are_silence() -> None:
    said = [990.0] + [0] * 8 + [10.0]
    rare = Sample(np.array([1.0, 2.0]), 1000)
    assert of_counts(said, rare, 6).tolist() == [0.0] * 10
    common = Sample(np.linspace(1, 2, 10), 1000)
    assert of_counts(said, common, 6)[9] == pytest.approx(1.5, abs=0.06)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("rate", [0.003, 0.05, 0.5, 1.0])
def test_the_top_share_of_the_predictions_becomes_positive(type_: int, rate: float) -> None:
    cases, count = 1000, 20_000
    score = generator(0, "scores").normal(size=(1, cases))
    target = Sample(np.linspace(1, 2, round(rate * count)), count)
    found = evidence(score, np.zeros((1, cases)))
    mapped = quantile.fit(found, replace(known(np.zeros((1, cases))), targets=(target,)), {}, type_)
    positive = predicted(mapped, found)[0] > 0
    assert abs(positive.sum() - rate * cases) <= 1
    assert score[0, positive].min() > score[0, ~positive].max(initial=-np.inf)
    assert len(mapped.arrays["x"]) <= positive.sum() + 1


def test_scores_beyond_those_seen_are_worth_the_extreme_ones_and_those_between_lie_between() -> None:
    found = evidence(np.array([[1.0, 2.0, 4.0]]), np.zeros((1, 3)))
    mapped = quantile.fit(found, known(np.zeros((1, 3)), np.array([[1.0, 5.0, 6.0]])), {}, 7)
    line = Fitted("", "", mapped.map, mapped.arrays, np.zeros(1), np.ones(1))
    asked = np.array([[-9.0, 1.0, 1.5, 3.0, 4.0, 99.0]])
    assert line.predict(Answers(asked))[0].tolist() == [1, 1, 3, 5.5, 6, 6]


# -- what evidence may look like --------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", TYPES)
def test_counted_levels_are_worth_what_their_contexts_are(type_: int) -> None:
    score, truth = levels()
    found, told = evidence(score, truth), known(truth[::-1])
    by_level = quantile.fit(aggregated(found), told, {}, type_).arrays
    by_context = quantile.fit(found, told, {}, type_).arrays
    assert by_level["start"].tolist() == by_context["start"].tolist()
    assert by_level["x"].tolist() == by_context["x"].tolist()
    assert by_level["y"] == pytest.approx(by_context["y"], rel=1e-12)


@pytest.mark.parametrize("type_", TYPES)
def test_a_weight_of_n_is_n_cases_and_their_order_is_nothing(type_: int) -> None:
    draws = generator(0, "weights")
    score, truth = levels()
    found, told = evidence(score, truth), known(truth[::-1])
    weighed, repeated = replicated(found, draws.integers(0, 4, CASES))
    one, other = (quantile.fit(each, told, {}, type_).arrays for each in (weighed, repeated))
    assert one["y"] == pytest.approx(other["y"], rel=1e-12)
    assert one["x"].tolist() == other["x"].tolist()
    moved = repeated.where(draws.permutation(len(repeated.fold)))
    assert quantile.fit(moved, told, {}, type_).arrays["y"].tolist() == other["y"].tolist()


@pytest.mark.parametrize("type_", TYPES)
def test_hostile_cases_have_a_defined_answer(type_: int) -> None:
    truth = np.zeros((4, 50))
    truth[1, 7] = 3.0
    truth[2] = 1.0
    score = generator(0, "hostile").normal(size=(4, 50))
    score[3] = 5.0
    truth[3, :20] = 2.0
    weight = np.ones((4, 50))
    weight[0, :49] = 0
    found = evidence(score, truth, weight)
    mapped = predicted(quantile.fit(found, known(truth), {}, type_), found)
    assert (mapped[0] == 0).all(), "never active, and a single case"
    assert mapped[1].max() == 3.0
    assert (mapped[1] > 0).sum() == 1
    assert (mapped[2] == 1).all(), "always active"
    assert len(set(mapped[3].tolist())) == 1, "all tied"


def test_what_cannot_be_fitted_is_refused() -> None:
    score, truth = scores()
    score[2, 5] = np.nan
    with pytest.raises(SettingError, match=r"a score must be a finite number: latent 2 .* in case 5"):
        quantile.fit(evidence(score, truth), known(truth), {}, 6)
    weight = np.ones_like(truth)
    weight[3] = 0
    with pytest.raises(SettingError, match="latent 3 of the block has none"):
        quantile.fit(evidence(scores()[0], truth, weight), known(truth), {}, 6)


# -- targets ----------------------------------------------------------------------------------------------------------


def test_a_tenth_is_a_tenth_and_another_one_with_another_seed() -> None:
    first, again, other = quantile.tenth(1234, 0), quantile.tenth(1234, 0), quantile.tenth(1234, 1)
    assert first.sum() == other.sum() == 123
    assert (first == again).all()
    assert (first != other).any()
    assert quantile.tenth(3, 0).sum() == 1


def test_target_samples_hold_the_positive_values_of_the_chosen_positions_ascending() -> None:
    values = np.abs(generator(0, "values").normal(size=(30, 3))).astype(np.float32)
    values[generator(0, "silent").random(values.shape) < 0.3] = 0
    latents = np.argsort(generator(0, "latents").random((30, 5)), axis=1)[:, :3].astype(np.int32)
    pairs = Active(latents, values).by_latent(5)
    chosen = np.arange(30) % 3 == 0
    whole, part = quantile.samples(pairs, 30, slice(1, 4)), quantile.samples(pairs, 30, slice(1, 4), chosen)
    for latent, (all_, some) in enumerate(zip(whole, part, strict=True), 1):
        of_latent = np.where((latents == latent) & (values > 0), values, 0).max(1)
        assert all_.positive.tolist() == np.sort(of_latent[of_latent > 0]).tolist()
        assert some.positive.tolist() == np.sort(of_latent[(of_latent > 0) & chosen]).tolist()
        assert (all_.count, some.count, all_.zeros) == (30, 10, 30 - len(all_.positive))


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
