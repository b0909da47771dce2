"""`packed` beside vLLM, both engines in one process and on one thread: `simulate/vllm` and what vLLM costs its host.

    .venv-vllm/bin/python -m benchmarks.simulate_vllm --out simulate.jsonl

Figures as in benchmarks/simulate.py, which also runs this. `nano` has 2 layers of width 64, so that the engines' own
work shows; `tiny` is the model of benchmarks/simulate.py. vLLM lays its weights out for the processor by itself; ours
are laid out where a line says so. The prefix is a whole number of vLLM's blocks. `host` lines have the model's layers
stubbed out: what is left is the engine.
"""

import argparse
import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.science import Line
from benchmarks.simulate import CLOSE, QUESTIONS, VOCABULARY, Ask, differ, in_turns, line, model, tell
from nlrewrite.llm.engine import PrefixBlock
from nlrewrite.llm.packed import Packed
from nlrewrite.llm.vllm import Mode, Vllm

SHAPES: dict[str, dict[str, Any]] = {
    "nano": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,  # vLLM's attention on a CPU takes no narrower heads
        "initializer_range": 0.12,
    },
    "tiny": {},
}
AIM = 1.2
"""For nano; on the larger model the layers' arithmetic decides."""
LABELS = tuple(range(1, 11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*SHAPES, []], help="all, if none is named")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", default="simulate.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models or SHAPES:
            for each in compared(name, saved(name, Path(folder) / name), given.turns):
                tell(each, Path(given.out))


def saved(name: str, folder: Path) -> Path:
    model(**SHAPES[name]).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    table = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCABULARY)}, unk_token="w0"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=table, eos_token="w0")


def compared(name: str, folder: Path, turns: int) -> list[Line]:
    lines: list[Line] = []
    for mode in cast(tuple[Mode, ...], ("generate", "pooling")):
        before = time.process_time()
        with closing(Vllm(folder, mode=mode, labels=LABELS if mode == "pooling" else ())) as vllm:
            starts = time.process_time() - before
            plain, laid_out = (
                Packed(model(**SHAPES[name], laid_out=laid), None, mass=mode == "generate") for laid in (False, True)
            )
            apart = differ(laid_out.digits, vllm.digits) if mode == "generate" else None
            assert apart is None or apart <= CLOSE, apart
            sides: dict[str, tuple[int, Ask]] = {
                side: (QUESTIONS, engine.digits)
                for side, engine in {"plain": plain, "laid out": laid_out, "vllm": vllm}.items()
            }
            found = in_turns(sides, turns)
            more = {"apart": apart, "vllm_starts_in_cpu_seconds": starts}
            what = f"simulate/vllm, {name}, {mode}"
            bound = AIM if name == "nano" else 0.7
            lines.append(line(what, found["plain"], found["vllm"], bound, **more))
            lines.append(line(f"{what}, laid out", found["laid out"], found["vllm"], bound, **more))
            if name == "nano" and mode == "generate":
                lines.append(against_text(vllm, turns))
            if name == "nano":
                lines.append(host(vllm, turns, mode))
    return lines


def against_text(vllm: Vllm, turns: int) -> Line:
    """Token ids and the labels alone, against what is usually written: texts, and the 20 likeliest tokens."""
    usual, words = vllm._vllm.SamplingParams(max_tokens=1, temperature=0.0, logprobs=20), tokenizer()

    def as_text(asked: PrefixBlock) -> None:
        ids = [[*asked.prefix.tolist(), *asked.suffix(index).tolist()] for index in range(len(asked))]
        vllm._llm.generate(words.batch_decode(ids), usual, use_tqdm=False)

    found = in_turns({"ids": (QUESTIONS, vllm.digits), "text": (QUESTIONS // 4, as_text)}, turns)
    what = "vllm, nano: ids and the labels' probabilities/texts and the 20 likeliest tokens"
    return line(what, found["ids"], found["text"], 3)


def host(vllm: Vllm, turns: int, mode: Mode) -> Line:
    """CPU time of the engine for one question, the layers doing nothing."""
    runner = vllm._llm.llm_engine.model_executor.driver_worker.worker.model_runner
    width = runner.model.config.hidden_size

    def nothing(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(len(input_ids), width)

    runner.model.model.forward = nothing
    found = in_turns({"vllm": (QUESTIONS, vllm.digits)}, turns)["vllm"]
    what = f"host CPU of vLLM for one question, layers stubbed, {mode}"
    return {"what": what, "ours": 1e3 * min(found), "unit": "milliseconds", "at_most": 0.25}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
