"""The generating mode against one prompt at a time, family by family."""

from collections.abc import Iterator

import numpy as np
import pytest

from nlrewrite.llm.engine import TOP, Outcome
from nlrewrite.llm.vllm import Vllm
from tests.vllm import making

pytestmark = pytest.mark.vllm

FAMILIES = ("llama-tied", "llama-grouped", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    model = making.fresh(request.param)
    engine = Vllm(making.save(model, tmp_path_factory.mktemp(request.param)), sequences=64, top=True)
    yield model, engine
    engine.close()


@pytest.mark.parametrize("shape", making.SHAPES)
def test_labels_have_the_probabilities_of_one_prompt_at_a_time(asked: tuple, shape: str) -> None:
    model, engine = asked
    block = making.block(*making.SHAPES[shape])
    expected = making.one_by_one(model, block)
    scores = engine.digits(block)
    assert expected[:, making.LABELS].std() > 0.3, "the questions are too alike for the comparison to mean anything"
    assert np.abs(making.full(scores) - expected[:, making.LABELS]).max() <= 1e-5
    assert np.allclose(np.exp(scores.logp).sum(axis=1), 1, atol=1e-6)
    assert (scores.outcome == Outcome.OK).all()
    likeliest = np.argsort(-expected, axis=1)[:, :TOP]
    assert scores.top is not None
    assert np.array_equal(scores.top, [np.isin(making.LABELS, row) for row in likeliest])
