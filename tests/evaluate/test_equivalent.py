from pathlib import Path

import numpy as np
import pytest

from nlrewrite.evaluate.arms import Arm, Key
from nlrewrite.evaluate.bootstrap import Resampled
from nlrewrite.evaluate.equivalent import (
    as_training,
    checkpoint_losses,
    equivalent,
    monotone,
    power_law,
    share_by_law,
    share_of_training,
)
from nlrewrite.evaluate.losses import Losses, Where, losses
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec
from nlrewrite.subject.checkpoints import Checkpoint
from tests.evaluate.planted import planted
from tests.subject import small_models

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64])
LOSS = 6 - np.log1p(STEPS)


def drawn(measured: np.ndarray, resampled: np.ndarray) -> Resampled:
    return Resampled(measured, resampled, np.zeros((2, len(measured))), groups=1e6)


def test_a_loss_between_checkpoints_is_found_in_log_steps() -> None:
    arm = np.array([6 - np.log1p(20.0), 6 - np.log1p(64.0), LOSS[3]])
    found = share_of_training(STEPS, np.tile(LOSS, (3, 1)), arm)
    assert found == pytest.approx([20 / 64, 1.0, 4 / 64])


def test_losses_of_checkpoints_are_made_monotone() -> None:
    bumpy = LOSS.copy()
    bumpy[[4, 5]] = bumpy[[5, 4]]
    falling = monotone(bumpy[None])
    assert (np.diff(falling[0]) <= 0).all()
    assert falling[0, [4, 5]] == pytest.approx(np.full(2, bumpy[[4, 5]].mean()))
    level = bumpy[[4, 5]].mean()
    found = share_of_training(STEPS, falling, np.array([level + 0.1]))[0] * 64
    assert 4 < found < 8
    assert np.isfinite(share_of_training(STEPS, falling, np.array([level]))).all()


def test_what_lies_outside_the_checkpoints_is_censored_and_never_extrapolated() -> None:
    arms = np.array([7.0, 1.0, 6 - np.log1p(20.0)])
    draws = generator(0, "documents").normal(0, 0.3, (200, 1))
    measured = np.concatenate([LOSS, arms])
    found = equivalent(STEPS, drawn(measured, measured + draws))
    assert [entry["censored"] for entry in found] == ["below", "above", ""]
    assert [entry["share"] for entry in found] == pytest.approx([0.0, 1.0, 20 / 64])
    for entry in found:  # documents move checkpoints and arms alike
        assert (entry["low"], entry["high"]) == pytest.approx((entry["share"], entry["share"]))
        assert entry["low_censored"] == entry["high_censored"] == entry["censored"]


def test_the_first_checkpoint_is_the_least_that_is_said() -> None:
    late = slice(4, None)
    measured = np.append(LOSS[late], 6 - np.log1p(3.0))
    (entry,) = equivalent(STEPS[late], drawn(measured, np.tile(measured, (100, 1))))
    assert (entry["share"], entry["censored"]) == (8 / 64, "below")


def test_an_arm_that_varies_alone_has_an_interval() -> None:
    noise = generator(0, "arm").normal(0, 0.1, 2000)
    resampled = np.column_stack([np.tile(LOSS, (2000, 1)), 6 - np.log1p(20.0) + noise])
    (entry,) = equivalent(STEPS, drawn(np.append(LOSS, 6 - np.log1p(20.0)), resampled))
    expected = [np.expm1(np.log1p(20.0) + side * 0.196) / 64 for side in (-1, 1)]
    assert [entry["low"], entry["high"]] == pytest.approx(expected, rel=0.05)


def test_an_end_of_an_interval_that_lies_outside_says_so() -> None:
    near = 6 - np.log1p(60.0)
    noise = generator(0, "near").normal(0, 0.1, 2000)
    resampled = np.column_stack([np.tile(LOSS, (2000, 1)), near + noise])
    (entry,) = equivalent(STEPS, drawn(np.append(LOSS, near), resampled))
    assert (entry["censored"], entry["low_censored"], entry["high_censored"]) == ("", "", "above")
    low, share = entry["low"], entry["share"]
    assert isinstance(low, float)
    assert isinstance(share, float)
    assert low < share < 1.0
    assert entry["high"] == 1.0


