import inspect
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from nlrewrite import steps
from nlrewrite.calibrate import apply, methods
from nlrewrite.calibrate import fit as calibrate
from nlrewrite.calibrate.cells import cells
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.stored import ARRAYS
from nlrewrite.composition import rewrite
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Reading
from nlrewrite.specs import CalibrateSpec, RewriteSpec
from nlrewrite.text.positions import Positions
from tests.calibrate.planted import Planted, Told, as_contexts, binormal, fitting, informative, shuffled

LEVEL, TRUTH = informative()
DECODER = generator(0, "decoder").normal(size=(LEVEL.shape[1], 5)).astype(np.float32)
DEFAULTS = CalibrateSpec().calibrators
OTHERS = (
    "mean", "published", "quantile-6-tenth", "quantile-6-on-prompt", "beta", "isotonic", "hurdle-none", "hurdle-full",
)  # fmt: skip
READ_OTHERWISE = (
    "hurdle@expected",
    "platt@log-odds",
    "hurdle+gain",
    "none+output-gain",
    "isotonic+gain",
    "levels+refit",
)
PLAIN = (*DEFAULTS, *OTHERS, *READ_OTHERWISE)
CENTRED = ("hurdle@centred", "quantile-7@expected-centred", "platt@log-odds-centred+gain")
EVERY = (*PLAIN, *CENTRED)
SPOKEN = fitting(LEVEL, TRUTH)


@cache
def fitted(name: str) -> Fitted:
    return fitted_to(name, SPOKEN)


def fitted_to(name: str, planted: Planted) -> Fitted:
    target = methods.method(methods.parse(name)).target
    return calibrate.fit_on(name, planted.pairing(), planted.statistics.known_of(target), DECODER)


def predicted(name: str, planted: Planted = SPOKEN) -> np.ndarray:
    """[P, L]"""
    found = fitted(name) if planted is SPOKEN else fitted_to(name, planted)
    return apply.values(found, planted.spoken).dense(np.arange(len(planted.folds_P)))


def error(name: str, planted: Planted = SPOKEN) -> float:
    known = partial(planted.statistics.known_of, methods.method(methods.parse(name)).target)
    return calibrate.cross_fitted_error(name, planted.pairing(), known, DECODER)


# -- what calibrators are worth ----------------------------------------------------------------------------------------


def test_conditional_means_beat_the_mean_where_levels_inform_and_cost_nothing_where_they_do_not() -> None:
    control = fitting(shuffled(LEVEL), TRUTH)
    mean = error("mean")
    assert error("mean", control) == mean
    for each in ("levels", "hurdle"):
        assert error(each) < 0.8 * mean
        assert error(each, control) == pytest.approx(mean, rel=0.01)
    assert error("quantile-6", control) > 1.5 * mean


def test_levels_are_near_the_best_there_is() -> None:
    """The planted conditional mean itself, whose error cannot be beaten but by chance."""
    rate, size = 0.01 + 0.09 * np.arange(10), 4 * (0.05 + 0.02 * np.arange(10))
    best = np.square(((rate * size)[LEVEL] - TRUTH) @ DECODER).sum() / len(LEVEL)
    assert error("levels") == pytest.approx(best, rel=0.02)


def test_the_hurdle_beats_quantiles_and_the_mean_on_planted_scores() -> None:
    score, truth = binormal()
    planted, decoder = fitting(np.zeros(truth.shape), truth), np.eye(truth.shape[1], dtype=np.float32)

    def of(name: str, target: methods.Target | None = None) -> float:
        known = partial(planted.statistics.known_of, target)
        return calibrate.cross_fitted_error(name, planted.pairing(Told(score)), known, decoder)

    assert of("hurdle") < 0.95 * of("mean") < 0.95 * of("quantile-6", "corpus")
    assert of("hurdle") < of("prior-shift") < of("mean")
    assert of("quantile-6+gain", "corpus") < of("mean")


def test_mean_ablation_in_closed_form() -> None:
    """The explain split is the same truth, and counts beside the folds that are not held out."""
    expected = 0.0
    for held in (SPOKEN.folds_P == fold for fold in range(3)):
        mean = (TRUTH.sum(0) + TRUTH[~held].sum(0)) / (len(TRUTH) + (~held).sum())
        expected += np.square((TRUTH[held] - mean) @ DECODER).sum() / len(TRUTH)
    assert error("mean") == pytest.approx(expected, rel=1e-4)


