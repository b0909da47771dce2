import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from nlrewrite.activations.codes import Codes, Kept, Values, constant_codes, oracle_codes, true_codes
from nlrewrite.activations.pairs import Active
from nlrewrite.seeds import generator
from tests.evaluate.planted import random_codes

DECODER = generator(0, "decoder").normal(size=(12, 5)).astype(np.float32)
ROWS = np.array([7, 0, 3, 3])


def check(values: Values, dense_PL: np.ndarray) -> None:
    assert values.dense(ROWS) == pytest.approx(dense_PL[ROWS], abs=1e-5)
    assert np.asarray(values.output(ROWS, DECODER)) == pytest.approx(dense_PL[ROWS] @ DECODER, abs=1e-5)
    some = np.arange(12) % 3 == 0
    part = np.asarray(values.output(ROWS, DECODER * some[:, None]))
    assert part == pytest.approx(dense_PL[ROWS][:, some] @ DECODER[some], abs=1e-5)


def test_codes_are_a_constant_and_what_is_added_to_it() -> None:
    codes = random_codes(9)
    check(codes, codes.constant_L + codes.extra_PL.toarray())


def test_true_codes_are_the_activations_and_leave_them_as_they_are() -> None:
    draws = generator(0, "active")
    latents = np.stack([draws.permutation(12)[:3] for _ in range(9)]).astype(np.int32)
    values = (draws.random((9, 3)) * (draws.random((9, 3)) < 0.6)).astype(np.float32)
    active = Active(latents.copy(), values.copy())
    dense = np.zeros((9, 12), dtype=np.float32)
    np.put_along_axis(dense, latents, values, axis=1)
    codes = true_codes(active, 12)
    check(codes, dense)
    assert codes.extra_PL.nnz == (dense > 0).sum()
    assert (active.values == values).all()
    assert (active.latents == latents).all()
    size = 1 + np.arange(12, dtype=np.float64)
    check(oracle_codes(active, size), (dense > 0) * size)


def test_constant_codes_are_the_same_everywhere() -> None:
    check(constant_codes(np.arange(12.0), 9), np.tile(np.arange(12.0), (9, 1)))


@pytest.mark.parametrize("k", [1, 3, 11, 12, 20])
@pytest.mark.parametrize("seed", range(3))
def test_a_topk_keeps_the_largest_deviations(k: int, seed: int) -> None:
    codes, rest = random_codes(9, seed), generator(seed, "rest").normal(size=12).astype(np.float32)
    dense = codes.dense(np.arange(9))
    expected = np.tile(rest, (9, 1))
    for row in range(9):
        kept = np.argsort(-np.abs(dense[row] - rest), kind="stable")[:k]
        expected[row, kept] = dense[row, kept]
    check(Kept(codes, k, rest), expected)


@given(st.integers(1, 12), st.lists(st.integers(-2, 2), min_size=12, max_size=12))
def test_a_topk_keeps_exactly_k_though_values_are_tied(k: int, values: list[int]) -> None:
    codes = Codes(np.zeros(12, dtype=np.float32), sparse.csr_matrix(np.array([values], dtype=np.float32)))
    kept = Kept(codes, k, np.zeros(12, dtype=np.float32)).dense(np.array([0]))[0]
    assert (kept != 0).sum() == min(k, np.count_nonzero(values))
    assert ((kept == values) | (kept == 0)).all()
    largest = np.sort(np.abs(values))[::-1][:k]
    assert np.sort(np.abs(kept))[::-1].tolist() == [*largest.tolist(), *[0] * (12 - k)]
