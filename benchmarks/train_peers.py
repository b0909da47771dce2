"""The peers' side of benchmarks/train.py: sparsify and SAELens train as their users run them, in .venv-peers.

    python -m benchmarks.train_peers FOLDER

In: a folder with `model/` (transformers' format) and `rows.bin` (uint16), then one JSON request a line on the standard
input: {"peer": "sparsify" | "sae-lens", "steps": 10, "products": null | "medium", ...}. Out: one JSON answer a line,
{"seconds": CPU seconds of the whole training, ...}. Invariant: one thread; logging and saving are off; everything else
is the peer's own, statistics and masks included. `products` is what torch.set_float32_matmul_precision is held at; null
leaves it to the peer.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train_sizes import BATCH, LATENTS, LAYER, SEQUENCES, WINDOW, D, K

NEVER = 1 << 40

set_products = torch.set_float32_matmul_precision


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints goes beside the answers
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        peer = {"sparsify": sparsify, "sae-lens": saelens}[asked.pop("peer")]
        with held(asked.pop("products", None)), contextlib.redirect_stdout(sys.stderr):
            told = peer(folder, **asked)
        answers.write(json.dumps(told) + "\n")


@contextlib.contextmanager
def held(products: str | None):
    """Keep torch's matmul precision at `products`, whatever the peer sets."""
    set_products("highest")
    if products is None:
        yield
        return
    set_products(products)
    torch.set_float32_matmul_precision = lambda _: None
    try:
        yield
    finally:
        torch.set_float32_matmul_precision = set_products


def subject(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def rows(folder: Path, steps: int) -> Any:
    """The first rows of the file, in memory: as many as `steps` need."""
    from datasets import Dataset

    ids = np.fromfile(folder / "rows.bin", dtype=np.uint16).reshape(-1, WINDOW)[: steps * SEQUENCES]
    return Dataset.from_dict({"input_ids": ids.astype(np.int64)}).with_format("torch")


def sparsify(
    folder: Path,
    steps: int,
    optimizer: str = "adam",
    rate: float | None = None,
    warm_up: int = 1000,
    start: str | None = None,
    save: str | None = None,
) -> dict[str, Any]:
    """A skip transcoder, by sparsify's Trainer; `start`: safetensors with its encoder; `save`: where the coder goes."""
    from safetensors.torch import load_file
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            SparseCoderConfig(num_latents=LATENTS, k=K, skip_connection=True, transcode=True),
            batch_size=SEQUENCES,
            optimizer=optimizer,
            lr=rate,
            lr_warmup_steps=warm_up,
            hookpoints=[f"layers.{LAYER}.mlp"],
            log_to_wandb=False,
            save_every=NEVER,
            save_dir=save or scratch,
        )
        trainer = Trainer(config, rows(folder, steps), subject(folder))
        if start is not None:
            (coder,) = trainer.saes.values()
            coder.encoder.weight.data.copy_(load_file(start)["W_enc"])
        trainer.save = lambda: None
        began = time.process_time()
        trainer.fit()
        seconds = time.process_time() - began
        if save is not None:
            del trainer.save
            trainer.save()
    return {"seconds": seconds, "steps": trainer.global_step}


def saelens(folder: Path, steps: int) -> dict[str, Any]:
    """A TopK SAE, by SAELens' runner on a pre-tokenised dataset."""
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    hook = f"gpt_neox.layers.{LAYER}"
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=D, d_sae=LATENTS, k=K),
        model_name="stand-in",
        model_class_name="AutoModelForCausalLM",
        hook_name=hook,
        dataset_path="in memory",
        is_dataset_tokenized=True,
        streaming=False,
        prepend_bos=False,
        context_size=WINDOW,
        training_tokens=steps * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=SEQUENCES,
        n_batches_in_buffer=16,
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
        device="cpu",
        verbose=False,
    )
    model = HookedProxyLM(subject(folder), None, hook_names=[hook])  # pyright: ignore
    runner = LanguageModelSAETrainingRunner(config, override_dataset=rows(folder, 2 * steps), override_model=model)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.model.get_submodule(hook).register_forward_pre_hook(count)
    began = time.process_time()
    runner.run()
    return {"seconds": time.process_time() - began, "passes": passes}


if __name__ == "__main__":
    main()
