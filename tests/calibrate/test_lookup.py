import numpy as np
import pytest
from scipy import sparse

from nlrewrite.activations.codes import Codes
from nlrewrite.calibrate import lookup
from nlrewrite.calibrate.lookup import Seen
from nlrewrite.seeds import generator
from nlrewrite.text.positions import Positions

VOCABULARY, LATENTS = 7, 12
DECODER = generator(0, "decoder").normal(size=(LATENTS, 5)).astype(np.float32)


def text(windows: int, length: int, seed: int, tokens: int = VOCABULARY - 1) -> Positions:
    token = generator(seed, "text").integers(0, tokens, windows * length).astype(np.int32)
    window, offset = np.divmod(np.arange(len(token), dtype=np.int32), np.int32(length))
    return Positions(window, offset, token, window)


def seen(where: Positions, seed: int) -> Seen:
    draws = generator(seed, "codes")
    dense = np.abs(draws.normal(size=(len(where), LATENTS))) * (draws.random((len(where), LATENTS)) < 0.3)
    return Seen(where, Codes(np.zeros(LATENTS, dtype=np.float32), sparse.csr_matrix(dense.astype(np.float32))))


FITTED = [seen(text(4, 9, 1), 1), seen(text(3, 6, 2), 2)]
WHERE = text(5, 8, 3, tokens=VOCABULARY)  # the last token was never seen
TOKENS = np.concatenate([each.where.token for each in FITTED])
BEFORE = np.concatenate([each.where.back(1) for each in FITTED])
TRUTH = np.concatenate([each.truth.dense(np.arange(len(each.where))) for each in FITTED])


def by_token(token: int, strength: float) -> np.ndarray:
    rows = TRUTH[token == TOKENS]
    return (rows.sum(0) + strength * TRUTH.mean(0)) / (len(rows) + strength)


def by_bigram(before: int, token: int, strength: float, token_strength: float) -> np.ndarray:
    rows = TRUTH[(token == TOKENS) & (before == BEFORE)]
    return (rows.sum(0) + strength * by_token(token, token_strength)) / (len(rows) + strength)


def test_means_over_all_positions_and_over_those_where_a_latent_is_active() -> None:
    every, firing = lookup.mean_over_tokens(FITTED), lookup.mean_over_firing_tokens(FITTED)
    assert every == pytest.approx(TRUTH.mean(0), rel=1e-6)
    assert firing == pytest.approx([column[column > 0].mean() for column in TRUTH.T], rel=1e-6)
    silent = Seen(FITTED[0].where, Codes(np.zeros(3), sparse.csr_matrix((len(FITTED[0].where), 3))))
    assert lookup.mean_over_tokens([silent]).tolist() == lookup.mean_over_firing_tokens([silent]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("strength", [0.25, 8.0])
def test_a_token_gets_the_mean_seen_with_it_drawn_towards_the_overall_mean(strength: float) -> None:
    found = lookup.token_lookup(FITTED, WHERE, VOCABULARY, strength)
    expected = np.array([by_token(token, strength) for token in WHERE.token])
    rows = np.array([0, 5, 39, 5])
    assert found.dense(rows) == pytest.approx(expected[rows], abs=1e-5)
    assert found.output(rows, DECODER) == pytest.approx(expected[rows] @ DECODER, abs=1e-5)
    unseen = np.flatnonzero(WHERE.token == VOCABULARY - 1)
    assert len(unseen)
    assert found.dense(unseen) == pytest.approx(np.tile(TRUTH.mean(0), (len(unseen), 1)), abs=1e-5)


@pytest.mark.parametrize(("strength", "token_strength"), [(0.25, 2.0), (4.0, 0.5)])
def test_a_pair_of_tokens_falls_back_on_the_token(strength: float, token_strength: float) -> None:
    found = lookup.bigram_lookup(FITTED, WHERE, VOCABULARY, strength, token_strength)
    pairs = list(zip(WHERE.back(1).tolist(), WHERE.token.tolist(), strict=True))
    expected = np.array([by_bigram(*pair, strength, token_strength) for pair in pairs])
    every = np.arange(len(WHERE))
    assert found.dense(every) == pytest.approx(expected, abs=1e-5)
    assert found.output(every[::-1], DECODER) == pytest.approx((expected @ DECODER)[::-1], abs=1e-4)
    known = set(zip(BEFORE.tolist(), TOKENS.tolist(), strict=True))
    unseen = [row for row, pair in enumerate(pairs) if pair not in known]
    assert len(unseen) > 3
    for row in unseen:
        assert found.dense(np.array([row]))[0] == pytest.approx(by_token(WHERE.token[row], token_strength), abs=1e-5)
    assert any(before == -1 for before, _ in pairs)


def test_the_strengths_are_those_that_predict_the_second_split_best() -> None:
    first, second = FITTED
    token, bigram = lookup.best_strengths(first, second, VOCABULARY, DECODER)
    rows = np.arange(len(second.where))
    written = second.truth.output(rows, DECODER)

    def error(found: lookup.Lookup) -> float:
        return float(np.square(found.output(rows, DECODER) - written).sum())

    by_strength = {s: error(lookup.token_lookup([first], second.where, VOCABULARY, s)) for s in lookup.STRENGTHS}
    assert token == min(by_strength, key=by_strength.__getitem__)
    pairs = {s: error(lookup.bigram_lookup([first], second.where, VOCABULARY, s, token)) for s in lookup.STRENGTHS}
    assert bigram == min(pairs, key=pairs.__getitem__)
    assert len(set(by_strength.values())) == len(lookup.STRENGTHS)
