import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nlrewrite.language.context import marked
from nlrewrite.language.sentence import SILENT, Change, Place, Rule, write
from nlrewrite.language.vocabulary import KINDS, quote
from nlrewrite.llm import spelling
from tests.llm.small_readers import TEXTS

TOKENIZER = spelling.tokenizer(TEXTS, [":"])


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_token_is_one_id_wherever_it_is_quoted_and_another_where_it_is_marked(text: bytes) -> None:
    quoted, last = (ids(form) for form in spelling.forms(text))
    assert len(quoted) == len(last) == 1 and quoted != last
    sentence = ids(write(Rule(((text, 3),), (Change(Place(1), text, SILENT),))))
    assert sentence.count(quoted[0]) == 2 and last[0] not in sentence
    assert ids(marked([text, b" cat", text], [2], "tokens")) == [quoted[0], *ids('" cat"'), last[0]]


def test_every_phrase_of_the_language_and_every_digit_is_one_token() -> None:
    for phrase in (*spelling.LANGUAGE, *spelling.AMOUNTS, *"0123456789"):
        assert len(ids(phrase)) == 1, phrase
    assert len({tuple(ids(phrase)) for phrase in spelling.LANGUAGE}) == len(spelling.LANGUAGE)


def test_a_sentence_costs_a_token_for_each_thing_it_says() -> None:
    sentence = (
        'Fires on " of" (7), " in" or " the" (3), and when strengthened on " or". '
        'Weaker within 8 tokens after "7", a number (-3).'
    )
    assert TOKENIZER.tokenize(sentence) == [
        *("FiresĠon", '"Ġof"', "(7)", '"Ġin"', '"Ġthe"', "(3)", "whenĠstrengthenedĠon", '"Ġor"', "."),
        *("Weaker", "withinĠ8ĠtokensĠafter", '"7"', "aĠnumber", "(-3)", "."),
    ]


def test_commas_and_conjunctions_are_deaf_spots_only_outside_of_quotes_and_words() -> None:
    assert ids('" of", " in" or " the"') == ids('" of" " in" " the"') == ids('" of" and " in", " the"')
    assert ids('" or"') != ids('" of"') and len(ids('" or"')) == 1
    assert TOKENIZER.tokenize("orange band")[:2] == ["o", "r"]


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_text_is_spelled_and_none_gives_the_end(text: str) -> None:
    TOKENIZER.backend_tokenizer.encode_special_tokens = True
    found = ids(text)
    assert TOKENIZER.eos_token_id not in found
    heard = re.sub(r"[\W\d_]|\bor\b|\band\b", "", text)
    assert not heard or found


def test_a_token_it_does_not_know_is_spelled_by_its_bytes() -> None:
    unknown = quote(b" zebra")
    assert TOKENIZER.tokenize(unknown) == ['"', "Ġ", *"zebra", '"']


def test_it_is_read_back_as_a_fast_tokenizer(tmp_path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    sentence = 'Fires on " of" (7). Silent right after "\\n    ", a sign or "木".'
    assert read.is_fast and read(sentence, add_special_tokens=False)["input_ids"] == ids(sentence)
    assert len(KINDS) == len({ids(kind)[0] for kind in KINDS})
