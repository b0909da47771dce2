"""vLLM's own OpenAI server, driven by the engine for endpoints: the same numbers as the engine in this process."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from nlrewrite.llm.engine import Outcome, Sampling
from nlrewrite.llm.reference import Reference
from nlrewrite.llm.server import Server
from tests.vllm import making

pytestmark = pytest.mark.vllm

STARTS = 300
"""Seconds that a busy machine may take."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PreTrainedModel, str, subprocess.Popen]]:
    model = making.fresh("llama-tied")
    folder = making.save(model, tmp_path_factory.mktemp("served"))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(_command(folder, port), stdout=written, stderr=written, env=_environment())
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield model, f"http://127.0.0.1:{port}/v1", process
    finally:
        process.terminate()
        process.wait(timeout=60)


def _command(folder: Path, port: int) -> list[str]:
    told = ["--host", "127.0.0.1", "--port", str(port), "--model", str(folder), "--served-model-name", "small"]
    shape = ["--dtype", "float32", "--max-model-len", str(making.LONGEST), "--block-size", "32", "--enforce-eager"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *told, *shape]


def _environment() -> dict[str, str]:
    quick = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, **quick, "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _wait(health: str, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + STARTS
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(health, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def test_its_digits_are_exact(served: tuple) -> None:
    model, endpoint, _ = served
    with closing(Server(endpoint, "small", making.tokenizer())) as engine:
        for prefix, lengths in making.SHAPES.values():
            block = making.block(prefix, lengths)
            scores = engine.digits(block)
            expected = making.one_by_one(model, block)[:, making.LABELS]
            assert (scores.outcome == Outcome.OK).all()
            assert scores.missing is None
            assert np.abs(making.full(scores) - expected).max() <= 1e-5
        about = engine.about()["digits"]
        assert isinstance(about, dict) and about["log_probabilities"] == "of the labels"


def test_its_completions_are_those_of_the_reference(served: tuple) -> None:
    model, endpoint, _ = served
    block = making.block(60, [5, 9, 1])
    prompts = [np.concatenate([block.prefix, block.suffix(index)]) for index in range(len(block))]
    with closing(Server(endpoint, "small", making.tokenizer())) as engine:
        replies = engine.complete(prompts, Sampling(most=12))
        expected = Reference(model, making.tokenizer()).complete(prompts, Sampling(most=12))
        assert [(each.text.split(), each.outcome, each.complete) for each in replies] == [
            (each.text.split(), each.outcome, each.complete) for each in expected
        ]


def test_what_is_too_long_is_refused_and_a_dead_server_loses_no_answer(served: tuple) -> None:
    model, endpoint, process = served
    with closing(Server(endpoint, "small", making.tokenizer(), tries=2, timeout=30)) as engine:
        mixed = making.block(100, [5, making.LONGEST, 8])
        assert engine.digits(mixed).outcome.tolist() == [Outcome.OK, Outcome.REFUSED, Outcome.OK]
        block = making.block(50, [4, 5])
        before = engine.digits(block)
        process.terminate()
        process.wait(timeout=60)
        after = engine.digits(block)
        assert (before.outcome == Outcome.OK).all() and (after.outcome == Outcome.TRANSPORT).all()
        assert np.isnan(after.logp).all() and engine.usage.failed["TRANSPORT"] == 2
    assert np.abs(making.full(before) - making.one_by_one(model, block)[:, making.LABELS]).max() <= 1e-5
