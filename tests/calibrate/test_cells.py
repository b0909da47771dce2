import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.calibrate.cells import cells
from nlrewrite.seeds import generator
from tests.calibrate.planted import fitting


@given(st.integers(1, 30), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5), st.booleans())
def test_cells_partition_the_positions(
    positions: int, latents: int, quiet: float, inactive: float, seed: int, some: bool
) -> None:
    draws = generator(seed, "cells", positions, latents)
    level = draws.integers(1, 10, (positions, latents)) * (draws.random((positions, latents)) > quiet)
    truth = draws.gamma(1.0, 1.0, level.shape).astype(np.float32) * (draws.random(level.shape) > inactive)
    rows = draws.random(positions) < 0.5
    planted = fitting(level, truth)
    found = cells(planted.simulated, planted.truth_PL, rows if some else None)
    if some:
        level, truth = level[rows], truth[rows]
    assert found.positions == len(level)
    for latent in range(latents):
        for digit in range(10):
            there = level[:, latent] == digit
            assert found.said[latent, digit] == there.sum()
            assert found.active[latent, digit] == (truth[there, latent] > 0).sum()
            assert found.total[latent, digit] == pytest.approx(truth[there, latent].sum(), abs=1e-4)


def test_cells_of_parts_add_up() -> None:
    draws = generator(0, "parts")
    level = draws.integers(0, 10, (50, 3))
    planted = fitting(level, draws.random((50, 3)) * (draws.random((50, 3)) < 0.3))
    rows = draws.random(50) < 0.4
    parts = [cells(planted.simulated, planted.truth_PL, each) for each in (rows, ~rows)]
    together, whole = parts[0] + parts[1], cells(planted.simulated, planted.truth_PL)
    for name in ("said", "active", "total"):
        assert getattr(together, name) == pytest.approx(getattr(whole, name), abs=1e-5)
