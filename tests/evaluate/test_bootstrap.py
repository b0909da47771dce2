import dataclasses

import numpy as np
import pytest
from scipy import special, stats

from nlrewrite.errors import SettingError
from nlrewrite.evaluate import bootstrap
from nlrewrite.seeds import generator


def resampled(values_GA: np.ndarray, counts_G: np.ndarray | None = None, seed: int = 0, resamples: int = 500):
    counts = np.ones(len(values_GA)) if counts_G is None else counts_G
    return bootstrap.resample(values_GA * counts[:, None], counts, resamples, generator(seed, "bootstrap"))


def test_intervals_of_a_normal_mean_cover_it_as_often_as_they_say() -> None:
    draws, covered = generator(0, "coverage"), 0
    for trial in range(400):
        interval = resampled(draws.normal(3.0, 2.0, (60, 2)), seed=trial).difference(0, 1)
        covered += interval.low <= 0 <= interval.high
    assert covered / 400 == pytest.approx(0.945, abs=0.025)


def test_the_width_is_that_of_a_normal_interval() -> None:
    values = np.column_stack([generator(0, "width").normal(0.0, 1.0, 2000), np.zeros(2000)])
    interval = resampled(values, resamples=4000).difference(0, 1)
    expected = 2 * 1.96 * values[:, 0].std() / np.sqrt(2000)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.05)
    assert interval.mean == pytest.approx(values[:, 0].mean())


def test_arms_are_paired() -> None:
    draws = generator(0, "paired")
    documents = draws.normal(0, 100, 80)
    arms = np.column_stack([documents, documents, documents + 1 + draws.normal(0, 0.1, 80)])
    found = resampled(arms)
    assert found.difference(0, 1) == bootstrap.Interval(0.0, 0.0, 0.0)
    far = found.difference(2, 0)
    assert (far.mean, far.low, far.high) == pytest.approx((1, 1, 1), abs=0.06)
    assert far.low < far.mean < far.high
    assert far.low > 0 >= found.difference(0, 1).low


def test_a_long_document_counts_for_its_positions() -> None:
    counts = np.array([1.0, 1.0, 98.0])
    found = resampled(np.array([[0.0], [0.0], [1.0]]), counts)
    assert found.measured_A[0] == pytest.approx(0.98)
    assert set(np.round(found.resampled_RA[:, 0], 4)) <= {0.0, 0.98, 0.9899, 1.0, 0.9949}


def test_documents_without_positions_are_not_drawn() -> None:
    values, counts = np.ones((12, 2)), np.array([0.0] * 10 + [1.0, 2.0])
    found = resampled(values, counts)
    assert np.isfinite(found.resampled_RA).all()
    assert found.measured_A == pytest.approx([1, 1])


def test_shares_of_the_way_from_floor_to_ceiling() -> None:
    draws = generator(0, "shares")
    noise = draws.normal(0, 0.2, (100, 1))
    found = resampled(np.array([2.0, 1.0, 1.5, 3.0]) + noise + draws.normal(0, 0.1, (100, 4)) * [0, 0, 1, 0])
    floor, ceiling, half, worse = 0, 1, 2, 3
    assert found.share(floor, ceiling, floor) == bootstrap.Interval(0.0, 0.0, 0.0)
    assert found.share(floor, ceiling, ceiling) == bootstrap.Interval(1.0, 1.0, 1.0)
    middle, below = found.share(floor, ceiling, half), found.share(floor, ceiling, worse)
    assert middle is not None
    assert below is not None
    assert middle.mean == pytest.approx(0.5, abs=0.03)
    assert middle.low < middle.mean < middle.high
    assert below.mean == pytest.approx(-1)
    over = found.share_difference(floor, ceiling, half, worse)
    assert over is not None
    assert over.mean == pytest.approx(middle.mean - below.mean)
    assert found.share_difference(floor, ceiling, half, half) == bootstrap.Interval(0.0, 0.0, 0.0)


def test_a_share_of_no_way_at_all_is_not_given() -> None:
    draws = generator(0, "no way")
    arms = draws.normal(0, 1, (50, 3))
    found = resampled(arms - arms.mean(0) + [0.05, 0.0, 0.0])
    assert found.difference(0, 1).low < 0 < found.difference(0, 1).mean
    assert found.share(0, 1, 2) is None
    assert found.share_difference(0, 1, 2, 2) is None
    assert resampled(np.tile([1.0, 2.0, 1.5], (9, 1))).share(0, 1, 2) is None


