"""Arms of the probes: what they write, what is measured of them, and the contexts that calibrators see."""

import numpy as np
import pytest
import torch

from nlrewrite.evaluate.losses import losses
from nlrewrite.probes import panel, upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.panel import Measured, Panel
from nlrewrite.probes.upstream import Upstream
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Flagged, Manner, Scored, oracle
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Spoken, expected, log_odds
from tests.probes.making import made, sparse_truth

ALL = slice(None)


@pytest.fixture(scope="module")
def up() -> Upstream:
    return made()[0]


@pytest.fixture(scope="module")
def figures(up: Upstream) -> Measured:
    arms = Panel(up, Progress(), at_once=2)
    arms.add("original", None)
    arms.add("coder", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE, np.zeros(up.latents, dtype=bool)))
    arms.add("mean", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE))
    arms.add("twice", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE))
    arms.add("last", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE), "last")
    arms.add("last original", None, "last")
    return arms.measured(500, 0)


def test_what_is_written_is_what_the_decoder_makes_of_the_mixture(up: Upstream) -> None:
    truth = up.report.truth_PL.toarray()
    mask = np.arange(up.latents) % 3 == 0
    values = generator(0, "values").random(truth.shape).astype(np.float32)

    def predicted():
        for block in upstream.in_blocks(up.latents, up.report.count):
            yield block, values[:, block].T

    made = panel.output(predicted(), up.report.truth_PL, up.dec_LE, {"some": mask, "none": np.zeros_like(mask)})
    assert made.written["some"] == pytest.approx(np.where(mask, values, truth) @ up.dec_LE, abs=1e-5)
    assert made.written["none"] == pytest.approx(truth @ up.dec_LE, abs=1e-5)
    assert made.error_L == pytest.approx(np.square(values - truth).mean(0), rel=1e-5)
    mean = panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE, mask)
    assert mean == pytest.approx(np.where(mask, up.mean_L, truth) @ up.dec_LE, abs=1e-5)
    assert panel.dense(predicted(), *truth.shape) == pytest.approx(values)


def test_large_predictions_go_to_the_disk(up: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "DENSE_IN_MEMORY", 10)
    found = panel.dense(((slice(row, row + 1), np.full((1, 5), row)) for row in range(3)), 5, 3)
    assert isinstance(found, np.memmap)
    assert found.tolist() == [[0, 1, 2]] * 5


def test_losses_are_those_of_the_evaluation(up: Upstream, figures: Measured) -> None:
    def mean(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return up.coder.beside(x) + torch.from_numpy(up.mean_L @ up.dec_LE).float()

    arms = {"original": ("all", None), "mean": ("all", mean), "last": ("last", mean), "last original": ("last", None)}
    found = losses(up.model, up.located, up.report.windows, arms, 64, Progress())  # type: ignore[arg-type]
    assert figures.added("mean", "original").mean == pytest.approx(
        (found["mean"].ce - found["original"].ce).mean(), abs=1e-6
    )
    assert figures.added("last", "last original").mean == pytest.approx(
        (found["last"].ce - found["last original"].ce).mean(), abs=1e-6
    )
    assert figures.divergence("mean").mean == pytest.approx(found["mean"].kl.mean(), abs=1e-6)


def test_equal_arms_differ_by_nothing_but_when_taken_for_independent(figures: Measured) -> None:
    paired, apart = figures.added("twice", "mean"), figures.unpaired("twice", "mean")
    assert (paired.mean, paired.low, paired.high) == (0, 0, 0)
    assert apart.mean == 0
    assert apart.low < 0 < apart.high
    change = figures.change("twice", "original", "mean", "original")
    assert (change.low, change.high) == (0, 0)


def test_a_gap_is_a_share_of_the_way(figures: Measured) -> None:
    if (gap := figures.gap("coder", "mean", "coder")) is not None:
        assert gap.mean == 1
    assert figures.gap("coder", "mean", "mean") is None
    value, drawn = figures.resampled("mean", "original")
    assert value == figures.added("mean", "original").mean
    assert drawn.shape == (500,)


def test_a_part_of_a_split_keeps_its_truth_beside_its_windows(up: Upstream) -> None:
    chosen = np.array([5, 1, 6])
    part = up.report.at(chosen)
    window = up.report.where.window
    rows = np.concatenate([np.flatnonzero(window == each) for each in chosen])
    assert (part.truth_PL != up.report.truth_PL[rows]).nnz == 0
    assert part.where.token.tolist() == up.report.where.token[rows].tolist()
    assert part.count == len(rows) == part.truth_PL.get_shape()[0]


def test_contexts_are_nested_and_a_group_has_one_fold(up: Upstream) -> None:
    every = upstream.chosen(up.calibrate, 10_000, 3)
    assert every.rows.tolist() == list(range(up.calibrate.count))
    of_group = {(group, fold) for group, fold in zip(up.calibrate.where.group, every.fold_S, strict=True)}
    assert len(of_group) == len(np.unique(up.calibrate.where.group))
    few, many = (every.some(count, 0)[0] for count in (10, 30))
    assert len(few) == 10
    assert set(few) < set(many)
    kept, part = every.some(10, 0)
    assert (part.truth_SL != every.truth_SL[kept]).nnz == 0


@pytest.mark.parametrize("renormalised", [True, False])
def test_the_expected_digit_without_the_digits(renormalised: bool) -> None:
    truth = sparse_truth(400, 6, 0.2)
    manner = Manner(mass=0.8, renormalised=renormalised, failed=0.1)
    said = oracle(truth, np.ones(6), Scored.of_auc(0.9, tau=1.0), manner, seed=1, split="report")
    digits = said.digits(ALL)
    assert digits is not None
    heard = Heard(said, "expected")
    np.testing.assert_allclose(heard.scores(ALL), expected(digits), rtol=2e-5, equal_nan=True)
    assert np.isnan(heard.scores(ALL)).mean() == pytest.approx(0.1, abs=0.03)
    if renormalised:
        odds = Heard(said, "log-odds").scores(ALL)
        assert odds == pytest.approx(log_odds(digits), abs=1e-3, nan_ok=True)
    assert heard.digits(ALL) is None


def test_flags_and_rules_are_heard_as_digits() -> None:
    truth = sparse_truth(50, 3, 0.3)
    flags = oracle(truth, np.ones(3), Flagged(0.9, 0.9), seed=1, split="report")
    assert set(np.unique(Heard(flags, "expected").scores(ALL))) == {0, 9}
    table = np.array([[1.0, *[0.0] * 9], [0.2, 0, 0, 0, 0.8, 0, 0, 0, 0, 0]])
    latent, position = np.array([0, 1], np.int32), np.array([2, 0], np.int32)
    simulated = Simulated(latent, position, np.ones(2, np.int8), table, np.ones(2, bool))
    spoken = Spoken(simulated, 3)
    for number, of_digits in (("expected", expected), ("log-odds", log_odds)):
        wanted = of_digits(spoken.digits(ALL))
        assert Heard(spoken, number).scores(ALL) == pytest.approx(wanted, rel=2e-3)  # type: ignore[arg-type]