def test_the_last_checkpoint_is_the_whole_training() -> None:
    measured = np.append(LOSS, LOSS[-1])
    (entry,) = equivalent(STEPS, drawn(measured, np.tile(measured, (100, 1))))
    assert (entry["share"], entry["censored"]) == (pytest.approx(1.0), "")


# -- the power law ----------------------------------------------------------------------------------------------------


def test_a_power_law_is_found_again_and_inverted() -> None:
    steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128])
    exponent = float(np.geomspace(0.02, 3.0, 120)[70])
    law = np.append(9.0, 2.5 + 4.0 * steps[1:] ** -exponent)
    rows = np.stack([law, law + 0.5])
    fitted = power_law(steps, rows)
    assert fitted == pytest.approx(np.array([[2.5, 4.0, exponent], [3.0, 4.0, exponent]]))
    arm = 2.5 + 4.0 * 50.0**-exponent
    assert share_by_law(steps, fitted, np.array([arm, arm + 0.5])) == pytest.approx([50 / 128] * 2)
    outside = share_by_law(steps, fitted[[0, 0, 0]], np.array([2.4, 2.5 + 4.0 * 129.0**-exponent, 6.6]))
    assert outside.tolist() == [np.inf, np.inf, -np.inf]


def test_losses_that_do_not_fall_or_are_too_few_have_no_law() -> None:
    assert np.isnan(power_law(STEPS, np.linspace(1, 2, 8)[None])).all()
    assert np.isnan(power_law(STEPS[:3], LOSS[None, :3])).all()
    assert np.isnan(share_by_law(STEPS, np.full((1, 3), np.nan), np.array([1.0]))).all()
    rising = np.append(np.linspace(1, 2, 8), 1.5)
    (entry,) = equivalent(STEPS, drawn(rising, np.tile(rising, (50, 1))))
    assert entry["power_law"] is None


# -- real checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> list[Checkpoint]:
    from safetensors.torch import save_file

    found = []
    for step in (0, 4, 9):
        save_file(small_models.fresh("gpt_neox", seed=step).state_dict(), tmp_path / f"{step}.safetensors")
        found.append(Checkpoint(step, tmp_path / f"{step}.safetensors"))
    return found


@pytest.mark.parametrize("positions", [("all", "last"), ("last",)])
def test_arms_are_told_by_the_losses_of_checkpoints_on_the_same_positions(
    kept: list[Checkpoint], positions: tuple[Where, ...]
) -> None:
    given, progress = planted(), Progress()
    position = positions[0]
    rows = np.arange(len(given.where)) if position == "all" else np.cumsum(given.windows.lengths) - 1
    table = checkpoint_losses(small_models.fresh("gpt_neox"), kept, given.windows, 30, Execution(), progress)
    for each, column in zip(kept, table.T, strict=True):
        model = small_models.fresh("gpt_neox", seed=each.step)
        own = losses(model, given.located, given.windows, {"own": ("all", None)}, 1000, progress)["own"]
        assert column == pytest.approx(own.ce, abs=1e-5)
    order = np.argsort(-table[rows].mean(0))
    planned = [
        Arm(Key("original", "a site", fraction=0.0, position=position), None, 0),
        Arm(Key("coder", "a site", fraction=0.0, position=position), lambda rows, x, y: y, 0),
        Arm(Key("mean", "a site", selection="top", fraction=0.5, position=position), lambda rows, x, y: y, 0),
    ]
    fake = [Checkpoint(step, kept[at].weights) for step, at in zip((0, 4, 9), order, strict=True)]
    measured = {
        str(arm): Losses(table[rows, at].astype(np.float32), np.zeros(len(rows)))
        for arm, at in ((0, order[-1]), (1, order[1]), (2, order[0]))
    }
    spec = EvaluateSpec(positions=positions, resamples=200)
    found = as_training(
        spec, planned, measured, given.where, "none", small_models.fresh("gpt_neox"), fake, given.windows,
        Execution(), progress,
    )  # fmt: skip
    assert [entry["arm"] for entry in found] == ["original", "coder"]
    assert [entry["share"] for entry in found] == pytest.approx([1.0, 4 / 9], rel=1e-3)
    assert found[0]["position"] == position
    assert found[0]["checkpoints"] == [{"step": step, "revision": "", "commit": ""} for step in (0, 4, 9)]
    assert as_training(
        spec, planned, measured, given.where, "none", small_models.fresh("gpt_neox"), [], given.windows,
        Execution(), progress,
    ) == []  # fmt: skip
