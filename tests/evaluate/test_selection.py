from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse, stats

from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate import apply
from nlrewrite.calibrate.fit import fit_on
from nlrewrite.calibrate.known import Statistics
from nlrewrite.calibrate.pairing import Pairing
from nlrewrite.evaluate.selection import Gain, GainSums, fresh, held_out, subsets
from nlrewrite.language.reading import distributions
from nlrewrite.seeds import generator
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Spoken
from nlrewrite.specs import EvaluateSpec


def test_subsets_are_nested_seeded_and_of_their_size() -> None:
    spec = EvaluateSpec(fractions=(0.5, 0.1, 0.75, 1.0, 0.25), subsets=3, selections=("top", "gain", "sampled"))
    score, gain = generator(0, "scores").random(40), generator(1, "gains").normal(size=40)
    score[7], gain[9] = np.nan, np.nan
    ranked = {"top": score, "gain": gain}
    found = list(subsets(spec, ranked))
    orders = [("top", 0), ("gain", 0), ("sampled", 0), ("sampled", 1), ("sampled", 2)]
    assert [(each.selection, each.seed) for each in found[::4]] == orders
    for start in range(0, len(found), 4):
        nested = found[start : start + 4]
        assert [each.fraction for each in nested] == [0.1, 0.25, 0.5, 0.75]
        assert [each.size for each in nested] == [4, 10, 20, 30]
        for smaller, larger in pairwise(nested):
            assert not (smaller.mask_L & ~larger.mask_L).any()
    for place, figure, lost in ((1, score, 7), (5, gain, 9)):
        best = np.argsort(-np.where(np.isnan(figure), -np.inf, figure))[:10]
        assert sorted(best) == np.flatnonzero(found[place].mask_L).tolist()
        assert not found[place + 2].mask_L[lost]
    assert len({each.mask_L.tobytes() for each in found[1::4]}) == 5
    again = list(subsets(spec, ranked))
    assert all((one.mask_L == other.mask_L).all() for one, other in zip(found, again, strict=True))
    other_seed = list(subsets(spec.model_copy(update={"seed": 1}), ranked))
    assert (other_seed[8].mask_L != found[8].mask_L).any()
    assert (other_seed[0].mask_L == found[0].mask_L).all()


def test_a_small_fraction_is_at_least_one_latent() -> None:
    found = list(subsets(EvaluateSpec(fractions=(0.01,), selections=("top",)), {"top": np.arange(5.0)}))
    assert found[0].mask_L.tolist() == [False, False, False, False, True]


def test_ties_go_by_number_and_negative_scores_rank() -> None:
    ranked = {"top": np.array([-2.0, np.nan, -1.0, -1.0])}
    found = list(subsets(EvaluateSpec(fractions=(0.5, 0.75), selections=("top",)), ranked))
    assert [np.flatnonzero(each.mask_L).tolist() for each in found] == [[2, 3], [0, 2, 3]]


def test_fresh_draws_are_of_their_size_and_depend_on_window_and_path_alone() -> None:
    window_P = np.repeat(np.arange(6), 5)
    draw = fresh(4, 20, window_P, 0, "mean", "0.2")
    masks = draw(np.arange(30))
    assert (masks.sum(1) == 4).all()
    assert len({mask.tobytes() for mask in masks}) == 6
    assert (masks.reshape(6, 5, 20) == masks[::5][:, None]).all()
    some = np.array([29, 3, 3, 17])
    assert (draw(some) == masks[some]).all()
    for other in (fresh(4, 20, window_P, 1, "mean", "0.2"), fresh(4, 20, window_P, 0, "zero", "0.2")):
        assert (other(np.arange(30)) != masks).any()


# -- gains ------------------------------------------------------------------------------------------------------------

POSITIONS, LATENTS, FOLDS = 1200, 6, 4
DEC = generator(0, "decoder").normal(size=(LATENTS, 5)).astype(np.float32)


def planted(seed: int = 0) -> tuple[Pairing, Statistics, np.ndarray]:
    """Latents 0-2 active where the simulator speaks, 3 and 4 anywhere, 5 unexplained; 40 groups of documents."""
    draws = generator(seed, "gains")
    level_LP = 9 * (draws.random((LATENTS, POSITIONS)) < 0.1)
    active = np.where(np.arange(LATENTS)[:, None] < 3, level_LP > 0, draws.random(level_LP.shape) < 0.1)
    active &= draws.random(level_LP.shape) < 0.9
    truth = sparse.csr_matrix((active * draws.gamma(8.0, 0.1, active.shape)).T.astype(np.float32))
    level_LP[5] = 0
    latent, position = np.nonzero(level_LP)
    explained = np.arange(LATENTS) < 5
    said = Simulated(latent, position, level_LP[latent, position].astype(np.int8), distributions(), explained)
    group_P = np.arange(POSITIONS) * 40 // POSITIONS
    folds_P = group_P % FOLDS
    values = np.asarray(truth.todense())
    corpus = Active(np.tile(np.arange(LATENTS, dtype=np.int32), (POSITIONS, 1)), values)
    pairing = Pairing(Spoken(said, POSITIONS), truth, folds_P)
    return pairing, Statistics(corpus, truth, folds_P, LATENTS, 0), group_P


