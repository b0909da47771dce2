"""What training a coder costs: ours beside eai-sparsify's and SAELens', the same work on the same machine in one run.

    python -m benchmarks.train speed fvu step --out train.jsonl

Every figure is one line of JSON, printed and appended to `--out`: `what`, `ours`, `peer`, `unit`, `ratio`, `machine`.

The subject is a random GPT-NeoX of 6 layers, width 256, on random tokens with p proportional to 1 / rank, in sequences
of 512, 8 to a step; the coder has 8,192 latents, 32 active, and learns by Adam: a skip transcoder of the MLP of layer 3
beside sparsify, an SAE of the output of layer 3 beside SAELens. Each side is a process of its own (ours in .venv, the
peers' in .venv-peers) with one thread, that trains as its users train: forward pass of the subject, coder, optimizer
and the side's own statistics count; logging and saving are off. The cost of a step is that of a long training less
that of a short one, over the steps between them, so that what is done once cancels; speeds are tokens per second of CPU
time, medians over rounds in which all sides take turns. Only ratios carry over to another machine.

    train/NAME                        each side as it comes: ours with fast products, where they are exact
    train/NAME-same-precision         torch.set_float32_matmul_precision at "highest" on both sides
    train/NAME-same-precision-medium  at "medium" on both, which on this kind of processor still multiplies in float32
    train/sparsify-fvu-200            unexplained variance after 200 steps from the same encoder, on rows held out
    train/coder-step-over-gemm        loss and gradients of a coder, no optimizer, over the encoder's product alone
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.science import Line, finite, machine
from benchmarks.train_sizes import BATCH, HEADS, LATENTS, LAYER, LAYERS, POSITIONS, SEQUENCES, VOCABULARY, WINDOW, D, K

PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
SPANS = {"sparsify": (2, 10), "sae-lens": (4, 12)}
"""Steps of the short and of the long training; SAELens fills a buffer first."""
LEAVES_IT = ("sae-lens",)
"""Peers that leave torch's matmul precision at its default, "highest"; sparsify sets "high"."""
AIMS = {
    "train/sparsify": 2.3,
    "train/sae-lens": 4.0,
    "train/sparsify-same-precision": 1.6,
    "train/sae-lens-same-precision": 3.2,
}
FVU_STEPS, HELD_OUT = 200, 16
ROWS = (FVU_STEPS + 60) * SEQUENCES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*MEASURED, []], help="all, if none is named")
    parser.add_argument("--out", default="train.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--medium", action="store_true", help='speed also with both sides at "medium"')
    parser.add_argument("--peers", nargs="+", choices=list(SPANS), default=list(SPANS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, open(options.out, "a") as out:
        prepare(Path(folder))
        for part in options.parts or MEASURED:
            for line in MEASURED[part](Path(folder), options):
                line = json.dumps(finite({**line, "machine": machine()}))
                print(line, flush=True)
                out.write(line + "\n")
                out.flush()


def prepare(folder: Path) -> None:
    """A model, its tokenizer and a file of token ids."""
    from tokenizers import Tokenizer, models
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=4 * D,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPTNeoXForCausalLM(config).eval().save_pretrained(folder / "model")
    words = {"<end>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    table = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=table, bos_token="<end>", eos_token="<end>").save_pretrained(
        folder / "model"
    )
    ranks = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64)
    draws = torch.Generator().manual_seed(1)
    ids = torch.multinomial(ranks, ROWS * WINDOW, replacement=True, generator=draws)
    ids.numpy().astype(np.uint16).tofile(folder / "rows.bin")


class Side:
    """A process that trains on request."""

    def __init__(self, python: Path, module: str, folder: Path) -> None:
        if not python.exists():
            sys.exit(f"there is no {python}. Set it up with: make bench-train")
        self.said = folder / f"{module}.log"
        with open(self.said, "w") as said:
            self.process = subprocess.Popen(
                [str(python), "-m", module, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )

    def __call__(self, **asked: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"a side ended when asked for {asked}:\n{self.said.read_text()[-3000:]}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Sides:
    """Ours and the peers'."""

    def __init__(self, folder: Path) -> None:
        self.ours = Side(Path(sys.executable), "benchmarks.train_ours", folder)
        self.peers = Side(PEERS, "benchmarks.train_peers", folder)

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.peers.close()


# -- parts ------------------------------------------------------------------------------------------------------------


def speed(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    """Tokens per CPU second of whole trainings."""
    for peer in options.peers:
        with Sides(folder) as sides:
            kinds: dict[str, Callable[[int], dict[str, Any]]] = {
                "ours, fast": lambda steps, peer=peer: sides.ours(recipe=peer, steps=steps),
                "peer, its own": lambda steps, peer=peer: sides.peers(peer=peer, steps=steps),
                "ours, highest": lambda steps, peer=peer: sides.ours(recipe=peer, steps=steps, fast=False),
                "peer, highest": lambda steps, peer=peer: sides.peers(peer=peer, steps=steps, products="highest"),
                "peer, medium": lambda steps, peer=peer: sides.peers(peer=peer, steps=steps, products="medium"),
            }
            if peer in LEAVES_IT:
                del kinds["peer, highest"]  # which is its own
            if not options.medium:
                del kinds["peer, medium"]
            kinds["ours, fast"](1), kinds["peer, its own"](2)  # imports and first touches
            short, long = SPANS[peer]
            costs: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for kind, train in kinds.items():
                    less, more = (train(steps)["seconds"] for steps in (short, long))
                    costs.setdefault(kind, []).append((more - less) / (long - short))
        highest = "peer, its own" if peer in LEAVES_IT else "peer, highest"
        for suffix, ours, theirs in (
            ("", "ours, fast", "peer, its own"),
            ("-same-precision", "ours, highest", highest),
            *([("-same-precision-medium", "ours, fast", "peer, medium")] if options.medium else []),
        ):
            yield _speeds(f"train/{peer}{suffix}", costs[ours], costs[theirs], f"{ours}; {theirs}")


def fvu(folder: Path, options: argparse.Namespace) -> list[Line]:
    """Unexplained variance after the same steps on the same rows from the same encoder, at one rate that falls to 0."""
    rate = 1e-3
    ours, theirs, start = folder / "ours", folder / "theirs", folder / "start.safetensors"
    with Sides(folder) as sides:
        sides.ours(
            recipe="sparsify",
            steps=FVU_STEPS,
            learning_rate=rate,
            warm_up=0,
            start=str(start),
            save=str(ours),
        )
        sides.peers(peer="sparsify", steps=FVU_STEPS, rate=rate, warm_up=0, start=str(start), save=str(theirs))
    weights = next(theirs.rglob("sae.safetensors"))
    told = _unexplained(folder, ours / "coder.safetensors", weights)
    line = {
        "what": "train/sparsify-fvu-200",
        "ours": told[0],
        "peer": told[1],
        "unit": "share of the variance of held-out rows",
        "ratio": told[1] / told[0],
        "apart_at_most": 0.01,
        "settings": f"rate {rate:g} falling to 0, fvu as the loss",
    }
    return [line]


def step(folder: Path, options: argparse.Namespace) -> list[Line]:
    """CPU time of the loss and its gradients over that of the encoder's product, under the same setting."""
    from nlrewrite.coders.learned import Learned
    from nlrewrite.coders.products import fast_products
    from nlrewrite.specs import CoderSpec, Site

    spec = CoderSpec(site=Site(layer=LAYER), width=LATENTS, k=K, batch=BATCH, loss="fvu", init="uniform")
    draws = torch.Generator().manual_seed(2)
    x_ND, y_ND = (torch.randn(BATCH, D, generator=draws) for _ in range(2))
    learned = Learned.initial(spec, x_ND, y_ND)
    with torch.no_grad():
        learned.weights["dec"].copy_(torch.randn(LATENTS, D, generator=draws) / D**0.5)
    out_NL = torch.empty(BATCH, LATENTS)
    enc_LD = learned.weights["enc"].detach()

    def whole() -> None:
        for parameter in learned.parameters():
            parameter.grad = None
        learned.loss(x_ND, y_ND, 0).total.backward()

    lines: list[Line] = []
    for fast in (True, False):
        with fast_products(fast):
            turns = [
                (_cpu(whole), _cpu(lambda: torch.mm(x_ND, enc_LD.T, out=out_NL))) for _ in range(4 * options.rounds + 1)
            ][1:]
        ours, product = (statistics.median(turn[side] for turn in turns) for side in (0, 1))
        line = {
            "what": f"train/coder-step-over-gemm{'' if fast else ', highest'}",
            "ours": 1e3 * ours,
            "peer": 1e3 * product,
            "unit": "CPU milliseconds",
            "ratio": statistics.median(step / product for step, product in turns),
            "at_most": 3.0,
        }
        lines.append(line)
    return lines


MEASURED: dict[str, Callable[[Path, argparse.Namespace], Iterable[Line]]] = {"speed": speed, "fvu": fvu, "step": step}


# -- within -----------------------------------------------------------------------------------------------------------


def _cpu(act: Callable[[], Any]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def _speeds(what: str, ours: list[float], peer: list[float], settings: str) -> Line:
    """Of costs of a step in seconds, round by round."""
    ratios = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return {
        "what": what,
        "ours": BATCH / mine,
        "peer": BATCH / theirs,
        "unit": "tokens per CPU second",
        "ratio": theirs / mine,
        "rounds": [min(ratios), max(ratios)],
        "milliseconds_a_step": [1e3 * mine, 1e3 * theirs],
        "settings": settings,
    } | ({"at_least": AIMS[what]} if what in AIMS else {})


def _unexplained(folder: Path, ours: Path, theirs: Path) -> tuple[float, float]:
    """Of both coders, on rows that neither saw."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.gpt_neox.layers[LAYER].mlp.register_forward_hook(
        lambda _, args, output: seen.append((args[0].flatten(0, 1), output.flatten(0, 1)))
    )
    ids = np.fromfile(folder / "rows.bin", dtype=np.uint16).reshape(-1, WINDOW)[-HELD_OUT:].astype(np.int64)
    with torch.no_grad():
        for part in torch.from_numpy(ids).split(SEQUENCES):
            model(part)
        x_ND, y_ND = (torch.cat(some) for some in zip(*seen, strict=True))
        mine, his = load_file(ours), load_file(theirs)
        return (
            _fvu(x_ND, y_ND, *(mine[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"))),
            _fvu(x_ND, y_ND, *(his[name] for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"))),
        )


def _fvu(x_ND, y_ND, enc_LD, bias_L, dec_LD, bias_D, skip_DD) -> float:
    values, indices = torch.addmm(bias_L, x_ND, enc_LD.T).topk(K, dim=-1)
    written = torch.nn.functional.embedding_bag(indices, dec_LD, mode="sum", per_sample_weights=values.clamp_min(0.0))
    error = written + x_ND @ skip_DD.T + bias_D - y_ND
    return float(error.square().sum() / (y_ND - y_ND.mean(0)).square().sum())


if __name__ == "__main__":
    main()
