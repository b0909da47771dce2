"""The ladder: what its rungs predict and write, on planted values; the whole of it on a small rewriting."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit

from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.probes import ladder, predictions
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.ladder import RUNGS, Rung, Simulator
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Spoken
from tests.probes.making import made, sparse_truth

ALL = slice(None)
LATENTS, CONTEXTS = 5, 4000


def spoken(level_LP: np.ndarray) -> Spoken:
    latent, position = np.nonzero(level_LP)
    table = np.stack([np.eye(10)[0], np.eye(10)[9]])
    columns = latent.astype(np.int32), position.astype(np.int32), level_LP[latent, position].astype(np.int8)
    return Spoken(Simulated(*columns, table, np.ones(len(level_LP), dtype=bool)), level_LP.shape[1])


def test_a_rung_changes_one_thing() -> None:
    for before, rung in pairwise(RUNGS):
        changed = [
            name for name in ("values", "mixed", "matched", "paired") if getattr(before, name) != getattr(rung, name)
        ]
        assert len(changed) == 1, rung.name
    assert RUNGS[0] == Rung("published", "the published program", "published", True, False, False)
    assert (RUNGS[-1].mixed, RUNGS[-1].matched, RUNGS[-1].paired) == (False, True, True)


def test_raw_predictions_as_published_and_without_the_slips() -> None:
    truth = sparse.csr_matrix((3, 2))
    manner = Manner(failed=0.5)
    said = oracle(truth, np.ones(2), Scored(0.0), manner, seed=0, split="report")
    lost = ~said.ok(ALL)
    assert 0 < lost.sum() < 6
    largest, mean = np.array([9.0, 18.0]), np.array([1.0, 2.0])
    (_, published), (_, missing) = (
        next(predictions.raw(Heard(said, "expected"), largest, mean, failed=failed))
        for failed in ("largest", "missing")
    )
    digits = Heard(said, "expected").scores(ALL)
    assert (published[lost] == np.broadcast_to(largest[:, None], (2, 3))[lost]).all()
    assert (missing[lost] == np.broadcast_to(mean[:, None], (2, 3))[lost]).all()
    assert published[~lost] == pytest.approx((digits * largest[:, None] / 9)[~lost])
    nine = spoken(np.array([[0, 1], [1, 0]]))
    for kept, value in ((True, 9.0), (False, 0.0)):
        _, values = next(predictions.raw(Heard(nine, "expected"), largest, mean, nine=kept))
        assert values[0].tolist() == [0, value]


def test_a_topk_over_the_mixture_evicts_what_is_true() -> None:
    up, _ = made()
    own = np.zeros((len(up.report.windows), up.latents), dtype=bool)
    own[:, :6] = True
    huge = np.full((up.report.count, up.latents), 100.0, dtype=np.float32)
    truth = up.report.truth_PL.toarray()
    crowded = ladder.mixed(huge, up, own, 6)
    assert crowded.evicted == 1
    assert crowded.written == pytest.approx(np.where(np.arange(up.latents) < 6, huge, 0) @ up.dec_LE, rel=1e-4)
    silent = ladder.mixed(np.zeros_like(huge), up, own, up.coder.k)
    assert silent.evicted == 0
    wanted = np.where(np.arange(up.latents) < 6, 0, truth) @ up.dec_LE
    assert silent.written == pytest.approx(wanted, abs=1e-5)
    assert ladder.mixed(huge, up, ~own[:, ::-1], None).evicted == 0


def test_subsets_are_fresh_for_each_window_and_arm() -> None:
    own, other = (ladder.drawn(20, 40, 0.5, 0, arm) for arm in ("own", "other"))
    assert (own.sum(1) == 20).all()
    assert len(np.unique(own, axis=0)) == 20
    assert (own != other).any(1).all()
    assert ladder.drawn(3, 4, 1.0, 0, "own").all()


@pytest.fixture(scope="module")
def behind() -> tuple[predictions.Behind, np.ndarray, Spoken, sparse.csr_matrix, Heard]:
    draws = generator(0, "gates")
    open_ = draws.random((LATENTS, CONTEXTS)) < 0.1
    truth = sparse.csr_matrix((draws.random((LATENTS, CONTEXTS)) < np.where(open_, 0.2, 0.003)).T * 1.0)
    said = oracle(truth, np.ones(LATENTS), Scored(1.4), Manner(), seed=0, split="calibrate")
    ones = np.ones(LATENTS, dtype=np.float32)
    arrays = {"intercept": -3 * ones, "slope": 1.4 * ones, "size": ones, "growth": 0 * ones}
    fitted = Fitted("hurdle", "paired", "logistic", arrays, 0.02 * ones, ones)
    heard = Heard(said, "log-odds")
    gate = spoken(open_.astype(int))
    return predictions.behind_gate(fitted, heard, gate, truth), open_, gate, truth, heard


def test_behind_a_gate_the_expected_number_is_right_on_either_side(behind: tuple) -> None:
    made_, open_, gate, truth, heard = behind
    active = truth.toarray().T > 0
    for fitted, where, extra in ((made_.inside, open_, 0.95), (made_.outside, ~open_, 0.05)):
        chance = expit(fitted.arrays["intercept"][:, None] + 1.4 * heard.scores(ALL))
        assert (chance * where).sum(1) == pytest.approx((active & where).sum(1) + extra, rel=1e-3)
    values = np.concatenate([each for _, each in predictions.gated(made_, heard, gate)])
    assert values[open_].mean() == pytest.approx(active[open_].mean(), rel=0.05)
    assert values[~open_].mean() < 0.01


def test_one_gain_is_the_share_of_the_way_that_is_right() -> None:
    draws = generator(0, "gain")
    truth = sparse_truth(300, 4, 0.2)
    dec, mean = draws.normal(size=(4, 6)), np.asarray(truth.mean(0)).ravel()

    def predicted(times: float):
        yield slice(0, 4), (mean + times * (truth.toarray() - mean)).T

    assert predictions.output_gain(predicted(2.0), mean, truth, dec) == pytest.approx(0.5)
    assert predictions.output_gain(predicted(0.5), mean, truth, dec) == 1
    assert predictions.output_gain(predicted(-1.0), mean, truth, dec) == 0
    assert predictions.output_gain(predicted(0.0), mean, truth, dec) == 0
    _, half = next(predictions.drawn_in(predicted(1.0), mean, 0.5))
    assert half == pytest.approx(((mean + truth.toarray()) / 2).T, abs=1e-6)


def test_what_cannot_matter_is_said() -> None:
    nothing = spoken(np.zeros((1, 1), dtype=int))
    rules = Simulator("rules", nothing, nothing)
    by_name = {rung.name: rung for rung in RUNGS}
    assert ladder.why_nothing(by_name["renormalised"], rules, 0.5)
    assert ladder.why_nothing(by_name["matched"], rules, 1)
    assert not ladder.why_nothing(by_name["matched"], rules, 0.5)
    assert not ladder.why_nothing(by_name["renormalised"], replace(rules, name="oracle 0.84"), 1)
