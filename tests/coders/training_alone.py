"""A training to be killed, in a process of its own."""

import json
import time
from pathlib import Path

import torch
import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: F401  (so that no process has to wait for it)

from nlrewrite.artifacts.local import LocalPlace
from nlrewrite.coders import finish, order, train
from tests.coders import small_training

SPEC = small_training.spec(
    width=512, k=8, batch=256, steps=150, mix=1024, optimizer="signum", learning_rate=0.005, activation="batchtopk"
)
SAVE_SECONDS = 0.02


def shrink() -> None:
    """Measure little, for it is the training that is killed."""
    torch.set_num_threads(1)
    train.OPENING_TOKENS = order.HELD_OUT_TOKENS = finish.LIVE_TOKENS = 256


def run(root: Path) -> None:
    shrink()
    write = LocalPlace.write

    def telling(self: LocalPlace, key: str, data: bytes) -> None:
        """Says when a write begins and when it has ended, and makes it last, so that some kills fall inside of it."""
        with open(root / "writes", "a") as file:
            file.write("(")
        time.sleep(0.01)
        write(self, key, data)
        with open(root / "writes", "a") as file:
            file.write(")")

    LocalPlace.write = telling  # type: ignore[method-assign]
    given = small_training.inputs(root.parent / "store")
    build = small_training.build(given, root / "out", SPEC, small_training.work(root), save_seconds=SAVE_SECONDS)
    (root / "done").write_text(json.dumps(build["fvu"]))