def test_centring_takes_off_what_is_said_of_all_latents_alike() -> None:
    score, truth = binormal(80, 1500)
    loud = score + 2 * generator(0, "contexts").normal(size=score.shape[1])
    planted = fitting(np.zeros(truth.shape), truth)
    decoder = np.eye(truth.shape[1], dtype=np.float32)

    def of(name: str, scores: np.ndarray) -> float:
        known = partial(planted.statistics.known_of, None)
        return calibrate.cross_fitted_error(name, planted.pairing(Told(scores)), known, decoder)

    assert of("hurdle@centred", loud) == pytest.approx(of("hurdle", score), rel=0.02)
    assert of("hurdle", loud) > 1.05 * of("hurdle@centred", loud)


# -- what holds of every calibrator ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_unexplained_latents_get_their_mean_from_every_calibrator(name: str) -> None:
    explained = np.array([True, False, True, False, True, True])
    planted = fitting(np.where(explained, LEVEL, 0), TRUTH, explained)
    values = predicted(name, planted)
    mean = TRUTH.mean(0)
    assert values[:, ~explained] == pytest.approx(np.tile(mean[~explained], (len(values), 1)), rel=1e-5)
    assert np.isfinite(values).all()
    assert (name == "mean") != (np.abs(values[:, explained] - mean[explained]) > 1e-3).any()


@pytest.mark.parametrize("name", EVERY)
def test_a_latent_that_is_never_active_is_silent_and_one_positive_is_no_nan(name: str) -> None:
    truth = TRUTH.copy()
    truth[:, 1] = 0
    truth[:, 2] = 0
    truth[7, 2] = 3.0
    values = predicted(name, fitting(LEVEL, truth))
    assert np.isfinite(values).all()
    if name != "levels":
        assert (values[:, 1] == 0).all()
    assert np.median(values[:, 1]) == 0
    assert values[:, 2].min() >= 0
    assert values[:, 2].max() <= 3.0 + 1e-5


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("none", "published", "none+output-gain")])
@pytest.mark.parametrize("constant", [0, 4])
def test_a_constant_score_is_worth_the_mean(name: str, constant: int) -> None:
    values = predicted(name, fitting(np.full(LEVEL.shape, constant), TRUTH))
    if name.startswith("quantile"):
        assert (values == values[:1]).all()  # the median of a sparse latent: 0
    else:
        assert values == pytest.approx(np.tile(TRUTH.mean(0), (len(TRUTH), 1)), rel=0.03 if "levels" in name else 1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_neither_the_order_of_latents_nor_of_positions_matters(name: str) -> None:
    draws = generator(1, "order")
    latents, rows = draws.permutation(LEVEL.shape[1]), draws.permutation(len(LEVEL))
    moved = fitting(LEVEL[rows][:, latents], TRUTH[rows][:, latents], folds_P=SPOKEN.folds_P[rows])
    decoder = DECODER[latents]
    target = methods.method(methods.parse(name)).target
    found = calibrate.fit_on(name, moved.pairing(), moved.statistics.known_of(target), decoder)
    values = apply.values(found, moved.spoken).dense(np.arange(len(rows)))
    tolerance = {"rel": 2e-3, "abs": 1e-4}
    if target != "tenth":  # which tenth is taken does depend on the order
        assert values == pytest.approx(predicted(name)[rows][:, latents], **tolerance)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "levels"])  # which has no other form
