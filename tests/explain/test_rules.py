import re
from pathlib import Path

import numpy as np
import pytest

from nlrewrite.explain import rules
from nlrewrite.explain.search import Search
from nlrewrite.language.sentence import parse, words, write
from nlrewrite.seeds import generator
from nlrewrite.specs import ExplainSpec
from tests.explain.planted import WORDS, A, B, C, evidence, latent, text

WHERE = text()
EVIDENCE = evidence(WHERE)
SPEC = ExplainSpec()


def learned(level_P: np.ndarray, spec: ExplainSpec = SPEC) -> tuple[str, float]:
    found = rules.learn(*latent(level_P), EVIDENCE, spec)
    return write(found.rule), found.energy_explained


def recent(token: int, reach: int) -> np.ndarray:
    return np.any([WHERE.back(distance) == token for distance in range(1, reach + 1)], axis=0)


IS_A = WHERE.token == A


@pytest.mark.parametrize(
    ("level_P", "sentence"),
    [
        (IS_A * 9, 'Fires on " w0" (9).'),
        (IS_A * 9 + (WHERE.token == B) * 4, 'Fires on " w0" (9), " w1" (4).'),
        (IS_A * 4 + (IS_A & (WHERE.back(1) == B)) * 5, 'Fires on " w0" (4). Stronger right after " w1" (+5).'),
        (IS_A * 4 + (IS_A & (WHERE.back(2) == B)) * 5, 'Fires on " w0" (4). Stronger 2 tokens after " w1" (+5).'),
        (IS_A * 4 + (IS_A & recent(B, 8)) * 5, 'Fires on " w0" (4). Stronger within 8 tokens after " w1" (+5).'),
    ],
    ids=["token", "two", "stronger", "two back", "recently"],
)
def test_a_planted_rule_is_found_and_explains_the_latent(level_P: np.ndarray, sentence: str) -> None:
    said, energy = learned(level_P)
    assert said == sentence
    assert energy == pytest.approx(1)
    position, level = EVIDENCE.contexts.levels(parse(said))
    assert (position == np.flatnonzero(level_P)).all()
    assert (level == level_P[position]).all()


@pytest.mark.parametrize(
    ("level_P", "sentence"),
    [
        (
            (IS_A & (WHERE.back(1) == B)) * 9,
            r'Fires when strengthened on " w0"\. Stronger right after " w1" \(\+[89]\)\.',
        ),
        (
            (IS_A & (WHERE.back(2) == B)) * 9,
            r'Fires when strengthened on " w0"\. Stronger 2 tokens after " w1" \(\+[89]\)\.',
        ),
        (
            (IS_A & (WHERE.back(1) != C)) * 9,
            r'Fires on " w0" \(9\)\. (Silent right after " w2"|Weaker .* " w2" \(-8\))\.',
        ),
        (
            (IS_A & ((WHERE.back(1) == B) | (WHERE.back(2) == C))) * 9,
            r'Fires when strengthened on " w0"\. Stronger right after " w1" \(\+[89]\)\. '
            r'Stronger 2 tokens after " w2" \(\+[89]\)\.',
        ),
        (
            IS_A * 4 + (IS_A & (WHERE.offset == 1)) * 5,
            r'Fires on " w0" \(4\)\. Stronger right after ("<.endoftext.>" .*|)the start .*\.',
        ),
    ],
    ids=["only after", "only two after", "not after", "either", "start"],
)
def test_what_a_token_needs_or_must_not_follow_is_found(level_P: np.ndarray, sentence: str) -> None:
    """These stand on few contexts, which the ridge makes a little weaker than they are."""
    said, energy = learned(level_P)
    assert re.fullmatch(sentence, said)
    assert 0.98 < energy <= 1


