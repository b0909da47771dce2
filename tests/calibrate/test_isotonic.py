from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from nlrewrite.calibrate import isotonic
from nlrewrite.calibrate.evidence import Evidence
from nlrewrite.calibrate.fitted import Fitted, Part
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Answers
from tests.calibrate.making import (
    CASES,
    aggregated,
    error,
    evidence,
    known,
    levels,
    mean_error,
    predicted,
    replicated,
    scores,
)

NOTHING = known(np.zeros((1, 1)))


def plain(found: Evidence) -> Part:
    return isotonic.fit(found, NOTHING, {})


def shrunk(found: Evidence) -> Part:
    return isotonic.fit_shrunk(found, NOTHING, isotonic.share(found, NOTHING))


BOTH = pytest.mark.parametrize("fit", [plain, shrunk])
Fit = Callable[[Evidence], Part]


# -- least squares ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_predictions_of_its_cases_are_those_of_least_squares(tied: bool, weighted: bool) -> None:
    score, truth = (levels if tied else scores)()
    weight = generator(0, "weights").gamma(2.0, 1.0, score.shape) if weighted else None
    found = evidence(score, truth, weight)
    part = plain(found)
    values = predicted(part, found)
    assert (np.abs(values - found.mean()[:, None]) > 0.01).any(1).all()
    for row in range(len(score)):
        order = np.argsort(score[row], kind="stable")
        same, place = np.unique(score[row], return_inverse=True)
        heavy = np.bincount(place, np.broadcast_to(found.weight, score.shape)[row])
        best = isotonic_regression(np.bincount(place, found.total[row]) / heavy, weights=heavy).x
        assert values[row] == pytest.approx(best[place], abs=1e-6)
        assert (np.diff(values[row][order]) >= 0).all()
        assert len(part.arrays["x"]) < 2 * (truth > 0).sum() + 2 * len(score)
        assert len(same) >= 9


@pytest.mark.parametrize("kind", [levels, scores])
def test_within_its_cases_it_is_never_worse_than_a_constant(kind: Callable[..., tuple]) -> None:
    for seed in range(5):
        score, truth = kind(seed)
        uninformative = evidence(score, truth[:, generator(seed, "order").permutation(CASES)])
        for found in (evidence(score, truth), uninformative, aggregated(uninformative) if kind is levels else None):
            if found is not None:
                assert (error(plain(found), found) <= mean_error(found) + 1e-4).all()


def test_a_score_that_falls_with_the_truth_is_worth_the_mean_everywhere() -> None:
    score, truth = np.arange(50.0)[None], np.arange(50.0)[None, ::-1]
    part = plain(evidence(score, truth))
    assert part.arrays["y"] == pytest.approx([24.5])


def test_between_and_beyond_its_scores() -> None:
    part = plain(evidence(np.array([[1.0, 2.0, 3.0, 5.0]]), np.array([[1.0, 0.0, 2.0, 6.0]])))
    line = Fitted("", "", part.map, part.arrays, np.zeros(1), np.ones(1))
    asked = np.array([[-1.0, 1.0, 1.5, 2.0, 2.5, 4.0, 5.0, 9.0]])
    assert line.predict(Answers(asked))[0].tolist() == [0.5, 0.5, 0.5, 0.5, 1.25, 4.0, 6.0, 6.0]


# -- shrinking --------------------------------------------------------------------------------------------------------


def straightforward(found: Evidence) -> isotonic.HeldUp:
    """The held-out products, straight from their definition, for cases that weigh something."""
    square, product = [], []
    for fold in np.unique(found.fold):
        rest, held = found.where(found.fold != fold), found.where(found.fold == fold)
        part, mean = plain(rest), rest.mean()[:, None]
        line = Fitted("", "", part.map, part.arrays, rest.mean(), np.ones(found.latents))
        ahead = line.predict(held.answers) - mean
        square.append((held.weight * ahead**2).sum(1))
        product.append((ahead * (held.total - held.weight * mean)).sum(1))
    return isotonic.HeldUp(np.stack(square, 1), np.stack(product, 1), np.ones((found.latents, len(square))))


@pytest.mark.parametrize("kind", [levels, scores])
@pytest.mark.parametrize("weighted", [True, False])
def test_what_holds_up_is_tried_on_folds_that_the_map_was_not_fitted_on(
    kind: Callable[..., tuple], weighted: bool
) -> None:
    score, truth = kind()
    truth[4] *= np.arange(CASES) < 100  # all activations in one fold
    weight = generator(0, "weights").gamma(2.0, 1.0, score.shape) if weighted else None
    found = evidence(score, truth, weight)
    quick, slow = isotonic.held_up(found), straightforward(found)
    assert quick.square == pytest.approx(slow.square, rel=1e-5, abs=1e-9)
    assert quick.product == pytest.approx(slow.product, rel=1e-5, abs=1e-6)


