import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.activations.pairs import Active
from nlrewrite.score import build
from nlrewrite.seeds import generator
from nlrewrite.specs import ScoreSpec
from nlrewrite.text.positions import Positions

LENGTH = 10


def planted(windows: int, active_in: int, per_window: int = 2) -> tuple[Positions, Active]:
    """One latent (number 1 of 3), active at the first places of the first windows, ever more strongly."""
    window, offset = np.divmod(np.arange(windows * LENGTH, dtype=np.int32), np.int32(LENGTH))
    where = Positions(window, offset, np.zeros_like(window), window)
    values = np.where((window < active_in) & (offset < per_window), 1 + np.arange(len(window)), 0).astype(np.float32)
    return where, Active(np.ones((len(window), 1), np.int32), values[:, None])


def quiz(where: Positions, active: Active, said: np.ndarray, examples: int = 50, seed: int = 0) -> np.ndarray:
    draws = generator(seed, "score", 1)
    windows = int(where.window.max()) + 1
    return build._quizzes(1, active.by_latent(3), said, where, windows, ScoreSpec(examples=examples), draws)


@pytest.mark.parametrize(
    ("windows", "active_in", "asked", "others"),
    [(200, 60, 50, 50), (70, 60, 50, 10), (40, 3, 6, 6), (40, 40, 50, 0)],
)
def test_as_many_cases_are_asked_as_there_are_up_to_fifty(windows, active_in, asked, others) -> None:
    where, active = planted(windows, active_in)
    everything = np.arange(len(where))
    detection, fuzzing = quiz(where, active, everything)
    assert detection.tolist() == [others, others, 0, 0]  # half of them active, however few others there are
    assert fuzzing.tolist() == [asked, asked, 0, 0]
    nothing = quiz(where, active, np.zeros(0, dtype=np.int64))
    assert nothing.tolist() == [[0, 0, others, others], [0, 0, asked, asked]]


def test_a_reader_that_knows_gets_all_right_and_one_that_knows_the_window_fails_fuzzing() -> None:
    where, active = planted(100, 40)
    true = np.flatnonzero(active.values[:, 0])
    assert quiz(where, active, true).tolist() == [[50, 0, 0, 50], [50, 0, 0, 50]]
    whole_windows = np.flatnonzero(where.window < 40)
    detection, fuzzing = quiz(where, active, whole_windows)
    assert detection.tolist() == [50, 0, 0, 50]
    assert fuzzing.tolist() == [50, 50, 0, 0]
    elsewhere = np.flatnonzero((where.window < 40) & (where.offset == 5))
    detection, fuzzing = quiz(where, active, elsewhere)
    assert detection.tolist() == [50, 0, 0, 50]
    assert fuzzing[0] == 0
    assert fuzzing[2] == 50


def test_a_latent_that_is_never_active_is_asked_nothing() -> None:
    where, active = planted(20, 0)
    assert quiz(where, active, np.arange(20)).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]


def test_draws_depend_on_the_seed_and_nothing_else() -> None:
    where, active = planted(200, 90)
    said = np.flatnonzero(where.offset == 0)
    results = [quiz(where, active, said, seed=seed).tolist() for seed in (0, 0, 1, 2, 3)]
    assert results[0] == results[1]
    assert any(result != results[0] for result in results[2:])


@given(st.integers(1, 200), st.integers(10, 120), st.integers(0, 3))
def test_examples_come_evenly_from_the_deciles(count: int, asked: int, seed: int) -> None:
    value = generator(seed, "values", count).permutation(count).astype(np.float32)
    chosen = build._by_decile(value, asked, generator(seed, "draws"))
    assert len(chosen) == len(set(chosen.tolist())) == min(count, asked)
    of_decile = np.empty(count, dtype=int)
    for decile, part in enumerate(np.array_split(np.argsort(value, kind="stable"), 10)):
        of_decile[part] = decile
    taken, there = np.bincount(of_decile[chosen], minlength=10), np.bincount(of_decile, minlength=10)
    most = taken.max()
    assert all(taken[decile] >= min(most - 1, there[decile]) for decile in range(10))
