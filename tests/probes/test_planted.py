import numpy as np
import pytest
from scipy.special import expit

from nlrewrite.probes import theory
from nlrewrite.probes.planted import Design, Model, known, top, top_of_mixed

SMALL = Design(latents=256, k=2, width=32, vocabulary=64, known_contexts=4000)
MODEL = Model(SMALL)
REPORT = MODEL.report(1000)
MEAN = REPORT.mean_ablation()


def close(values: np.ndarray, expected: float, errors: float = 3.0) -> None:
    assert abs(values.mean() - expected) < errors * values.std(ddof=1) / np.sqrt(len(values))


def test_every_context_has_k_active_latents_at_the_magnitudes_that_were_planted() -> None:
    truth = MODEL.activations("calibrate", 4000)
    assert (np.diff(truth.indptr) == SMALL.k).all()
    relative = truth.data / MODEL.scale_L[truth.indices]
    close(relative, 1.0)
    close((relative - 1) ** 2, SMALL.cv**2)
    often = np.bincount(truth.indices, minlength=SMALL.latents)
    assert np.corrcoef(np.log(often + 1), MODEL.log_rate_L)[0, 1] > 0.9
    lengths = np.linalg.norm(MODEL.dec_LE, axis=1)
    assert np.abs(lengths - 1).max() < 1e-6


def test_the_same_seed_is_the_same_model_and_more_contexts_begin_with_the_fewer() -> None:
    few, many = MODEL.activations("report", 700), Model(SMALL).activations("report", 2300)
    assert (few != many[:700]).nnz == 0
    assert (few != MODEL.activations("calibrate", 700)).nnz > 0
    assert (few != Model(SMALL, seed=1).activations("report", 700)).nnz > 0


def test_what_is_known_is_what_there_is() -> None:
    truth = MODEL.known_truth_PL.toarray()
    found = known(MODEL.known_truth_PL)
    assert found.rate == pytest.approx((truth > 0).mean(0))
    assert found.mean == pytest.approx(truth.mean(0), abs=1e-6)
    assert found.largest == pytest.approx(truth.max(0))
    for latent in range(0, SMALL.latents, 17):
        sample, column = found.targets[latent], truth[:, latent]
        assert sample.count == len(column) and sample.positive.tolist() == np.sort(column[column > 0]).tolist()


def test_nothing_replaced_costs_nothing_and_cross_entropy_rises_by_the_divergence() -> None:
    itself = REPORT.losses(REPORT.truth)
    assert np.abs(itself.kl_P).max() < 1e-6 and itself.square_P.max() == 0 and itself.written_P.max() < 1e-9
    assert MEAN.kl_P.min() > -1e-9
    close(MEAN.ce_P - itself.ce_P - MEAN.kl_P, 0.0)


def test_what_is_written_is_wrong_by_the_errors_of_directions_that_hardly_overlap() -> None:
    wrong = (MODEL.known.mean - REPORT.truth) @ MODEL.dec_LE
    assert MEAN.written_P == pytest.approx(np.square(wrong).sum(1), rel=1e-3)
    assert MEAN.written_P.mean() == pytest.approx(MEAN.square_P.mean(), rel=0.1)


def test_zero_ablation_is_nearly_mean_ablation() -> None:
    zero = REPORT.losses(np.zeros(SMALL.latents, dtype=np.float32))
    assert zero.square_ratio(MEAN) == pytest.approx(theory.zero_ablation(SMALL.rate, SMALL.cv), abs=0.02)
    assert zero.ratio(MEAN) == pytest.approx(1.0, abs=0.05)


def test_the_oracle_of_activity_leaves_what_magnitudes_keep_to_themselves() -> None:
    mask = np.where(REPORT.truth > 0, MODEL.scale_L, 0).astype(np.float32)
    expected = 1 - theory.explained_by_activity(1.0, SMALL.rate, SMALL.cv)
    assert REPORT.losses(mask).square_ratio(MEAN) == pytest.approx(expected, rel=0.15)


def test_a_simulator_is_as_good_as_planted() -> None:
    said = MODEL.simulator(REPORT.truth_PL, "report", 2.0, tau=0.5)
    score, active = said.scores(slice(None)).T, REPORT.truth > 0
    size = (REPORT.truth / MODEL.scale_L)[active]
    close(score[active] - score[~active].mean() - 0.5 * np.log(size), 2.0)
    prompt = np.nanmean(np.where(active, np.nan, score), axis=1)
    close(np.square(prompt), 0.25 + 1 / SMALL.latents)
    other = MODEL.simulator(REPORT.truth_PL, "report", 2.0, tau=0.5, seed=1).scores(slice(None)).T
    assert abs(np.corrcoef(other[~active], score[~active])[0, 1]) < 0.02


def test_a_topk_keeps_the_k_farthest_from_the_rest() -> None:
    values = MODEL.simulator(REPORT.truth_PL, "report", 1.0).scores(slice(None)).T.copy()
    kept = top(np.abs(values), 3)
    assert ((kept != 0).sum(1) == 3).all()
    assert (np.sort(kept, axis=1)[:, -3:] == np.sort(np.abs(values), axis=1)[:, -3:]).all()
    rest = np.linspace(0, 1, SMALL.latents).astype(np.float32)
    away = top(values, 3, rest)
    assert ((away != rest).sum(1) == 3).all()
    farthest = np.sort(np.abs(values - rest), axis=1)[:, -3:]
    assert (np.sort(np.abs(away - rest), axis=1)[:, -3:] == farthest).all()


def test_a_topk_over_the_mixed_vector_evicts_true_latents() -> None:
    replaced = np.arange(SMALL.latents) % 2 == 0
    score = MODEL.simulator(REPORT.truth_PL, "report", 1.4).scores(slice(None)).T
    loud = (expit(score - 1) * MODEL.known.largest).astype(np.float32)
    kept, evicted = top_of_mixed(loud, REPORT.truth, replaced, SMALL.k)
    assert ((kept != 0).sum(1) == SMALL.k).all() and evicted > 0.8
    true = (REPORT.truth > 0) & ~replaced
    assert evicted == pytest.approx(((kept == 0) & true).sum() / true.sum())
    _, none = top_of_mixed(np.zeros_like(loud), REPORT.truth, replaced, SMALL.k)
    assert none == 0
    mixed = REPORT.mixed(loud, replaced)
    assert (mixed[:, ~replaced] == REPORT.truth[:, ~replaced]).all() and (mixed[:, replaced] == loud[:, replaced]).all()
