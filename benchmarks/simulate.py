"""What asking a language model many short questions costs: `packed` beside one question at a time and a copied cache.

    python -m benchmarks.simulate reference expanded-cache host lengths screen --out simulate.jsonl

Every figure is one line of JSON, printed and appended to `--out`: `what`, `ours`, `peer`, `unit`, `ratio`, `machine`.
The model is a random Llama of 4 layers, width 256, four query heads to a key head; a prefix has 576 tokens, a suffix 20
to 45. Speeds are questions per second of CPU time on one thread, the prefix included, medians over turns; in each turn
all sides answer, one after the other, fresh random suffixes behind a fresh prefix, and before that they are seen to
agree. Only ratios carry over to another machine. Both sides of a line run the same weights in the same layout: float32
weights are laid out for the processor's library first (`nlrewrite/llm/linear.py`), but for lines `as torch multiplies`.

`vllm` is measured by benchmarks/simulate_vllm.py, in vLLM's own environment. `gpu` takes a random model of
Llama-3-8B's shape in bfloat16 and compares what the forward pass does per second with matrix products alone.
"""

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from benchmarks.science import Line, finite, machine
from nlrewrite.llm.engine import PrefixBlock
from nlrewrite.llm.linear import prepack
from nlrewrite.llm.packed import Packed, Screen
from nlrewrite.llm.reference import Reference
from nlrewrite.seeds import generator