def test_a_kind_is_named_where_it_says_more_than_its_tokens() -> None:
    words_only = np.isin(WHERE.back(1), [index for index, word in enumerate(WORDS) if word.startswith(b" w")])
    said, energy = learned((IS_A & words_only) * 9)
    assert "a new word" in said
    assert energy > 0.98


def test_strengths_are_ninths_of_a_strong_activation() -> None:
    found = rules.learn(*latent(IS_A * 9, scale=0.5), EVIDENCE, SPEC)
    assert found.scale == pytest.approx(0.5)
    assert dict(found.rule.strengths) == {WORDS[A]: 9}
    graded = rules.learn(*latent(IS_A * 9 + (WHERE.token == B) * 3, scale=2.0), EVIDENCE, SPEC)
    assert graded.scale == pytest.approx(2.0)
    assert dict(graded.rule.strengths) == {WORDS[A]: 9, WORDS[B]: 3}


def entangled(seed: int) -> np.ndarray:
    """A latent that needs many words: every token with an amount of its own, and noise."""
    draws = generator(seed, "entangled")
    amounts = draws.integers(0, 9, (3, len(WORDS)))
    level = amounts[0, WHERE.token] + amounts[1, WHERE.back(1)] - amounts[2, WHERE.back(2)]
    return np.clip(level, 0, 9) * (draws.random(len(WHERE)) < 0.8)


@pytest.mark.parametrize(("quotes", "most"), [(1, 10), (2, 14), (4, 30), (12, 20), (12, 60), (40, 60), (40, 1000)])
def test_the_limits_of_quotes_and_words_hold(quotes: int, most: int) -> None:
    spec = SPEC.model_copy(update={"max_quotes": quotes, "max_words": most})
    for seed in range(3):
        found = rules.learn(*latent(entangled(seed)), EVIDENCE, spec)
        sentence = write(found.rule)
        assert 0 < found.rule.quotes <= quotes
        assert words(sentence) <= most
        assert parse(sentence) == found.rule


@pytest.mark.parametrize("most", [12, 20, 60, 1000])
def test_the_energy_explained_is_that_of_the_sentence_as_it_is_read(most: int) -> None:
    for seed in range(3):
        level_P = entangled(seed).astype(float)
        found = rules.learn(*latent(level_P), EVIDENCE, SPEC.model_copy(update={"max_quotes": 40, "max_words": most}))
        said = np.zeros(len(WHERE))
        position, level = EVIDENCE.contexts.levels(found.rule)
        said[position] = level
        assert level_P.max() == 9
        expected = 1 - np.square(level_P - said).sum() / np.square(level_P).sum()
        assert found.energy_explained == pytest.approx(expected, abs=1e-4)


def test_more_words_explain_more() -> None:
    level_P = entangled(0)
    spec = [SPEC.model_copy(update={"max_quotes": quotes, "max_words": 1000}) for quotes in (1, 4, 12, 40)]
    energies = [rules.learn(*latent(level_P), EVIDENCE, each).energy_explained for each in spec]
    assert energies == sorted(energies)
    assert energies[-1] > energies[0] + 0.1


def test_of_pure_noise_nearly_nothing_is_said() -> None:
    quotes = []
    for seed in range(20):
        draws = generator(seed, "noise")
        position = np.sort(draws.choice(len(WHERE), 100, replace=False))
        value = draws.gamma(2.0, 1.0, 100).astype(np.float32)
        found = rules.learn(position, value, EVIDENCE, SPEC)
        quotes.append(found.rule.quotes)
        assert found.energy_explained < 0.1
    assert np.mean(quotes) < 1


def test_a_token_seen_in_no_held_out_document_earns_nothing_by_chance() -> None:
    """What only stands in fitted documents is refused by nobody, so it is the ridge that holds noise back."""
    draws = generator(0, "chance")
    position = np.sort(draws.choice(np.flatnonzero(~EVIDENCE.held_P), 60, replace=False))
    found = rules.learn(position, np.ones(60, dtype=np.float32), EVIDENCE, SPEC)
    assert found.energy_explained < 0.1


