"""What the engines do on this machine's GPU, by one command: `make accept-gpu`.

    python -m benchmarks.accept_gpu                          random weights of Llama-3-8B's shape; nothing is fetched
    python -m benchmarks.accept_gpu --model /models/llama    a folder in Hugging Face's format
    python -m benchmarks.accept_gpu --device cpu --small     the same script on a tiny shape, where there is no GPU

    machine      the rate of this machine's own matrix products, which all shares below are shares of
    equality     packed and vLLM against one prompt at a time, on the model's first two layers: float32, then bfloat16
    throughput   questions per second of both, behind a prefix of 592 tokens, and how long 327.68 million would take
    lane         a thousand questions end to end: templates, prompts, engine, answers
    pilot        `nlrewrite pilot` with a reader of that shape
    train        coders: their kernels against float64, ways to find the largest, tokens per second of training

Every part and engine runs in a process of its own, so that nothing is left on the GPU for the next. Every figure is one
line of JSON in `--out`, with the aim it is held to where there is one; a part that fails is a line too. The exit code
is 1 if a part failed or missed its aim.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import accept_train, stand_ins
from benchmarks.accept_models import config_of, cut, packed, tokenizer_of, vllm
from nlrewrite.execution import Execution
from nlrewrite.language import prompts, template
from nlrewrite.llm import loading
from nlrewrite.llm.engine import Engine, Outcome, PrefixBlock, Scores
from nlrewrite.llm.packed import Packed
from nlrewrite.llm.rates import Shape
from nlrewrite.llm.reference import Reference
from nlrewrite.llm.vllm import Vllm
from nlrewrite.progress import Progress
from nlrewrite.questions import PromptSpec
from nlrewrite.seeds import generator
from nlrewrite.simulate.ask import ask

FULL = 327_680_000
"""Questions of the published experiment: 10,000 contexts, 32,768 latents."""
PREFIX, SUFFIX = 592, 30
"""Tokens: a multiple of every block size; instruction and context, explanation and the answer's beginning."""
DIGITS = tuple("0123456789")
Line = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    questions: int
    """Of one block."""
    seconds: float
    """Of measuring, at least."""
    matrix: int
    compared: int
    lane: tuple[int, int]
    """Sentences, contexts."""


