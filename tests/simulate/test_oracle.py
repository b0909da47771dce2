import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import rankdata

from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import TIED, Flagged, Manner, Oracle, Scored, confusion, expected_digit, oracle
from nlrewrite.simulate.said import Reading, answers, centre, log_odds

ALL = slice(None)
LATENTS, CONTEXTS = 40, 4000
MAGNITUDE = np.exp(generator(0, "magnitude").normal(0, 0.5, LATENTS))


def truth(rate: float = 0.05, contexts: int = CONTEXTS, latents: int = LATENTS) -> sparse.csr_matrix:
    draws = generator(0, "truth", contexts)
    size = MAGNITUDE[:latents] * np.exp(0.5 * draws.normal(size=(contexts, latents)) - 0.125)
    return sparse.csr_matrix((size * (draws.random(size.shape) < rate)).astype(np.float32))


TRUTH = truth()
ACTIVE = TRUTH.toarray().T > 0


def made(knows: Scored | Flagged, manner: Manner | None = None, seed: int = 1, split: str = "report") -> Oracle:
    return oracle(TRUTH, MAGNITUDE, knows, manner, seed=seed, split=split)


def aucs(score_LP: np.ndarray) -> np.ndarray:
    found = []
    for score, active in zip(score_LP, ACTIVE, strict=True):
        count = active.sum()
        rank = rankdata(score)[active].sum() - count * (count + 1) / 2
        found.append(rank / (count * (~active).sum()))
    return np.array(found)


def near(values: np.ndarray, asked: float, error: float | None = None) -> None:
    """Mean of independent values within 3 standard errors of what was asked, and the errors small enough to tell."""
    error = values.std(ddof=1) / np.sqrt(values.size) if error is None else error
    assert abs(values.mean() - asked) < 3 * error
    assert error < 0.03


@pytest.mark.parametrize("auc", [0.5, 0.76, 0.84, 0.95, 0.99])
def test_a_score_has_the_auc_that_was_asked_for(auc: float) -> None:
    near(aucs(made(Scored.of_auc(auc)).scores(ALL)), auc)


def test_ties_pull_the_auc_towards_a_half() -> None:
    share = 0.3
    tied = made(Scored.of_auc(0.9), Manner(tied=share))
    both = (1 - share) ** 2
    near(aucs(tied.scores(ALL)), both * 0.9 + (1 - both) / 2)
    common = tied.scores(ALL) == TIED
    near(common.mean(1), share)
    untied = made(Scored.of_auc(0.9)).scores(ALL)
    assert (tied.scores(ALL)[~common] == untied[~common]).all(), "ties move nothing else"
    near(common[ACTIVE].astype(float), share, np.sqrt(share * (1 - share) / ACTIVE.sum()))


def test_flags_err_as_often_as_was_asked_for() -> None:
    flags = made(Flagged(0.7, 0.9)).scores(ALL)
    assert set(np.unique(flags)) == {0.0, 1.0}
    near(flags[ACTIVE].astype(float), 0.7)
    near(1 - flags[~ACTIVE].astype(float), 0.9)
    assert made(Flagged(1.0, 1.0)).scores(ALL).tolist() == ACTIVE.astype(float).tolist()


def test_latents_may_have_rates_of_their_own() -> None:
    hit, right = np.linspace(0, 1, LATENTS), np.linspace(1, 0.5, LATENTS)
    knows = Flagged(hit, right)
    found = confusion(made(knows), TRUTH)
    count = ACTIVE.sum(1)
    assert isinstance(found.sensitivity, np.ndarray) and isinstance(found.specificity, np.ndarray)
    assert (np.abs(found.sensitivity - hit) <= 4 * np.sqrt(hit * (1 - hit) / count) + 1e-12).all()
    assert (np.abs(found.specificity - right) <= 4 * np.sqrt(right * (1 - right) / (CONTEXTS - count)) + 1e-12).all()
    block = slice(10, 20)
    assert (made(knows).scores(block) == made(knows).scores(ALL)[block]).all()