def test_levels_counted_and_contexts_one_by_one_give_the_same_numbers(name: str) -> None:
    told = as_contexts(SPOKEN.spoken)
    target = methods.method(methods.parse(name)).target
    found = calibrate.fit_on(name, SPOKEN.pairing(told), SPOKEN.statistics.known_of(target), DECODER)
    assert apply.dense(found, told).values_PL == pytest.approx(predicted(name), rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_left_out_is_not_seen(name: str) -> None:
    held = SPOKEN.folds_P == 1
    other_truth = np.where(held[:, None], TRUTH[::-1] * 2, TRUTH)
    other = Planted(SPOKEN.simulated, fitting(LEVEL, other_truth).truth_PL, SPOKEN.folds_P)
    known = SPOKEN.statistics.known_of(methods.method(methods.parse(name)).target, held=1)
    found = [calibrate.fit_on(name, each.pairing(), known, DECODER, without=(1,)) for each in (SPOKEN, other)]
    for label, array in found[0].arrays.items():
        assert found[1].arrays[label].tobytes() == array.tobytes(), label
    assert found[1].gain.tobytes() == found[0].gain.tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_all_forms_of_what_is_predicted_agree(name: str) -> None:
    found, rows = fitted(name), np.arange(len(LEVEL))
    every = apply.values(found, SPOKEN.spoken)
    dense = apply.dense(found, SPOKEN.spoken)
    assert every.dense(rows) == pytest.approx(dense.values_PL, rel=1e-5, abs=1e-6)
    written = apply.written(found, SPOKEN.spoken, DECODER)
    assert every.output(rows, DECODER) == pytest.approx(written, rel=1e-4, abs=1e-5)
    assert apply.written(found, as_contexts(SPOKEN.spoken), DECODER, rows[5:9]) == pytest.approx(written[5:9], abs=1e-4)


def test_a_calibrator_reads_back_to_the_bit(tmp_path: Path) -> None:
    found = {name: fitted(name) for name in EVERY}
    calibrate.save(found, tmp_path, {"hurdle": {"cross_fitted_error": 0.5}}, chosen="hurdle")
    back = calibrate.read_fitted(tmp_path)
    assert list(back) == list(EVERY)
    for name, each in found.items():
        again = back[name]
        for field in ("name", "information", "map", "reading", "notes"):
            assert getattr(again, field) == getattr(each, field)
        assert set(again.arrays) == set(each.arrays)
        for label, array in {**each.arrays, "mean": each.mean, "gain": each.gain}.items():
            stored = again.arrays[label] if label in again.arrays else getattr(again, label)
            assert stored.tobytes() == array.tobytes() and stored.dtype == array.dtype
        values = [apply.values(one, SPOKEN.spoken).dense(np.arange(50)) for one in (each, again)]
        assert values[0].tobytes() == values[1].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.json", ARRAYS]


def test_no_calibration_is_the_expected_digit_in_ninths_of_the_maximum() -> None:
    found = fitted("none")
    expected = SPOKEN.simulated.expected[LEVEL] * TRUTH.max(0) / 9
    assert apply.codes(found, SPOKEN.spoken).dense(np.arange(len(LEVEL))) == pytest.approx(expected, rel=1e-5)
    assert found.information == "maximum"


def test_the_published_prediction_has_its_two_slips() -> None:
    digits = np.zeros((2, 4, 10), dtype=np.float32)
    digits[:, 0, 9] = 1  # sure of a nine: becomes nothing
    digits[:, 1, [8, 9]] = 0.5
    digits[:, 2, 0] = 1
    digits[:, 3] = np.nan  # a failed answer: becomes the maximum
    score = np.where(np.isnan(digits[..., 0]), np.nan, 0.0)
    truth = np.array([[1.0, 5.0], [2.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    planted, said = fitting(np.zeros((4, 2)), truth, folds_P=np.arange(4) % 2), Told(score, digits)
    found = calibrate.fit_on("published", planted.pairing(said), planted.statistics.known_of(None))
    values = apply.dense(found, said).values_PL
    assert values[:, 0] == pytest.approx([0, 2 * 8.5 / 9, 0, 2])
    assert values[:, 1] == pytest.approx([0, 5 * 8.5 / 9, 0, 5])
    sober = calibrate.fit_on("none", planted.pairing(said), planted.statistics.known_of(None))
    assert apply.dense(sober, said).values_PL[:, 0] == pytest.approx([2, 2 * 8.5 / 9, 0, truth[:, 0].mean()])


def test_missing_answers_are_no_cases_and_are_worth_the_mean() -> None:
    score, truth = binormal(6, 800)
    lost = generator(0, "lost").random(score.shape) < 0.2
    planted = fitting(np.zeros(truth.shape), truth)
    said = Told(np.where(lost, np.nan, score))
    known = planted.statistics.known_of(None)
    found = calibrate.fit_on("platt", planted.pairing(said), known)
    assert apply.dense(found, said).values_PL.T[lost] == pytest.approx(
        np.broadcast_to(found.mean[:, None], lost.shape)[lost]
    )
    wild = Told(np.where(lost, 100.0, score))
    assert calibrate.fit_on("platt", planted.pairing(wild), known).arrays["slope"] != pytest.approx(
        found.arrays["slope"], rel=0.05
    )
    for latent in range(6):
        rows = ~lost[latent]
        alone = fitting(np.zeros((800, 1)), truth[:, [latent]]).statistics.known_of(None)
        kept = fitting(np.zeros((int(rows.sum()), 1)), truth[rows][:, [latent]])
        without = calibrate.fit_on("platt", kept.pairing(Told(score[[latent]][:, rows])), alone)
        assert without.arrays["slope"][0] == pytest.approx(found.arrays["slope"][latent], rel=1e-3)


@pytest.mark.parametrize("folds", [1, 2])
def test_few_folds_are_halved_so_that_one_can_be_held_out(folds: int) -> None:
    """What is chosen by cross-fitting can still be chosen when a fold is left alone."""
    planted = fitting(LEVEL, TRUTH, folds_P=np.arange(len(LEVEL)) // 50 % folds)
    told = as_contexts(planted.spoken)
    without = (0,) if folds == 2 else ()
    for name in ("isotonic-shrunk", "hurdle+gain", "levels"):
        known = planted.statistics.known_of(None)
        counted, dense = (
            calibrate.fit_on(name, planted.pairing(each), known, without=without) for each in (planted.spoken, told)
        )
        assert counted.gain.mean() > 0.8
        assert apply.dense(dense, told).values_PL == pytest.approx(
            apply.dense(counted, told).values_PL, rel=2e-3, abs=2e-4
        )


def test_nothing_explained_is_the_mean_everywhere() -> None:
    planted = fitting(np.zeros_like(LEVEL), TRUTH, np.zeros(LEVEL.shape[1], dtype=bool))
    for name in ("hurdle", "levels", "quantile-6+gain"):
        assert predicted(name, planted) == pytest.approx(np.tile(TRUTH.mean(0), (len(TRUTH), 1)), rel=1e-5)


def test_blocks_give_what_all_latents_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from nlrewrite.calibrate import pairing

    names = ("quantile-6+gain", "digit-values", "hurdle", "levels", "isotonic-shrunk", "hurdle@centred", "mean")
    whole = {name: predicted(name) for name in names}
    monkeypatch.setattr(pairing, "CELL_BLOCK", 4)
    monkeypatch.setattr(pairing, "BLOCK", 4)
    for name, values in whole.items():
        parts = apply.values(fitted_to(name, SPOKEN), SPOKEN.spoken).dense(np.arange(len(values)))
        assert parts == pytest.approx(values, rel=1e-5, abs=1e-7), name


def test_a_simulator_without_digits_is_read_by_its_own_number() -> None:
    score, truth = binormal(6, 500)
    planted = fitting(np.zeros(truth.shape), truth)
    known = planted.statistics.known_of(None)
    assert calibrate.fit_on("prior-shift", planted.pairing(Told(score)), known).reading == Reading("own")
    assert fitted("prior-shift").reading == Reading("log-odds")
    with pytest.raises(SettingError, match="this simulator gives no digits"):
        calibrate.fit_on("platt@expected", planted.pairing(Told(score)), known)


def test_quantile_normalisation_of_informative_levels_keeps_the_mass() -> None:
    values = apply.table(fitted("quantile-6"), SPOKEN.spoken)
    table = cells(SPOKEN.simulated, SPOKEN.truth_PL)
    said_active = np.where(values > 0, table.said, 0).sum(1)
    widest = np.max(table.said[:, 1:], axis=1)
    assert (np.abs(said_active - table.active.sum(1)) <= widest + 1).all()


# -- folds, and what the choice may see --------------------------------------------------------------------------------


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
        artifact = steps.name(kind, spec, inputs)
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
    assert set(steps.STEPS["calibration"].inputs) == {"tokens", "activations", "explain", "coder", "simulation"}
