import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from nlrewrite.errors import SettingError
from nlrewrite.probes import theory
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Flagged, Scored, oracle

PRINTED = json.loads((Path(__file__).parents[1] / "golden" / "theory.json").read_text())
CV = 0.6
RARE, COMMON = 32 / 32768, 32 / 4608
LATENTS, CONTEXTS, RATE = 10, 100_000, 0.01
LAST_DIGIT = 0.55
"""By how much of its last digit a printed number may be off: one of them was rounded from a coarser integral."""


def printed(shown: list[str], found: list[float]) -> None:
    for text, value in zip(shown, found, strict=True):
        digits = len(text.partition(".")[2])
        assert abs(float(text) - value) <= LAST_DIGIT * 10.0**-digits, (shown, found)


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "shown"), [(r[0], r[1], r[2:]) for r in PRINTED["flags"]["rows"]]
)
def test_the_table_of_flags(sensitivity: float, specificity: float, shown: list[str]) -> None:
    at = RARE, sensitivity, specificity
    found = [
        theory.flagged(*at) / RARE,
        theory.precision(*at),
        theory.phi(*at) ** 2,
        theory.explained_by_flags(*at, CV),
        theory.flags_at_face_value(*at, CV),
    ]
    printed(shown, found)


@pytest.mark.parametrize(("auc", "shown"), [(row[0], row[1:]) for row in PRINTED["scores"]["rows"]])
def test_the_table_of_scores(auc: float, shown: list[str]) -> None:
    distance = theory.d_prime(auc)
    assert theory.auc(distance) == pytest.approx(auc, abs=1e-12)
    rare, common = theory.matched(RARE, distance, CV), theory.matched(COMMON, distance, CV)
    found = [
        distance,
        theory.explained_by_score(RARE, distance, CV),
        rare.error,
        rare.correlation,
        rare.sensitivity,
        theory.explained_by_score(COMMON, distance, CV),
        common.error,
    ]
    printed(shown, found)


@pytest.mark.parametrize(("rate", "auc", "shown"), PRINTED["gates"]["rows"])
def test_the_table_of_gates(rate: tuple[int, int], auc: float, shown: list[str]) -> None:
    found = [
        theory.explained_by_gated_score(
            rate[0] / rate[1], theory.d_prime(auc), CV, passed, PRINTED["gates"]["keep"] if passed < 1 else 1.0
        )
        for passed in PRINTED["gates"]["passed"]
    ]
    printed(shown, found)


@pytest.mark.parametrize(("rate", "shown"), PRINTED["scores"]["break even"])
def test_where_quantile_matching_breaks_even(rate: tuple[int, int], shown: str) -> None:
    printed([shown], [theory.matched_break_even_auc(rate[0] / rate[1], CV)])


@given(st.floats(1e-4, 0.2), st.floats(0, 1))
def test_flags_at_face_value_break_even_where_it_is_said(rate: float, above: float) -> None:
    sensitivity = rate + above * (1 - rate)
    specificity = theory.break_even_specificity(rate, sensitivity)
    assert theory.flags_at_face_value(rate, sensitivity, specificity, CV) == pytest.approx(1.0, abs=1e-9)
    assert theory.flagged(rate, sensitivity, specificity) == pytest.approx(2 * sensitivity * rate - rate**2)


def test_a_sensitivity_below_the_base_rate_never_breaks_even() -> None:
    with pytest.raises(SettingError, match=r"0\.01"):
        theory.break_even_specificity(0.1, 0.01)


def test_what_the_sources_found_to_be_needed() -> None:
    assert theory.break_even_specificity(RARE, 0.8) == pytest.approx(0.9992, abs=1e-4)


@given(st.floats(1e-3, 0.1), st.floats(0.0, 4.0))
def test_no_score_explains_more_than_magnitudes_leave_and_a_gate_that_passes_all_changes_nothing(
    rate: float, distance: float
) -> None:
    explained = theory.explained_by_score(rate, distance, CV)
    assert -1e-9 <= explained <= 1 / (1 + CV**2 / (1 - rate)) + 1e-9
    assert theory.explained_by_gated_score(rate, distance, CV, 1.0, 1.0) == explained
    assert theory.explained_by_gated_score(rate, distance, CV, 0.1, 1.0) >= explained - 1e-9


