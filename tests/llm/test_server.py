"""What the engine over HTTP reads, in each way of asking, from a real server on a socket."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import torch

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Engine, Outcome, PrefixBlock, Sampling
from nlrewrite.llm.rates import Prices
from nlrewrite.llm.reference import Reference
from nlrewrite.llm.server import Server
from tests.llm.asking import TOKENIZER, asked, engine, questions, truth
from tests.llm.random_models import LABELS, block, fresh
from tests.llm.small_server import cheap, serving


def close(scores: Any, of: PrefixBlock, tolerance: float = 1e-5) -> None:
    logp_NK, logmass_N = truth(of)
    assert (scores.outcome == Outcome.OK).all()
    np.testing.assert_allclose(scores.logp, logp_NK, atol=tolerance)
    np.testing.assert_allclose(scores.logmass, logmass_N, atol=tolerance)


def test_it_is_an_engine() -> None:
    with serving(TOKENIZER) as small:
        server: Engine = engine(small)
        assert server.name == "server" and server.exact_mass
        assert small.seen == [], "nothing is sent before the first question"
        server.close()
        with pytest.raises(SettingError, match="closed"):
            server.digits(questions(1))


@pytest.mark.parametrize("family", ["llama-grouped", "qwen3", "gpt_neox"])
def test_its_numbers_are_those_of_the_reference(family: str) -> None:
    model = fresh(family)

    @torch.inference_mode()
    def predict(ids: list[int]) -> list[float]:
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).tolist()

    questions = [block(1, [1, 4, 9]), block(20, [3]), block(33, [7, 1, 2, 12, 5])]
    with serving(TOKENIZER, predict) as small:
        server, reference = engine(small, mode="auto"), Reference(model, TOKENIZER)
        for each in questions:
            ours, right = server.digits(each), reference.digits(each)
            np.testing.assert_allclose(ours.logp, right.logp, atol=1e-5)
            assert right.logmass is not None and ours.logmass is not None
            np.testing.assert_allclose(ours.logmass, right.logmass, atol=1e-5)
            assert right.logp.std() > 0.1, "a model that says the same to everything would prove nothing"
        assert server.about()["digits"]["mode"] == "ids"
        server.close()


def test_completions_are_those_of_the_reference() -> None:
    model = fresh("llama")

    @torch.inference_mode()
    def predict(ids: list[int]) -> list[float]:
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).tolist()

    prompts = [np.array([2, 3, 4 + index], dtype=np.int32) for index in range(5)]
    with serving(TOKENIZER, predict, finish="length") as small:
        server = engine(small)
        got = server.complete(prompts, Sampling(most=4))
        right = Reference(model, TOKENIZER).complete(prompts, Sampling(most=4))
        assert [each.text for each in got] == [each.text for each in right]
        assert len({each.text for each in got}) > 1
        assert all(each.outcome == Outcome.OK and not each.complete for each in got)
        server.close()


def test_many_questions_share_a_request() -> None:
    of = questions(150)
    with serving(TOKENIZER) as small:
        server = engine(small, concurrency=2)
        close(server.digits(of), of)
        assert sum(asked(small)) == 150 and len(asked(small)) <= 150 / 3
        assert max(asked(small)) <= 64
        server.close()
    with serving(TOKENIZER, lists=False) as small:
        server = engine(small, mode="text", concurrency=2)
        server.digits(questions(3))
        assert server.about()["digits"]["prompts_in_a_request"] == 1
        server.close()


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    of = questions(100)
    with serving(TOKENIZER, slow=0.002) as small:
        server = engine(small, concurrency=3, batch=4)
        server.digits(questions(1))
        small.refuse = lambda prompts: small.gathered(3)
        close(server.digits(of), of)
        assert small.most_flying == 3
        server.close()


def test_it_answers_where_an_event_loop_runs_already() -> None:
    of = questions(5)
    with serving(TOKENIZER) as small:
        server = engine(small)

        async def inside() -> None:
            close(server.digits(of), of)

        asyncio.run(inside())
        server.close()


def test_a_block_without_questions_asks_nothing() -> None:
    with serving(TOKENIZER) as small:
        server = engine(small)
        assert server.digits(questions(2).at(np.array([], dtype=np.int64))).logp.shape == (0, 10)
        assert server.complete([], Sampling()) == [] and small.seen == []
        server.close()


# -- ways of asking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("habits", "mode", "told"),
    [
        ({}, "ids", "of the labels"),
        ({"labels": False}, "text", "of the 20 likeliest tokens"),
        ({"labels": False, "strict": True}, "text", "of the 20 likeliest tokens"),
        ({"ids": False, "labels": False, "most_top": 5}, "text", "of the 5 likeliest tokens"),
        ({"completions": False}, "chat", "of the 20 likeliest tokens"),
        ({"completions": False, "most_tokens": "max_completion_tokens"}, "chat", "of the 20 likeliest tokens"),
        ({"completions": False, "most_top": 5}, "chat", "of the 5 likeliest tokens"),
    ],
)
def test_the_probe_finds_the_best_way(habits: dict[str, Any], mode: str, told: str) -> None:
    of = questions(4)
    with serving(TOKENIZER, **habits) as small:
        server = engine(small, mode="auto")
        scores = server.digits(of)
        way: Any = server.about()["digits"]
        assert (way["mode"], way["log_probabilities"]) == (mode, told)
        known = scores.outcome == Outcome.OK
        assert known.any()
        raw_NK = (truth(of)[0] + truth(of)[1][:, None])[known]
        np.testing.assert_allclose(
            np.where(np.isfinite(scores.logp[known]), scores.logp[known] + scores.logmass[known, None], raw_NK),
            raw_NK,
            atol=1e-5,
        )
        server.close()


@pytest.mark.parametrize("mode", ["text", "chat"])
def test_a_mode_that_is_demanded_is_the_one_used(mode: Any) -> None:
    with serving(TOKENIZER) as small:
        server = engine(small, mode=mode)
        server.digits(questions(3))
        assert server.about()["digits"]["mode"] == mode
        assert {each.path for each in small.seen} == {
            "/v1/models",
            {"text": "/v1/completions", "chat": "/v1/chat/completions"}[mode],
        }
        server.close()
    with serving(TOKENIZER, completions=False) as small:
        server = engine(small, mode="text")
        with pytest.raises(SettingError, match="tells no log-probabilities"):
            server.digits(questions(3))
        server.close()


def test_ids_are_not_sent_to_a_server_with_another_tokenizer() -> None:
    class Other:
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [int(word[1:]) + 1 for word in text.split()]}

        def decode(self, ids: list[int]) -> str:
            return " ".join(f"w{token - 1}" for token in ids)

    with serving(Other()) as small:
        server = engine(small, mode="ids")
        with pytest.raises(SettingError, match="cuts texts differently"):
            server.digits(questions(3))
        server.close()
        server = engine(small, mode="auto")
        server.digits(questions(3))
        assert server.about()["digits"]["mode"] == "text" and server.about()["digits"]["labels"] == "by text"
        server.close()


def test_a_head_may_have_more_rows_than_the_tokenizer_has_tokens() -> None:
    of = questions(3)
    more = [0.0] * 190 + [5.0] * 10
    total = np.log(np.exp(more).sum())
    with serving(TOKENIZER, lambda ids: [value - total for value in more]) as small:
        server = engine(small)
        np.testing.assert_allclose(server.digits(of).logp, -np.log(10), atol=1e-6)
        assert server.about()["digits"]["tokenizer"] == "the same"
        server.close()


def test_log_probabilities_that_are_not_told_are_no_engine() -> None:
    with serving(TOKENIZER, logprobs=False, text="as it is") as small:
        server = engine(small, mode="auto")
        with pytest.raises(SettingError, match="tells no log-probabilities"):
            server.digits(questions(1))
        got = server.complete([np.array([2, 3])], Sampling(most=4))
        assert got[0].text == "as it is" and got[0].complete
        assert server.about()["complete"]["mode"] == "text", "ids need a tokenizer that was seen to be the same"
        server.close()


@pytest.mark.parametrize("mode", ["text", "chat"])
@pytest.mark.parametrize("most_top", [20, 5])
def test_labels_that_are_not_listed_are_bounded(mode: Any, most_top: int) -> None:
    of = questions(60)
    with serving(TOKENIZER, labels=False, most_top=most_top) as small:
        server = engine(small, mode=mode)
        scores = server.digits(of)
        server.close()
    logp_NK, logmass_N = truth(of)
    raw_NK = logp_NK + logmass_N[:, None]
    assert scores.missing is not None and scores.logmass is not None
    known = scores.outcome == Outcome.OK
    assert 30 < known.sum() < 60, "some have no label in their list at all"
    told = np.isfinite(scores.logp)
    assert not told[known].all(), "with so few tokens listed some label is always missing"
    hidden_N = np.exp(np.where(told, -np.inf, raw_NK)).sum(1)
    assert (hidden_N <= scores.missing + 1e-6).all(), "the bound holds, where nothing was heard too"
    assert (np.exp(scores.logmass[known]) + scores.missing[known] >= np.exp(logmass_N[known]) - 1e-6).all()
    assert (scores.logmass[known] <= logmass_N[known] + 1e-6).all()
    np.testing.assert_allclose(np.exp(scores.logp[known]).sum(1), 1, atol=1e-5)
    assert (scores.outcome[~known] == Outcome.UNPARSEABLE).all() and np.isnan(scores.logp[~known]).all()
    assert server.usage.failed == {"UNPARSEABLE": int((~known).sum())}
    if most_top == 20:
        ranks_NK = np.array([[sum(np.array(cheap(ids)) > cheap(ids)[label]) for label in LABELS] for ids in _whole(of)])
        assert (scores.top == (ranks_NK < 10)).all()
    else:
        assert scores.top is None


def _whole(of: PrefixBlock) -> list[list[int]]:
    return [of.prefix.tolist() + of.suffix(index).tolist() for index in range(len(of))]


def test_ranks_can_be_had_of_a_server_that_tells_labels() -> None:
    of = questions(30)
    with serving(TOKENIZER) as small:
        server = engine(small, top=True)
        scores = server.digits(of)
        server.close()
    ranks_NK = np.array([[sum(np.array(cheap(ids)) > cheap(ids)[label]) for label in LABELS] for ids in _whole(of)])
    assert (scores.top == (ranks_NK < 10)).all() and scores.missing is not None


def test_a_chat_that_opens_a_bracket_first_is_read_behind_it() -> None:
    of = questions(8)
    loud = [0.0] * 64
    loud[LABELS[3]] = 9.0
    total = np.log(np.exp(loud).sum())
    with serving(TOKENIZER, lambda ids: [value - total for value in loud], opening="[", completions=False) as small:
        server = engine(small, mode="chat")
        scores = server.digits(of)
        assert (scores.logp.argmax(1) == 3).all()
        server.close()


# -- accounts ----------------------------------------------------------------------------------------------------------


def test_tokens_and_money_are_counted() -> None:
    of = questions(40)
    sent = sum(len(ids) for ids in _whole(of))
    with serving(TOKENIZER) as small:
        server = engine(small, prices=Prices(prompt=2.0, cached=1.0, new=8.0))
        server.digits(of)
        probes = sum(len(ids) for each in small.posted() for ids in each.prompts) - sent
        extra = len(small.posted()) - len(asked(small))
        usage = server.usage
        assert usage.queries == 40 and usage.seconds > 0 and usage.failed == {}
        assert usage.cached_tokens + usage.prompt_tokens == sent, "the probes are not questions"
        assert usage.cached_tokens == sum(sum(map(len, each.prompts)) // 2 for each in small.posted()[extra:])
        assert usage.new_tokens == 40
        paid = (2.0 * usage.prompt_tokens + usage.cached_tokens + 8.0 * usage.new_tokens) / 1e6
        assert usage.money == pytest.approx(paid, abs=extra * (2 * 256 + 8 * 8) / 1e6) and usage.money >= paid
        assert probes > 0 and server.about()["requests"] == len(small.seen)
        server.close()
    with serving(TOKENIZER, usage=False) as small:
        server = engine(small)
        server.digits(of)
        assert server.usage.prompt_tokens == sent, "a server that does not count is counted for"
        server.close()


def test_a_spending_limit_is_not_passed() -> None:
    of = questions(400)
    prices = Prices(prompt=1000.0, new=1000.0)
    with serving(TOKENIZER) as small:
        free = engine(small, prices=prices, batch=8)
        free.digits(questions(16))
        limit = free.usage.money + 0.5
        free.close()
        server = engine(small, prices=prices, batch=8, limit=limit)
        scores = server.digits(of)
        assert 0.5 * limit < server.usage.money <= limit
        answered = scores.outcome == Outcome.OK
        assert 0 < answered.sum() < 400 and (scores.outcome[~answered] == Outcome.SKIPPED).all()
        assert server.usage.queries == answered.sum()
        server.close()
        with pytest.raises(SettingError, match="needs the price"):
            engine(small, limit=1.0)


def test_what_is_sampled_depends_on_the_seed_alone() -> None:
    with serving(TOKENIZER) as small:
        server = engine(small)
        prompts = [np.array([2, 3]), np.array([2, 4])]
        server.complete(prompts, Sampling(most=2, temperature=0.7, seed=5, stop=("\n",)))
        bodies = [each.body for each in small.posted()][-2:]
        assert {body["temperature"] for body in bodies} == {0.7} and all(body["stop"] == ["\n"] for body in bodies)
        first = {body["prompt"][1]: body["seed"] for body in bodies}
        assert len(set(first.values())) == 2
        server.complete(prompts, Sampling(most=2, temperature=0.7, seed=5))
        assert {body["prompt"][1]: body["seed"] for body in [each.body for each in small.posted()][-2:]} == first
        server.complete(prompts, Sampling(most=2))
        assert all("seed" not in each.body for each in small.posted()[-2:])
        server.close()


def test_what_it_tells_of_itself_is_plain_data() -> None:
    with serving(TOKENIZER) as small:
        server = engine(small)
        server.digits(questions(2))
        about = json.loads(json.dumps(server.about()))
        assert about["model"] == "small" and about["served"] == {"max_model_len": 4096}
        assert about["answered_as"] == ["small-1"] and about["digits"]["tokenizer"] == "the same"
        server.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "grpc"}, "mode must be one of"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"tries": 0}, "tries must be at least 1"),
        ({"timeout": 0.0}, "timeout must be"),
        ({"batch": 0}, "batch must be"),
        ({"model": ""}, "needs the name of a model"),
    ],
)
def test_settings_that_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        engine("http://127.0.0.1:9", **given)


@pytest.mark.parametrize("endpoint", ["", "localhost:8000", "ftp://host/v1", "http://", "http://h/v1?api-version=2"])
def test_endpoints_that_cannot_be_meant(endpoint: str) -> None:
    with pytest.raises(SettingError, match="an endpoint must"):
        Server(endpoint, "small", TOKENIZER)