def gain_of(name: str, seed: int = 0) -> Gain:
    pairing, known, group_P = planted(seed)
    return held_out(name, pairing, partial(known.known_of, "corpus"), group_P, DEC)


def test_what_informs_is_used_and_what_does_not_is_refused() -> None:
    found = [gain_of("levels", seed) for seed in range(5)]
    for gain in found:
        assert gain.harmless[:3].all()
        assert (gain.lower[:5] <= gain.mean[:5]).all()
        assert (gain.mean[5], gain.lower[5]) == (0, -np.inf)
        assert (gain.mean[:3] > 5 * np.abs(gain.mean[3:5]).max()).all()
    assert sum(int(gain.harmless[3:].sum()) for gain in found) <= 2  # of ten that know nothing


def test_the_mean_gains_nothing_and_quantile_matching_of_noise_loses() -> None:
    gain = gain_of("mean")
    assert gain.mean == pytest.approx(0, abs=1e-9)
    assert not gain.harmless.any()
    assert (gain_of("quantile-6").mean[3:5] < 0).all()


def test_a_gain_is_the_squared_error_that_is_saved_with_a_bound_by_groups() -> None:
    draws = generator(0, "sums")
    group_P = draws.integers(0, 15, 300)
    truth, predicted = draws.normal(size=(2, LATENTS, 300))
    mean = draws.normal(size=LATENTS)
    sums = GainSums(LATENTS, group_P)
    for rows in np.array_split(draws.permutation(300), 3):
        for block in (slice(0, 2), slice(2, LATENTS)):
            sums.add(block, rows, predicted[block][:, rows], mean[block], truth[block][:, rows])
    found = sums.result(np.ones(LATENTS, dtype=bool), DEC)
    gain = (np.square(mean[:, None] - truth) - np.square(predicted - truth)) * np.square(DEC).sum(1)[:, None]
    assert found.mean == pytest.approx(gain.mean(1))
    groups = [np.flatnonzero(group_P == group) for group in np.unique(group_P)]
    residual = np.stack([(gain[:, rows] - gain.mean(1)[:, None]).sum(1) for rows in groups])
    error = np.sqrt(15 / 14 * np.square(residual).sum(0)) / 300
    assert found.lower == pytest.approx(gain.mean(1) - stats.t.ppf(0.95, 14) * error)


def test_the_lower_bound_holds_as_often_as_it_says() -> None:
    """Of latents with no gain at all one in twenty is found harmless, or fewer."""
    draws = generator(0, "coverage")
    latents, groups = 2000, 40
    noise = draws.normal(size=(latents, groups * 10))
    sums = GainSums(latents, np.arange(groups * 10) // 10)
    sums.add(slice(0, latents), np.arange(groups * 10), np.zeros_like(noise), np.ones(latents), 0.5 + noise / 2)
    found = sums.result(np.ones(latents, dtype=bool), np.ones((latents, 1), dtype=np.float32))
    assert 0.035 < found.harmless.mean() < 0.065


def test_one_group_of_documents_makes_nothing_sure() -> None:
    sums = GainSums(2, np.zeros(10, dtype=np.int64))
    sums.add(slice(0, 2), np.arange(10), np.ones((2, 10)), np.zeros(2), np.ones((2, 10)))
    found = sums.result(np.ones(2, dtype=bool), np.ones((2, 1), dtype=np.float32))
    assert found.mean.tolist() == [1, 1] and not found.harmless.any()


def test_each_fold_is_predicted_from_the_others_alone() -> None:
    """The same gains come out where each fold's truth is scrambled for the fit that predicts it."""
    pairing, known, group_P = planted()
    found = held_out("levels", pairing, partial(known.known_of, "corpus"), group_P, DEC)
    truth = pairing.truth_PL.toarray()
    gain = np.zeros(LATENTS)
    for fold in range(FOLDS):
        held = pairing.folds_P == fold
        scrambled = np.where(held[:, None], 1 - truth[::-1], truth).astype(np.float32)
        others = Pairing(pairing.said, sparse.csr_matrix(scrambled), pairing.folds_P)
        fitted = fit_on("levels", others, known.known_of("corpus", fold), DEC, without=(fold,))
        predicted = apply.dense(fitted, pairing.said).values_PL
        gain += (np.square(fitted.mean - truth) - np.square(predicted - truth))[held].sum(0)
    wanted = gain / POSITIONS * np.square(DEC).sum(1)
    assert found.mean[:5] == pytest.approx(wanted[:5], rel=1e-4, abs=1e-9)
    assert np.abs(wanted[:5]).min() > 1e-7