def test_numerator_and_denominator_are_resampled_together() -> None:
    """An arm that closes exactly half of whatever gap a document has closes half of every resample's."""
    draws = generator(0, "joint")
    gap = draws.gamma(2.0, 1.0, 60)
    level = draws.normal(0, 5, 60)
    found = resampled(np.column_stack([level + gap, level, level + gap / 2]))
    share = found.share(0, 1, 2)
    assert share is not None
    assert (share.mean, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_same_seed_draws_the_same_documents() -> None:
    values = generator(0, "seed").normal(size=(30, 2))
    assert (resampled(values, seed=1).resampled_RA == resampled(values, seed=1).resampled_RA).all()
    assert (resampled(values, seed=1).resampled_RA != resampled(values, seed=2).resampled_RA).any()


# -- kinds of intervals -----------------------------------------------------------------------------------------------


def bca(found: bootstrap.Resampled) -> bootstrap.Resampled:
    return dataclasses.replace(found, method="bca")


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_of_a_skewed_mean_are_scipys(method: bootstrap.Method) -> None:
    values = generator(0, "scipy").gamma(0.5, 2.0, 80)
    found = dataclasses.replace(resampled(values[:, None], resamples=20_000), method=method)
    mine = found.figure(lambda means: means[..., 0])
    nominal = 1 - 2 * special.ndtr(-bootstrap.widened(1.959964, 80.0))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, confidence_level=nominal, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def test_bca_moves_the_ends_towards_the_long_tail() -> None:
    found = resampled(generator(0, "tail").gamma(0.3, 1.0, (60, 1)), resamples=4000)
    plain, moved = found.figure(lambda means: means[..., 0]), bca(found).figure(lambda means: means[..., 0])
    assert moved.low > plain.low
    assert moved.high > plain.high


def test_the_widening_is_students_and_vanishes_with_many_groups() -> None:
    assert bootstrap.widened(1.96, 5.0) == pytest.approx(np.sqrt(5 / 4) * stats.t.isf(special.ndtr(-1.96), 4))
    assert bootstrap.widened(1.96, 1e7) == pytest.approx(1.96, abs=1e-4)
    assert bootstrap.levels(1e7) == pytest.approx([0.025, 0.975], abs=1e-5)


def test_unequal_groups_are_worth_fewer_equal_ones() -> None:
    assert bootstrap.equal_groups(np.full(12, 7.0)) == pytest.approx(12)
    assert bootstrap.equal_groups(np.array([100.0, 1.0, 1.0])) == pytest.approx(102**2 / 10_002)
    assert bootstrap.equal_groups(np.array([3.0, 0.0, 3.0])) == pytest.approx(2)
    even, uneven = np.ones(20), np.arange(1.0, 21.0)
    values = generator(0, "uneven").normal(size=(20, 1))
    assert resampled(values, uneven).groups < resampled(values, even).groups == pytest.approx(20)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_equal_differences_have_no_width(method: bootstrap.Method) -> None:
    arms = generator(0, "equal").integers(0, 50, (40, 1)) / 4 + np.array([0.0, 0.25])
    found = dataclasses.replace(resampled(arms), method=method)
    difference = found.difference(1, 0)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize("groups", [0, 1])
def test_a_single_group_has_no_interval(groups: int) -> None:
    with pytest.raises(SettingError, match=r"at least 2 document groups.*Raise --set text\.shares\.report"):
        resampled(np.ones((groups, 2)))


def test_two_groups_give_all_that_they_can() -> None:
    found = resampled(np.array([[0.0], [1.0]])).figure(lambda means: means[..., 0])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_the_order_of_arms_and_the_splitting_of_groups_sums_do_not_matter() -> None:
    draws = generator(0, "order")
    sums, counts = draws.normal(size=(30, 3)), draws.integers(1, 9, 30).astype(float)
    found = bootstrap.resample(sums, counts, 300, generator(0, "draws"))
    turned = bootstrap.resample(sums[:, ::-1], counts, 300, generator(0, "draws"))
    assert turned.difference(2, 1) == found.difference(0, 1)
    order = draws.permutation(30)
    other = bootstrap.resample(sums[order], counts[order], 20_000, generator(0, "draws"))
    many = bootstrap.resample(sums, counts, 20_000, generator(1, "draws"))
    for method in ("percentile", "bca"):
        first, second = (dataclasses.replace(each, method=method).difference(0, 1) for each in (other, many))
        assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=0.05 * (first.high - first.low))