def test_the_oracle_of_a_confusion_errs_as_often_and_elsewhere() -> None:
    scored = made(Scored.of_auc(0.9))
    flags = scored.scores(ALL) > 1
    again = made(confusion(scored, TRUTH, threshold=1.0), seed=2).scores(ALL) > 0
    for where in (ACTIVE, ~ACTIVE):
        near(again[where].astype(float), flags[where].mean(), np.sqrt(2 * 0.25 / where.sum()))
    assert abs(np.corrcoef(flags[~ACTIVE], again[~ACTIVE])[0, 1]) < 0.02


def test_a_prompt_effect_is_shared_by_the_latents_of_a_context_and_centring_takes_it_away() -> None:
    plain, moved = made(Scored(0.0)), made(Scored(0.0, tau=0.8))
    effect = moved.scores(ALL) - plain.scores(ALL)
    assert np.ptp(effect, axis=0).max() < 1e-5
    near((effect[0] / 0.8) ** 2, 1.0, np.sqrt(2 / CONTEXTS))
    reading = Reading(centred=True)
    centred = answers(moved, ALL, reading, centre(moved, reading)).score_BS
    assert np.cov(centred.mean(0)) < 1e-6
    near(centred.var(1), 1 - 1 / LATENTS)


def test_the_score_rises_with_the_magnitude_by_the_slope() -> None:
    difference = made(Scored(1.0, slope=0.5)).scores(ALL) - made(Scored(1.0)).scores(ALL)
    relative = TRUTH.toarray().T / MAGNITUDE[:, None]
    assert difference[ACTIVE] == pytest.approx(0.5 * np.log(relative[ACTIVE]), abs=1e-4)
    assert (difference[~ACTIVE] == 0).all()


def test_d_prime_varies_over_latents_and_not_over_splits() -> None:
    wide = oracle(
        sparse.csr_matrix((3, 2000), dtype=np.float32), np.ones(2000), Scored(3.0, spread=1.0), seed=0, split="report"
    )
    near(wide.d_primes(), 3.0, 1 / np.sqrt(2000))
    near(wide.d_primes() - 2, wide.d_primes().mean() - 2)
    assert wide.d_primes().std() == pytest.approx(1.0, abs=3 / np.sqrt(4000))
    here, there = (made(Scored(1.0, spread=1.0), split=split) for split in ("calibrate", "report"))
    assert (here.d_primes() == there.d_primes()).all() and (here.d_primes() >= 0).all()
    assert abs(np.corrcoef(here.scores(ALL)[~ACTIVE], there.scores(ALL)[~ACTIVE])[0, 1]) < 0.02


def test_digits_are_distributions_whose_log_odds_are_the_score() -> None:
    said = made(Scored.of_auc(0.9))
    digits, score = said.digits(ALL), said.scores(ALL)
    assert digits is not None and digits.dtype == np.float32 and score.dtype == np.float32
    assert np.abs(digits.sum(-1) - 1).max() < 1e-5
    assert digits.min() >= 0
    assert np.abs(log_odds(digits) - (score - 1)).max() < 2e-3
    order = np.linspace(-8, 8, 100)
    assert (np.diff(expected_digit(order)) > 0).all()
    assert expected_digit(np.array([-20.0, 20.0])) == pytest.approx([0, 9], abs=1e-4)
    assert made(Scored(1.0), Manner(digits=False)).digits(ALL) is None


def test_a_quantised_oracle_answers_with_one_digit() -> None:
    plain, coarse = made(Scored.of_auc(0.95)), made(Scored.of_auc(0.95), Manner(quantised=True))
    digit, digits = coarse.scores(ALL), coarse.digits(ALL)
    assert digits is not None
    assert (digit == np.rint(expected_digit(plain.scores(ALL)))).all()
    assert (digits.argmax(-1) == digit).all() and (digits.max(-1) == 1).all() and (digits.sum(-1) == 1).all()
    assert len(np.unique(digit)) == 10
    flagged = made(Flagged(0.5, 0.5), Manner(quantised=True))
    assert set(np.unique(flagged.scores(ALL))) == {0.0, 9.0}


