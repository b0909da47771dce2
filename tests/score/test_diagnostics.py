import numpy as np
import pytest
from scipy import sparse

from nlrewrite.activations.codes import Codes, Kept, constant_codes
from nlrewrite.score import diagnostics
from nlrewrite.score.diagnostics import Diagnosis
from nlrewrite.seeds import generator


def diagnosed(chance: np.ndarray, active: np.ndarray, rate: np.ndarray | float) -> dict:
    found = Diagnosis()
    found.add(chance, active.astype(float), np.asarray(rate))
    return found.summary()


def test_skill_is_one_for_who_knows_and_nought_for_who_says_the_base_rate() -> None:
    active = generator(0, "active").random(5000) < 0.02
    rate = active.mean()
    assert diagnosed(active.astype(float), active, rate)["brier_skill"] == pytest.approx(1)
    assert diagnosed(active.astype(float), active, rate)["log_loss_skill"] == pytest.approx(1, abs=1e-4)
    assert diagnosed(np.full(5000, rate), active, rate)["brier_skill"] == pytest.approx(0)
    assert diagnosed(np.full(5000, 0.5), active, rate)["brier_skill"] < 0


def test_blocks_and_weights_add_up() -> None:
    draws = generator(0, "blocks")
    chance, active = draws.random(600) ** 6, draws.random(600) < 0.1
    whole = diagnosed(chance, active, 0.1)
    parts = Diagnosis()
    for part in (slice(0, 100), slice(100, 600)):
        parts.add(chance[part], active[part].astype(float), np.array(0.1))
    assert parts.summary()["brier"] == pytest.approx(whole["brier"])
    said, place = np.unique(np.round(chance, 1), return_inverse=True)
    cases = Diagnosis()
    cases.add(said, np.bincount(place, active), np.array(0.1), np.bincount(place))
    rounded = diagnosed(np.round(chance, 1), active, 0.1)
    assert cases.summary()["log_loss"] == pytest.approx(rounded["log_loss"])
    assert [row["n"] for row in cases.summary()["reliability"]] == [row["n"] for row in rounded["reliability"]]


def test_what_is_well_calibrated_lies_on_the_diagonal() -> None:
    draws = generator(0, "calibrated")
    chance = 10 ** -(3 * draws.random(400_000))
    active = draws.random(400_000) < chance
    table = diagnosed(chance, active, chance.mean())["reliability"]
    assert sum(row["n"] for row in table) == 400_000
    assert len(table) == 3 * diagnostics.PER_DECADE
    for row in table:
        assert row["from"] <= row["predicted"] <= row["to"]
        error = np.sqrt(row["predicted"] / row["n"])
        assert row["observed"] == pytest.approx(row["predicted"], abs=4 * error)


def test_a_probability_falls_into_the_bin_whose_edges_hold_it() -> None:
    edges = diagnostics.edges_of_bins()
    chance = np.array([0, 9e-7, 1e-6, 1e-5, 0.0999, 0.1, 0.5, 1.0])
    place = diagnostics.bins(chance)
    assert place[0] == place[1] == 0
    for each, at in zip(chance[1:-1], place[1:-1], strict=True):
        assert edges[at] * (1 - 1e-6) <= each <= edges[at + 1]
    assert place[-1] == diagnostics.BINS


def test_errors_are_the_same_however_values_are_kept() -> None:
    draws = generator(0, "errors")
    truth, guess = (
        sparse.csr_matrix(draws.random((40, 6)) * (draws.random((40, 6)) < 0.2), dtype=np.float32) for _ in range(2)
    )
    true = Codes(np.zeros(6, np.float32), truth)
    said = Codes(draws.random(6).astype(np.float32), guess)
    expected = np.square(said.dense(np.arange(40)).astype(float) - truth.toarray()).sum(0)
    assert diagnostics.errors(said, true) == pytest.approx(expected)
    assert diagnostics.errors(Kept(said, 6, np.zeros(6)), true) == pytest.approx(expected)


def test_the_mean_explains_nothing_and_the_truth_everything() -> None:
    truth = sparse.csr_matrix(np.eye(8, 4, dtype=np.float32))
    true = Codes(np.zeros(4, np.float32), truth)
    mean = constant_codes(np.array([0.125, 0.125, 0.125, 0.125]), 8)
    floor = diagnostics.errors(mean, true)
    assert diagnostics.explained(floor, floor) == pytest.approx(np.zeros(4))
    assert diagnostics.explained(diagnostics.errors(true, true), floor) == pytest.approx(np.ones(4))
    assert np.isnan(diagnostics.explained(np.ones(1), np.zeros(1)))[0]


def test_r2_is_weighted_by_energy() -> None:
    found = diagnostics.weighted(np.array([0.5, -1.0, np.nan, 0.1]), np.array([8.0, 1.0, 5.0, 1.0]))
    assert found["mean"] == pytest.approx((4 - 1 + 0.1) / 10)
    assert found["share_of_energy_above_0"] == pytest.approx(0.9)
    assert found["q50_of_energy"] == 0.5
    assert found["q50"] == pytest.approx(0.1)
    assert diagnostics.weighted(np.array([np.nan]), np.array([1.0])) == {"mean": None}
