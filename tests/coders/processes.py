"""Several processes with the variables that torchrun sets for them, each doing one act.

They are forked from a server that has imported torch and this module and nothing has been computed in: starting a dozen
costs less than importing once.
"""

import json
import multiprocessing
import os
import signal
import socket
import time
import warnings

import torch

from nlrewrite.coders import finish, followers, optimizers, ranks, sharded, train
from nlrewrite.coders.learned import Learned
from nlrewrite.errors import Unreachable
from nlrewrite.execution import Execution
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec, Site
from nlrewrite.steps import Job
from tests.coders import small_training

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", __name__])


def start(act, folder, world=2, arguments=()):
    """One process a rank, all running. What it finds is left in FOLDER/<rank>.json, what it says in <rank>.txt."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        named = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    processes = []
    for rank in range(world):
        own = {name: str(value) for name, value in {**named, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(SERVER.Process(target=act, args=(folder, own, *arguments)))
        processes[-1].start()
    return processes


def ended(processes, seconds=60):
    """Exit codes of processes that may take so long in all."""
    until = time.monotonic() + seconds
    for each in processes:
        each.join(max(0.1, until - time.monotonic()))
        each.kill()
        each.join()
    return [each.exitcode for each in processes]


def found(folder, world=2):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def said(folder, world=2):
    return [(folder / f"{rank}.txt").read_text() for rank in range(world)]


def begin(folder, own):
    os.environ.update(own)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.dup2(os.open(folder / f"{own['RANK']}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)


def among(folder, own, acts, patience=ranks.PATIENCE):
    """Join the others, act, and write down what was found."""
    begin(folder, own)
    ranks.join(patience=patience)
    try:
        result = {name: act(ranks.joined()) for name, act in acts.items()}
    finally:
        ranks.leave()
    (folder / f"{own['RANK']}.json").write_text(json.dumps(result))


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
    spread = [torch.full((3, 2), 10.0 + rank), torch.full((2, 3), 10.0 + rank).T]
    for each in spread:
        group.spread(each)
    return {
        "spread": [each.tolist() for each in spread],
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
    return waited(group)


def waited(group):
    began = time.monotonic()
    try:
        group.told(None) if group.rank else group.barrier()
    except Unreachable as error:
        return {"seconds": time.monotonic() - began, "said": str(error)}
    return {}


def step(group):
    """One training step of each coder of `STEPS` on this process's part of a batch: loss and gradients."""
    return {name: stepped(spec, group) for name, spec in STEPS.items()}


def split(group):
    """Both optimizers, split and not, on the same gradients: parameters, states and what a process holds of them."""
    found = {}
    for name in ("adam", "signum"):
        spec = CoderSpec(optimizer=name)
        draws = torch_generator(1, "split")
        shapes = [(7, 3), (5,), (1, 4)]
        pair = [[torch.full(shape, 0.5, requires_grad=True) for shape in shapes] for _ in range(2)]
        plain = optimizers.optimizer(spec, pair[0], lambda: None)
        parted = sharded.Sharded(spec, pair[1], lambda: None, group)
        for turn in range(4):
            for one, other in zip(*pair, strict=True):
                one.grad = torch.randn(one.shape, generator=draws)
                other.grad = one.grad.clone()
            plain.step(0.1)
            parted.step(0.1)
            if turn == 1:  # as after a kill
                state = group_state(parted, plain, group)
                parted = sharded.Sharded(spec, pair[1], lambda: None, group)
                parted.restore(state)
        with plain.answer(), parted.answer():
            answers = [near(one, other) for one, other in zip(*pair, strict=True)]
        found[name] = {
            "parameters": [near(one, other) for one, other in zip(*pair, strict=True)],
            "answers": answers,
            "held": sorted({tuple(each.shape) for each in parted._inner.state().values() if each.ndim}),
        }
    return found


def near(one, other):
    """Torch's Adam rounds the last entries of a tensor, which fill no vector, another way than the rest."""
    return torch.allclose(one, other, rtol=1e-6, atol=1e-9)


def group_state(parted, plain, group):
    """The state that rank 0 saves, which has to be that of the unsplit optimizer, and is told to all."""
    saved, wanted = parted.state(), plain.state()
    if group.rank:
        assert not saved
        return wanted
    assert set(saved) == set(wanted) and all(near(saved[name], wanted[name]) for name in wanted)
    return saved


def slow(group):
    """Rank 1 does not come, and lives; rank 0 has a second of patience."""
    if group.rank == 1:
        time.sleep(3)
        return {}
    return waited(group)


def computing(folder, own):
    among(folder, own, {"sums": sums, "step": step, "split": split})


def losing(folder, own):
    among(folder, own, {"lost": lost})


def dawdling(folder, own):
    among(folder, own, {"slow": slow}, patience=1.0)


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


def training(folder, own, store, save_seconds, death=None, whole=sharded.WHOLE):
    """What a command does: rank 0 trains the coders of `specs.json`, and the others are called to it.

    Rank 1 is killed before its step `death`.
    """
    begin(folder, own)
    sharded.WHOLE = whole
    learn = train.Learner.learn

    def dying(learner, *arguments):
        if learner.step == death:
            os.kill(os.getpid(), signal.SIGKILL)
        learn(learner, *arguments)

    if own["RANK"] == "1":
        train.Learner.learn = dying
    finish.LIVE_TOKENS = LIVE_TOKENS
    specs = [CoderSpec.model_validate(each) for each in json.loads((store / "specs.json").read_text())]
    with followers.together(Execution(store=str(store))) as leads:
        if leads:
            given = small_training.inputs(store)
            works = [small_training.work(store, f"coder {number}") for number in range(len(specs))]
            jobs = [Job(spec, folder / str(number), works[number]) for number, spec in enumerate(specs)]
            small_training.together(given, jobs, save_seconds=save_seconds)
