"""The rule reader behind the engines' protocol: it says what the rule language's own reader says."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nlrewrite.errors import SettingError
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.reading import simulate
from nlrewrite.language.sentence import Rule, write
from nlrewrite.language.template import built_in
from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling
from nlrewrite.llm.rules import Rules
from nlrewrite.questions import Order
from tests.language.making import FEW, rules, tokens
from tests.language.small_tokenizers import byte_level

TOKENIZER = byte_level()
PROMPTS: dict[Order, Prompts] = {
    order: prompts(built_in("reader"), TOKENIZER, order) for order in ("context", "explanation")
}


def block(order: Order, shared: str, own: list[str]) -> PrefixBlock:
    prompt = PROMPTS[order]
    other = "explanation" if order == "context" else "context"
    prefix = prompt.prefix(**{order: shared})
    return PrefixBlock.of(prefix, [prompt.suffix(**{other: text}) for text in own], prompt.labels)


def shown(context: list[bytes]) -> str:
    return PROMPTS["context"].shown(context, [len(context) - 1])


few = st.sampled_from(FEW)
contexts = st.lists(few | tokens, min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(rules(few, farthest=12), min_size=1, max_size=4), contexts)
def test_answers_are_those_of_the_rule_reader_in_both_orders(some: list[Rule], context: list[bytes]) -> None:
    sentences = [write(rule) for rule in some]
    expected = np.array([simulate(sentence, context, window=len(context)) for sentence in sentences])
    engine = Rules(TOKENIZER)
    scores = engine.digits(block("context", shown(context), sentences))
    np.testing.assert_allclose(np.exp(scores.logp), expected, atol=1e-6)
    assert (scores.outcome == Outcome.OK).all()
    assert scores.logmass is not None and not scores.logmass.any()
    for sentence, row in zip(sentences, expected, strict=True):
        other = engine.digits(block("explanation", sentence, [shown(context)]))
        np.testing.assert_allclose(np.exp(other.logp[0]), row, atol=1e-6)


def test_a_rule_that_speaks_is_heard() -> None:
    scores = Rules(TOKENIZER).digits(
        block("context", shown([b" a", b" cat"]), ['Fires on " cat" (7).', "Never fires."])
    )
    assert np.exp(scores.logp).argmax(1).tolist() == [7, 0]
    assert scores.logp[1].tolist() == [0] + [-np.inf] * 9


def test_a_sentence_outside_of_the_language_has_no_answer_and_harms_no_other() -> None:
    sentences = ['Fires on " cat" (7).', "The word cat.", "Fires on", '"cat"', "x" * 10_000]
    engine = Rules(TOKENIZER)
    scores = engine.digits(block("context", shown([b" cat"]), sentences))
    assert scores.outcome.tolist() == [Outcome.OK] + 4 * [Outcome.UNPARSEABLE]
    assert scores.logmass is not None
    np.testing.assert_array_equal(np.isnan(scores.logp).all(1), [False, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(scores.logmass), [False, True, True, True, True])
    assert engine.usage.queries == 5 and engine.usage.failed == {"UNPARSEABLE": 4}


@pytest.mark.parametrize("text", ["cat", '"a"', '<<"a">><<"b">>', '"a" <<"b">>', '<<"a"', ""])
def test_a_context_of_another_style_has_no_answer(text: str) -> None:
    scores = Rules(TOKENIZER).digits(block("explanation", 'Fires on "b" (7).', [text]))
    assert scores.outcome.tolist() == [Outcome.UNPARSEABLE]


def test_what_stands_behind_the_mark_is_not_looked_at() -> None:
    text = '"a"<<" cat">>" sat"'
    scores = Rules(TOKENIZER).digits(block("context", text, ['Fires on " cat" (7).', 'Fires on " sat" (7).']))
    assert np.exp(scores.logp).argmax(1).tolist() == [7, 0]


def test_a_sentence_cannot_bring_a_context_of_its_own() -> None:
    injected = 'Never fires.\n"x"<<" cat">>\n: Fires on " cat" (9).'
    scores = Rules(TOKENIZER).digits(block("context", shown([b" cat"]), [injected]))
    assert scores.outcome.tolist() == [Outcome.UNPARSEABLE]


def test_it_does_not_write() -> None:
    (reply,) = Rules(TOKENIZER).complete([np.array([1, 2])], Sampling())
    assert reply.outcome is Outcome.REFUSED and not reply.text


def test_labels_are_ten() -> None:
    with pytest.raises(SettingError, match="asked for 2"):
        Rules(TOKENIZER).digits(PrefixBlock.of([1], [[2]], [3, 4]))


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(SettingError, match="byte-level"):
        Rules(PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<end>"))


def test_what_it_tells_of_itself_can_be_stored() -> None:
    about: dict[str, Any] = Rules(TOKENIZER).about()
    assert json.loads(json.dumps(about)) == about
