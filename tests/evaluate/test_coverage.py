import numpy as np
import pytest

from nlrewrite.evaluate import bootstrap, coverage
from nlrewrite.seeds import generator

Records = dict[tuple[str, str], coverage.Covered]


@pytest.fixture(scope="module")
def found() -> Records:
    each = coverage.coverage(repetitions=500, groups=60, resamples=2000)
    return {(one.figure, one.method): one for one in each}


@pytest.mark.parametrize("figure", ["over mean", "gap closed"])
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_hold_the_truth_as_often_as_they_say(found: Records, figure: str, method: str) -> None:
    record = found[figure, method]
    assert 0.925 <= record.covered <= 0.975
    assert record.covered == pytest.approx(1 - record.below - record.above)
    assert max(record.below, record.above) < 0.045
    assert (record.repetitions, record.given) == (500, pytest.approx(1, abs=0.01))


def test_few_documents_are_covered_too_and_would_not_be_without_the_widening(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = coverage.coverage(400, groups=12, methods=("percentile",))[0].covered
    assert 0.93 <= with_it <= 0.985
    monkeypatch.setattr(bootstrap, "widened", lambda critical, *_: critical)
    assert coverage.coverage(400, groups=12, methods=("percentile",))[0].covered < 0.92


def test_the_planted_truth_is_the_truth_and_losses_look_like_losses() -> None:
    sums, counts = coverage.planted(60_000, generator(0, "truth"))
    means = sums.sum(0) / counts.sum()
    mean, coder, rewritten = means[coverage.MEAN], means[coverage.CODER], means[coverage.REWRITTEN]
    assert mean - coder == pytest.approx(coverage.GAP, abs=0.01)
    assert (mean - rewritten) / (mean - coder) == pytest.approx(coverage.SHARE, abs=0.02)
    assert coder - means[coverage.ORIGINAL] == pytest.approx(0.026, abs=0.003)
    assert counts.min() == 1
    assert counts.max() <= coverage.LONGEST
    assert counts.std() > 0.7 * counts.mean()


def test_the_same_seed_gives_the_same_record() -> None:
    assert coverage.coverage(20, 30, 300, seed=3) == coverage.coverage(20, 30, 300, seed=3)
    assert coverage.coverage(20, 30, 300, seed=3) != coverage.coverage(20, 30, 300, seed=4)
    assert np.isfinite([one.width for one in coverage.coverage(20, 30, 300)]).all()


@pytest.mark.parametrize(("subsets", "between"), [(4, 0.05), (3, 0.0)])
def test_means_over_few_random_subsets_are_covered(subsets: int, between: float) -> None:
    """Mostly the subsets' own differences, and none at all, where the interval is a little wider than it need be."""
    record = coverage.coverage_over_subsets(300, 40, subsets, between, resamples=1000)
    assert 0.92 <= record.covered <= (0.985 if between else 1.0)
