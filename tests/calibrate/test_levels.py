import numpy as np
import pytest

from nlrewrite.calibrate import levels
from nlrewrite.calibrate.cells import Cells
from nlrewrite.calibrate.evidence import Evidence
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from tests.calibrate.planted import told


def fit(cells: Cells, strength: float) -> np.ndarray:
    return levels.values(cells, levels.shared(cells), strength)


def one_level(level: int, said: float, active: list[float], total: list[float]) -> Cells:
    table = np.zeros((3, len(active), 10))
    table[0, :, level] = said
    table[1, :, level] = active
    table[2, :, level] = total
    return Cells(*table)


@pytest.mark.parametrize("strength", levels.STRENGTHS)
def test_a_constant_score_returns_the_mean_and_not_zero(strength: float) -> None:
    alone = fit(one_level(0, 1000, [30], [12.0]), strength)
    assert alone[0, 0] == pytest.approx(0.012)
    alike = fit(one_level(0, 1000, [30, 50, 10], [12.0, 20.0, 4.0]), strength)
    assert alike[:, 0] == pytest.approx([0.012, 0.02, 0.004])
    loud = fit(one_level(7, 1000, [30, 30], [12.0, 12.0]), strength)
    assert loud[:, 7] == pytest.approx([0.012, 0.012])


def test_a_constant_score_of_unlike_latents_returns_about_the_mean() -> None:
    found = fit(one_level(0, 10_000, [300, 500, 100], [600.0, 50.0, 40.0]), 32.0)
    assert found[:, 0] == pytest.approx([0.06, 0.005, 0.004], rel=0.02)


def test_a_latent_that_is_never_active_gets_zero_and_no_nan() -> None:
    draws = generator(0, "never active")
    said = draws.integers(0, 20, (3, 10)).astype(float)
    said[:, 0] = 5000
    active = np.minimum(said, draws.integers(0, 5, (3, 10)))
    active[1] = 0
    values = fit(Cells(said, active, active * 0.5), 4.0)
    assert np.isfinite(values).all()
    assert values[1, 0] == 0
    nothing = fit(Cells(said, 0 * active, 0 * active), 4.0)
    assert nothing == pytest.approx(np.zeros((3, 10)), abs=1e-12)


def test_one_positive_is_drawn_towards_the_others() -> None:
    said, active, total = np.zeros((3, 2, 10))
    said[:, 0], said[:, 5] = 1000, 100
    active[0, 5], total[0, 5] = 50, 25.0
    active[1, 5], total[1, 5] = 1, 2.0
    values = fit(Cells(said, active, total), 8.0)
    assert np.isfinite(values).all()
    shared = fit(Cells(said, active, total), 1e9)[1, 5]
    away = [abs(fit(Cells(said, active, total), strength)[1, 5] - shared) for strength in (8.0, 64.0, 512.0)]
    assert away == sorted(away, reverse=True)
    assert away[0] > 4 * away[2]
    assert values[0, 5] == pytest.approx(0.25, rel=0.15)


def test_with_many_cases_it_is_the_conditional_mean() -> None:
    draws = generator(0, "many")
    rate, size = draws.random((4, 10)), 0.1 + draws.random((4, 10))
    said = np.full((4, 10), 1e7)
    values = fit(Cells(said, said * rate, said * rate * size), 32.0)
    assert values == pytest.approx(rate * size, rel=1e-3)


def test_a_level_never_said_shifts_the_latents_odds_as_it_shifts_the_others() -> None:
    said, active, total = np.zeros((3, 2, 10))
    said[:, 0] = 1000
    said[0, 5], active[0, 5], total[0, 5] = 1000, 500, 100.0
    active[1, 0], total[1, 0] = 100, 20.0
    values = fit(Cells(said, active, total), 2.0)
    # latent 0: from a quarter to a half, odds times three; latent 1: odds of 1/9 become 1/3
    assert values[1, 5] == pytest.approx(0.25 * 0.2, rel=0.02)