def test_means_may_have_counts_of_their_own() -> None:
    sums, counts = np.array([[2.0, 4.0], [6.0, 0.0], [1.0, 5.0]]), np.array([[1.0, 2.0], [2.0, 0.0], [1.0, 1.0]])
    drawn = bootstrap.draw(3, 400, generator(0, "draws"))
    found = drawn.means(sums, counts)
    assert found.measured_A == pytest.approx([9 / 4, 9 / 3])
    nowhere = drawn.weights_RG[:, 1] == 3
    assert np.isnan(found.resampled_RA[nowhere, 1]).all()
    assert np.isfinite(found.figure(lambda means: means[..., 1]).high)
    assert found.left_out_GA[:, 0] == pytest.approx([7 / 3, 3 / 2, 8 / 3])


def test_large_tables_are_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, counts = generator(0, "blocks").normal(size=(7, 4)), np.arange(1.0, 8.0)
    whole = bootstrap.resample(sums, counts, 50, generator(0, "draws"))
    monkeypatch.setattr(bootstrap, "BLOCK", 20)
    parts = bootstrap.resample(sums, counts, 50, generator(0, "draws"))
    assert parts.resampled_RA == pytest.approx(whole.resampled_RA)


# -- documents and subsets --------------------------------------------------------------------------------------------


def test_a_mean_over_subsets_varies_with_documents_and_with_subsets() -> None:
    """Two-way planted losses: the spread is that of both effects, and the freedom lies between theirs."""
    draws = generator(0, "two-way")
    groups, subsets = 400, 5
    document, subset = draws.normal(0, 1.0, (groups, 1)), draws.normal(0, 0.1, (1, subsets))
    values = document + subset + draws.normal(0, 0.5, (groups, subsets))
    found = resampled(values, resamples=6000)
    weights = bootstrap.subset_weights(subsets, 6000, generator(0, "subsets"))
    pooled = found.with_means([range(subsets)], weights)
    assert pooled.measured_A[-1] == pytest.approx(values.mean())
    documents = values.mean(1).var() / groups
    between = values.mean(0).var(ddof=1) / subsets
    assert pooled.resampled_RA[:, -1].std() == pytest.approx(np.sqrt(documents + between), rel=0.06)
    free = bootstrap.freedom(pooled.resampled_RA[:, -1], pooled.left_out_GA[:, -1], pooled.groups, pooled.subsets)
    expected = (documents + between) ** 2 / (documents**2 / (groups - 1) + between**2 / (subsets - 1))
    assert free == pytest.approx(expected, rel=0.3)
    assert subsets - 1 < expected < groups / 2
    assert found.subsets == 0
    assert bootstrap.freedom(found.resampled_RA[:, 0], found.left_out_GA[:, 0], found.groups, 0) is None
    assert pooled.left_out_GA[:, -1] == pytest.approx(found.left_out_GA.mean(1))
    alone = found.with_means([range(subsets)], np.full((6000, subsets), 1 / subsets))
    assert alone.resampled_RA[:, -1].std() == pytest.approx(np.sqrt(documents), rel=0.06)


def test_subsets_are_paired_between_arms() -> None:
    """An arm that is better by 1 in every subset is better by 1 in every resample, however the subsets differ."""
    values = generator(0, "paired subsets").normal(0, 5, (30, 3))
    found = resampled(np.hstack([values, values - 1]))
    pooled = found.with_means([(0, 1, 2), (3, 4, 5)], bootstrap.subset_weights(3, 500, generator(0, "subsets")))
    difference = pooled.difference(7, 6)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-1, -1, -1))


def test_weights_of_subsets_add_up_and_one_subset_is_itself() -> None:
    weights = bootstrap.subset_weights(4, 1000, generator(0, "subsets"))
    assert weights.sum(1) == pytest.approx(np.ones(1000))
    assert weights.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert weights.std(0) == pytest.approx(np.full(4, 0.25), rel=0.1)
    assert weights.mean(1).std() == pytest.approx(0)
    assert bootstrap.subset_weights(1, 3, generator(0, "subsets")).tolist() == [[1.0]] * 3
    found = resampled(generator(0, "none").normal(size=(9, 2)))
    assert found.with_means([], weights) is found
