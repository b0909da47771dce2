"""An endpoint that is busy, broken or hostile: every question ends with an answer or a typed outcome."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling, Scores
from tests.llm.asking import TOKENIZER, asked, engine, ids_of, questions, ready, right
from tests.llm.small_server import serving

# -- it passes ---------------------------------------------------------------------------------------------------------

PASSING = [
    500,
    502,
    503,
    504,
    408,
    409,
    529,
    "cut",
    "drop",
    "truncated",
    "garbage",
    "deep",
    "huge",
    "compressed",
    "page",
]


@pytest.mark.parametrize("mischief", PASSING)
def test_a_fault_that_passes_costs_a_try_and_no_answer(mischief: Any) -> None:
    of = questions(40)
    with serving(TOKENIZER) as small:
        server = ready(small, batch=8)
        small.script = [None, mischief, None, mischief]
        assert right(server.digits(of), of).all()
        assert len(asked(small)) == 5 + 2 and server.usage.failed == {}
        small.script = [mischief]
        assert server.complete([np.array([2, 3])], Sampling(most=1))[0].outcome == Outcome.OK
        server.close()


@pytest.mark.parametrize("mischief", ["hang", "drip"])
def test_a_reply_that_does_not_end_is_given_up(mischief: str) -> None:
    of = questions(4)
    with serving(TOKENIZER) as small:
        server = ready(small, timeout=0.2)
        small.script = [mischief]
        started = time.monotonic()
        assert right(server.digits(of), of).all()
        assert 0.2 <= time.monotonic() - started < 10
        server.close()


def _dropped(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
    return reply | {"choices": reply["choices"][:-1]}


def _more(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
    return reply | {"choices": [*reply["choices"], reply["choices"][0]]}


def _renumbered(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
    return reply | {"choices": [choice | {"index": 1} for choice in reply["choices"]]}


def _none(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list"}


@pytest.mark.parametrize("spoil", [_dropped, _more, _renumbered, _none])
def test_replies_with_other_choices_than_prompts_are_lost_and_counted(spoil: Any) -> None:
    of = questions(20)
    with serving(TOKENIZER) as small:
        server = ready(small, batch=4, concurrency=1)
        small.spoil = lambda prompts, reply: (
            spoil(prompts, reply) if any(prompt[5] == 22 for prompt in prompts) else reply
        )
        scores = server.digits(of)
        known = right(scores, of)
        assert np.flatnonzero(~known).tolist() == [2]
        assert (scores.outcome[~known] == Outcome.TRANSPORT).all()
        assert server.usage.failed == {"TRANSPORT": 1}
        assert any("unusable" in why for why in server.about()["failures"])  # type: ignore[attr-defined]
        server.close()


def test_choices_in_another_order_are_told_apart_by_their_index() -> None:
    of = questions(30)
    with serving(TOKENIZER) as small:
        server = ready(small)
        small.spoil = lambda prompts, reply: reply | {"choices": reply["choices"][::-1]}
        assert right(server.digits(of), of).all() and len(asked(small)) == 2
        server.close()


@pytest.mark.parametrize("value", ["NaN", 0.5, None, "Infinity", "text", -0.0001])
def test_one_number_that_is_none_costs_one_question(value: Any) -> None:
    """NaN, a positive one, none at all, and probabilities that add up to far more than one."""
    of = questions(12)
    poisoned = of.prefix.tolist() + of.suffix(5).tolist()

    def spoil(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
        for prompt, choice in zip(prompts, reply["choices"], strict=True):
            if prompt == poisoned:
                told = choice["logprobs"]["top_logprobs"][0]
                told.update(dict.fromkeys(told, float(value) if value in ("NaN", "Infinity") else value))
        return reply

    with serving(TOKENIZER) as small:
        server = ready(small)
        small.spoil = spoil
        scores = server.digits(of)
        known = right(scores, of)
        assert not known[5] and known.sum() == 11
        assert scores.outcome[5] == Outcome.UNPARSEABLE and server.usage.failed == {"UNPARSEABLE": 1}
        assert asked(small) == [12, 1, 1], "the others are not asked again"
        server.close()


def test_a_label_that_was_asked_for_and_is_missing_makes_no_answer() -> None:
    of = questions(3)

    def spoil(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
        for choice in reply["choices"]:
            choice["logprobs"]["top_logprobs"][0].pop("token_id:14")
        return reply

    with serving(TOKENIZER) as small:
        server = ready(small)
        small.spoil = spoil
        scores = server.digits(of)
        assert (scores.outcome == Outcome.UNPARSEABLE).all() and np.isnan(scores.logp).all()
        server.close()


# -- one question is to blame ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_batch_is_cut_until_the_culprit_is_alone(status: int) -> None:
    of = questions(32)
    culprits = [of.prefix.tolist() + of.suffix(index).tolist() for index in (6, 21)]
    with serving(TOKENIZER) as small:
        server = ready(small, batch=32, concurrency=2)
        small.refuse = lambda prompts: status if any(each in culprits for each in prompts) else None
        scores = server.digits(of)
        known = right(scores, of)
        assert np.flatnonzero(~known).tolist() == [6, 21]
        assert (scores.outcome[~known] == Outcome.REFUSED).all() and server.usage.failed == {"REFUSED": 2}
        assert len(asked(small)) <= 2 * (2 * 5 + 1), "cut in halves, not asked one by one"
        assert asked(small).count(1) <= 6 and small.most_flying <= 2
        server.close()


def test_a_question_that_breaks_the_server_is_found_like_a_refused_one() -> None:
    of = questions(16)
    poisoned = of.prefix.tolist() + of.suffix(9).tolist()
    with serving(TOKENIZER) as small:
        server = ready(small)
        small.spoil = lambda prompts, reply: None if poisoned in prompts else reply
        scores = server.digits(of)
        assert np.flatnonzero(~right(scores, of)).tolist() == [9] and scores.outcome[9] == Outcome.TRANSPORT
        server.close()


def test_a_prompt_that_is_too_long_is_refused_alone() -> None:
    of = PrefixBlock.of([2, 3], [[20], [20] * 60, [21]], tuple(range(10, 20)))
    with serving(TOKENIZER, longest=50) as small:
        server = ready(small)
        assert server.digits(of).outcome.tolist() == [Outcome.OK, Outcome.REFUSED, Outcome.OK]
        got = server.complete([np.array([2, 3]), np.full(60, 2)], Sampling(most=1))
        assert [each.outcome for each in got] == [Outcome.OK, Outcome.REFUSED]
        assert "60 tokens are more than 50" in got[1].why and server.usage.failed == {"REFUSED": 2}
        server.close()


@pytest.mark.parametrize(
    ("habits", "outcome", "complete"),
    [
        ({"finish": "stop"}, Outcome.OK, True),
        ({"finish": "length"}, Outcome.OK, False),
        ({"finish": "content_filter"}, Outcome.REFUSED, False),
    ],
)
@pytest.mark.parametrize("mode", ["ids", "chat"])
def test_how_a_completion_ended(mode: Any, habits: dict[str, Any], outcome: Outcome, complete: bool) -> None:
    with serving(TOKENIZER, text="a reply", **habits) as small:
        server = engine(small, mode=mode)
        (got,) = server.complete([np.array([2, 3])], Sampling(most=9))
        assert (got.text, got.outcome, got.complete) == ("a reply", outcome, complete)
        assert bool(got.why) == (outcome != Outcome.OK)
        server.close()


def test_one_lost_completion_is_one_lost_completion() -> None:
    prompts = [np.array([2, 3, 4 + index]) for index in range(8)]
    with serving(TOKENIZER, text="fine") as small:
        server = ready(small)
        small.spoil = lambda seen, reply: None if seen == [[2, 3, 8]] else reply
        got = server.complete(prompts, Sampling(most=1))
        assert [each.outcome == Outcome.OK for each in got] == [index != 4 for index in range(8)]
        assert got[4].outcome == Outcome.TRANSPORT and "breaks it" in got[4].why
        assert server.usage.failed == {"TRANSPORT": 1}
        server.close()


@pytest.mark.parametrize("message", [{"content": None}, {"content": None, "refusal": "I will not"}])
def test_a_chat_without_text_is_no_text(message: dict[str, Any]) -> None:
    with serving(TOKENIZER) as small:
        server = ready(small, mode="chat")
        small.spoil = lambda prompts, reply: reply | {"choices": [{"index": 0, "message": message}]}
        (got,) = server.complete([np.array([2, 3])], Sampling(most=1))
        assert got.outcome == (Outcome.REFUSED if "refusal" in message else Outcome.UNPARSEABLE) and got.text == ""
        server.close()


def test_text_that_cannot_be_written_down_is_not_taken() -> None:
    """Half of a surrogate pair is legal JSON and no text."""
    with serving(TOKENIZER, text="\ud800") as small:
        server = engine(small, mode="chat")
        with pytest.raises(SettingError, match="completes nothing"):
            server.complete([np.array([2, 3])], Sampling(most=1))
        server.close()


# -- busy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [(429, {"Retry-After": "0.3"}), (503, {"Retry-After": "0.3"}), "date"])
def test_a_pause_that_is_asked_for_is_kept_by_all_requests(busy: Any) -> None:
    of = questions(40)
    with serving(TOKENIZER) as small:
        server = ready(small, batch=8, concurrency=1)
        times: list[float] = []
        small.spoil = lambda prompts, reply: times.append(time.monotonic()) or reply
        small.script = [None, busy]
        started = time.monotonic()
        assert right(server.digits(of), of).all()
        least = 0.01 if busy == "date" else 0.3
        assert [each > started + least for each in times] == [False, True, True, True, True]
        assert server.about()["pauses"] == 1 and server.usage.failed == {}
        server.close()


def test_a_rate_limit_slows_down_and_loses_nothing() -> None:
    """One request in 20 ms is let through; eight lanes with three tries each would lose most without pauses."""
    of = questions(64)
    with serving(TOKENIZER) as small:
        server = ready(small, batch=4, concurrency=8)
        last = [0.0]
        lock = threading.Lock()

        def refuse(prompts: list[Any]) -> Any:
            with lock:
                now = time.monotonic()
                if now < last[0] + 0.02:
                    return 429, {"Retry-After": "0.02"}
                last[0] = now
                return None

        small.refuse = refuse
        assert right(server.digits(of), of).all() and server.usage.failed == {}
        assert server.about()["pauses"] > 0  # type: ignore[operator]
        server.close()


@pytest.mark.parametrize("header", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_pause_without_end_is_not_waited_for(header: str) -> None:
    of = questions(40)
    with serving(TOKENIZER) as small:
        server = ready(small, batch=8, concurrency=1)
        small.script = [None, (429, {"Retry-After": header})]
        started = time.monotonic()
        scores = server.digits(of)
        assert time.monotonic() - started < 10 and right(scores, of).sum() == 8
        assert server.usage.failed == {"TRANSPORT": 32} and len(asked(small)) == 2
        server.close()


def test_always_busy_has_an_end() -> None:
    of = questions(3)
    with serving(TOKENIZER) as small:
        server = ready(small, tries=1)
        small.refuse = lambda prompts: (429, {"Retry-After": "0"})
        scores = server.digits(of)
        assert (scores.outcome == Outcome.TRANSPORT).all() and len(asked(small)) <= 12
        server.close()


# -- wrong altogether --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mischief", "kind", "said"),
    [
        (401, Unreachable, "refuses a request without a key"),
        (403, Unreachable, "refuses a request without a key"),
        (402, Unreachable, "wants to be paid"),
        (404, SettingError, "does not exist, or not for this model"),
        (405, SettingError, "does not exist, or not for this model"),
        ("elsewhere", Unreachable, "redirects to http://127.0.0.1:9/v1/completions, which is not followed"),
    ],
)
def test_a_fault_of_the_endpoint_is_raised_and_not_retried(mischief: Any, kind: type[Exception], said: str) -> None:
    with serving(TOKENIZER) as small:
        server = ready(small, concurrency=1)
        small.script = [mischief]
        with pytest.raises(kind, match=said):
            server.digits(questions(4))
        assert len(small.seen) == 1
        server.close()


def test_a_model_the_endpoint_does_not_have() -> None:
    with serving(TOKENIZER) as small:
        server = engine(small, model="large", mode="auto")
        with pytest.raises(SettingError, match="the model large does not exist"):
            server.digits(questions(1))
        server.close()


def test_a_rejected_key_is_not_tried_again() -> None:
    with serving(TOKENIZER, key="right") as small:
        server = engine(small)
        with pytest.raises(Unreachable, match="Set NLREWRITE_API_KEY to a key that may use this model"):
            server.digits(questions(1))
        assert len(small.seen) == 1
        server.close()


def test_several_threads_share_an_engine() -> None:
    of = questions(24)
    with serving(TOKENIZER, slow=0.005) as small:
        server = ready(small, batch=2, concurrency=3)

        async def all_at_once() -> list[Scores]:
            return await asyncio.gather(*(asyncio.to_thread(server.digits, of) for _ in range(4)))

        small.refuse = lambda prompts: small.gathered(3)
        for scores in asyncio.run(all_at_once()):
            assert right(scores, of).all()
        assert small.most_flying == 3 and server.usage.queries == 96 + 2
        assert sum(len(ids_of(each)) for each in small.seen) == 96
        server.close()
