import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.calibrate import gain
from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Fitted, Part
from nlrewrite.seeds import generator
from tests.calibrate.planted import told


def knots(values_BS: np.ndarray):
    """A fit that has learned its cases by heart; the score is the number of the case."""

    def fit(evidence: Evidence, known: Known, shared: dict[str, np.ndarray]) -> Part:
        rows, cases = values_BS.shape
        x = np.tile(np.arange(cases, dtype=float), rows)
        return Part("knots", {"x": x, "y": values_BS.ravel(), "start": np.arange(rows + 1) * cases})

    return fit


def planted(seed: int, folds: int, cases: int = 40, latents: int = 3) -> tuple[Evidence, Known, np.ndarray]:
    draws = generator(seed, "gain", folds)
    truth = draws.gamma(1.0, 1.0, (latents, cases)) * (draws.random((latents, cases)) < 0.3)
    weight = draws.integers(1, 4, (1, cases)).astype(float)
    score = np.tile(np.arange(cases), (latents, 1))
    evidence = Evidence(told(score), weight, weight * (truth > 0), weight * truth, np.arange(cases) % folds)
    mean = evidence.mean()
    rate = evidence.active.sum(1) / weight.sum()
    said = draws.normal(0, 2, truth.shape) + draws.random() * truth
    return evidence, Known(truth.max(1), rate, mean / np.maximum(rate, 1e-9)), said


@given(st.integers(0, 100), st.integers(1, 4))
def test_a_gain_is_never_worse_than_the_mean_in_sample(seed: int, folds: int) -> None:
    evidence, known, said = planted(seed, folds)
    part = gain.per_latent(knots(said), evidence, known, {})
    assert part.gain is not None
    assert ((part.gain >= 0) & (part.gain <= 1)).all()
    values = Fitted("", "", part.map, part.arrays, known.mean, part.gain).predict(evidence.answers)
    truth = evidence.total / evidence.weight

    def error(predicted: np.ndarray) -> np.ndarray:
        return (evidence.weight * np.square(predicted - truth)).sum(1)

    assert (error(values) <= error(known.mean[:, None]) * (1 + 1e-6)).all()


def test_the_gain_of_one_fold_is_least_squares() -> None:
    evidence, known, said = planted(3, 1)
    found = gain.per_latent(knots(said), evidence, known, {}).gain
    for latent in range(3):
        root = np.sqrt(evidence.weight[0])
        away = root * (said[latent] - known.mean[latent])
        wanted = root * (evidence.total[latent] / evidence.weight[0] - known.mean[latent])
        slope = np.linalg.lstsq(away[:, None], wanted, rcond=None)[0][0]
        assert found[latent] == pytest.approx(np.clip(slope, 0, 1), abs=1e-5)


def test_what_was_learned_by_heart_gets_no_gain_from_other_folds() -> None:
    evidence, known, _ = planted(0, 2, cases=400)

    def by_heart(given: Evidence, known: Known, shared: dict[str, np.ndarray]) -> Part:
        values = np.where(np.isin(np.arange(400), given.answers.score_BS[0]), 1.0, -1.0)
        truth = evidence.total / evidence.weight
        return knots(np.where(values > 0, truth, 10 - truth))(given, known, {})

    one = Evidence(evidence.answers, evidence.weight, evidence.active, evidence.total, np.zeros(400, dtype=int))
    assert gain.per_latent(by_heart, one, known, {}).gain == pytest.approx([1, 1, 1], abs=1e-5)
    assert gain.per_latent(by_heart, evidence, known, {}).gain == pytest.approx([0, 0, 0])


def test_the_gain_of_outputs_is_least_squares_within_bounds() -> None:
    draws = generator(0, "outputs")
    towards = draws.normal(size=(50, 4))
    for slope in (0.0, 0.37, 1.0):
        assert gain.of_outputs(slope * towards, towards) == pytest.approx(slope)
    assert gain.of_outputs(3 * towards, towards) == 1
    assert gain.of_outputs(-towards, towards) == 0
    assert gain.of_outputs(towards, 0 * towards) == 0
    wanted = draws.normal(size=(50, 4)) + 0.5 * towards
    expected = np.linalg.lstsq(towards.reshape(-1, 1), wanted.ravel(), rcond=None)[0][0]
    assert gain.of_outputs(wanted, towards) == pytest.approx(expected)