LARGE = Size(questions=4096, seconds=30.0, matrix=8192, compared=256, lane=(20, 50))
SMALL = Size(questions=64, seconds=1.0, matrix=512, compared=128, lane=(5, 8))
Part = Callable[[argparse.Namespace, Size], Iterator[Line]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*MEASURED, []], help="all, if none is named")
    parser.add_argument("--model", type=Path, help="folder with config.json, safetensors and tokenizer.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="a tiny shape and little of everything")
    parser.add_argument("--work", type=Path, default=Path("accept-gpu"), help="folder for models that are made here")
    parser.add_argument("--out", type=Path, default=Path("accept-gpu.jsonl"))
    parser.add_argument("--child", choices=[*MEASURED], help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.child:
        for line in MEASURED[given.child](given, SMALL if given.small else LARGE):
            tell(given.out, line)
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here. As far as a CPU goes: --device cpu --small")
    failed = [part for part in given.parts or MEASURED if not run(part, given)]
    newest = {line["what"]: line for line in read(given.out)}
    missed = [what for what, line in newest.items() if line.get("meets") is False]
    print(f"failed: {', '.join(failed) or 'nothing'}; missed: {', '.join(missed) or 'nothing'}")
    sys.exit(1 if failed or missed else 0)


def run(part: str, given: argparse.Namespace) -> bool:
    """One part, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.accept_gpu", "--child", part, "--device", given.device]
    command += ["--work", str(given.work), "--out", str(given.out)]
    command += ["--small"] * given.small + (["--model", str(given.model)] if given.model else [])
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        tell(given.out, {"what": part, "failed": done.returncode, "why": done.stderr[-2000:]})
    return done.returncode == 0


def tell(out: Path, line: Line) -> None:
    text = json.dumps(line)
    with out.open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


def read(out: Path) -> list[Line]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def aimed(what: str, value: float, unit: str, *, least: float | None = None, most: float | None = None) -> Line:
    met = (least is None or value >= least) and (most is None or value <= most)
    return {"what": what, "ours": value, "unit": unit, "at_least": least, "at_most": most, "meets": met}


# -- the machine -------------------------------------------------------------------------------------------------------


def machine(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    about = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    for dtype in (torch.bfloat16, torch.float32):
        rate = products(given.device, dtype, size.matrix, size.seconds / 10)
        what = f"matrix products, {str(dtype).removeprefix('torch.')}"
        yield {"what": what, "ours": rate / 1e12, "unit": "TFLOP/s", "on": about, "torch": torch.__version__}


def products(device: str, dtype: torch.dtype, width: int, seconds: float) -> float:
    """FLOP per second of square matrix products."""
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    count, spent = 0, 0.0
    for wanted in (0.0, seconds):  # the first time to warm up
        count, started = 0, now(device)
        while count == 0 or now(device) - started < wanted:
            for _ in range(10):
                torch.mm(left, right)
            count += 10
        spent = now(device) - started
    return 2.0 * width**3 * count / spent


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# -- equality ----------------------------------------------------------------------------------------------------------


def questions(given: argparse.Namespace, count: int, turn: int = 0) -> PrefixBlock:
    """Random tokens behind the same random prefix, and the digits of the tokenizer."""
    tokenizer = tokenizer_of(given)
    labels = [tokenizer.get_vocab()[digit] for digit in DIGITS]
    vocabulary = len(tokenizer)
    lengths = generator(0, "lengths", turn).integers(SUFFIX - 10, SUFFIX + 11, count)
    rng = generator(0, "suffixes", turn)
    prefix = generator(0, "prefix").integers(0, vocabulary, PREFIX).tolist()
    return PrefixBlock.of(prefix, [rng.integers(0, vocabulary, each).tolist() for each in lengths], labels)


def expected(scores: Scores) -> np.ndarray:
    return np.exp(scores.logp) @ np.arange(10)


def equality_packed(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    """Packed against one prompt at a time; what the latter says is kept for vLLM."""
    folder, execution, asked = cut(given), Execution(device=given.device), questions(given, size.compared)
    said: dict[str, np.ndarray] = {}
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = loading.load(folder, execution, dtype)
        truth = Reference(model, tokenizer).digits(asked)
        with closing(Packed(model, tokenizer)) as engine:
            ours = engine.digits(asked)
            said |= {f"logp-{dtype}": truth.logp, f"expected-{dtype}": expected(truth)}
            yield from agreement(engine, dtype, ours, said)
        del model
    np.savez(given.work / "reference.npz", **said)  # pyright: ignore[reportArgumentType]


def equality_vllm(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    asked, folder = questions(given, size.compared), cut(given)
    with np.load(given.work / "reference.npz") as file:
        said = dict(file)
    for dtype in ("float32", "bfloat16"):
        with closing(Vllm(folder, dtype=dtype, device=given.device, gpus=1, sequences=64)) as engine:
            yield from agreement(engine, dtype, engine.digits(asked), said)


def agreement(engine: Engine, dtype: str, ours: Scores, said: dict[str, np.ndarray]) -> Iterator[Line]:
    """float32: largest difference in log-probability. bfloat16: mean error of the expected digit, as a share of that of
    one prompt at a time in bfloat16."""
    if dtype == "float32":
        apart = float(np.abs(ours.logp - said["logp-float32"]).max())
        line = aimed(f"equality, {engine.name}, float32", apart, "log-probability", most=1e-5)
    else:
        truth = said["expected-float32"]
        error = float(np.abs(expected(ours) - truth).mean() / np.abs(said["expected-bfloat16"] - truth).mean())
        line = aimed(f"equality, {engine.name}, bfloat16", error, "error of one by one", most=1.1)
    spread = float(said["expected-float32"].std())
    yield {**line, "spread_of_expected_digit": spread, "about": engine.about()}


# -- throughput --------------------------------------------------------------------------------------------------------


def throughput_packed(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    for tokens in (2048,) if given.small else (2048, 8192, 16_384):
        with packed(given, tokens) as engine:
            yield throughput(given, size, engine, f"packed, {tokens} tokens at a time")


def throughput_vllm(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    for mode in ("generate", "pooling"):
        started = time.perf_counter()
        with vllm(given, mode) as engine:
            engine.digits(questions(given, 8, turn=-1))
            starting = time.perf_counter() - started
            yield {**throughput(given, size, engine, f"vllm, {mode}"), "starts_in_seconds": starting}


def throughput(given: argparse.Namespace, size: Size, engine: Engine, name: str) -> Line:
    asked = [questions(given, size.questions, turn) for turn in range(4)]
    engine.digits(asked[0])  # warms up
    count, spent, turn = 0, 0.0, 1
    while spent < size.seconds:
        started = now(given.device)
        engine.digits(asked[turn % 4])
        spent += now(given.device) - started
        count, turn = count + size.questions, turn + 1
    rate = count / spent
    shape = Shape.of(config_of(given).to_dict())
    new = float(np.mean([each.lengths.mean() for each in asked]))
    flop = shape.flop(new, PREFIX) + shape.flop(PREFIX, 0, answers=0) / size.questions
    dtype = "float32" if given.device == "cpu" else "bfloat16"
    products = [each["ours"] for each in read(given.out) if each["what"] == f"matrix products, {dtype}"]
    share = rate * flop / (products[-1] * 1e12) if products else float("nan")
    aim = 0.5 if engine.name == "packed" and not given.small else None
    return {
        **aimed(f"throughput, {name}", share, "share of the machine's rate of matrix products", least=aim),
        "questions_per_second": rate,
        "tflop_per_question": flop / 1e12,
        "hours_for_the_published_experiment": FULL / rate / 3600,
        "about": engine.about(),
    }


# -- a lane and a pilot ------------------------------------------------------------------------------------------------


def lane(given: argparse.Namespace, size: Size, engine: Engine) -> Line:
    """Questions as a step asks them, context first."""
    spec = template.filled(PromptSpec(name="simulate"), None)
    made = prompts.prompts(template.template(spec), tokenizer_of(given), "context", name="simulate")
    sentences, contexts = size.lane
    shown = [made.shown(tokens, [len(tokens) - 1]) for tokens in stand_ins.contexts(contexts)]
    started = time.perf_counter()
    asked = ask(
        engine,
        made,
        stand_ins.sentences(sentences),
        shown,
        np.arange(contexts, dtype=np.int32)[None],
        "context",
        Progress(),
    )
    spent = time.perf_counter() - started
    answered = float((asked.outcome == Outcome.OK).mean())
    return {
        **aimed(f"lane, {engine.name}", answered, "share of questions answered", least=1.0),
        "questions": asked.outcome.size,
        "questions_per_second": asked.outcome.size / spent,
        "share_of_time_in_the_engine": engine.usage.seconds / spent,
        "cached_share": engine.usage.cached_tokens / (engine.usage.cached_tokens + engine.usage.prompt_tokens),
    }


def lane_packed(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    with packed(given, 8192) as engine:
        yield lane(given, size, engine)


def lane_vllm(given: argparse.Namespace, size: Size) -> Iterator[Line]:
    with vllm(given) as engine:
        yield lane(given, size, engine)


def pilot(engine: str) -> Part:
    """The command, on the tiny subject, with a reader of which nothing is expected unless it is the user's own."""

    def measured(given: argparse.Namespace, size: Size) -> Iterator[Line]:
        profile, folder = ("smoke-reader", cut(given)) if given.small else ("tiny-reader", given.model or cut(given))
        command = [sys.executable, "-m", "nlrewrite", "pilot", "--json", "--profile", profile, "--engine", engine]
        command += ["--device", given.device, "--reader-folder", str(folder), "--set", "reader.kind=folder"]
        command += ["--set", "ask.prompt.name=simulate", "--set", f"pilot.latents={8 if given.small else 200}"]
        command += ["--store", str(given.work / f"store-{engine}"), "--runs", str(given.work / "runs")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        found = json.loads(done.stdout)
        asked = found["asked"]
        answered = 1 - sum(asked["usage"]["failed"].values()) / asked["queries"]
        yield {
            **aimed(f"pilot, {engine}", answered, "share of questions answered", least=1.0),
            "questions": asked["queries"],
            "questions_per_second": asked["queries"] / asked["seconds"],
            "questions_of_the_whole": found["whole_queries"],
            "gap_closed": found["prediction"]["gap_closed"],
        }

    return measured


MEASURED: dict[str, Part] = {
    "machine": machine,
    "equality-packed": equality_packed,
    "equality-vllm": equality_vllm,
    "throughput-packed": throughput_packed,
    "throughput-vllm": throughput_vllm,
    "lane-packed": lane_packed,
    "lane-vllm": lane_vllm,
    "pilot-packed": pilot("packed"),
    "pilot-vllm": pilot("vllm"),
    "train-kernels": lambda given, size: accept_train.kernels(given, size is SMALL),
    "train-topk": lambda given, size: accept_train.top_k(given, size is SMALL),
    "train": lambda given, size: accept_train.training(given, size is SMALL),
}


if __name__ == "__main__":
    main()
