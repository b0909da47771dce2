import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from nlrewrite.calibrate.cases import NOTHING, Drawn, at_random, case_control, restricted
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Flagged, Manner, Oracle, Scored, oracle
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Reading, Spoken, centre

LATENTS, CONTEXTS = 30, 1200
ALL, OWN = slice(None), Reading()
RATES = np.r_[0.0, 1 / CONTEXTS, np.geomspace(0.005, 0.6, LATENTS - 3), 1.0]
DRAWS = generator(0, "cases of tests")
TRUTH_PL = np.where(DRAWS.random((CONTEXTS, LATENTS)) < RATES, DRAWS.gamma(2.0, 1.0, (CONTEXTS, LATENTS)), 0.0)
TRUTH_PL[7, 1] = 1.0
TRUTH = sparse.csr_matrix(TRUTH_PL.astype(np.float32))
ACTIVE = TRUTH_PL > 0
FOLDS = DRAWS.permutation(np.arange(CONTEXTS) % 3 + np.arange(CONTEXTS) % 2)  # four folds of unequal size


def drawn(active: int = 20, inactive: int = 60, seed: int = 0) -> Drawn:
    return case_control(TRUTH, FOLDS, active, inactive, seed=seed)


def said(manner: Manner | None = None, tau: float = 0.0) -> Oracle:
    return oracle(TRUTH, np.ones(LATENTS), Scored(1.5, tau=tau), manner, seed=0, split="calibrate")


def contexts(found: Drawn, latent: int) -> list[int]:
    return [each for each in found.context_LS[latent].tolist() if each != NOTHING]


@given(st.integers(1, 100), st.integers(1, 300), st.integers(0, 3))
def test_so_many_of_each_kind_are_drawn_or_all_there_are(active: int, inactive: int, seed: int) -> None:
    found = drawn(active, inactive, seed)
    for latent in range(LATENTS):
        own = contexts(found, latent)
        assert len(set(own)) == len(own)
        is_active = ACTIVE[own, latent]
        assert is_active.sum() == min(active, ACTIVE[:, latent].sum())
        assert (~is_active).sum() == min(inactive, (~ACTIVE[:, latent]).sum())
        there = found.context_LS[latent] != NOTHING
        assert (found.active_LS[latent, there] == is_active).all() and not found.active_LS[latent, ~there].any()
        assert (found.fold_S[there] == FOLDS[own]).all()
    assert found.queries() == sum(len(contexts(found, latent)) for latent in range(LATENTS))
    some = np.arange(LATENTS) % 2 == 0
    assert found.queries(some) == sum(len(contexts(found, latent)) for latent in np.flatnonzero(some))


def test_more_cases_hold_the_fewer_and_a_latent_is_drawn_by_itself() -> None:
    few, many = drawn(10, 40), drawn(20, 80)
    alone = case_control(TRUTH[:, :6], FOLDS, 10, 40, seed=0)
    for latent in range(LATENTS):
        assert set(contexts(few, latent)) <= set(contexts(many, latent))
        if latent < 6:
            assert contexts(alone, latent) == contexts(few, latent)
    assert contexts(drawn(10, 40, seed=1), 20) != contexts(few, 20)


def test_every_context_is_as_likely_as_any_other_of_its_kind() -> None:
    latent, draws = 15, 400
    count = np.zeros(CONTEXTS)
    one = sparse.csr_matrix(TRUTH[:, [latent]])
    for seed in range(draws):
        found = case_control(one, FOLDS, 5, 30, seed=seed)
        count[contexts(found, 0)] += 1
    for kind, asked in ((ACTIVE[:, latent], 5), (~ACTIVE[:, latent], 30)):
        share = asked / kind.sum()
        variance = draws * share * (1 - share)
        assert count[kind].var() == pytest.approx(variance, rel=4 * np.sqrt(2 / kind.sum()))


def test_weights_undo_the_drawing() -> None:
    evidence = drawn().evidence(said(), TRUTH)(ALL, OWN).checked()
    weight, active = evidence.weight, evidence.active
    assert active.sum(1) == pytest.approx(ACTIVE.sum(0))
    assert (weight - active).sum(1) == pytest.approx((~ACTIVE).sum(0))
    assert evidence.drawn is not None
    kinds = np.stack([(~ACTIVE).sum(0), ACTIVE.sum(0)], axis=1)
    assert evidence.drawn == pytest.approx(np.where(kinds > 0, np.minimum([60, 20], kinds) / np.maximum(kinds, 1), 1.0))
    counted = weight * np.where(active > 0, evidence.drawn[:, 1:], evidence.drawn[:, :1])
    assert ((np.abs(counted) < 1e-9) | (np.abs(counted - 1) < 1e-9)).all(), "undone, every case counts once"
    few = ACTIVE.sum(0) <= 20
    assert evidence.total[few].sum(1) == pytest.approx(TRUTH_PL.sum(0)[few], rel=1e-5)
    error = (evidence.mean() - TRUTH_PL.mean(0))[~few] / TRUTH_PL.std(0)[~few]
    assert np.abs(error).max() < 4 / np.sqrt(20)