PREFIX, SHORTEST, LONGEST = 576, 20, 45
VOCABULARY, LABELS = 4096, tuple(range(1, 11))
LAYERS, WIDTH, HEADS = 4, 256, 8
EXPANDED = 16
"""Suffixes for which the peer copies the prefix's keys and values at a time."""
TOKENS = 1024
"""Of a packed row: on a CPU shorter ones than the default stay in its caches."""
QUESTIONS, BY_ONES = 512, 12
"""Questions in a turn, and those of them that are asked one by one."""
LENGTHS = (64, 288, 576, 1152, 2304)
CLOSE = 1e-5
ALL_QUESTIONS = 10_000 * 32_768
"""Contexts times latents of the published run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*MEASURED, []], help="all but vllm and gpu, if none is named")
    parser.add_argument("--out", default="simulate.jsonl")
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for part in given.parts or [each for each in MEASURED if each not in ("vllm", "gpu")]:
        for line in MEASURED[part](given.turns):
            tell(line, Path(given.out))


def tell(line: Line, out: Path) -> None:
    text = json.dumps({**finite(line), "machine": line.get("machine", machine())}, allow_nan=False)
    with out.open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


# -- what is asked ----------------------------------------------------------------------------------------------------


def model(dtype: torch.dtype = torch.float32, *, laid_out: bool = False, **changed: Any) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 4,
        "max_position_embeddings": 4096,
        "initializer_range": 0.06,
        "pad_token_id": None,
        **changed,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(LlamaConfig(**shape), attn_implementation="sdpa")
    made = made.eval().requires_grad_(False).to(dtype)
    if laid_out:
        prepack(made)
    return made


def packed(dtype: torch.dtype = torch.float32, *, laid_out: bool = False, mass: bool = True, **changed: Any) -> Packed:
    return Packed(model(dtype, laid_out=laid_out, **changed), None, tokens=TOKENS, mass=mass)


def block(questions: int, turn: int, prefix: int = PREFIX, same_prefix: bool = False) -> PrefixBlock:
    draws = generator(0, "suffixes", turn)
    lengths = draws.integers(SHORTEST, LONGEST + 1, questions)
    start = generator(0, "prefix", 0 if same_prefix else turn).integers(0, VOCABULARY, prefix)
    suffixes = [draws.integers(0, VOCABULARY, length).tolist() for length in lengths]
    return PrefixBlock.of(start.tolist(), suffixes, LABELS)


Ask = Callable[[PrefixBlock], object]


def in_turns(asking: dict[str, tuple[int, Ask]], turns: int, **given: Any) -> dict[str, list[float]]:
    """CPU seconds a question, of each side in each turn but the first. A side is asked a number of questions."""
    result: dict[str, list[float]] = {name: [] for name in asking}
    for turn in range(turns + 1):
        for name, (questions, ask) in asking.items():
            asked = block(questions, turn, **given)
            started = time.process_time()
            ask(asked)
            if turn:
                result[name].append((time.process_time() - started) / questions)
    return result


def line(what: str, ours: list[float], peer: list[float], bound: float, **more: Any) -> Line:
    ratios = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "what": what,
        "ours": 1 / statistics.median(ours),
        "peer": 1 / statistics.median(peer),
        "unit": "questions per CPU second",
        "ratio": statistics.median(peer) / statistics.median(ours),
        "turns": [min(ratios), max(ratios)],
        "at_least": bound,
        **more,
    }


# -- one by one, and a copied cache -----------------------------------------------------------------------------------


def measure_reference(turns: int) -> list[Line]:
    lines: list[Line] = []
    for name, dtype, laid_out in (
        ("", torch.float32, True),
        (", as torch multiplies", torch.float32, False),
        (", bfloat16", torch.bfloat16, False),
    ):
        ours, peer = packed(dtype, laid_out=laid_out), Reference(model(dtype, laid_out=laid_out), None)
        apart = differ(ours.digits, peer.digits)
        assert apart <= CLOSE or dtype == torch.bfloat16, apart
        found = in_turns({"ours": (QUESTIONS, ours.digits), "peer": (BY_ONES, peer.digits)}, turns)
        lines.append(line(f"simulate/reference{name}", found["ours"], found["peer"], 13, apart=apart))
    return lines


def measure_expanded_cache(turns: int) -> list[Line]:
    lines: list[Line] = []
    for name, laid_out in (("", True), (", as torch multiplies", False)):
        ours, peer = packed(laid_out=laid_out), Expanded(model(laid_out=laid_out), EXPANDED)
        apart = differ(ours.digits, peer.digits)
        assert apart <= CLOSE, apart
        found = in_turns({"ours": (QUESTIONS, ours.digits), "peer": (QUESTIONS, peer.digits)}, turns)
        lines.append(line(f"simulate/expanded-cache{name}", found["ours"], found["peer"], 1.4, apart=apart))
    return lines


def differ(ours: Callable[[PrefixBlock], Any], peer: Callable[[PrefixBlock], Any]) -> float:
    asked = block(40, -1)
    one, other = ours(asked), peer(asked)
    values = np.exp(other.logp) @ np.arange(10)
    assert values.std() > 0.3, "answers do not vary, and so agree for nothing"
    return float(max(np.abs(one.logp - other.logp).max(), np.abs(one.logmass - other.logmass).max()))


class Expanded:
    """What transformers offers: the prefix's cache, copied for a few suffixes at a time by its own method. They come by
    length, and the head is read at their ends alone."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.batch = model, batch

    @torch.inference_mode()
    def digits(self, block: PrefixBlock) -> Any:
        prefix = torch.from_numpy(block.prefix.astype(np.int64))[None]
        cache = DynamicCache(config=self.model.config)
        self.model.model(prefix, past_key_values=cache, use_cache=True)
        logits_NV = torch.empty(len(block), self.model.config.vocab_size)
        order = np.argsort(block.lengths, kind="stable")
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            logits_NV[chosen] = self._logits(block, chosen, cache)
        logp_NK = torch.log_softmax(logits_NV, dim=-1)[:, list(block.labels)]
        return _Told((logp_NK - logp_NK.logsumexp(-1, keepdim=True)).numpy(), logp_NK.logsumexp(-1).numpy())

    def _logits(self, block: PrefixBlock, chosen: np.ndarray, kept: DynamicCache) -> Tensor:
        lengths = torch.from_numpy(block.lengths[chosen])
        ids_NM = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.int64)
        for row, index in enumerate(chosen):
            ids_NM[row, : lengths[row]] = torch.from_numpy(block.suffix(index).astype(np.int64))
        cache = copy.deepcopy(kept)
        cache.batch_repeat_interleave(len(chosen))
        own_NM = torch.arange(ids_NM.shape[1]) < lengths[:, None]
        seen = torch.cat([torch.ones(len(chosen), len(block.prefix), dtype=torch.bool), own_NM], dim=1)
        hidden = self.model.model(ids_NM, attention_mask=seen.long(), past_key_values=cache, use_cache=True)
        return self.model.lm_head(hidden.last_hidden_state[torch.arange(len(chosen)), lengths - 1])