def test_the_gain_of_a_latent_is_its_slope_or_the_shared_one_or_between_them() -> None:
    found = isotonic.HeldUp(
        square=np.array([[4.0, 4.0], [1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [2.0, 0.0]]),
        product=np.array([[2.0, 4.0], [3.0, 1.0], [0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]),
        noise=np.array([[8.0, 8.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
    )

    def gains(strength: float) -> list[float]:
        return isotonic.gains(found, {"slope": np.array(0.5), "strength": np.array(strength)}).tolist()

    assert gains(0.0) == [0.75, 1.0, 0.0, 0.0, 0.5]
    assert gains(1e9) == pytest.approx([0.5, 0.5, 0.0, 0.5, 0.5])
    assert gains(4.0) == pytest.approx([(6 + 8 * 0.5) / (8 + 8), 1.0, 0.0, 0.0, 0.5])


def many(cases: int, seed: int, informative: bool = True) -> tuple[Evidence, np.ndarray]:
    """200 latents active in a hundredth of the cases, and what their best prediction would be."""
    draws = generator(seed, "many latents")
    chance = np.full((200, cases), 0.01)
    score = draws.normal(size=chance.shape)
    if informative:
        chance = np.minimum(0.01 * np.exp(1.2 * score - 0.72), 0.9)
    truth = np.where(draws.random(chance.shape) < chance, draws.gamma(4.0, 0.25, chance.shape), 0)
    return evidence(score, truth), chance


@pytest.mark.parametrize("informative", [True, False])
def test_on_other_cases_shrinking_is_better_than_plain_and_harmless_without_information(informative: bool) -> None:
    seen, _ = many(300, 0, informative)
    _, chance = many(2000, 1, informative)
    told, mean = many(2000, 1, informative)[0], 0.01

    def lost(part: Part) -> float:
        gain = np.ones(seen.latents) if part.gain is None else part.gain
        line = Fitted("", "", part.map, part.arrays, np.full(seen.latents, mean), gain)
        return float(np.square(line.predict(told.answers) - chance).sum())

    ablated = float(np.square(mean - chance).sum())
    assert lost(shrunk(seen)) < lost(plain(seen))
    if informative:
        assert lost(shrunk(seen)) < 0.75 * ablated
    else:
        noise = chance.size * 0.01 * 1.25  # variance of the truth itself
        assert lost(shrunk(seen)) < 0.01 * noise < lost(plain(seen))


# -- what evidence may look like --------------------------------------------------------------------------------------


@BOTH
def test_counted_levels_are_worth_what_their_contexts_are(fit: Fit) -> None:
    found = evidence(*levels())
    counted, each = fit(aggregated(found)), fit(found)
    assert predicted(counted, found) == pytest.approx(predicted(each, found), rel=1e-5)
    assert counted.arrays["start"].tolist() == each.arrays["start"].tolist()
    assert counted.gain == (None if each.gain is None else pytest.approx(each.gain, rel=1e-9))


@BOTH
@pytest.mark.parametrize("kind", [levels, scores])
def test_a_weight_of_n_is_n_cases_and_their_order_is_nothing(fit: Fit, kind: Callable[..., tuple]) -> None:
    draws = generator(0, "weights")
    weighed, repeated = replicated(evidence(*kind()), draws.integers(0, 4, CASES))
    moved = repeated.where(draws.permutation(len(repeated.fold)))
    expected = predicted(fit(repeated), repeated)
    assert predicted(fit(weighed), repeated) == pytest.approx(expected, rel=1e-5)
    assert predicted(fit(moved), repeated) == pytest.approx(expected, rel=1e-5)


@BOTH
def test_hostile_cases_have_a_defined_answer(fit: Fit) -> None:
    score = generator(0, "hostile").normal(size=(5, 48)).astype(np.float32)
    truth, weight = np.zeros((5, 48)), np.ones((5, 48))
    truth[1, 7] = 3.0
    truth[2] = 1.0
    score[3], truth[3, :20] = 5.0, 2.0
    truth[4], weight[4, 1:] = 2.0, 0
    found = evidence(score, truth, weight)
    values = predicted(fit(found), found)
    assert (values[0] == 0).all(), "never active"
    assert 0 < values[1].max() <= 3.0
    assert values[2] == pytest.approx(1.0), "always active"
    assert values[3] == pytest.approx(20 * 2.0 / 48), "all scores tied"
    assert values[4] == pytest.approx(2.0), "a single case"


@BOTH
def test_what_cannot_be_fitted_is_refused(fit: Fit) -> None:
    score, truth = scores()
    missing = score.copy()
    missing[2, 5] = np.nan
    with pytest.raises(SettingError, match=r"a score must be a finite number: latent 2 .* in case 5"):
        fit(evidence(missing, truth))
    weight = np.ones_like(truth)
    weight[3] = 0
    with pytest.raises(SettingError, match="latent 3 of the block has none"):
        fit(evidence(score, truth, weight))


def test_a_single_fold_is_halved() -> None:
    found = evidence(*scores())
    halves = isotonic.held_up(Evidence(found.answers, found.weight, found.active, found.total, found.fold // 2))
    single = isotonic.held_up(Evidence(found.answers, found.weight, found.active, found.total, found.fold * 0))
    assert single.square.tolist() == halves.square.tolist()
    assert single.square.shape == (found.latents, 2)
