"""The pooling mode: the labels' rows of the head, and no mass."""

from collections.abc import Iterator

import numpy as np
import pytest

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling
from nlrewrite.llm.vllm import Vllm
from tests.vllm import making

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", params=["llama-tied", "llama"])
def pooled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    model = making.fresh(request.param)
    folder = making.save(model, tmp_path_factory.mktemp("pooled"))
    told = making.LABELS if request.param == "llama" else ()  # without them it waits for its first block
    engine = Vllm(folder, mode="pooling", labels=told, sequences=64)
    yield model, engine
    engine.close()


@pytest.mark.parametrize("shape", making.SHAPES)
def test_pooling_has_the_same_digits_and_no_mass(pooled: tuple, shape: str) -> None:
    model, engine = pooled
    block = making.block(*making.SHAPES[shape])
    expected = making.one_by_one(model, block)[:, making.LABELS]
    scores = engine.digits(block)
    renormalised = expected - np.logaddexp.reduce(expected, axis=1, keepdims=True)
    assert np.abs(scores.logp - renormalised).max() <= 1e-5
    assert scores.logmass is None and scores.top is None and not engine.exact_mass


def test_pooling_says_what_it_cannot(pooled: tuple) -> None:
    _, engine = pooled
    assert (engine.digits(making.block(30, [3])).outcome == Outcome.OK).all()
    with pytest.raises(SettingError, match="labels"):
        engine.digits(PrefixBlock.of([20], [[21]], (2, 3)))
    with pytest.raises(SettingError, match="generate"):
        engine.complete([np.array([20])], Sampling())
    scores = engine.digits(making.block(making.LONGEST - 10, [10, 11]))
    assert scores.outcome.tolist() == [Outcome.OK, Outcome.REFUSED]