def test_a_gate_alone_is_a_flag() -> None:
    gate = theory.explained_by_gated_score(RARE, 0.0, CV, 0.01, 0.95)
    assert gate == pytest.approx(theory.explained_by_flags(RARE, 0.95, 0.99, CV), rel=1e-6)


# -- against a simulation ----------------------------------------------------------------------------------------------


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Activations [L, P] as the closed forms have them, mean magnitude 1, and the active ones."""
    draws = generator(0, "closed forms")
    active = draws.random((LATENTS, CONTEXTS)) < RATE
    width = sqrt(np.log1p(CV**2))
    return np.where(active, np.exp(width * draws.normal(size=active.shape) - width**2 / 2), 0.0), active


TRUTH, ACTIVE = planted()


def scored(knows: Scored | Flagged) -> np.ndarray:
    said = oracle(sparse.csr_matrix(TRUTH.T.astype(np.float32)), np.ones(LATENTS), knows, seed=0, split="report")
    return said.scores(slice(None)).astype(np.float64)


def within(values: np.ndarray, expected: float) -> None:
    error = values.std() / np.sqrt(values.size)
    assert abs(values.mean() - expected) < 3 * error
    assert error < 0.05 * max(abs(expected), RATE)


@pytest.mark.parametrize("auc", [0.84, 0.95, 0.99])
def test_scores_as_simulated(auc: float) -> None:
    distance = theory.d_prime(auc)
    score = scored(Scored.of_auc(auc))
    spread = theory.variance(RATE, CV)
    best = theory.conditional_mean(score, RATE, distance)
    within((TRUTH - best) ** 2, spread * (1 - theory.explained_by_score(RATE, distance, CV)))
    matched = theory.matched(RATE, distance, CV)
    prediction = theory.matched_value(score, RATE, distance, CV)
    within((TRUTH - prediction) ** 2, spread * matched.error)
    within((prediction[ACTIVE] > 0).astype(float), matched.sensitivity)
    within((prediction > 0).astype(float), RATE)
    within((TRUTH - RATE - matched.best_gain * (prediction - RATE)) ** 2, spread * (1 - matched.correlation**2))


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.6, 0.84), (0.8, 0.99), (0.9, 0.999)])
def test_flags_as_simulated(sensitivity: float, specificity: float) -> None:
    flag = scored(Flagged(sensitivity, specificity))
    at, spread = (RATE, sensitivity, specificity), theory.variance(RATE, CV)
    within((TRUTH - flag) ** 2, spread * theory.flags_at_face_value(*at, CV))
    within(flag, theory.flagged(*at))
    best = np.where(flag > 0, theory.precision(*at), (1 - sensitivity) * RATE / (1 - theory.flagged(*at)))
    within((TRUTH - best) ** 2, spread * (1 - theory.explained_by_flags(*at, CV)))
    assert np.corrcoef(flag.ravel(), ACTIVE.ravel())[0, 1] == pytest.approx(theory.phi(*at), abs=0.01)


def test_a_gated_score_as_simulated() -> None:
    distance, passed, keep = theory.d_prime(0.84), 0.01, 0.95
    gate = generator(0, "gate").random(ACTIVE.shape) < np.where(ACTIVE, keep, passed)
    inside_rate = RATE * keep / (RATE * keep + (1 - RATE) * passed)
    inside = theory.conditional_mean(scored(Scored(distance)), inside_rate, distance)
    outside = RATE * (1 - keep) / (RATE * (1 - keep) + (1 - RATE) * (1 - passed))
    explained = theory.explained_by_gated_score(RATE, distance, CV, passed, keep)
    within((TRUTH - np.where(gate, inside, outside)) ** 2, theory.variance(RATE, CV) * (1 - explained))


def test_ablations_as_simulated() -> None:
    spread = theory.variance(RATE, CV)
    within((TRUTH - RATE) ** 2, spread)
    within(TRUTH**2, spread * theory.zero_ablation(RATE, CV))
