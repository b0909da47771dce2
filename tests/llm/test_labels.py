"""Labels among listed tokens: compared whole, bounded where they are missing, never made up."""

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.llm.engine import Outcome, Sampling
from nlrewrite.llm.labels import Answers, Heard, heard
from nlrewrite.llm.requests import Garbled
from nlrewrite.llm.wire import Way, complete_body, digits_body, entries, told, written

DIGITS = tuple("0123456789")
NAMES = ("index", "text", "message", "content", "logprobs", "tokens", "top_logprobs", "finish_reason")


def test_a_token_that_begins_like_a_digit_is_not_that_digit() -> None:
    """The published program took 10 for 0."""
    p1, p10, p0 = 0.905, 0.05, 0.0401
    found = [(name, math.log(p)) for name, p in [("1", p1), ("10", p10), ("0", p0), (" 1", 1e-3), ("01", 1e-3)]]
    got = heard(found, ("0", "1"), listed=5, exact=False)
    np.testing.assert_allclose(np.exp(got.logp), [p0 / (p0 + p1), p1 / (p0 + p1)])
    assert got.missing == 0 and math.exp(got.logmass) == pytest.approx(p0 + p1)


@given(
    st.lists(st.floats(-30, 3), min_size=30, max_size=30),
    st.integers(1, 30),
    st.booleans(),
)
def test_what_is_told_lies_around_the_truth(raw: list[float], listed: int, outsider: bool) -> None:
    """Lists of any length, also with a token that was drawn from outside the list."""
    logp = np.array(raw) - np.logaddexp.reduce(raw)
    names = [str(number) for number in range(30)]
    order = np.argsort(-logp, kind="stable")
    chosen = list(order[:listed]) + ([order[-1]] if outsider else [])
    got = heard([(names[index], float(logp[index])) for index in chosen], DIGITS, listed, exact=False)
    p = np.exp(logp[:10])
    was_told = np.array([index in chosen for index in range(10)])
    mass = math.exp(got.logmass) if got.answered else 0.0
    assert mass == pytest.approx(p[was_told].sum(), rel=1e-9, abs=1e-12)
    assert p[~was_told].sum() <= got.missing + 1e-12
    assert mass + got.missing <= 1 + 1e-9
    assert (np.isfinite(got.logp) == was_told).all()
    if got.answered:
        assert np.exp(got.logp).sum() == pytest.approx(1)
    ranks = np.array([(logp > logp[index]).sum() for index in range(10)])
    if listed >= 10 and not outsider:
        assert (got.top == (ranks < 10)).all() or len(set(raw)) < 30


def test_probability_nought_is_written_as_a_large_number() -> None:
    found = [(name, -9999.0) for name in DIGITS] + [("x", 0.0)]
    got = heard(found, DIGITS, listed=10, exact=True)
    assert not got.answered and got.missing == 0
    got = heard([*found[:9], ("9", -9999.0), ("0", -1.0)], DIGITS, listed=10, exact=True)
    assert np.exp(got.logp).tolist() == [1.0] + [0.0] * 9


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.01, 5.0])
def test_what_is_no_log_probability_is_no_answer(value: float) -> None:
    with pytest.raises(Garbled, match="above zero or no number"):
        heard([("0", -1.0), ("x", value)], DIGITS, listed=20, exact=False)


def test_probabilities_that_are_too_many_are_none() -> None:
    with pytest.raises(Garbled, match="add up to"):
        heard([(name, -0.5) for name in DIGITS], DIGITS, listed=20, exact=False)


def test_a_question_without_a_label_has_no_number() -> None:
    answers = Answers(3, 2)
    answers.put(0, heard([("0", -1.0), ("1", -2.0)], ("0", "1"), 20, exact=False))
    answers.put(1, heard([("x", -1.0), ("y", -2.0)], ("0", "1"), 20, exact=False))
    scores = answers.scores(mass=True, listed=20)
    assert scores.outcome.tolist() == [Outcome.OK, Outcome.TRANSPORT, Outcome.TRANSPORT]
    assert np.isnan(scores.logp[1:]).all() and scores.missing is not None and scores.logmass is not None
    assert scores.missing[1] == pytest.approx(min(2 * math.exp(-2), 1 - math.exp(-1) - math.exp(-2)))
    assert np.isnan(scores.missing[2]) and np.isnan(scores.logmass[1:]).all()
    bare = answers.scores(mass=False, listed=0)
    assert bare.logmass is None and bare.missing is None and bare.top is None


