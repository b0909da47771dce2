"""Training coders on this machine's GPU: parts of benchmarks/accept_gpu.py.

    kernels    bag, dots and unbag at the sizes of two published coders, against float64, twice, and their time
    top-k      torch's own against two stages by size of group
    training   the step of the pipeline on a model of Pythia-160M's shape with random weights and random tokens

In: the options of the script. Out: lines. Invariant: what is measured is what training calls (`coders/ops.py`, the
function that the table of steps names), at the published sizes on a GPU and at tiny ones otherwise.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.coders import ops
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.specs import CoderSpec, Site, Spec, TokenRows
from nlrewrite.steps import Running
from nlrewrite.text import rowfile

Line = dict[str, Any]
LIMIT = 4.5e6
"""Tokens per second of an H200 at 790 TFLOP/s: 121 MFLOP a token in the model up to layer 6 and 53 in the coder."""
LEAST_SHARE = 0.45
GROUPS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Shape:
    """Of a step of a coder."""

    rows: int
    width: int
    latents: int
    k: int


SHAPES = {"pythia": Shape(16384, 768, 32768, 32), "smollm2": Shape(16384, 576, 18432, 128)}
TINY = {"pythia": Shape(256, 96, 512, 8)}


@dataclass(frozen=True)
class Run:
    """A training that is timed."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    window: int
    rows: int
    """Of the file of token ids."""
    coder: dict[str, Any]
    short: int
    long: int
    """Steps; what both have in common is not counted."""


PYTHIA = Run(768, 12, 12, 50304, 2048, 1024, {"width": 32768, "k": 32, "batch": 1 << 17}, 10, 40)
SMALL = Run(64, 3, 4, 128, 64, 64, {"width": 512, "k": 8, "batch": 512}, 4, 12)


def kernels(given: argparse.Namespace, small: bool) -> Iterator[Line]:
    """The largest error is that of the entry furthest off, over the largest entry."""
    for name, shape in (TINY if small else SHAPES).items():
        indices, offsets, values, x_ND, W_LD = drawn(shape, given.device)
        rows = ops.rows_of(offsets)
        calls: dict[str, Callable[[], Tensor]] = {
            "bag": lambda i=indices, o=offsets, v=values, W=W_LD: ops.bag(v, i, o, W),
            "dots": lambda i=indices, o=offsets, x=x_ND, W=W_LD: ops.dots(i, o, x, W),
            "unbag": lambda i=indices, o=offsets, v=values, x=x_ND, n=shape.latents: ops.unbag(v, i, o, x, n),
        }
        wanted = {
            "bag": summed(rows, indices, values, W_LD, shape.rows),
            "dots": products(rows, indices, x_ND, W_LD),
            "unbag": summed(indices, rows, values, x_ND, shape.latents),
        }
        for call, act in calls.items():
            found = act()
            error = float((found.double() - wanted[call]).abs().max() / wanted[call].abs().max())
            spent = seconds(act, given.device, 3 if small else 20)
            read = len(indices) * shape.width * W_LD.element_size()
            yield {
                **_aimed(f"kernels, {name}, {call}", error, "largest error, of the largest entry", most=1e-5),
                "twice_the_same_bits": bool(torch.equal(found, act())),
                "milliseconds": 1e3 * spent,
                "ns_per_token": 1e9 * spent / shape.rows,
                "terabytes_per_second": read / spent / 1e12,
            }
        same = all(torch.equal(calls["unbag"](), calls["unbag"]()) for _ in range(5))
        yield _aimed(f"kernels, {name}, unbag again", float(same), "equal bits", least=1.0)


def top_k(given: argparse.Namespace, small: bool) -> Iterator[Line]:
    for name, shape in (TINY if small else SHAPES).items():
        for dtype in (torch.bfloat16, torch.float32):
            draws = torch_generator(0, "accept", name)
            p_NL = torch.randn(shape.rows, shape.latents, generator=draws).to(given.device, dtype)
            wanted = torch.topk(p_NL, shape.k).values
            ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
                "torch": lambda p=p_NL, k=shape.k: torch.topk(p, k, sorted=False),  # type: ignore[dict-item]
                "ours": lambda p=p_NL, k=shape.k: ops.topk(p, k),
            }
            for size in GROUPS:
                if shape.latents % size == 0 and shape.latents // size >= shape.k:
                    ways[f"groups of {size}"] = lambda p=p_NL, k=shape.k, g=size: staged(p, k, g)
            for way, act in ways.items():
                exact = float(torch.equal(act()[0].sort(dim=-1, descending=True).values, wanted))
                line = _aimed(f"top-k, {name}, {str(dtype)[6:]}, {way}", exact, "values as torch's", least=1.0)
                spent = seconds(act, given.device, 3 if small else 20)
                yield {**line, "milliseconds": 1e3 * spent, "ns_per_token": 1e9 * spent / shape.rows}


