"""A gate or a cheap simulator first: what is asked, what is lost, and an engine in two stages."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from nlrewrite.calibrate import quantile
from nlrewrite.errors import SettingError
from nlrewrite.explain.gate import Gates
from nlrewrite.llm.engine import Outcome, PrefixBlock, Scores
from nlrewrite.llm.packed import Packed
from nlrewrite.seeds import generator
from nlrewrite.simulate import cascade, gating
from nlrewrite.simulate.cascade import Cascade, Dropped
from tests.calibrate import making
from tests.llm import random_models
from tests.simulate.test_gating import LATENTS, planted

# -- gates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_behind_gates_are_those_of_the_gated_rung(seed: int) -> None:
    gates, token_P, said = planted(seed)
    explained = said.explained & gates.there
    found = cascade.behind(gates, token_P, explained)
    rung = gating.inside(gates, token_P, said, sentence=True)
    asked = np.zeros((LATENTS, len(token_P)), dtype=bool)
    asked[rung.latent, rung.position] = True
    assert (found.open_LP.toarray() == asked).all()
    assert found.kept == pytest.approx(asked[explained].mean())


def test_a_latent_without_a_gate_is_asked_everywhere_and_one_without_a_sentence_nowhere() -> None:
    gates = Gates(np.array([0, 0]), np.array([3, 5]), 3)
    token_P = np.array([3, 4, 5, 3])
    found = cascade.behind(gates, token_P, np.array([True, True, False]))
    assert found.open_LP.toarray().tolist() == [[True, False, True, True], [True] * 4, [False] * 4]
    assert found.kept == 7 / 8
    truth_PL = sparse.csr_matrix(np.array([[1, 0, 0], [2, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32))
    assert found.recall(truth_PL).tolist() == [0.5, 1.0, 0.0]
    assert found.energy_recall(truth_PL) == pytest.approx((1 + 1) / (1 + 4 + 1))


# -- thresholds --------------------------------------------------------------------------------------------------------


def scored(latents: int, contexts: int, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A cheap and a dear score, jointly normal."""
    draws = generator(seed, "cascade", latents, contexts)
    full = draws.standard_normal((latents, contexts))
    return correlation * full + np.sqrt(1 - correlation**2) * draws.standard_normal(full.shape), full


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_new_contexts_are_recalled_as_often_as_wanted(pooled: bool, recall: float) -> None:
    """Own thresholds: n = 40 top pairs of the pilot, so that the recall is recall to recall + 1 / 41 on average."""
    frequency = np.full(300, 0.05)
    threshold = cascade.thresholds(*scored(300, 800, 0.9, 0), frequency, recall, pooled=pooled)
    new, full = scored(300, 4000, 0.9, 1)
    bar = np.quantile(full, 1 - frequency[0])
    found = cascade.keep(new, threshold)[full > bar].mean()
    assert recall - 0.006 < found < recall + 1 / 41 + 0.006
    kept = cascade.keep(new, threshold).mean()
    assert kept < 1.35 * cascade.share_to_keep(0.9, 0.05, recall) + 0.02


def test_a_latent_with_few_top_pairs_takes_the_threshold_of_all() -> None:
    screen, full = scored(200, 100, 0.9, 0)
    few = cascade.thresholds(screen, full, np.full(200, 0.01), 0.9)
    assert np.array_equal(few, cascade.thresholds(screen, full, np.full(200, 0.01), 0.9, pooled=True))
    assert 0.8 < cascade.recalled(cascade.keep(screen, few), full, np.full(200, 0.01)) <= 1


def test_a_missing_cheap_score_is_asked_about_and_missing_answers_teach_nothing() -> None:
    screen, full = scored(40, 200, 0.8, 0)
    frequency = np.full(40, 0.1)
    holes = generator(0, "holes").random(screen.shape) < 0.3
    threshold = cascade.thresholds(np.where(holes, np.nan, screen), full, frequency, 0.9)
    again = cascade.thresholds(screen, np.where(holes, np.nan, full), frequency, 0.9)
    assert np.array_equal(threshold, again)
    assert cascade.keep(np.where(holes, np.nan, screen), threshold)[holes].all()
    nothing = cascade.thresholds(np.full((2, 5), np.nan), np.full((2, 5), np.nan), np.full(2, 0.1), 0.9)
    assert np.isneginf(nothing).all()


