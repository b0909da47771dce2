import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.activations.codes import Codes, Retuned, constant_codes, largest
from nlrewrite.evaluate import mixing
from nlrewrite.evaluate.mixing import Contested, Mixture, Replaced, instead
from nlrewrite.seeds import generator
from tests.evaluate.planted import random_codes

POSITIONS, LATENTS, OUT = 40, 9, 4
ROWS = np.arange(POSITIONS)
DEC = generator(0, "decoder").normal(size=(LATENTS, OUT)).astype(np.float32)


def codes(seed: int) -> Codes:
    return random_codes(POSITIONS, seed, LATENTS)


@given(st.integers(0, 20), st.integers(1, LATENTS + 2))
def test_the_k_largest_are_those_of_a_stable_sort(seed: int, k: int) -> None:
    values = generator(seed, "values").integers(-2, 3, (20, LATENTS)).astype(np.float32)  # with many ties
    kept = largest(values, k)
    assert (kept.sum(1) == min(k, LATENTS)).all()
    for row, mask in zip(values, kept, strict=True):
        assert sorted(np.argsort(-row, kind="stable")[:k]) == np.flatnonzero(mask).tolist()


@given(st.integers(0, 20))
def test_what_is_written_is_the_decoded_vector_whatever_the_chunks(seed: int) -> None:
    inside = generator(seed, "inside").random((POSITIONS, LATENTS)) < 0.5
    mixture = Mixture(codes(1), codes(2), lambda rows: inside[rows])
    expected = np.where(inside, codes(1).dense(ROWS), codes(2).dense(ROWS))
    other = generator(1, "decoder").normal(size=DEC.shape).astype(np.float32)
    mean = generator(2, "mean").random(LATENTS).astype(np.float32)
    retuned = Mixture(Retuned(codes(1), mean, other), codes(2), lambda rows: inside[rows])
    contested = Contested(mixture, 3)
    replaced = Replaced(codes(1), codes(2), inside[0])
    for size in (1, 7 * LATENTS, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixing, "CELLS", size)
            rows = generator(seed, "rows").permutation(POSITIONS)[:17]
            assert mixture.dense(rows) == pytest.approx(expected[rows])
            for values in (mixture, contested, replaced):
                assert values.output(rows, DEC) == pytest.approx(values.dense(rows) @ DEC, abs=1e-4)
            away, true = np.where(inside, expected - mean, 0)[rows], np.where(inside, mean, expected)[rows]
            assert retuned.output(rows, DEC) == pytest.approx(away @ other + true @ DEC, abs=1e-4)
            assert contested.eviction_rate(ROWS) == contested.eviction_rate(ROWS[::-1])
    assert contested.output(ROWS[:0], DEC).shape == (0, OUT)


def test_evictions_are_counted_among_true_values_that_nobody_predicts() -> None:
    """Three latents, one place: latent 0 is predicted, 1 is truly active always, 2 never."""
    rows = np.arange(4)
    truth = np.array([[0.0, 1.0, 0.0]] * 4, dtype=np.float32)
    predicted = np.array([[2.0, 9.0, 9.0], [0.5, 9.0, 9.0], [0.0, 9.0, 9.0], [3.0, 9.0, 9.0]], dtype=np.float32)

    def held(values: np.ndarray) -> Codes:
        from scipy import sparse

        return Codes(np.zeros(3, dtype=np.float32), sparse.csr_matrix(values))

    first = np.array([True, False, False])
    contested = Contested(Mixture(held(predicted), held(truth), lambda rows: first), 1)
    assert contested.eviction_rate(rows) == 0.5
    assert contested.dense(rows).tolist() == [[2, 0, 0], [0, 1, 0], [0, 1, 0], [3, 0, 0]]
    nobody = Contested(Mixture(held(predicted), held(truth), lambda rows: ~np.zeros(3, dtype=bool)), 1)
    assert nobody.eviction_rate(rows) == 0.0


@given(st.integers(0, 20), st.floats(0, 1))
def test_codes_with_some_latents_replaced_are_codes(seed: int, share: float) -> None:
    mask = generator(seed, "mask").random(LATENTS) < share
    one, other = codes(1), codes(2)
    found = instead(one, other, mask)
    assert isinstance(found, Codes)
    assert found.dense(ROWS) == pytest.approx(Replaced(one, other, mask).dense(ROWS))
    assert found.output(ROWS, DEC) == pytest.approx(Replaced(one, other, mask).output(ROWS, DEC), abs=1e-4)
    assert one.dense(ROWS) == pytest.approx(codes(1).dense(ROWS))


def test_other_forms_are_replaced_too() -> None:
    mask = np.arange(LATENTS) < 3
    mixture = Mixture(codes(1), codes(2), lambda rows: mask)
    found = instead(mixture, constant_codes(np.full(LATENTS, 7.0), POSITIONS), ~mask)
    assert (found.dense(ROWS)[:, 3:] == 7).all()
    assert found.dense(ROWS)[:, :3] == pytest.approx(codes(1).dense(ROWS)[:, :3])
    assert instead(mixture, codes(2), np.zeros(LATENTS, dtype=bool)) is mixture