def training(given: argparse.Namespace, small: bool) -> Iterator[Line]:
    """Tokens per second between a short and a long run of the same coder, and the long one's bits twice."""
    run = SMALL if small else PYTHIA
    inputs, execution, data = prepared(run, given)
    shares: list[float] = []
    digests: set[str] = set()
    for _ in range(2):
        spent = {}
        for count in (run.short, run.long):
            out = given.work / f"coder-{count}"
            out.mkdir(parents=True, exist_ok=True)
            spec = CoderSpec(
                **run.coder,
                site=Site(layer=run.layers // 2),
                steps=count,
                window=run.window,
                order="sequential",
                mix=0,
                data=data,
                loss="fvu",
                init="uniform",
                learning_rate=None,
                precision="float32" if given.device == "cpu" else "bfloat16",
            )
            spent[count] = timed(spec, inputs, out, execution)
        digests.add(hashlib.sha256((given.work / f"coder-{run.long}" / "coder.safetensors").read_bytes()).hexdigest())
        shares.append(run.coder["batch"] * (run.long - run.short) / (spent[run.long] - spent[run.short]))
    line = _aimed("training", max(shares) / LIMIT, "of the limit", least=None if small else LEAST_SHARE)
    peak = torch.cuda.max_memory_allocated() / 1e9 if given.device == "cuda" else None
    yield {**line, "tokens_per_second": shares, "peak_gigabytes": peak, **run.coder}
    yield _aimed("training twice", float(len(digests) == 1), "equal bits", least=1.0)


# -- within -----------------------------------------------------------------------------------------------------------


def drawn(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A code of which one latent is active on every row, and matrices: indices, offsets, values, x_ND, W_LD."""
    draws = torch_generator(0, "accept")
    indices_NK = torch.randint(1, shape.latents, (shape.rows, shape.k), generator=draws)
    indices_NK[:, 0] = 0
    x_ND, W_LD = (torch.randn(count, shape.width, generator=draws) for count in (shape.rows, shape.latents))
    values = torch.rand(indices_NK.numel(), generator=draws)
    offsets = torch.arange(0, indices_NK.numel() + 1, shape.k)
    indices, offsets, values, x_ND, W_LD = (
        each.to(device) for each in (indices_NK.flatten(), offsets, values, x_ND, W_LD)
    )
    return indices, offsets, values, x_ND, W_LD


def summed(to: Tensor, of: Tensor, values: Tensor, table: Tensor, count: int) -> Tensor:
    """[count, D] float64: values times rows `of` the table, added up at `to`; some pairs at a time."""
    out = torch.zeros(count, table.shape[1], dtype=torch.float64, device=table.device)
    for part in torch.arange(len(to), device=to.device).split(1 << 16):
        out.index_add_(0, to[part], values[part, None].double() * table[of[part]].double())
    return out


def products(rows: Tensor, indices: Tensor, x_ND: Tensor, W_LD: Tensor) -> Tensor:
    parts = torch.arange(len(rows), device=rows.device).split(1 << 16)
    return torch.cat([(x_ND[rows[each]].double() * W_LD[indices[each]].double()).sum(1) for each in parts])


def staged(p_NL: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
    """Top-k in two stages by groups of a given size."""
    groups = p_NL.shape[1] // size
    chosen = torch.topk(p_NL.unflatten(1, (size, groups)).amax(1), k, sorted=False).indices
    candidates = (chosen[:, :, None] + torch.arange(size, device=p_NL.device) * groups).flatten(1)
    found = torch.topk(p_NL.gather(1, candidates), k, sorted=False)
    return found.values, candidates.gather(1, found.indices)


def seconds(act: Callable[[], object], device: str, repeats: int) -> float:
    """Median of some, after three to warm up."""
    taken: list[float] = []
    for turn in range(repeats + 3):
        _wait(device)
        began = time.perf_counter()
        act()
        _wait(device)
        if turn >= 3:
            taken.append(time.perf_counter() - began)
    return median(taken)


def prepared(run: Run, given: argparse.Namespace) -> tuple[dict[str, Folder], Execution, TokenRows]:
    """A subject with random weights and a file of random tokens, in a store."""
    from tokenizers import Tokenizer, models
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    root: Path = given.work / "training"
    root.mkdir(parents=True, exist_ok=True)
    tokens = root / "rows.bin"
    generator(0, "accept", "tokens").integers(0, run.vocabulary, (run.rows, run.window)).astype(np.uint16).tofile(
        tokens
    )
    execution = Execution(
        device=given.device,
        threads=torch.get_num_threads(),
        batch_tokens=run.coder["batch"],
        token_rows=str(tokens),
        store=str(root / "store"),
        save_seconds=86_400,
    )
    config = GPTNeoXConfig(
        vocab_size=run.vocabulary,
        hidden_size=run.width,
        intermediate_size=4 * run.width,
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        max_position_embeddings=run.window,
    )
    store = Store(execution.store)
    subject = Artifact(kind="subject", digest="0" * 16)
    if store.manifest(subject) is None:
        with store.attempt(subject) as attempt, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            GPTNeoXForCausalLM(config).save_pretrained(attempt.folder)
            words = Tokenizer(models.WordLevel({f"t{each}": each for each in range(run.vocabulary)}, unk_token="t0"))
            PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0").save_pretrained(attempt.folder)
            made = steps.provenance(steps.STEPS["subject"], execution, "benchmark", 0.0)
            store.commit(attempt, version=1, spec=Spec(), inputs={}, made=made)
    data = TokenRows(row=run.window, content=rowfile.content(tokens, execution))
    inputs = {"subject": subject}
    stream = steps.name("stream", data, inputs)
    steps.build(stream, data, inputs, store, execution, Progress(), "benchmark", store.find(stream))
    return {"subject": store.folder(subject), "stream": store.folder(stream)}, execution, data


def timed(spec: CoderSpec, inputs: dict[str, Folder], out: Path, execution: Execution) -> float:
    """Seconds of the step that builds a coder."""
    module, _, name = steps.STEPS["coder"].function.partition(":")
    build = getattr(import_module(module), name)
    _wait(execution.device)
    began = time.perf_counter()
    build(spec, inputs, out, Running(execution, Progress()))
    _wait(execution.device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _aimed(what: str, value: float, unit: str, *, least: float | None = None, most: float | None = None) -> Line:
    met = (least is None or value >= least) and (most is None or value <= most)
    return {"what": what, "ours": value, "unit": unit, "at_least": least, "at_most": most, "meets": met}
