"""What a simulator has to be: closed forms over unequal latents, where flags break even, oracles as good as theory."""

import numpy as np
import pytest
from scipy import sparse

from nlrewrite.probes import requirement, theory
from nlrewrite.probes.requirement import Latents, Point
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Flagged, Manner, Scored, oracle
from nlrewrite.specs import RequirementSpec

EVEN = Latents(np.full(3, 0.01), np.full(3, 0.6), np.full(3, 1 / 3))


@pytest.mark.parametrize(
    ("knows", "calibrator", "wanted"),
    [
        (Flagged(0.5, 0.99), "raw", theory.flags_at_face_value(0.01, 0.5, 0.99, 0.6)),
        (Flagged(0.5, 0.99), "hurdle", 1 - theory.explained_by_flags(0.01, 0.5, 0.99, 0.6)),
        (Scored(2.0), "hurdle", 1 - theory.explained_by_score(0.01, 2.0, 0.6)),
        (Scored(2.0), "quantile-6", theory.matched(0.01, theory.d_prime(theory.auc(2.0)), 0.6).error),
        (Flagged(0.5, 0.99), "quantile-6", None),
        (Scored(2.0), "raw", None),
    ],
)
def test_equal_latents_have_the_closed_form_of_one(
    knows: Flagged | Scored, calibrator: str, wanted: float | None
) -> None:
    found = requirement.in_theory(Point(knows, {}), calibrator, EVEN)
    assert found == (wanted if wanted is None else pytest.approx(wanted, rel=1e-3))


def test_an_energetic_latent_counts_for_more() -> None:
    rates = np.array([0.001, 0.1])
    rare, often = (Latents(rates, np.full(2, 0.6), np.array(each)) for each in ([1.0, 0.0], [0.0, 1.0]))
    both = Latents(rates, np.full(2, 0.6), np.array([0.5, 0.5]))
    point = Point(Scored(2.0), {})
    ends = [requirement.in_theory(point, "hurdle", each) for each in (rare, often)]
    assert ends[0] is not None and ends[1] is not None
    assert ends[0] > ends[1]
    assert requirement.in_theory(point, "hurdle", both) == pytest.approx((ends[0] + ends[1]) / 2)


def test_statistics_of_latents() -> None:
    truth = sparse.csr_matrix(np.array([[1.0, 0, 0], [3.0, 0, 2.0], [0, 0, 2.0], [0, 0, 0]]))
    told = requirement.latents(truth, np.array([[1.0, 0], [1.0, 1.0], [0, 2.0]]))
    assert told.rate_L.tolist() == [0.5, 0, 0.5]
    assert told.cv_L == pytest.approx([0.5, 0, 0])
    assert requirement.variances(truth) == pytest.approx(truth.toarray().var(0))
    energy = truth.toarray().var(0) * [1, 2, 4]
    assert told.energy_L == pytest.approx(energy / energy.sum())
    assert told.rate == pytest.approx(0.5)


def test_measured_errors_are_those_of_theory() -> None:
    rate, contexts = 0.02, 40_000
    draws = generator(0, "requirement")
    active = draws.random((contexts, 1)) < rate
    truth = sparse.csr_matrix(active * draws.lognormal(-0.1539, 0.5545, active.shape))
    told = requirement.latents(truth, np.ones((1, 1)))
    magnitude = np.array([truth.data.mean()])
    for right in (0.9, 0.99):
        knows = Flagged(0.8, right)
        said = oracle(truth, magnitude, knows, Manner(), seed=0, split="report")
        ((_, values),) = requirement.at_face_value(said, magnitude)
        wrong = np.square(values.T - truth.toarray()).mean() / requirement.variances(truth)[0]
        assert wrong == pytest.approx(requirement.in_theory(Point(knows, {}), "raw", told), rel=0.05)


def test_where_flags_break_even() -> None:
    def row(right: float, above: float, calibrator: str = "raw") -> dict[str, object]:
        return {"kind": "flags", "calibrator": calibrator, "specificity": right, "above_mean": above}

    table = [row(0.9, 2.0), row(0.99, 1.0), row(0.999, -1.0), row(0.99, -5.0, "hurdle")]
    found = requirement.break_even(table)
    assert found is not None
    assert np.log((1 - found) / found) == pytest.approx((np.log(0.01 / 0.99) + np.log(0.001 / 0.999)) / 2)
    assert requirement.break_even(table[:2]) is None


def test_the_published_threshold_follows_from_the_base_rate() -> None:
    assert theory.break_even_specificity(requirement.PUBLISHED_RATE, 0.8) == pytest.approx(0.9992, abs=5e-5)


def test_every_quality_is_asked_for() -> None:
    spec = RequirementSpec(specificities=(0.9, 0.99), aucs=(0.8,))
    kinds = [(type(point.knows), point.keys["specificity"], point.keys["auc"]) for point in requirement.points(spec)]
    assert kinds == [(Flagged, 0.9, None), (Flagged, 0.99, None), (Scored, None, 0.8)]