def test_cases_hold_what_was_said_and_true_there() -> None:
    found, oracle_ = drawn(), said()
    evidence = found.evidence(oracle_, TRUTH)(slice(10, 14), OWN)
    score, digits = oracle_.scores(ALL), oracle_.digits(ALL)
    assert digits is not None and evidence.answers.digits_BSZ is not None
    for row, latent in enumerate(range(10, 14)):
        there = found.context_LS[latent] != NOTHING
        own = contexts(found, latent)
        assert (evidence.answers.score_BS[row, there] == score[latent, own]).all()
        assert (evidence.answers.digits_BSZ[row, there] == digits[latent, own]).all()
        assert evidence.total[row, there] == pytest.approx(evidence.weight[row, there] * TRUTH_PL[own, latent])
        assert (evidence.weight[row, ~there] == 0).all()


def test_blocks_do_not_change_the_evidence() -> None:
    evidence = drawn().evidence(said(), TRUTH)
    whole, part = evidence(ALL, OWN), evidence(slice(5, 6), OWN)
    for name in ("weight", "active", "total", "drawn"):
        assert (getattr(whole, name)[5:6] == getattr(part, name)).all()
    assert (whole.answers.score_BS[5:6] == part.answers.score_BS).all() and (whole.fold == part.fold).all()


def test_a_missing_answer_is_a_case_that_was_not_drawn() -> None:
    found, unsure = drawn(), said(Manner(failed=0.3))
    evidence = found.evidence(unsure, TRUTH)(ALL, OWN).checked()
    ok = unsure.ok(ALL)
    for latent in range(LATENTS):
        there = found.context_LS[latent] != NOTHING
        assert ((evidence.weight[latent, there] > 0) == ok[latent, contexts(found, latent)]).all()
    some = ((evidence.weight > 0) & found.active_LS).any(1)
    assert some.sum() >= LATENTS - 3
    assert evidence.active.sum(1)[some] == pytest.approx(ACTIVE.sum(0)[some])
    assert evidence.answers.digits_BSZ is not None and np.isfinite(evidence.answers.digits_BSZ).all()


def test_centred_answers_lose_what_was_said_of_all_latents_in_a_context() -> None:
    reading, moved = Reading(centred=True), said(tau=3.0)
    found = drawn(1200, 1200)  # all there are, so that the centre is the plain one
    assert found.centre(moved, reading) == pytest.approx(centre(moved, reading), abs=1e-4)
    evidence = found.evidence(moved, TRUTH)(ALL, reading)
    assert evidence.answers.score_BS.std() < 1.5 < said(tau=3.0).scores(ALL).std()
    few = drawn(5, 5)
    one = oracle(TRUTH, np.ones(LATENTS), Flagged(1.0, 0.0), seed=0, split="calibrate")
    assert few.centre(one, reading) == pytest.approx(1.0), "where nothing was asked it is the mean of all"
    assert len(np.unique(few.context_LS)) - 1 < CONTEXTS


def test_random_contexts() -> None:
    few, many = at_random(CONTEXTS, 50, seed=0), at_random(CONTEXTS, 100, seed=0)
    assert len(few) == 50 and (np.diff(few) > 0).all() and set(few) <= set(many)
    assert at_random(CONTEXTS, 10**6, seed=0).tolist() == list(range(CONTEXTS))
    assert at_random(CONTEXTS, 50, seed=1).tolist() != few.tolist()


def test_a_simulation_at_some_contexts() -> None:
    rows, oracle_ = at_random(CONTEXTS, 50, seed=0), said()
    less = restricted(oracle_, rows)
    digits, all_digits = less.digits(ALL), oracle_.digits(ALL)
    assert less.contexts == 50 and digits is not None and all_digits is not None
    assert (less.scores(slice(3, 9)) == oracle_.scores(ALL)[3:9, rows]).all()
    assert (digits == all_digits[:, rows]).all()
    level = generator(0, "levels").integers(0, 3, (LATENTS, CONTEXTS))
    latent, position = np.nonzero(level)
    rules = Spoken(
        Simulated(latent, position, level[latent, position], np.eye(3, 10), np.ones(LATENTS, dtype=bool)), CONTEXTS
    )
    fewer = restricted(rules, rows)
    assert isinstance(fewer, Spoken), "rules stay pairs"
    assert (fewer.scores(ALL) == rules.scores(ALL)[:, rows]).all()


@pytest.mark.parametrize(("active", "inactive"), [(0, 5), (5, 0)])
def test_no_case_of_a_kind_is_refused(active: int, inactive: int) -> None:
    with pytest.raises(SettingError, match="at least one"):
        drawn(active, inactive)
    with pytest.raises(SettingError, match="at least one"):
        at_random(CONTEXTS, 0, seed=0)
