import numpy as np
import pytest
from scipy import sparse

from nlrewrite.activations.codes import Codes, Values
from nlrewrite.calibrate import refit
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator

LATENTS, WIDTH, CONTEXTS = 24, 8, 3000
DECODER = generator(0, "decoder").normal(size=(LATENTS, WIDTH)).astype(np.float32)
FOLDS = np.arange(CONTEXTS) * 4 // CONTEXTS


def truth(seed: int = 0) -> sparse.csr_matrix:
    draws = generator(seed, "truth")
    active = draws.random((CONTEXTS, LATENTS)) < 0.05
    return sparse.csr_matrix(np.where(active, draws.gamma(4.0, 0.25, active.shape), 0).astype(np.float32))


def confused(of: sparse.csr_matrix, seed: int = 0) -> np.ndarray:
    """Predictions that give a part of each activation to the next latent, with noise: what a new decoder can undo."""
    dense = of.toarray()
    noise = 0.1 * np.abs(generator(seed, "noise").normal(size=dense.shape))
    return (0.5 * dense + 0.5 * np.roll(dense, 1, axis=1) + noise).astype(np.float32)


def values(dense: np.ndarray) -> Values:
    return Codes(np.zeros(LATENTS, np.float32), sparse.csr_matrix(dense))


def error(decoder: np.ndarray, predicted: np.ndarray, of: sparse.csr_matrix, mean: np.ndarray) -> float:
    """Straight from its definition."""
    written = mean @ DECODER + (predicted - mean) @ decoder
    return float(np.square(written - of @ DECODER).sum())


def fitted(predicted: np.ndarray, of: sparse.csr_matrix, mean: np.ndarray, folds: np.ndarray = FOLDS) -> refit.Refit:
    return refit.fit(values(predicted), mean, of, DECODER, folds)


@pytest.mark.parametrize("uninformative", [True, False])
def test_in_its_own_contexts_it_is_at_least_as_good_as_the_output_gain_and_the_mean(uninformative: bool) -> None:
    of = truth()
    predicted = confused(truth(1) if uninformative else of)
    mean = np.asarray(of.mean(0)).ravel()
    found = fitted(predicted, of, mean)
    gains = np.linspace(0, 1, 101)
    by_gain = [error(gain * DECODER, predicted, of, mean) for gain in gains]
    assert found.gamma == pytest.approx(gains[int(np.argmin(by_gain))], abs=0.006)
    assert error(found.decoder_LE, predicted, of, mean) <= min(by_gain) * (1 + 1e-6)


def test_it_undoes_confusions_that_a_gain_cannot_and_holds_up_on_other_contexts() -> None:
    of, other = truth(), truth(5)
    mean = np.asarray(of.mean(0)).ravel()
    found = fitted(confused(of), of, mean)
    new = error(found.decoder_LE, confused(other, 5), other, mean)
    assert new < 0.6 * error(found.gamma * DECODER, confused(other, 5), other, mean)
    assert found.decoder_LE.dtype == np.float32


def test_uninformative_predictions_cost_next_to_nothing_on_other_contexts() -> None:
    of, other = truth(), truth(5)
    mean = np.asarray(of.mean(0)).ravel()
    found = fitted(confused(truth(1)), of, mean)
    ablated = error(np.zeros_like(DECODER), confused(truth(6)), other, mean)
    assert error(found.decoder_LE, confused(truth(6)), other, mean) < 1.01 * ablated
    overfitted = np.linalg.lstsq(confused(truth(1)) - mean, (of - mean) @ DECODER)[0]
    assert error(overfitted, confused(truth(6)), other, mean) > error(found.decoder_LE, confused(truth(6)), other, mean)


def test_the_ridge_in_closed_form_and_what_the_products_say_of_errors() -> None:
    of = truth()
    predicted, mean = confused(of), np.asarray(of.mean(0)).ravel()
    every = refit.products(values(predicted), mean, of, DECODER, np.arange(CONTEXTS))
    away, wanted = predicted.astype(np.float64) - mean, (of.toarray() - mean) @ DECODER
    pull = 37.0
    prior = refit.gamma(every, DECODER) * DECODER
    expected = prior + np.linalg.solve(away.T @ away + pull * np.eye(LATENTS), away.T @ (wanted - away @ prior))
    found = refit.ridge(every, DECODER, pull)
    assert found == pytest.approx(expected, abs=1e-5)
    ablated = error(np.zeros_like(DECODER), predicted, of, mean)
    assert every.error(found) == pytest.approx(error(found, predicted, of, mean) - ablated, rel=1e-4)
    assert refit.ridge(every, DECODER, 1e12) == pytest.approx(prior, abs=1e-6)


def test_the_order_of_contexts_is_nothing_and_a_single_fold_is_halved() -> None:
    of = truth()
    predicted, mean = confused(of), np.asarray(of.mean(0)).ravel()
    order = generator(0, "order").permutation(CONTEXTS)
    first = fitted(predicted, of, mean)
    moved = fitted(predicted[order], of[order], mean, FOLDS[order])
    assert moved.decoder_LE == pytest.approx(first.decoder_LE, abs=1e-5)
    assert moved.strength == first.strength
    halved = fitted(predicted, of, mean, np.zeros(CONTEXTS, dtype=int))
    assert halved.decoder_LE == pytest.approx(fitted(predicted, of, mean, FOLDS // 2).decoder_LE)


def test_predictions_that_are_means_leave_mean_ablation() -> None:
    of = truth()
    mean = np.asarray(of.mean(0)).ravel().astype(np.float32)
    found = refit.fit(Codes(mean, sparse.csr_matrix(of.shape, dtype=np.float32)), mean, of, DECODER, FOLDS)
    assert (found.decoder_LE == 0).all()
    assert found.gamma == 0


def test_too_many_latents_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "MOST_LATENTS", LATENTS - 1)
    nothing = values(np.zeros((0, LATENTS), np.float32))
    with pytest.raises(
        SettingError, match=rf"at most {LATENTS - 1} latents, .* there are {LATENTS}\. Leave \+refit out"
    ):
        refit.fit(nothing, np.zeros(LATENTS), sparse.csr_matrix((0, LATENTS)), DECODER, np.zeros(0, int))
