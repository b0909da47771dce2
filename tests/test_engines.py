"""One rewriting, read through three engines: from prompts to digits to calibrators to losses, with the same numbers.

The reader is a small Llama that is trained here; `tests/vllm` does the same through vLLM.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlrewrite import pipeline, profiles
from nlrewrite.artifacts import Artifact, Store
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.llm import loading
from nlrewrite.pipeline import Builder
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from nlrewrite.simulate import answers
from nlrewrite.specs import RewriteSpec
from tests.llm.small_server import Small, serving

Results = tuple[dict[str, Any], dict[str, Artifact], Store]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def run(place: Path, refresh: tuple[str, ...] = (), settings: tuple[str, ...] = (), **execution: Any) -> Results:
    where = Execution(store=str(place / "store"), runs=str(place / "runs"), **execution)
    spec: RewriteSpec = profiles.resolve("smoke-reader", Overrides(settings=("rungs=false", *settings)), where)
    store = Store(where.store)
    builder = Builder(store, where, Progress(), "test", refresh)
    rewritten = rewrite(spec, builder)
    results = json.loads(store.folder(rewritten.evaluation).path("results.json").read_text())
    return results, {row.step: row.artifact for row in builder.rows}, store


@pytest.fixture(scope="module")
def packed(place: Path) -> Results:
    return run(place, engine="packed")


@pytest.fixture
def served(packed: Results):
    import torch

    _, artifacts, store = packed
    model, tokenizer = loading.load(store.folder(artifacts["reader"]).root(), Execution(), "float32", attention="sdpa")

    def predict(ids: list[int]) -> list[float]:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1).tolist()

    with serving(tokenizer, predict) as small:
        yield small


def arms(results: dict[str, Any]) -> np.ndarray:
    return np.array([row["ce"] for row in results["arms"]])


def logp(found: Results, step: str) -> np.ndarray:
    _, artifacts, store = found
    return answers.read(store.folder(artifacts[step]), 10_000).asked.logp.astype(np.float32)


def agree(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert [row["calibrator"] for row in first["arms"]] == [row["calibrator"] for row in second["arms"]]
    np.testing.assert_allclose(arms(first), arms(second), atol=2e-4)


def test_the_reference_gives_the_same_losses(place: Path, packed: Results) -> None:
    before, right = logp(packed, "simulation-report"), packed[0]
    assert np.isfinite(before).any() and len(set(np.exp(before[np.isfinite(before)]).round(4))) > 10
    other = run(place, ("answers",), engine="reference")
    np.testing.assert_allclose(np.exp(logp(other, "simulation-report")), np.exp(before), atol=2e-3)
    assert other[1] == packed[1]  # which engine it was is in no name
    agree(other[0], right)


def test_a_server_gives_the_same_losses(place: Path, packed: Results, served: Small) -> None:
    before, right = logp(packed, "simulation-report"), packed[0]
    other = run(place, ("answers",), engine="server", endpoint=served.endpoint, endpoint_model="small")
    np.testing.assert_allclose(np.exp(logp(other, "simulation-report")), np.exp(before), atol=2e-3)
    agree(other[0], right)
    assert len(served.posted()) > 1


def test_what_a_gate_or_a_smaller_reader_leaves_out_is_digit_0_and_the_rest_is_exact(
    place: Path, packed: Results
) -> None:
    screener = ("screener.kind=trained", "screener.layers=1", "screener.width=32", "screener.steps=3")
    spared = run(
        place,
        settings=("ask.screen=cascade", "ask.screen_recall=0.5", "ask.gate=true", "ask.screen_contexts=12", *screener),
        engine="packed",
    )
    before, after = logp(packed, "simulation-report"), logp(spared, "simulation-report")
    zero = (after[..., 0] == 0) & np.isneginf(after[..., 1:]).all(-1)
    asked = np.isfinite(before[..., 0])
    assert 0.05 < zero[asked].mean() < 1
    np.testing.assert_allclose(np.exp(after[asked & ~zero]), np.exp(before[asked & ~zero]), atol=2e-3)
    assert np.isnan(after[~asked]).all()
    results, artifacts, store = spared
    told = json.loads(store.folder(artifacts["report"]).path("results.json").read_text())["asked"]
    count = next(each for each in told["questions"] if each["step"] == "simulation")
    assert count["skipped"] == int(zero.sum())  # and none of a latent without a sentence
    assert count["asked"] == count["ok"] == int((asked & ~zero).sum())
    assert {row["arm"] for row in results["arms"]} >= {"rewritten", "shuffled"}


def test_the_page_says_what_was_asked_and_by_whom(place: Path, packed: Results) -> None:
    _, artifacts, store = packed
    told = json.loads(store.folder(artifacts["report"]).path("results.json").read_text())["asked"]
    page = store.folder(artifacts["report"]).path("report.html").read_text()
    assert told["reader"]["kind"] == "trained"
    by_step = {each["step"]: each for each in told["questions"]}
    assert set(by_step) == {"on-calibrate", "simulation", "on-calibrate-shuffled", "simulation-shuffled"}
    explained = int((~np.isnan(logp(packed, "simulation-report")[:, 0, 0])).sum())
    of = by_step["simulation"]
    assert of["asked"] == of["ok"] == 30 * explained - of["skipped"] and of["skipped"] > 0
    assert 'id="asked"' in page and "What the reader was asked" in page
    assert pipeline.labels(profiles.settled("smoke-reader", Overrides())).keys() >= artifacts.keys()
