"""Controls that tell a part of the truth: what they tell, and that it is worth what it says on average."""

import numpy as np
import pytest
from scipy import sparse

from nlrewrite.activations.codes import Codes
from nlrewrite.evaluate import controls
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Flagged, confusion
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Spoken

POSITIONS, LATENTS = 4000, 5
DRAWS = generator(0, "controls")
ACTIVE = DRAWS.random((POSITIONS, LATENTS)) < [0.02, 0.05, 0.1, 0.3, 0.0]
TRUTH = np.where(ACTIVE, DRAWS.gamma(3.0, 0.4, ACTIVE.shape), 0.0).astype(np.float32)
LARGEST = TRUTH.max(0)


def codes(truth_PL: np.ndarray) -> Codes:
    return Codes(np.zeros(LATENTS, dtype=np.float32), sparse.csr_matrix(truth_PL))


def heard(sensitivity: float, specificity: float) -> Spoken:
    """Level 5 as often where active, and where not, as asked."""
    spoken = DRAWS.random(ACTIVE.shape) < np.where(ACTIVE, sensitivity, 1 - specificity)
    latent, position = np.nonzero(spoken.T)
    level = np.full(len(latent), 5, dtype=np.int8)
    explained = np.ones(LATENTS, dtype=bool)
    return Spoken(
        Simulated(latent.astype(np.int32), position.astype(np.int32), level, np.eye(10), explained), POSITIONS
    )


def test_a_latent_that_was_never_active_before_has_the_smallest_digits() -> None:
    told = controls.digits(codes(TRUTH), np.where(np.arange(LATENTS) == 3, 0.0, LARGEST).astype(np.float32))
    assert (np.abs(told.dense(np.arange(POSITIONS))[:, 3]) < 1e-30).all()


def test_digits_are_the_nearest_ninth_and_active_is_never_silent() -> None:
    told = controls.digits(codes(TRUTH), LARGEST).dense(np.arange(POSITIONS))
    assert ((told > 0) == ACTIVE).all()
    ninth = np.broadcast_to(LARGEST / 9, TRUTH.shape)[ACTIVE]
    levels = told[ACTIVE] / ninth
    assert levels == pytest.approx(np.rint(levels), abs=1e-4) and levels.min() == pytest.approx(1)
    far = TRUTH[ACTIVE] >= ninth / 2
    assert (np.abs(told[ACTIVE] - TRUTH[ACTIVE])[far] <= ninth[far] / 2 + 1e-5).all()


def test_flags_err_as_often_as_what_was_said_and_keep_the_mean() -> None:
    said, rate = heard(0.7, 0.95), ACTIVE.mean(0)
    magnitude = TRUTH.sum(0) / np.maximum(ACTIVE.sum(0), 1)
    told = controls.flags(codes(TRUTH), said, sparse.csr_matrix(TRUTH), rate, magnitude, seed=1)
    flagged = told.extra_PL.toarray() != 0
    asked = confusion(said, sparse.csr_matrix(TRUTH))
    for latent in range(LATENTS - 1):
        active = ACTIVE[:, latent]
        for share, wanted, count in (
            (flagged[active, latent].mean(), np.asarray(asked.sensitivity)[latent], active.sum()),
            (1 - flagged[~active, latent].mean(), np.asarray(asked.specificity)[latent], (~active).sum()),
        ):
            assert abs(share - wanted) < 3.5 * np.sqrt(wanted * (1 - wanted) / count)
    values = told.dense(np.arange(POSITIONS))
    error = 3.5 * values.std(0) / np.sqrt(POSITIONS)
    assert (np.abs(values.mean(0) - rate * magnitude) <= error + 1e-6).all()
    assert (values[:, -1] == 0).all()  # never active, and a flag cannot change that


def test_flags_that_tell_nothing_are_worth_the_mean() -> None:
    rate, magnitude = np.array([0.1, 0.5]), np.array([2.0, 1.0])
    with_flag, without = controls.expected(Flagged(np.array([0.3, 0.3]), np.array([0.7, 0.7])), rate, magnitude)
    assert with_flag == pytest.approx(rate * magnitude) and without == pytest.approx(rate * magnitude)


def test_flags_that_are_never_or_always_raised_have_a_value() -> None:
    rate, magnitude = np.array([0.1, 0.1]), np.array([2.0, 2.0])
    knows = Flagged(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    with_flag, without = controls.expected(knows, rate, magnitude)
    assert with_flag == pytest.approx([0.2, 0.2]) and without == pytest.approx([0.2, 0.2])
