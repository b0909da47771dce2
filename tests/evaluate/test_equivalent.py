import numpy as np
import pytest

from nlrewrite.evaluate.equivalent import equivalent, share_of_training
from nlrewrite.seeds import generator

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64])
LOSS = 6 - np.log1p(STEPS)


def test_a_loss_between_checkpoints_is_found_in_log_steps() -> None:
    arm = np.array([6 - np.log1p(20.0), 6 - np.log1p(64.0), LOSS[3]])
    found = share_of_training(STEPS, np.tile(LOSS, (3, 1)), arm)
    assert found == pytest.approx([20 / 64, 1.0, 4 / 64])


def test_losses_of_checkpoints_are_made_monotone() -> None:
    bumpy = LOSS.copy()
    bumpy[[4, 5]] = bumpy[[5, 4]]
    level = bumpy[[4, 5]].mean()
    found = share_of_training(STEPS, bumpy[None], np.array([level + 0.1]))[0] * 64
    assert 4 < found < 8
    assert np.isfinite(share_of_training(STEPS, bumpy[None], np.array([level]))).all()


def test_what_lies_outside_the_checkpoints_is_censored_and_never_extrapolated() -> None:
    arms = np.array([7.0, 1.0, 6 - np.log1p(20.0)])
    draws = generator(0, "documents").normal(0, 0.3, (200, 1))
    measured = np.concatenate([LOSS, arms])
    found = equivalent(STEPS, measured, measured + draws)
    assert [entry["censored"] for entry in found] == ["below", "above", ""]
    assert [entry["share"] for entry in found] == pytest.approx([0.0, 1.0, 20 / 64])
    for entry in found:  # documents move checkpoints and arms alike
        assert (entry["low"], entry["high"]) == pytest.approx((entry["share"], entry["share"]))


def test_an_arm_that_varies_alone_has_an_interval() -> None:
    noise = generator(0, "arm").normal(0, 0.1, 500)
    resampled = np.column_stack([np.tile(LOSS, (500, 1)), 6 - np.log1p(20.0) + noise])
    (entry,) = equivalent(STEPS, np.append(LOSS, 6 - np.log1p(20.0)), resampled)
    expected = [np.expm1(np.log1p(20.0) + side * 0.196) / 64 for side in (-1, 1)]
    assert [entry["low"], entry["high"]] == pytest.approx(expected, rel=0.05)