def test_the_same_latent_has_the_same_sentence() -> None:
    level_P = entangled(1)
    first, again = learned(level_P), rules.learn(*latent(level_P), evidence(text()), SPEC)
    assert (write(again.rule), again.energy_explained) == first


def test_tokens_that_are_spelled_alike_are_one_token() -> None:
    words_twice = (*WORDS, *WORDS)
    draws = generator(0, "alike")
    spelled = WHERE.token + len(WORDS) * draws.integers(0, 2, len(WHERE)).astype(np.int32)
    split = evidence(type(WHERE)(WHERE.window, WHERE.offset, spelled, WHERE.group), words=words_twice)
    for seed in range(2):
        level_P = entangled(seed)
        assert rules.learn(*latent(level_P), split, SPEC) == rules.learn(*latent(level_P), EVIDENCE, SPEC)


def test_a_latent_that_is_seldom_active_is_not_explained_and_says_why(tmp_path: Path) -> None:
    level_P = IS_A * 9
    position, value = latent(level_P)
    few = rules.ByLatent(position[:19].astype(np.int32), value[:19], np.array([0, 0, 19]))
    nothing = rules._explain(few, 0, EVIDENCE, SPEC)
    seldom = rules._explain(few, 1, EVIDENCE, SPEC)
    assert (nothing["sentence"], nothing["why_none"]) == ("", "active on 0 tokens, fewer than 20")
    assert (seldom["sentence"], seldom["why_none"]) == ("", "active on 19 tokens, fewer than 20")
    enough = rules._explain(few, 1, EVIDENCE, SPEC.model_copy(update={"min_active": 19}))
    assert enough["why_none"] == "" or enough["why_none"] == "no token predicts it on held-out documents"


def test_a_latent_that_no_token_predicts_says_so() -> None:
    draws = generator(3, "noise")
    position = np.sort(draws.choice(len(WHERE), 40, replace=False)).astype(np.int32)
    noise = rules.ByLatent(position, np.ones(40, dtype=np.float32), np.array([0, 40]))
    row = rules._explain(noise, 0, EVIDENCE, SPEC)
    assert (row["sentence"], row["quotes"], row["words"]) == ("", 0, 0)
    assert row["why_none"] == "no token predicts it on held-out documents"


def test_a_sentence_never_names_the_held_out_documents_own_tokens() -> None:
    """Parts are chosen on the fitted documents: a token that fires in held-out ones alone is not named."""
    level_P = IS_A * 9 * EVIDENCE.held_P
    assert learned(level_P)[0] == "Never fires."
    both = IS_A * 9 + (WHERE.token == B) * 9 * ~EVIDENCE.held_P
    assert learned(both)[0] == 'Fires on " w0" (9).'


def test_what_to_add_is_chosen_on_the_fitted_documents() -> None:
    """The same proposals come, whatever the latent does in the others."""
    for seed in range(3):
        proposed = []
        for held_out in (1.0, 0.0, 9.0):
            search = Search(*latent(entangled(seed), scale=9.0), EVIDENCE)
            search.target[search.held] *= held_out
            proposed.append([])
            for _ in range(12):
                parts = search.best(12)
                proposed[-1].append(parts)
                for part in parts:
                    search.add(part)
                    search.refuse((part,))
                search.settle(list(parts))
        assert proposed[0] == proposed[1] == proposed[2]
        assert len(set(proposed[0])) == 12


def test_a_change_seen_in_held_out_documents_alone_is_not_said() -> None:
    after = (IS_A & (WHERE.back(1) == B)) * EVIDENCE.held_P
    assert learned(IS_A * 4 + (WHERE.token == C) * 9 + after * 5)[0] == 'Fires on " w2" (9), " w0" (4).'
    assert write(rules.learn(*latent(after * 9), EVIDENCE, SPEC).rule) == "Never fires."
