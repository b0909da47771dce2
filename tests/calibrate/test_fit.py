import inspect

import numpy as np
import pytest

from nlrewrite.calibrate import fit as calibrate
from nlrewrite.calibrate.cells import cells
from nlrewrite.composition import rewrite
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.specs import CalibrateSpec, RewriteSpec
from nlrewrite.steps import STEPS, name
from nlrewrite.text.positions import Positions
from tests.calibrate.planted import fitting, informative, shuffled

LEVEL, TRUTH = informative()
FOLDS = np.arange(len(LEVEL)) // 50 % 2
DECODER = generator(0, "decoder").normal(size=(LEVEL.shape[1], 5)).astype(np.float32)
EVERY = ("none", "hurdle", *(f"quantile-{type_}" for type_ in range(1, 10)), "quantile-6-on-prompt")


def error(name: str, planted: calibrate.Fitting) -> float:
    return calibrate.cross_fitted_error(name, planted, FOLDS, DECODER)


def test_the_hurdle_beats_the_mean_where_levels_inform_and_costs_nothing_where_they_do_not() -> None:
    planted, control = fitting(LEVEL, TRUTH), fitting(shuffled(LEVEL), TRUTH)
    mean = calibrate.mean_ablation_error(planted, FOLDS, DECODER)
    assert error("hurdle", planted) < 0.8 * mean
    assert calibrate.mean_ablation_error(control, FOLDS, DECODER) == mean
    assert error("hurdle", control) == pytest.approx(mean, rel=0.01)
    assert error("quantile-6", control) > 1.5 * mean


def test_the_hurdle_is_near_the_best_there_is() -> None:
    """The planted conditional mean itself, whose error cannot be beaten but by chance."""
    rate, size = 0.01 + 0.09 * np.arange(10), 4 * (0.05 + 0.02 * np.arange(10))
    best = np.square(((rate * size)[LEVEL] - TRUTH) @ DECODER).sum() / len(LEVEL)
    assert error("hurdle", fitting(LEVEL, TRUTH)) == pytest.approx(best, rel=0.02)


def test_mean_ablation_in_closed_form() -> None:
    held = FOLDS == 0
    expected = 0.0
    for rows in (held, ~held):
        residual = (TRUTH[rows] - TRUTH[~rows].mean(0)) @ DECODER
        expected += np.square(residual).sum() / len(TRUTH)
    assert calibrate.mean_ablation_error(fitting(LEVEL, TRUTH), FOLDS, DECODER) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_unexplained_latents_get_their_mean_from_every_calibrator(name: str) -> None:
    explained = np.array([True, False, True, False, True, True])
    level = np.where(explained, LEVEL, 0)
    fitted = calibrate.fit(name, fitting(level, TRUTH, explained), FOLDS)
    assert fitted.values_LZ[~explained] == pytest.approx(np.tile(TRUTH.mean(0)[~explained, None], 10), rel=1e-5)
    assert np.isfinite(fitted.values_LZ).all()
    assert (np.abs(fitted.values_LZ[explained] - TRUTH.mean(0)[explained, None]) > 1e-3).any()


@pytest.mark.parametrize("name", EVERY)
def test_a_latent_that_is_never_active_is_silent_and_one_positive_is_no_nan(name: str) -> None:
    truth = TRUTH.copy()
    truth[:, 1] = 0
    truth[:, 2] = 0
    truth[7, 2] = 3.0
    values = calibrate.fit(name, fitting(LEVEL, truth), FOLDS).values_LZ
    assert np.isfinite(values).all()
    assert values[1, 0] == 0
    if name != "hurdle":
        assert values[1].tolist() == [0] * 10
    assert 0 <= values[2].max() <= 3.0