def test_levels_without_information_leave_a_loud_latent_among_quiet_ones_at_its_mean() -> None:
    draws = generator(0, "loud")
    rate = np.array([0.9, *np.full(200, 0.01)])
    said = np.concatenate([np.full((201, 1), 5000.0), draws.integers(1, 6, (201, 9))], axis=1)
    active = draws.binomial(said.astype(int), rate[:, None]).astype(float)
    values = fit(Cells(said, active, active * 2.0), 32.0)
    assert values[0] == pytest.approx(np.full(10, 1.8), rel=0.2)


def test_the_order_of_latents_does_not_matter() -> None:
    draws = generator(0, "order")
    said = draws.integers(1, 50, (6, 10)).astype(float)
    active = np.minimum(said, draws.integers(0, 20, (6, 10)))
    cells = Cells(said, active, active * draws.random((6, 10)))
    order = draws.permutation(6)
    moved = Cells(said[order], active[order], cells.total[order])
    assert fit(moved, 4.0) == pytest.approx(fit(cells, 4.0)[order])


def test_the_strength_fits_how_alike_latents_are() -> None:
    draws = generator(0, "strength")

    def folds(rate_LZ: np.ndarray) -> list[Cells]:
        said = np.full(rate_LZ.shape, 30.0)
        parts = [draws.binomial(30, rate_LZ).astype(float) for _ in range(2)]
        return [Cells(said, active, active) for active in parts]

    alike = np.full((200, 10), 0.3)
    assert levels.best_strength(folds(alike)) == max(levels.STRENGTHS)
    unlike = draws.choice([0.02, 0.98], (200, 10))
    assert levels.best_strength(folds(unlike)) == min(levels.STRENGTHS)


def test_the_shared_rate_expects_as_many_active_cases_of_each_level_as_there_are() -> None:
    draws = generator(0, "shared")
    said = draws.integers(10, 500, (20, 10)).astype(float)
    said[:, 4] = 0
    active = draws.binomial(said.astype(int), draws.random((20, 1)) * np.linspace(0.05, 0.9, 10)).astype(float)
    values = fit(Cells(said, active, active), 1e9)  # magnitudes are all 1, and nothing but the shared rate counts
    assert (said * values).sum(0) == pytest.approx(active.sum(0), rel=1e-5)
    log_odds = np.log(values / (1 - values))
    shift = log_odds - log_odds[:, :1]
    assert shift == pytest.approx(np.tile(shift[0], (20, 1)), abs=1e-4)
    assert (np.diff(shift[0, [0, 2, 5, 9]]) > 0).all()


def test_a_latent_that_is_always_active_is_no_nan() -> None:
    said = np.tile([900.0, *[10.0] * 9], (3, 1))
    active = said * np.array([[1.0], [0.1], [0.5]])
    values = fit(Cells(said, active, 2 * active), 4.0)
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(np.full(10, 2.0), rel=1e-3)


def test_levels_are_counted_from_any_cases() -> None:
    draws = generator(0, "tabled")
    score = draws.integers(0, 4, (3, 200))
    active = draws.random((3, 200)) < 0.3
    evidence = Evidence(told(score), np.ones((1, 200)), active * 1.0, active * 2.0, np.zeros(200, dtype=int))
    found = levels.tabled(evidence, levels.level_count(evidence))
    for level in range(4):
        assert found.said[:, level].tolist() == (score == level).sum(1).tolist()
        assert found.active[:, level].tolist() == (active & (score == level)).sum(1).tolist()
        assert found.total[:, level] == pytest.approx(2 * found.active[:, level])


@pytest.mark.parametrize("wrong", [-1.0, 0.5, 64.0])
def test_what_is_no_level_is_refused(wrong: float) -> None:
    ones = np.ones((1, 3))
    evidence = Evidence(told(np.array([[0.0, 1.0, wrong]])), ones, ones, ones, np.zeros(3, dtype=int))
    with pytest.raises(SettingError, match=f"whole numbers from 0 to 63: there is {wrong:g}. Use hurdle"):
        levels.share(evidence, None)  # type: ignore[arg-type]
