import numpy as np
import pytest
from scipy import stats

from nlrewrite.evaluate import bootstrap, paired
from nlrewrite.seeds import generator


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def test_the_error_of_one_position_a_window_is_that_of_a_mean() -> None:
    values = generator(0, "se").gamma(2.0, 1.0, 300)
    found = paired.spread(values, ones(300), np.arange(300))
    assert found.clustered == pytest.approx(values.std(ddof=1) / np.sqrt(300))
    assert found.independent == pytest.approx(found.clustered)
    assert found.design_effect == pytest.approx(1)


def test_contexts_that_are_copies_of_one_another_count_once() -> None:
    values = generator(0, "copies").normal(size=50)
    found = paired.spread(np.repeat(values, 4), ones(200), np.repeat(np.arange(50), 4))
    assert found.clustered == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert found.design_effect == pytest.approx(4, rel=0.03)


def test_splitting_a_window_inside_its_group_changes_no_clustered_error() -> None:
    draws = generator(0, "split")
    sums, counts, group = draws.normal(size=60), draws.integers(2, 9, 60).astype(float), draws.integers(0, 12, 60)
    whole = paired.spread(sums, counts, group)
    split = paired.spread(
        np.concatenate([0.3 * sums, 0.7 * sums]), np.concatenate([counts - 1, ones(60)]), np.concatenate([group, group])
    )
    assert split.clustered == pytest.approx(whole.clustered)
    order = draws.permutation(60)
    assert paired.spread(sums[order], counts[order], group[order]).clustered == pytest.approx(whole.clustered)
    unused = paired.spread(np.append(sums, 0.0), np.append(counts, 0.0), np.append(group, 99))
    assert unused == whole


def test_the_bootstrap_has_the_same_error() -> None:
    draws = generator(0, "agree")
    counts = draws.integers(1, 9, 400).astype(float)
    sums = draws.normal(0.2, 1.0, 400) * counts
    drawn = bootstrap.resample(sums[:, None], counts, 4000, generator(0, "resamples"))
    assert drawn.resampled_RA.std() == pytest.approx(paired.spread(sums, counts, np.arange(400)).clustered, rel=0.05)


@pytest.mark.parametrize(
    ("wins", "size", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_has_its_known_values(wins: int, size: int, low: float, high: float) -> None:
    """The last line is Newcombe's (1998) example."""
    assert paired.wilson(wins / size, size) == pytest.approx((low, high), abs=1e-4)
    exact = stats.binomtest(wins, size).proportion_ci(method="wilson")
    assert paired.wilson(wins / size, size) == pytest.approx((exact.low, exact.high))


def test_a_share_of_contexts_knows_that_documents_repeat_themselves() -> None:
    wins = (generator(0, "wins").random(60) < 0.3).astype(float)
    alone = paired.share_of_contexts(wins, np.arange(60))
    assert (alone.low, alone.high) == pytest.approx(paired.wilson(wins.mean(), 59), abs=0.003)
    copies = paired.share_of_contexts(np.repeat(wins, 5), np.repeat(np.arange(60), 5))
    assert copies.mean == pytest.approx(alone.mean)
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    independent = paired.share_of_contexts(np.repeat(wins, 5), np.arange(300))
    assert independent.high - independent.low < 0.6 * (copies.high - copies.low)


def test_contexts_that_all_agree_are_worth_their_groups() -> None:
    found = paired.share_of_contexts(ones(100), np.arange(100) // 10)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, *paired.wilson(1.0, 10)))
    tied = paired.share_of_contexts(np.full(100, 0.5), np.arange(100) // 10)
    assert (tied.low, tied.high) == pytest.approx(paired.wilson(0.5, 10))


def test_the_trimmed_mean_leaves_a_tenth_out_at_either_end() -> None:
    values = np.sort(generator(0, "trim").normal(size=95))
    assert paired.trimmed_mean(values) == pytest.approx(stats.trim_mean(values, 0.1))
    far = values.copy()
    far[-1] = 708.0
    assert paired.trimmed_mean(far) == pytest.approx(paired.trimmed_mean(values))
    assert paired.trimmed_mean(np.array([1.0, 2.0])) == pytest.approx(1.5)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 41])
def test_hodges_and_lehmanns_estimate_is_the_median_of_all_pairs_means(count: int) -> None:
    values = np.sort(generator(0, "pairs", count).gamma(1.0, 1.0, count) - 0.5)
    first, second = np.triu_indices(count)
    expected = np.median((values[first] + values[second]) / 2)
    assert paired.hodges_lehmann(values) == pytest.approx(expected, abs=1e-7)
    assert paired.hodges_lehmann(np.zeros(count)) == 0
    assert paired.hodges_lehmann(values + 3) == pytest.approx(expected + 3, abs=1e-7)


def test_the_medians_interval_is_the_bootstraps() -> None:
    draws = generator(0, "median")
    values, group = draws.gamma(1.0, 1.0, 180), np.repeat(np.arange(60), 3)
    drawn = bootstrap.draw(60, 2000, generator(0, "resamples"))
    found = paired.median_interval(values, group, drawn, np.arange(60))
    weights = drawn.weights_RG[:, group]
    ordered = np.sort(values)
    cumulated = weights[:, np.argsort(values)].cumsum(1)
    medians = ordered[(cumulated >= cumulated[:, -1:] / 2).argmax(1)]
    expected = bootstrap.interval(float(np.median(values)), medians, np.zeros(0), 60)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    again = paired.median_interval(values[::-1], group[::-1], drawn, np.arange(60))
    assert again == found


def test_a_median_of_equal_values_has_no_width() -> None:
    drawn = bootstrap.draw(10, 300, generator(0, "resamples"))
    found = paired.median_interval(np.full(20, 0.4), np.repeat(np.arange(10), 2), drawn, np.arange(10))
    assert (found.mean, found.low, found.high) == (0.4, 0.4, 0.4)
