"""Several processes as torchrun starts them: `python -m tests.coders.processes ACT FOLDER`, with its variables set.

Each process does one act and leaves what it found in FOLDER/<rank>.json.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from nlrewrite.coders import finish, followers, ranks
from nlrewrite.coders.learned import Learned
from nlrewrite.errors import Unreachable
from nlrewrite.execution import Execution
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec, Site
from nlrewrite.steps import Job
from tests.coders import small_training

ROOT = Path(__file__).parents[2]


def start(act, folder, world=2, arguments=(), **environment):
    """One process a rank, all running."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.coders.processes", act, str(folder), *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **named, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes, seconds=60):
    """Exit codes and what was said, of processes that may take so long in all."""
    until = time.monotonic() + seconds
    try:
        said = [each.communicate(timeout=max(0.1, until - time.monotonic()))[1] for each in processes]
    finally:
        for each in processes:
            each.kill()
    return [each.returncode for each in processes], said


def found(folder, world=2):
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]


# -- acts -------------------------------------------------------------------------------------------------------------


def sums(group):
    """Every call once, and then rank 1 is killed while rank 0 waits for it."""
    rank = group.rank
    ranks.BUCKET = 5
    shapes = [(2,), (3,), (2, 2), (7,), (3, 2)]
    parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full(parameter.shape, float(10 * number + rank + 1))
    parameters[-1].grad = torch.arange(6.0).view(2, 3).T * (rank + 1)
    if rank:
        parameters[1].grad = None
    group.sum_gradients(parameters)
    weights = [torch.full((2, 3), float(rank)).T, torch.tensor([rank])]
    group.broadcast(weights)
    return {
        "total": group.total(torch.tensor([1.5, rank])).tolist(),
        "counted": group.total(torch.tensor([True, rank == 1])).tolist(),
        "largest": group.largest(torch.tensor([rank, -rank])).tolist(),
        "any": group.largest(torch.tensor([False, rank == 1])).tolist(),
        "gathered": group.gathered(torch.full((rank + 1, 2), float(rank))).tolist(),
        "low": group.gathered(torch.tensor([1.0 + rank], dtype=torch.bfloat16)).tolist(),
        "none": group.gathered(torch.zeros(rank, 3)).shape[0],
        "share": [group.share(7).start, group.share(7).stop],
        "gradients": [parameter.grad.tolist() for parameter in parameters],
        "weights": [each.tolist() for each in weights],
        "told": group.told({"a": [1, "é"]} if rank == 0 else None),
    }


def lost(group):
    """Rank 1 is killed; how long rank 0 takes to know, and what it says."""
    group.barrier()
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        group.told(None) if group.rank else group.barrier()
    except Unreachable as error:
        return {"seconds": time.monotonic() - began, "said": str(error)}
    return {}


def step(group):
    """One training step of each coder of `STEPS` on this process's part of a batch: loss and gradients."""
    return {name: stepped(spec, group) for name, spec in STEPS.items()}


ACTS = {"sums": sums, "lost": lost, "step": step}


# -- training ---------------------------------------------------------------------------------------------------------

STEPS = {
    "topk": CoderSpec(width=96, k=5, loss="fvu", init="uniform", auxk=8, dead_after=1),
    "batchtopk": CoderSpec(width=96, k=5, activation="batchtopk", skip=False),
    "relu": CoderSpec(width=96, activation="relu", penalty=0.01, loss="relative"),
    "jumprelu": CoderSpec(width=96, activation="jumprelu", penalty=0.01, bandwidth=0.5),
    "sae": CoderSpec(
        site=Site(kind="residual"), width=96, k=5, skip=False, init="tied", tied_bias=True, unit_decoder=True
    ),
}
ROWS = 61
LIVE_TOKENS = 256


def stepped(spec, group):
    """Loss and gradients, with three latents that have been silent."""
    draws = torch_generator(0, "step")
    x, y = 0.5 + torch.randn(ROWS, 12, generator=draws), torch.randn(ROWS, 12, generator=draws) - 1
    y = x if spec.site.kind == "residual" else y
    learned = Learned.initial(spec, x, y)
    with torch.no_grad():
        for weight in learned.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draws)
        learned.settle()
    learned._memory["since"][:3] = 5
    share = group.share(ROWS)
    loss = learned.loss(x[share], y[share], 3, group)
    loss.total.backward()
    group.sum_gradients(learned.parameters())
    return {
        "total": float(group.total(loss.total)),
        **{name: float(getattr(loss, name)) for name in ("error", "variance", "active", "penalty", "auxk")},
        "dead": learned.dead().tolist(),
        "threshold": float(learned.state()["running_threshold"]),
        "gradients": {name: weight.grad.flatten().tolist() for name, weight in learned.weights.items()},
    }


def train(folder, store, save_seconds):
    """What a command does: rank 0 trains the coders of `specs.json`, and the others are called to it."""
    finish.LIVE_TOKENS = LIVE_TOKENS
    specs = [CoderSpec.model_validate(each) for each in json.loads((Path(store) / "specs.json").read_text())]
    with followers.together(Execution(store=store)) as leads:
        if leads:
            given = small_training.inputs(Path(store))
            works = [small_training.work(Path(store), f"coder {number}") for number in range(len(specs))]
            jobs = [Job(spec, Path(folder) / str(number), works[number]) for number, spec in enumerate(specs)]
            small_training.together(given, jobs, save_seconds=float(save_seconds))


if __name__ == "__main__":
    act, folder, *arguments = sys.argv[1:]
    if act == "train":
        train(folder, *arguments)
        sys.exit()
    ranks.join()
    rank = ranks.joined().rank
    try:
        result = ACTS[act](ranks.joined())
    finally:
        ranks.leave()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