@pytest.mark.parametrize("name", EVERY)
def test_neither_the_order_of_latents_nor_of_positions_matters(name: str) -> None:
    draws = generator(1, "order")
    latents, rows = draws.permutation(LEVEL.shape[1]), draws.permutation(len(LEVEL))
    first = calibrate.fit(name, fitting(LEVEL, TRUTH), FOLDS).values_LZ
    moved = fitting(LEVEL[rows][:, latents], TRUTH[rows][:, latents])
    assert calibrate.fit(name, moved, FOLDS[rows]).values_LZ == pytest.approx(first[latents], rel=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_fit_on_some_rows_sees_no_others(name: str) -> None:
    rows = FOLDS == 1
    corpus_free = name in ("hurdle",)
    other_level, other_truth = np.where(rows[:, None], LEVEL, 9 - LEVEL), np.where(rows[:, None], TRUTH, TRUTH[::-1])
    first = calibrate.fit(name, fitting(LEVEL, TRUTH), FOLDS, rows).values_LZ
    if corpus_free:
        other = calibrate.fit(name, fitting(other_level, other_truth), FOLDS, rows).values_LZ
        assert other == pytest.approx(first, rel=1e-5)
    else:
        other = calibrate.fit(name, fitting(other_level, TRUTH), FOLDS, rows).values_LZ
        assert (other == first).all()


def test_no_calibration_is_the_expected_digit_in_ninths_of_the_maximum() -> None:
    fitted = calibrate.fit("none", fitting(LEVEL, TRUTH), FOLDS)
    assert fitted.values_LZ == pytest.approx(TRUTH.max(0)[:, None] * np.arange(10) / 9)
    assert fitted.information == "maximum"


@pytest.mark.parametrize(
    ("name", "information"),
    [("hurdle", "paired"), ("quantile-7", "marginals"), ("quantile-6-on-prompt", "test marginals")],
)
def test_what_a_calibrator_used_is_said(name: str, information: str) -> None:
    assert calibrate.fit(name, fitting(LEVEL, TRUTH), FOLDS).information == information


@pytest.mark.parametrize("name", ["quantile-0", "quantile", "quantile-10", "isotonic"])
def test_an_unknown_calibrator_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(SettingError, match=f"no calibrator is called '{name}': there are none, hurdle, quantile-1"):
        calibrate.fit(name, fitting(LEVEL[:100], TRUTH[:100]), FOLDS[:100])


def test_calibrated_codes_are_the_values_of_the_levels() -> None:
    planted = fitting(LEVEL, TRUTH)
    fitted = calibrate.fit("hurdle", planted, FOLDS)
    dense = fitted.codes(planted.simulated, len(LEVEL)).dense(np.arange(len(LEVEL)))
    expected = fitted.values_LZ[np.arange(LEVEL.shape[1]), LEVEL]
    assert dense == pytest.approx(expected, rel=1e-5)


def test_quantile_normalisation_of_informative_levels_keeps_the_mass() -> None:
    planted = fitting(LEVEL, TRUTH)
    fitted = calibrate.fit("quantile-6", planted, FOLDS)
    table = cells(planted.simulated, planted.truth_PL)
    said_active = np.where(fitted.values_LZ > 0, table.said, 0).sum(1)
    truly_active = table.active.sum(1)
    widest = np.max(table.said[:, 1:], axis=1)
    assert (np.abs(said_active - truly_active) <= widest + 1).all()


# -- folds, and what the choice may see -------------------------------------------------------------------------------


def grouped(groups: int, each: int = 7) -> Positions:
    group = np.repeat(np.arange(groups, dtype=np.int32) * 3, each)
    zeros = np.zeros_like(group)
    return Positions(zeros, zeros, zeros, group)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_keep_groups_together_and_are_of_one_size(count: int) -> None:
    where = grouped(23)
    found = calibrate.folds(where, CalibrateSpec(folds=count))
    for group in np.unique(where.group):
        assert len(set(found[where.group == group].tolist())) == 1
    sizes = np.bincount(found) // 7
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= 1
    assert (found == calibrate.folds(where, CalibrateSpec(folds=count))).all()
    assert (found != calibrate.folds(where, CalibrateSpec(folds=count, seed=1))).any()


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(SettingError, match=r"folds=5, groups=3\. Lower --set calibrate.folds"):
        calibrate.folds(grouped(3), CalibrateSpec(folds=5))


def test_nothing_of_the_report_split_goes_into_a_calibration() -> None:
    """Neither directly nor through anything it is made from."""
    made: dict[str, tuple[str, object, dict]] = {}

    def step(label: str, kind: str, spec, **inputs):
        artifact = name(kind, spec, inputs)
        made[str(artifact)] = (label, spec, inputs)
        return artifact

    rewrite(RewriteSpec(), step)
    calibrations = [key for key, (label, _, _) in made.items() if label.startswith("calibration")]
    assert len(calibrations) >= 2
    waiting = list(calibrations)
    while waiting:
        _, spec, inputs = made[waiting.pop()]
        assert getattr(spec, "split", None) != "report"
        waiting += [str(each) for each in inputs.values()]
    assert '"report"' not in inspect.getsource(calibrate.build)
    assert set(STEPS["calibration"].inputs) == {"tokens", "activations", "explain", "coder", "simulation"}
