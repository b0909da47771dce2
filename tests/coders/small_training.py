"""A random subject and a stream of token ids in a store, and coders of them trained in a moment."""

import json
from pathlib import Path

import numpy as np
import torch

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store, Work
from nlrewrite.artifacts.digest import digest
from nlrewrite.coders import train
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import CoderSpec, Site, Spec
from nlrewrite.steps import Job, Running
from tests.subject import small_models

WINDOW = 16
SPEC = CoderSpec(
    site=Site(layer=1), width=48, k=4, steps=60, batch=64, window=WINDOW, mix=256, warm_up=5, dead_after=300
)
FILES = ("coder.safetensors", "coder.json", "training.json", "record.json")


def inputs(root: Path, family: str = "gpt_neox", ids: int = 4000) -> dict[str, Folder]:
    """A subject artifact and a tokens artifact with a train split of so many ids."""
    store = Store(str(root))
    stream = generator(0, "stream").integers(0, small_models.VOCABULARY, ids).astype(np.int32)
    stream[:: WINDOW * 3] = 0
    stream[1::2] = stream[: len(stream) // 2 * 2 : 2]  # each id twice, so that there is something to predict

    def tokens(out: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"tokens": stream}, out / "train.safetensors")
        about = {"end_of_text": 0, "vocabulary": small_models.VOCABULARY}
        (out / "tokens.json").write_text(json.dumps(about))

    return {
        "subject": folder(store, "subject", lambda out: small_models.save(small_models.fresh(family), out)),
        "tokens": folder(store, "tokens", tokens),
    }


def folder(store: Store, kind: str, write) -> Folder:
    artifact = Artifact(kind=kind, digest=digest(kind))
    if store.manifest(artifact) is None:
        with store.attempt(artifact) as attempt:
            write(attempt.folder)
            made = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
            store.commit(attempt, version=1, spec=Spec(), inputs={}, made=made)
    return store.folder(artifact)


def spec(**changed: object) -> CoderSpec:
    return CoderSpec.model_validate(SPEC.model_dump() | changed)


def work(root: Path, name: str = "coder") -> Work:
    return Work(Store(str(root)).place, Artifact(kind="coder", digest=digest(name)))


def build(given: dict[str, Folder], out: Path, of: CoderSpec = SPEC, kept: Work | None = None, **execution: object):
    """The training of one coder; what training.json says of it."""
    out.mkdir(exist_ok=True, parents=True)
    train.build(of, given, out, Running(Execution(**execution), Progress(), kept))  # type: ignore[arg-type]
    return json.loads((out / "training.json").read_text())


def together(given: dict[str, Folder], jobs: list[Job], **execution: object) -> None:
    for job in jobs:
        job.out.mkdir(exist_ok=True, parents=True)
    train.build_together(jobs, given, Running(Execution(**execution), Progress()))  # type: ignore[arg-type]


def made(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "coder.safetensors")