def test_ties_at_the_edge_are_kept_together() -> None:
    full = np.array([[5.0, 3.0, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert cascade.top(full, np.array([0.2])).tolist() == [[True] * 4 + [False] * 6]
    assert cascade.top(full, np.array([0.0])).sum() == 1
    assert cascade.top(np.full((1, 3), np.nan), np.array([0.5])).sum() == 0


def test_a_recall_is_a_share() -> None:
    with pytest.raises(SettingError, match=r"recall.*1"):
        cascade.thresholds(np.zeros((1, 2)), np.zeros((1, 2)), np.array([0.5]), 1.0)
    with pytest.raises(SettingError, match=r"correlation.*1"):
        cascade.share_to_keep(1.0, 0.01, 0.9)


def test_curves_rise_to_one() -> None:
    screen, full = scored(50, 400, 0.8, 0)
    found = cascade.curve(screen, full, np.full(50, 0.02), (0.01, 0.05, 0.2, 1.0))
    recalls = [recall for _, recall in found]
    assert recalls == sorted(recalls) and recalls[-1] == 1.0 and recalls[0] < 0.6
    assert [round(share, 3) for share, _ in found] == [0.01, 0.05, 0.2, 1.0]


KNOWN = {  # correlation: per cent to keep for the top 0.1 % at recall 90 and 99 %, for the top 1 %: 4 M simulated pairs
    0.7: (8.5, 28, 18, 44),
    0.8: (3.1, 11.6, 9.5, 25),
    0.9: (0.8, 2.7, 3.9, 10),
    0.95: (0.3, 0.9, 2.2, 4.8),
}


@pytest.mark.parametrize("correlation", KNOWN)
def test_what_a_copula_says_is_what_is_known(correlation: float) -> None:
    """The known figures are of a simulation with 4,000 pairs in the smaller top, right to about a twelfth."""
    found = [
        100 * cascade.share_to_keep(correlation, share, recall) for share in (0.001, 0.01) for recall in (0.9, 0.99)
    ]
    assert found == pytest.approx(KNOWN[correlation], rel=0.09, abs=0.05)


def test_what_a_copula_says_is_what_is_drawn() -> None:
    draws = generator(0, "copula")
    high = -cascade.ndtri(draws.random(400_000) * 0.01)
    cheap = 0.8 * high + 0.6 * draws.standard_normal(len(high))
    drawn = cascade.ndtr(-np.quantile(cheap, 0.1))
    assert cascade.share_to_keep(0.8, 0.01, 0.9) == pytest.approx(drawn, rel=0.01)


def test_a_cascade_costs_its_screen_and_what_is_kept() -> None:
    assert cascade.cost(1.95 / 13.96, 0.03) == pytest.approx(0.17, abs=0.001)


# -- what is dropped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_quantile_normalisation_is_exact_if_the_top_is_kept(seed: int) -> None:
    """Ranks alone matter, and all below the top f are worth 0: of a dropped pair nothing else need be known."""
    full, truth = making.scores(seed)
    known = making.known(truth)
    noise = generator(seed, "cheap").standard_normal(full.shape)
    cheap = full + 0.3 * noise
    threshold = cascade.thresholds(cheap, full, known.rate + 2 / full.shape[1], 0.999)
    kept = cascade.keep(cheap, threshold) | cascade.top(full, known.rate + 2 / full.shape[1])
    assert kept.mean() < 0.9
    whole, less = making.evidence(full, truth), making.evidence(cascade.lowest(full, kept).astype(np.float32), truth)
    values = making.predicted(quantile.fit(whole, known, {}), whole)
    again = making.predicted(quantile.fit(less, known, {}), less)
    assert np.allclose(again, values, atol=1e-6) and values.any()


def test_a_top_that_is_dropped_is_lost() -> None:
    full, truth = making.scores(0)
    known, kept = making.known(truth), ~cascade.top(full, np.full(len(full), 0.05))
    whole, less = making.evidence(full, truth), making.evidence(cascade.lowest(full, kept).astype(np.float32), truth)
    values = making.predicted(quantile.fit(whole, known, {}), whole)
    assert not np.allclose(making.predicted(quantile.fit(less, known, {}), less), values)


def test_a_dropped_pair_gets_the_mean_of_its_like() -> None:
    screen, full = scored(20, 4000, 0.7, 0)
    truth = np.maximum(full - 0.5, 0)
    kept = screen > 1
    found = Dropped.fit(screen, truth, kept, steps=4, prior=0.0)
    values = found(screen)
    dropped = ~kept
    for row in range(20):
        assert values[row, dropped[row]].sum() == pytest.approx(truth[row, dropped[row]].sum())
        assert (np.diff(found.value_LB[row]) > 0).all()
    mean = np.array([[truth[row, dropped[row]].mean()] for row in range(20)])
    error = [
        np.square(truth - each)[dropped].mean() for each in (values, np.broadcast_to(mean, truth.shape), 0 * truth)
    ]
    assert error[0] < error[1] < error[2]
    shrunk = Dropped.fit(screen, truth, kept, prior=1e12)
    assert np.allclose(shrunk(screen), mean, rtol=1e-4)
    some = generator(0, "drawn").random(screen.shape) < 0.25
    weighted = Dropped.fit(screen, truth, kept, weight_LS=np.where(some, 4.0, 0.0), prior=0.0)
    assert np.allclose(weighted.value_LB, found.value_LB, atol=0.08)


def test_a_latent_of_which_nothing_was_dropped_is_given_nothing() -> None:
    screen, full = scored(2, 10, 0.7, 0)
    found = Dropped.fit(screen, np.maximum(full, 0), np.ones(screen.shape, dtype=bool))
    assert (found(screen) == 0).all()


# -- the engine --------------------------------------------------------------------------------------------------------


def engines() -> tuple[Packed, Packed]:
    tokenizer = random_models.tokenizer()
    cheap, dear = random_models.fresh(seed=1, num_hidden_layers=1), random_models.fresh(seed=2)
    return Packed(cheap, tokenizer), Packed(dear, tokenizer)


def test_survivors_have_the_dear_engines_answers_and_the_others_none() -> None:
    cheap, dear = engines()
    block = random_models.block(20, [3, 5, 4, 6, 3, 5, 4, 3])
    digit = cascade.expected_digit(cheap.digits(block))
    threshold = np.median(digit)
    by_latent = cascade.filed([block.suffix(index) for index in range(len(block))], np.full(len(block), threshold))
    asked = Cascade(cheap, dear, by_latent)
    found = asked.screened(block)
    kept = np.flatnonzero(digit >= threshold)
    assert 0 < len(kept) < len(block)
    expected = dear.digits(block.at(kept))
    assert np.array_equal(found.scores.logp[kept], expected.logp)
    assert found.scores.logmass is not None and np.array_equal(found.scores.logmass[kept], expected.logmass)
    dropped = np.setdiff1d(np.arange(len(block)), kept)
    assert (found.scores.outcome[dropped] == Outcome.SKIPPED).all() and (found.scores.outcome[kept] == Outcome.OK).all()
    assert np.isnan(found.scores.logp[dropped]).all() and np.isnan(found.scores.logmass[dropped]).all()
    assert np.allclose(found.screen, digit, atol=1e-5)
    assert asked.usage.failed == {"SKIPPED": len(dropped)}


def test_a_cascade_may_ask_nothing_or_everything() -> None:
    cheap, dear = engines()
    block = random_models.block(12, [3, 4])
    suffixes = [block.suffix(index) for index in range(2)]
    never = Cascade(cheap, dear, cascade.filed(suffixes, np.full(2, 10.0))).digits(block)
    assert np.isnan(never.logp).all() and (never.outcome == Outcome.SKIPPED).all() and never.logmass is not None
    everything = Cascade(cheap, dear, {}).digits(block)
    assert np.array_equal(everything.logp, dear.digits(block).logp)
    by_prefix = Cascade(cheap, dear, {cascade.own(block.prefix): 10.0}, by_prefix=True)
    assert (by_prefix.digits(block).outcome == Outcome.SKIPPED).all()


def test_what_a_limit_left_out_is_not_taken_for_what_the_screen_did() -> None:
    class Broke(Packed):
        def digits(self, block, screen=None):
            found = super().digits(block, screen)
            return replace(found, outcome=np.full(len(block), Outcome.SKIPPED, dtype=np.int8))

    cheap, _ = engines()
    broke = Broke(random_models.fresh(seed=2), random_models.tokenizer())
    with pytest.raises(SettingError, match="left 2 of 2 questions unasked"):
        Cascade(cheap, broke, {}).digits(random_models.block(12, [3, 4]))


def test_latents_with_the_same_words_share_the_lowest_threshold() -> None:
    found = cascade.filed([np.array([1, 2]), np.array([3]), np.array([1, 2])], np.array([0.5, 0.1, 0.2]))
    block = PrefixBlock.of([9], [[3], [1, 2], [4]], (10, 11))
    assert cascade.bars(block, found).tolist() == [0.1, 0.2, -np.inf]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_answers_of_some_stand_where_they_belong(asked: list[bool]) -> None:
    chosen = np.flatnonzero(asked)
    logp = np.arange(len(chosen) * 2, dtype=np.float32).reshape(-1, 2)
    some = Scores(logp, None, np.full(len(chosen), Outcome.REFUSED, dtype=np.int8), top=np.ones(logp.shape, dtype=bool))
    found = cascade.spread(some, chosen, len(asked))
    assert np.array_equal(found.logp[chosen], logp) and found.logmass is None and found.missing is None
    assert (found.outcome == np.where(asked, Outcome.REFUSED, Outcome.SKIPPED)).all()
    assert found.top is not None and (found.top.all(1) == asked).all()