class _Told:
    def __init__(self, logp: np.ndarray, logmass: np.ndarray) -> None:
        self.logp, self.logmass = logp, logmass


# -- what the engine itself costs -------------------------------------------------------------------------------------


class _Nothing(nn.Module):
    def forward(self, hidden: Tensor, **given: Any) -> Tensor:
        return hidden


def measure_host(turns: int) -> list[Line]:
    """CPU time of the engine with the layers' arithmetic left out, and of the layers' Python with hardly any."""
    stubbed = packed(mass=False)
    stubbed.digits(block(8, 0, same_prefix=True))  # its keys and values are remembered
    stubbed.anatomy.layers = [_Nothing() for _ in stubbed.anatomy.layers]
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    tiny = packed(mass=False, **narrow, head_dim=16)
    lines: list[Line] = []
    for what, engine, prefix, bound in (
        ("host CPU for one question, layers stubbed", stubbed, PREFIX, 0.05),
        (f"host CPU for one question, {LAYERS} layers of width 16, prefix of 1 token", tiny, 1, None),
    ):
        found = in_turns({"ours": (2048, engine.digits)}, turns, same_prefix=True, prefix=prefix)
        milliseconds = 1000 * statistics.median(found["ours"])
        lines.append({"what": what, "ours": milliseconds, "peer": None, "unit": "milliseconds", "at_most": bound})
    return lines


