"""Our side of benchmarks/train.py: the step that builds a coder, on the same model, tokens and sizes as the peers'.

    python -m benchmarks.train_ours FOLDER

In: a folder with `model/` and `rows.bin`, then one JSON request a line on the standard input: {"recipe": "sparsify" |
"sae-lens", "steps": 10, "fast": true, ...}. Out: one JSON answer a line, {"seconds": CPU seconds of the whole step of
the pipeline, ...}. Invariant: one thread; what is timed is the function that the table of steps names for a coder,
with nothing of it replaced; nothing is saved in between, as with the peers.
"""

import json
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.train_sizes import BATCH, LATENTS, LAYER, WINDOW, D, K
from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Store
from nlrewrite.coders import initial
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import CoderSpec, Site, Spec, TokenRows
from nlrewrite.steps import Running
from nlrewrite.text import rowfile

SIZES: dict[str, Any] = {"width": LATENTS, "k": K, "batch": BATCH, "window": WINDOW, "order": "sequential"}
RECIPES: dict[str, dict[str, Any]] = {
    "sparsify": {
        "site": Site(kind="mlp", layer=LAYER),
        "skip": True,
        "loss": "fvu",
        "init": "uniform",
        "learning_rate": None,
        "warm_up": 1000,
        "decay": 1.0,
        "mix": 0,
    },
    "sae-lens": {
        "site": Site(kind="residual", layer=LAYER),
        "skip": False,
        "loss": "squared",
        "init": "tied",
        "unit_decoder": True,
        "tied_bias": True,
        "auxk": 128,
        "auxk_weight": 1.0,
        "dead_after": 1000 * BATCH,
        "learning_rate": 3e-4,
        "warm_up": 0,
        "decay": 0.0,
        "mix": 2 * BATCH,  # of which the peer keeps a half as well
    },
}


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        side = Side(folder, Path(scratch))
        for line in sys.stdin:
            answers.write(json.dumps(side.train(**json.loads(line))) + "\n")


class Side:
    """The subject and the stream as the pipeline has them, and coders trained on them."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.work = work
        rows = folder / "rows.bin"
        self.execution = Execution(
            threads=1,
            batch_tokens=BATCH,
            token_rows=str(rows),
            scratch=str(work / "scratch"),
            store=str(work / "store"),
        )
        self.data = TokenRows(dtype="uint16", row=WINDOW, content=rowfile.content(rows, self.execution))
        store = Store(self.execution.store)
        subject = Artifact(kind="subject", digest="0" * 16)
        with store.attempt(subject) as attempt:
            for file in (folder / "model").iterdir():
                (attempt.folder / file.name).write_bytes(file.read_bytes())
            made = steps.provenance(steps.STEPS["subject"], self.execution, "benchmark", 0.0)
            store.commit(attempt, version=1, spec=Spec(), inputs={}, made=made)
        inputs = {"subject": subject}
        stream = steps.name("stream", self.data, inputs)
        steps.build(stream, self.data, inputs, store, self.execution, Progress(), "benchmark", store.find(stream))
        self.inputs = {"subject": store.folder(subject), "stream": store.folder(stream)}
        module, _, name = steps.STEPS["coder"].function.partition(":")
        self.build = getattr(import_module(module), name)

    def train(
        self,
        recipe: str,
        steps: int,
        fast: bool = True,
        start: str | None = None,
        save: str | None = None,
        **changed: Any,
    ) -> dict[str, Any]:
        """One coder by a recipe; `start`: a file for the encoder it starts from; `save`: a folder for the coder."""
        spec = CoderSpec.model_validate({**SIZES, **RECIPES[recipe], "data": self.data, "steps": steps, **changed})
        execution = self.execution.model_copy(update={"fast_products": fast})
        out = Path(tempfile.mkdtemp(dir=self.work)) if save is None else Path(save)
        out.mkdir(parents=True, exist_ok=True)
        if start is not None:
            anything = torch.zeros(2, D)
            save_file({"W_enc": initial.weights(spec, anything, anything)["enc"]}, start)
        began = time.process_time()
        self.build(spec, self.inputs, out, Running(execution, Progress()))
        seconds = time.process_time() - began
        return {"seconds": seconds, "fvu": json.loads((out / "training.json").read_text())["fvu"]}


if __name__ == "__main__":
    main()