def test_mass_is_missing_only_where_it_is_not_given_back() -> None:
    knows = Scored.of_auc(0.84)
    whole, less = made(knows), made(knows, Manner(mass=0.8, renormalised=False))
    digits, reference = less.digits(ALL), whole.digits(ALL)
    assert digits is not None and reference is not None
    near(digits.sum(-1), 0.8)
    assert np.abs(digits / digits.sum(-1, keepdims=True) - reference).max() < 1e-5
    again = made(knows, Manner(mass=0.8)).digits(ALL)
    assert again is not None and (again == reference).all()


def test_failed_answers_are_missing() -> None:
    said, whole = made(Scored(1.0), Manner(failed=0.1)), made(Scored(1.0))
    missing, digits = ~said.ok(ALL), said.digits(ALL)
    near(missing.mean(1), 0.1)
    assert digits is not None
    assert (np.isnan(said.scores(ALL)) == missing).all() and (np.isnan(digits) == missing[..., None]).all()
    assert (said.scores(ALL)[~missing] == whole.scores(ALL)[~missing]).all()


@given(st.integers(0, LATENTS - 1), st.integers(1, LATENTS), st.booleans(), st.booleans())
def test_blocks_do_not_change_what_is_said(start: int, size: int, scored: bool, quantised: bool) -> None:
    small = truth(contexts=50)
    knows = Scored(1.0, spread=0.5, slope=0.3, tau=0.5) if scored else Flagged(0.5, np.linspace(0, 1, LATENTS))
    manner = Manner(quantised=quantised, tied=0.2, mass=0.7, renormalised=False)
    said = oracle(small, MAGNITUDE, knows, manner, seed=3, split="calibrate")
    block = slice(start, min(start + size, LATENTS))
    assert (said.scores(block) == said.scores(ALL)[block]).all()
    part, whole = said.digits(block), said.digits(ALL)
    assert part is not None and whole is not None and (part == whole[block]).all()


def test_a_latent_is_drawn_alike_whichever_others_there_are() -> None:
    few = oracle(TRUTH[:, :5], MAGNITUDE[:5], Scored(1.0, spread=1.0, tau=1.0), seed=1, split="report")
    assert (few.scores(ALL) == made(Scored(1.0, spread=1.0, tau=1.0)).scores(slice(0, 5))).all()
    assert (made(Scored(1.0), seed=2).scores(ALL) != made(Scored(1.0)).scores(ALL)).mean() > 0.99


def test_a_block_costs_the_memory_of_a_block() -> None:
    many = sparse.random(1000, 4096, density=0.002, format="csr", dtype=np.float32, rng=generator(0, "many"))
    said = oracle(many, np.ones(4096), Scored(1.0, slope=0.5), seed=0, split="report")
    tracemalloc.start()
    said.scores(slice(1024, 1280))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 256 * 1000 * 4, "a few float32 arrays of the block, where all latents would be 16 times that"


def test_a_latent_without_a_mean_magnitude_has_no_slope() -> None:
    said = oracle(TRUTH, np.zeros(LATENTS), Scored(1.0, slope=0.5), seed=1, split="report")
    assert (said.scores(ALL) == made(Scored(1.0)).scores(ALL)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Scored.of_auc(1.0),
        lambda: Scored.of_auc(0.4),
        lambda: Scored(float("nan")),
        lambda: Scored(-1.0),
        lambda: Scored(1.0, tau=-1),
        lambda: Flagged(1.2, 0.5),
        lambda: Flagged(0.5, np.array([0.5, float("nan")])),
        lambda: Manner(mass=0),
        lambda: Manner(tied=1),
        lambda: Manner(failed=-0.1),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: object) -> None:
    with pytest.raises(SettingError):
        wrong()  # type: ignore[operator]
