import numpy as np
import pytest

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
    assert far.excludes_zero()
    assert not found.difference(0, 1).excludes_zero()
    assert bootstrap.Interval(-2, -3, -1).excludes_zero()


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
