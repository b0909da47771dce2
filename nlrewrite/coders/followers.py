"""Training on several processes: rank 0 walks the composition, the others wait to be called to train a coder with it.

    torchrun --nproc-per-node 8 -m nlrewrite train-coder --device cuda ...

In: what torchrun says of this process, and rank 0's calls. Out: on rank 0 what one process alone would have made; on
the others nothing. Invariant: a follower runs the very function that rank 0 runs, on the same artifacts and with its
share of every batch, and writes nothing into the store; it leaves when rank 0 is done, and fails when rank 0 has ended
otherwise.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.execution import Execution
from nlrewrite.specs import CoderSpec

_calling = False


class Call(BaseModel):
    """What rank 0 tells the others to train with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    specs: tuple[CoderSpec, ...]
    inputs: dict[str, Artifact]


def several() -> bool:
    """Whether torchrun has started this process as one of several; they run the steps in themselves, not in a flow."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def together(execution: Execution) -> Iterator[bool]:
    """Whether this process leads, as the only one or as rank 0; False once it has followed to the end.

    Around everything that a command does after its settings are known: every process has the same command line.
    """
    if not several():
        yield True
        return
    from nlrewrite.coders.ranks import join, joined, leave

    join(execution.device)
    try:
        if joined().rank:
            follow(execution)
            yield False
            return
        try:
            yield True
        finally:
            if not _calling:  # else the others are in the middle of a sum, and see that it will not come
                joined().told(None)
    finally:
        leave()


@contextmanager
def called(specs: Sequence[CoderSpec], inputs: Mapping[str, Folder]) -> Iterator[None]:
    """Around the training of coders: rank 0 calls the others to it. Alone, and on the others, nothing."""
    from nlrewrite.coders.ranks import joined

    global _calling
    ranks = joined()
    if ranks.world == 1 or ranks.rank:
        yield
        return
    names = {label: folder.manifest.artifact for label, folder in inputs.items()}
    ranks.told(Call(specs=tuple(specs), inputs=names).model_dump(mode="json"))
    _calling = True
    yield
    _calling = False


def follow(execution: Execution) -> None:
    """Train with rank 0 whenever it calls, until it is done."""
    import torch

    from nlrewrite.coders.ranks import joined
    from nlrewrite.coders.train import build_together
    from nlrewrite.progress import Progress
    from nlrewrite.steps import Job, Running

    torch.set_num_threads(execution.threads)
    store = Store(execution.store, execution.scratch)
    while (told := joined().told(None)) is not None:
        call = Call.model_validate(told)
        folders = {label: store.folder(artifact) for label, artifact in call.inputs.items()}
        with tempfile.TemporaryDirectory() as nowhere:
            jobs = [Job(spec, Path(nowhere), None) for spec in call.specs]
            build_together(jobs, folders, Running(execution, Progress()))