# -- the wire ----------------------------------------------------------------------------------------------------------


def _position(token: str, logprob: float, top: list[tuple[str, float]], raw: list[int] | None = None) -> dict[str, Any]:
    listed = [{"token": name, "logprob": value} for name, value in top]
    return {"token": token, "logprob": logprob, "bytes": raw, "top_logprobs": listed}


def test_a_chat_is_read_where_it_first_says_a_label() -> None:
    opening = _position("[", -0.1, [("[", -0.1), ("7", -3.0)])
    digit = _position("3", -0.5, [("3", -0.5), ("4", -1.5)])
    late = [opening, _position("a", -0.1, [("a", -0.1)]), _position("b", -0.1, [("b", -0.1)]), digit]
    way = Way("chat", 20)
    assert dict(entries(way, {"logprobs": {"content": [opening, digit]}}, DIGITS)) == {"3": -0.5, "4": -1.5}
    assert dict(entries(way, {"logprobs": {"content": late}}, DIGITS)) == {"[": -0.1, "7": -3.0}
    assert entries(way, {"logprobs": {"content": [_position("\\x33", -0.5, [("4", -1.5)], [0x33])]}}, DIGITS)[-1] == (
        "3",
        -0.5,
    )


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"logprobs": None},
        {"logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": []}},
        {"logprobs": {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [None]}},
        {"logprobs": {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"a": None}]}},
        {"logprobs": {"content": []}},
        {"logprobs": [1, 2]},
        "choice",
        None,
    ],
)
def test_choices_that_are_none(choice: Any) -> None:
    for way in (Way("ids", 20), Way("chat", 20)):
        with pytest.raises(Garbled):
            entries(way, choice, DIGITS)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    with pytest.raises(Garbled):
        told(data, 1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
        max_leaves=12,
    )
)
def test_no_choice_breaks_it(choice: Any) -> None:
    for way in (Way("ids", 20), Way("chat", 20)):
        with contextlib.suppress(Garbled):
            assert isinstance(heard(entries(way, choice, DIGITS), DIGITS, 20, exact=False), Heard)
    with contextlib.suppress(Garbled):
        assert isinstance(written(choice).text, str | None)


def test_a_usage_that_is_nonsense_costs_no_answer() -> None:
    reply = told(b'{"choices": [{"index": 0, "text": "a"}], "usage": {"prompt_tokens": -4}, "model": 3}', 1)
    assert reply.tokens is None and reply.names == ()
    reply = told(b'{"choices": [{}], "usage": {"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 9}}}', 1)
    assert reply.tokens is not None and reply.tokens.cached == 4


def test_what_is_asked_in_each_mode() -> None:
    ids = digits_body(Way("ids", 20, by_id=True, named=True), "m", [[1, 2], [1, 3]], (5, 6))
    assert ids == {
        "model": "m",
        "prompt": [[1, 2], [1, 3]],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 20,
        "logprob_token_ids": [5, 6],
        "return_tokens_as_token_ids": True,
    }
    text = digits_body(Way("text", 5, many=False), "m", ["a"], (5, 6))
    assert text == {"model": "m", "prompt": "a", "max_tokens": 1, "temperature": 0, "logprobs": 5}
    chat = digits_body(Way("chat", 20, most="max_completion_tokens"), "m", ["a"], (5, 6))
    assert chat["messages"] == [{"role": "user", "content": "a"}] and chat["top_logprobs"] == 20
    assert "max_tokens" not in chat and chat["max_completion_tokens"] == 3
    body = complete_body(Way("ids"), "m", [1, 2], Sampling(most=7, stop=("x",)), None)
    assert body == {"model": "m", "prompt": [[1, 2]], "max_tokens": 7, "temperature": 0.0, "stop": ["x"]}