def measure_lengths(turns: int) -> list[Line]:
    lines: list[Line] = []
    engine, usual = packed(laid_out=True), 0.0
    for prefix in sorted(LENGTHS, key=lambda each: each != PREFIX):
        found = in_turns({"ours": (QUESTIONS, engine.digits)}, max(turns // 2, 3), prefix=prefix)["ours"]
        usual = usual or statistics.median(found)
        cost = statistics.median(found) / usual
        bound = {"at_most": 1.5} if prefix == 1152 else {}
        what = f"prefix of {prefix} tokens: cost of a question beside one of {PREFIX}"
        speed = {"questions_per_cpu_second": 1 / statistics.median(found)}
        lines.append({"what": what, "ours": cost, "peer": 1.0, "unit": "ratio", "ratio": 1 / cost, **bound, **speed})
    return lines


def measure_screen(turns: int) -> list[Line]:
    """Going on with one question in twenty behind each layer."""
    engine, kept = packed(laid_out=True), 26
    lines: list[Line] = []
    for layer in range(1, LAYERS):
        chosen = torch.from_numpy(np.sort(generator(0, "kept", layer).permutation(QUESTIONS)[:kept]))
        screen = Screen(layer, lambda hidden, chosen=chosen: chosen)

        def screened(asked: PrefixBlock, screen: Screen = screen) -> object:
            return engine.digits(asked, screen)

        whole, part = engine.digits(block(QUESTIONS, -1)), engine.digits(block(QUESTIONS, -1), screen)
        apart = float(np.abs(whole.logp[chosen] - part.logp[chosen]).max())
        sides: dict[str, tuple[int, Ask]] = {"ours": (QUESTIONS, screened), "peer": (QUESTIONS, engine.digits)}
        found = in_turns(sides, max(turns // 2, 3), same_prefix=True)
        share = statistics.median(found["ours"]) / statistics.median(found["peer"])
        arithmetic = layer / LAYERS + kept / QUESTIONS * (1 - layer / LAYERS)
        what = f"{kept} of {QUESTIONS} go on behind layer {layer} of {LAYERS}: share of the whole cost"
        more = {"arithmetic": arithmetic, "survivors_apart": apart}
        lines.append({"what": what, "ours": share, "peer": 1.0, "unit": "ratio", "ratio": 1 / share, **more})
    return lines


def measure_vllm(turns: int) -> list[Line]:
    if importlib.util.find_spec("vllm") is None:
        return [{"what": "simulate/vllm", "ours": None, "peer": None, "unit": "no vLLM in this environment"}]
    command = [sys.executable, "-m", "benchmarks.simulate_vllm", "--turns", str(turns), "--out", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(each) for each in done.stdout.splitlines() if each.startswith("{")]


# -- on a GPU ---------------------------------------------------------------------------------------------------------

SUFFIX = 30
EIGHT_BILLION = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def measure_gpu(turns: int) -> list[Line]:
    """Questions per second, and the forward pass's arithmetic as a share of the device's own matrix products."""
    assert torch.cuda.is_available(), "there is no GPU"
    where = {"machine": torch.cuda.get_device_name()}
    rate = matrix_products()
    lines: list[Line] = [{"what": "matrix products, bfloat16", "ours": rate / 1e12, "unit": "TFLOP/s", **where}]
    cut = {**EIGHT_BILLION, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "initializer_range": 0.02}
    one, other = (kind(model(**cut).cuda(), None) for kind in (Packed, Reference))
    apart = differ(one.digits, other.digits)
    assert apart <= 1e-4, apart
    lines.append({"what": "two layers in float32, packed from one by one", "ours": apart, "unit": "nats", **where})
    del one, other
    with torch.device("cuda"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        made: Any = AutoModelForCausalLM.from_config(LlamaConfig(**EIGHT_BILLION), attn_implementation="sdpa")
        torch.set_default_dtype(before)
    made = made.eval().requires_grad_(False)
    for tokens in (4096, 8192, 16_384):
        engine = Packed(made, None, tokens=tokens)
        for prefix in (576, 1152):
            seconds = [_on_gpu(engine, prefix, turn) for turn in range(turns + 1)][1:]
            each = statistics.median(seconds)
            done = work(prefix) / each
            more = {"hours_for_all_questions": ALL_QUESTIONS * each / 3600, "tflops": done / 1e12, **where}
            what = f"simulate/gpu, Llama-3-8B shape, prefix {prefix}, rows of {tokens} tokens: share of matrix products"
            speed = {"questions_per_second": 1 / each, "at_least": 0.5}
            ratio = done / rate
            lines.append({"what": what, "ours": done, "peer": rate, "unit": "FLOP/s", "ratio": ratio, **speed, **more})
        engine.close()
    return lines


def _on_gpu(engine: Packed, prefix: int, turn: int, questions: int = 4096) -> float:
    """Seconds a question; the prefix is remembered."""
    draws = generator(0, "gpu", turn)
    start = generator(0, "gpu prefix", prefix).integers(0, EIGHT_BILLION["vocab_size"], prefix)
    suffixes = draws.integers(0, EIGHT_BILLION["vocab_size"], (questions, SUFFIX)).tolist()
    asked = PrefixBlock.of(start.tolist(), suffixes, LABELS)
    torch.cuda.synchronize()
    started = time.perf_counter()
    engine.digits(asked)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / questions


def matrix_products(size: int = 8192) -> float:
    """FLOP/s of square products in bfloat16."""
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        one @ other
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(30):
        one @ other
    torch.cuda.synchronize()
    return 30 * 2 * size**3 / (time.perf_counter() - started)


def work(prefix: int) -> float:
    """FLOP of a question: products with weights, attention, and the head over the whole vocabulary."""
    width, layers = EIGHT_BILLION["hidden_size"], EIGHT_BILLION["num_hidden_layers"]
    keys = width * EIGHT_BILLION["num_key_value_heads"] // EIGHT_BILLION["num_attention_heads"]
    token = 2 * layers * (2 * width**2 + 2 * width * keys + 3 * width * EIGHT_BILLION["intermediate_size"])
    pairs = SUFFIX * prefix + SUFFIX * (SUFFIX + 1) / 2
    return SUFFIX * token + 4 * layers * width * pairs + 2 * width * EIGHT_BILLION["vocab_size"]


MEASURED: dict[str, Callable[[int], list[Line]]] = {
    "reference": measure_reference,
    "expanded-cache": measure_expanded_cache,
    "host": measure_host,
    "lengths": measure_lengths,
    "screen": measure_screen,
    "vllm": measure_vllm,
    "gpu": measure_gpu,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
