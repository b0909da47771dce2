import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nlrewrite.score.embedding import MeanState
from tests.explain.asked import tokenizer


@pytest.fixture(scope="module")
def embedder() -> MeanState:
    words = tokenizer()
    shape = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 24}
    config = LlamaConfig(**shape, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MeanState(LlamaForCausalLM(config).eval(), words.backend_tokenizer, 24)


def test_a_texts_vector_depends_on_the_text_alone(embedder: MeanState) -> None:
    texts = [f"text {number} " + "x" * (number % 5) for number in range(40)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-2)


def test_the_vector_is_the_mean_of_the_states(embedder: MeanState) -> None:
    ids = embedder.tokenizer.encode("a cat", add_special_tokens=False).ids
    states = embedder.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(embedder.embed(["a cat"])[0], states.mean(0).detach(), atol=1e-6)


def test_texts_that_are_too_long_are_cut_and_empty_ones_have_a_vector(embedder: MeanState) -> None:
    long = embedder.embed(["y" * 100, "y" * 24, ""])
    np.testing.assert_allclose(long[0], long[1], atol=1e-6)
    assert np.isfinite(long).all()
