"""The reference against the plainest way to say it: the whole text through the model, softmax over the vocabulary."""

import numpy as np
import pytest
import torch

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling
from nlrewrite.llm.reference import Reference
from tests.llm import random_models as making

TOKENIZER = making.tokenizer()


@pytest.fixture(scope="module")
def model():
    return making.fresh()


def probabilities(model, prompt) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([prompt.tolist()])).logits[0, -1].double(), dim=-1).numpy()


def test_labels_and_their_mass_are_read_off_the_whole_distribution(model):
    block = making.block(7, [3, 1, 12])
    found = Reference(model, TOKENIZER, top=True).digits(block)
    for row in range(3):
        p_V = probabilities(model, np.concatenate([block.prefix, block.suffix(row)]))
        p_K = p_V[list(block.labels)]
        np.testing.assert_allclose(found.logp[row], np.log(p_K / p_K.sum()), atol=1e-5)
        np.testing.assert_allclose(found.logmass[row], np.log(p_K.sum()), atol=1e-5)
        assert found.top[row].tolist() == np.isin(block.labels, np.argsort(-p_V)[:10]).tolist()
    assert (found.outcome == Outcome.OK).all()
    assert (found.logmass < 0).all() and found.top.any() and not found.top.all()


def test_the_labels_asked_for_are_the_ones_told_in_their_order(model):
    block = making.block(7, [3, 5])
    turned = PrefixBlock(block.prefix, block.suffix_tokens, block.suffix_offsets, block.labels[::-1])
    engine = Reference(model, TOKENIZER)
    np.testing.assert_array_equal(engine.digits(turned).logp, engine.digits(block).logp[:, ::-1])


def test_a_question_that_is_too_long_is_refused_and_the_others_are_not(model):
    block = making.block(making.LONGEST - 5, [5, 6, 2])
    engine = Reference(model, TOKENIZER)
    found = engine.digits(block)
    assert found.outcome.tolist() == [Outcome.OK, Outcome.REFUSED, Outcome.OK]
    assert np.isnan(found.logp[1]).all() and np.isnan(found.logmass[1])
    assert np.isfinite(found.logp[[0, 2]]).all()
    assert engine.usage.failed == {"REFUSED": 1} and engine.usage.queries == 3
    assert engine.usage.prompt_tokens == 2 * (making.LONGEST - 5) + 7


def greedy(model, prompt: np.ndarray, most: int) -> list[int]:
    """Without a cache: the whole text again for each token."""
    text = prompt.tolist()
    for _ in range(most):
        text.append(int(probabilities(model, np.array(text)).argmax()))
        if text[-1] == 1:
            break
    return text[len(prompt) :]


def test_greedy_replies_are_the_likeliest_tokens(model):
    prompts = [making.ids(length, seed=length) for length in (1, 6, 19)]
    engine = Reference(model, TOKENIZER)
    found = engine.complete(prompts, Sampling(most=9))
    for prompt, reply in zip(prompts, found, strict=True):
        assert reply.text == TOKENIZER.decode(greedy(model, prompt, 9), skip_special_tokens=True)
        assert reply.outcome is Outcome.OK and not reply.complete and "9 tokens" in reply.why
    assert len({reply.text for reply in found}) == 3
    assert engine.usage.new_tokens == 27 and engine.usage.prompt_tokens == 26


def test_a_reply_ends_at_the_end_token_and_at_a_stop(model):
    prompt = making.ids(6, seed=6)
    engine = Reference(model, TOKENIZER)
    said = greedy(model, prompt, 6)
    words = [f"w{token}" for token in said]
    assert len(set(said)) == 6
    stopped = engine.complete([prompt], Sampling(most=9, stop=("nowhere", words[3])))[0]
    assert (stopped.text.split(), stopped.complete, stopped.why) == (words[:3], True, "")
    model_with_end = making.fresh()
    model_with_end.generation_config.eos_token_id = [said[2], 1]
    ended = Reference(model_with_end, TOKENIZER).complete([prompt], Sampling(most=9))[0]
    assert (ended.text.split(), ended.complete) == (words[:2], True)


def test_draws_depend_on_the_seed_and_the_prompt_and_on_nothing_else(model):
    prompts = [making.ids(4, seed=seed) for seed in range(3)]
    engine, drawing = Reference(model, TOKENIZER), Sampling(most=8, temperature=1.0, seed=5)
    first = [reply.text for reply in engine.complete(prompts, drawing)]
    assert [reply.text for reply in engine.complete(prompts[::-1], drawing)] == first[::-1]
    other = engine.complete(prompts, Sampling(most=8, temperature=1.0, seed=6))
    assert all(reply.text != text for reply, text in zip(other, first, strict=True))


def test_draws_follow_the_probabilities_at_their_temperature(model):
    prompt, temperature = making.ids(4), 0.7
    p_V = probabilities(model, prompt) ** (1 / temperature)
    p_V /= p_V.sum()
    engine = Reference(model, TOKENIZER)
    drawn = [
        engine.complete([prompt], Sampling(most=1, temperature=temperature, seed=seed))[0].text for seed in range(300)
    ]
    counts = np.bincount([int(text[1:]) for text in drawn if text], minlength=making.VOCABULARY)
    likeliest = np.argsort(-p_V)[:3]
    error = np.sqrt(p_V[likeliest] * (1 - p_V[likeliest]) * 300)
    assert (np.abs(counts[likeliest] - 300 * p_V[likeliest]) < 4 * error).all()
    assert 0.05 < p_V[likeliest[0]] < 0.95


def test_a_prompt_that_leaves_no_room_is_refused_and_says_why(model):
    given = [making.ids(making.LONGEST), making.ids(making.LONGEST - 2), np.array([], dtype=np.int32)]
    engine = Reference(model, TOKENIZER)
    found = engine.complete(given, Sampling(most=9))
    assert [reply.outcome for reply in found] == [Outcome.REFUSED, Outcome.OK, Outcome.REFUSED]
    assert f"{making.LONGEST} tokens" in found[0].why and "empty" in found[2].why
    assert "2 tokens" in found[1].why and not found[1].complete
    assert engine.usage.failed == {"REFUSED": 2}


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(SettingError, match=r"training=True.*model\.eval"):
        Reference(making.fresh().train(), TOKENIZER)


def test_no_global_generator_is_touched(model):
    before = torch.get_rng_state()
    Reference(model, TOKENIZER).complete([making.ids(4)], Sampling(most=3, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), before)
