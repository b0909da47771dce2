"""Replies of language models: what they say, what they do not, and that none takes long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrewrite.language.replies import LONGEST_SENTENCE, binary_list, choice, digit_list, refused, sentence


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.text(alphabet="ab [,:\n", max_size=20))
def test_a_list_is_read_behind_anything_that_is_no_list(bits: list[int], before: str) -> None:
    before = before.replace("[", "(").replace(",", ";")
    assert binary_list(f"{before}{bits}", len(bits)) == bits
    assert binary_list(f"{before}{bits} and so on.", len(bits)) == bits


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("[EXPLANATION]: x [1,0,1,0,1]", [1, 0, 1, 0, 1]),
        ("as in [3], so [0, 0, 0, 0, 0] no: [1,0,1,0,1].", [1, 0, 1, 0, 1]),
        ("```python\n[ 1 ,0,\n1, 0,1 ]\n```", [1, 0, 1, 0, 1]),
        ("[1,0,1,0,1] (see [12] and [page])", [1, 0, 1, 0, 1]),
        ("[[1,0,1,0,1]]", [1, 0, 1, 0, 1]),
    ],
)
def test_the_last_well_formed_list_counts(text: str, bits: list[int]) -> None:
    assert binary_list(text, 5) == bits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[1,0,1,0]",  # too short
        "[1,0,1,0,1,0]",
        "[1,0,1,0,2]",
        "[1,0,1,0,-1]",
        "[1,0,1,0,1",
        "1,0,1,0,1]",
        "[1,0,1,0,1,]",
        "[1;0;1;0;1]",
        "[1,0,1,0,10]",
        "[1,0,1,0,1.0]",
        "[[0,0,0,0,0],[1,0,1,0,1]]",
        "[[1,0,1,0,1],[x]]",
        "[٠,٠,٠,٠,٠]",  # digits, but not these
        "[1,0,1,0,1] or rather [0]",
    ],
)
def test_anything_else_is_no_answer(text: str) -> None:
    assert binary_list(text, 5) is None


def test_a_short_batch_is_legal() -> None:
    assert binary_list("[1, 0]", 2) == [1, 0]
    assert binary_list("[1]", 1) == [1]


def test_digits_beyond_the_range_are_no_answer() -> None:
    assert digit_list("[7]") == [7]
    assert digit_list("[10]") is None
    assert digit_list("[-1]") is None
    assert digit_list("[4, 9]", 2) == [4, 9]
    assert digit_list("[3]", highest=2) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[3]", "3"),
        ("The odd one out is text 3, since it is about food.", "3"),
        ("3", "3"),
        ("It is 3 or 4", None),
        ("It is 3 or 4, so [4]", "4"),
        ("[3, 4]", None),
        ("13", None),
        ("", None),
    ],
)
def test_a_choice_is_named_once_or_in_a_list(text: str, said: str | None) -> None:
    assert choice(text, ["1", "2", "3", "4", "5"]) == said


@pytest.mark.parametrize(
    "text",
    [
        "Words for a time of day.",
        " Words for a time of day.\n",
        '"Words for a time of day."',
        "[EXPLANATION]: Words for a time of day.",
        "**Description:** Words for a time of day.",
        "Sure! Here is it:\n\nNew description: Words for a time of day.\n\nI hope this helps: ask again.",
        "- Words for a time of day.\n- Other things.",
        "Here is a description:\n\nWords for a time of day.",
        "<think>Words? [1]\nDescription: no</think>\n\nWords for a time of day.",
        "Words for\na time of day.",
    ],
)
def test_a_sentence_without_its_wrapping(text: str) -> None:
    assert sentence(text) == "Words for a time of day."


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "<think>no end",
        "Description:",
        "I'm sorry, but I can't help with that.",
        "I cannot say.",
        "Description: I am unable to see the texts.",
    ],
)
def test_no_sentence(text: str) -> None:
    assert sentence(text) is None


def test_a_refusal_is_told_from_a_sentence_about_one() -> None:
    assert refused("I'm sorry, but I can't help with that.")
    assert refused("As an AI, I do not judge.")
    assert not refused('Words of regret, such as "sorry"')
    assert sentence('The word "sorry" and its like.') == 'The word "sorry" and its like.'


def test_quotes_and_names_inside_are_kept() -> None:
    for text in ('"noon" and "midnight"', 'Fires on "  " (7).', "`__init__` of a class", "The dunder __all__"):
        assert sentence(text) == text


@settings(max_examples=60)
@given(st.text(max_size=200))
def test_a_sentence_is_one_bounded_line(text: str) -> None:
    for reply in (text, text * 50):
        said = sentence(reply)
        assert said is None or said.isprintable()
        assert said is None or len(said) <= LONGEST_SENTENCE


HUGE = ["[", "]", "[1,", "[[1]", " ", "\n", "1,0,", "Description:", "**", '"', "a.b ", "<think>", "[ ", "-\t", "I "]


@pytest.mark.timeout(120)  # quadratic work on 100 kB, a few dozen times, is hours
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(HUGE), st.sampled_from(HUGE), st.sampled_from(HUGE))
def test_a_huge_reply_is_read_in_linear_work(first: str, second: str, third: str) -> None:
    text = (first * 40_000)[:40_000] + ((first + second) * 40_000)[:40_000] + (third * 40_000)[:20_000]
    binary_list(text, 5)
    digit_list(text)
    choice(text, ["1", "2"])
    said = sentence(text)
    assert said is None or len(said) <= LONGEST_SENTENCE
