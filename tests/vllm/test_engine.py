"""One engine in generating mode: what it counts, refuses, logs and writes."""

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling
from nlrewrite.llm.reference import Reference
from nlrewrite.llm.vllm import CPU_BLOCK, Vllm, of_labels
from tests.vllm import making

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PreTrainedModel, Vllm]]:
    model = making.fresh("llama-tied")
    engine = Vllm(making.save(model, tmp_path_factory.mktemp("one")), sequences=64)
    yield model, engine
    engine.close()


def test_whole_blocks_of_the_prefix_are_computed_once(one: tuple) -> None:
    _, engine = one
    for prefix, lengths in ((70, [20] * 40), (64, [5, 6, 7]), (31, [1, 2, 3])):
        before = engine.usage.cached_tokens, engine.usage.prompt_tokens
        block = making.block(prefix, lengths, seed=5)
        engine.digits(block)
        cached = prefix // CPU_BLOCK * CPU_BLOCK * (len(lengths) - 1)
        assert engine.usage.cached_tokens - before[0] == cached
        assert engine.usage.prompt_tokens - before[1] == prefix * len(lengths) + sum(lengths) - cached


def test_a_question_that_is_too_long_is_refused_and_the_others_are_answered(one: tuple) -> None:
    model, engine = one
    lengths = [5, making.LONGEST, making.LONGEST - 100, making.LONGEST - 101, 8]
    block = making.block(100, lengths)
    scores = engine.digits(block)
    expected = [Outcome.OK, Outcome.REFUSED, Outcome.REFUSED, Outcome.OK, Outcome.OK]
    assert scores.outcome.tolist() == expected
    answered = np.array([0, 3, 4])
    close = making.one_by_one(model, block.at(answered))[:, making.LABELS]
    assert np.abs(making.full(scores)[answered] - close).max() <= 1e-5
    assert np.isnan(scores.logp[1:3]).all() and scores.logmass is not None and np.isnan(scores.logmass[1:3]).all()
    assert engine.usage.failed == {"REFUSED": 2}
    assert engine.digits(block.at(np.array([1]))).outcome.tolist() == [Outcome.REFUSED]


def test_an_answer_that_lacks_a_label_is_none(one: tuple) -> None:
    _, engine = one
    block = making.block(40, [3, 4])
    prompts = [{"prompt_token_ids": [*block.prefix.tolist(), *block.suffix(index).tolist()]} for index in range(2)]
    for output in engine._run(engine._llm, prompts, making.LABELS[:9]):
        told = of_labels(output, making.LABELS)
        assert np.isfinite(told[:9]).all() and np.isnan(told[9])
        assert np.isfinite(of_labels(output, making.LABELS[:9])).all()
    with pytest.raises(SettingError, match="below 300"):
        engine.digits(PrefixBlock.of([20], [[21]], (1, 300)))


def test_a_call_that_is_broken_off_leaves_nothing_behind(one: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = one
    block = making.block(50, [6, 7])

    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._llm.llm_engine, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        engine.digits(making.block(90, [10] * 5, seed=3))
    monkeypatch.undo()
    assert np.abs(making.full(engine.digits(block)) - making.one_by_one(model, block)[:, making.LABELS]).max() <= 1e-5


def test_a_cache_that_serves_too_little_is_said(one: tuple, caplog: pytest.LogCaptureFixture) -> None:
    _, engine = one
    with caplog.at_level(logging.DEBUG, logger="nlrewrite.llm.vllm"):
        engine.digits(making.block(70, [4] * 5, seed=6))
    assert [(each.levelno, each.getMessage()[:21]) for each in caplog.records] == [
        (logging.DEBUG, "prefix cache: 100.0% ")
    ]
    assert "6 of the prefix's 70 fill no block of 32" in caplog.text
    caplog.clear()
    rng = np.random.default_rng(0)
    strangers = [{"prompt_token_ids": rng.integers(12, 300, 80).tolist()} for _ in range(5)]
    engine._tell_cache(70, engine._run(engine._llm, strangers, making.LABELS))
    assert [each.levelno for each in caplog.records] == [logging.WARNING]


def test_completions_are_those_of_the_reference(one: tuple) -> None:
    model, engine = one
    reference = Reference(model, engine._tokenizer)
    block = making.block(60, [5, 9, 1, 22])
    prompts = [np.concatenate([block.prefix, block.suffix(index)]) for index in range(len(block))]
    refused = [np.arange(making.LONGEST) % 300, prompts[0][:0]]
    for sampling in (Sampling(most=12), Sampling(most=12, stop=("7", "8", "9"))):
        replies, expected = (each.complete([*prompts, *refused], sampling) for each in (engine, reference))
        for reply, other in zip(replies, expected, strict=True):
            assert (reply.text, reply.outcome, reply.complete) == (other.text, other.outcome, other.complete)
        assert [reply.outcome for reply in replies] == [Outcome.OK] * 4 + [Outcome.REFUSED] * 2
    assert engine.usage.new_tokens == reference.usage.new_tokens > 0


def test_texts_that_are_drawn_follow_the_seed(one: tuple) -> None:
    _, engine = one
    prompts = [making.block(30, [2], seed=seed).prefix for seed in range(3)]
    state = random.getstate(), torch.get_rng_state()
    first, again, other = (
        [reply.text for reply in engine.complete(prompts, Sampling(most=8, temperature=1.0, seed=seed))]
        for seed in (1, 1, 2)
    )
    assert first == again and first != other
    assert len(set(first)) == 3
    assert [reply.text for reply in engine.complete(prompts[2:], Sampling(most=8, temperature=1.0, seed=1))] == first[
        2:
    ]
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_a_reply_ends_at_a_stop_and_at_the_end_token(one: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = one
    prompt = making.block(30, [2]).prefix
    words = engine.complete([prompt], Sampling(most=8))[0].text.split()
    assert len(words) == 8
    at = max(index for index, word in enumerate(words) if word not in " ".join(words[:index]))  # said first there
    assert at > 0
    cut = engine.complete([prompt], Sampling(most=8, stop=(words[at],)))[0]
    assert cut.text.split() == words[:at] and cut.complete
    monkeypatch.setattr(engine, "_ends", [engine._tokenizer.convert_tokens_to_ids(words[at])])
    ended = engine.complete([prompt], Sampling(most=8))[0]
    assert ended.text.split() == words[:at] and ended.complete
