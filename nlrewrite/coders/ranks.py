"""Processes that train one coder together: which rows are whose, and sums over all of them.

In: tensors of one process. Out: what they come to over all processes. Invariant: every process that takes part makes
the same calls in the same order and reads the same result, bit for bit; alone, every call gives back what it was given,
at no cost. Losses are normalised by the whole batch, so that gradients are sums.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nlrewrite.errors import SettingError, Unreachable

if TYPE_CHECKING:
    from torch import Tensor

BUCKET = 1 << 24
"""Elements summed by one call: small gradients travel together, larger ones as they are."""
PATIENCE = 600.0
"""Seconds one process may be behind the others in a sum, before it counts as lost."""
IDLE = timedelta(days=30)
"""How long a process waits for its next job: as long as rank 0 lives, for a lost connection ends the wait at once."""


class Ranks(Protocol):
    """The processes that train one coder, as one of them sees them."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def total(self, tensor: "Tensor") -> "Tensor":
        """The sum over all processes, without gradient."""
        ...

    def largest(self, tensor: "Tensor") -> "Tensor":
        """The elementwise maximum over all processes, without gradient."""
        ...

    def gathered(self, tensor: "Tensor") -> "Tensor":
        """All processes' rows [N_r, ...] one after another; each may have its own number of rows."""
        ...

    def collected(self, tensor: "Tensor") -> "Tensor | None":
        """All processes' shares of rows one after another, in the main memory of rank 0; on the others nothing."""
        ...

    def share(self, count: int) -> slice:
        """This process's rows of a batch of `count`."""
        ...

    def sum_gradients(self, parameters: "Iterable[Tensor]") -> None:
        """Put the sum over all processes into every gradient; a missing one counts as zero."""
        ...

    def broadcast(self, tensors: "Sequence[Tensor]") -> None:
        """Overwrite the tensors by those of rank 0."""
        ...

    def spread(self, tensor: "Tensor") -> None:
        """Overwrite each process's share of the rows by its own."""
        ...

    def told(self, thing: Any) -> Any:
        """What rank 0 was given, as JSON has it. Waits for it as long as rank 0 lives."""
        ...

    def barrier(self) -> None:
        """Wait for all."""
        ...


class Alone:
    """One process."""

    rank = 0
    world = 1

    def total(self, tensor: "Tensor") -> "Tensor":
        return tensor.detach()

    def largest(self, tensor: "Tensor") -> "Tensor":
        return tensor.detach()

    def gathered(self, tensor: "Tensor") -> "Tensor":
        return tensor.detach()

    def collected(self, tensor: "Tensor") -> "Tensor | None":
        return tensor.detach().cpu()

    def share(self, count: int) -> slice:
        return slice(0, count)

    def sum_gradients(self, parameters: "Iterable[Tensor]") -> None:
        return None

    def broadcast(self, tensors: "Sequence[Tensor]") -> None:
        return None

    def spread(self, tensor: "Tensor") -> None:
        return None

    def told(self, thing: Any) -> Any:
        return thing

    def barrier(self) -> None:
        return None


ALONE = Alone()


class Group:
    """One of several processes that torch.distributed joins: gloo for the CPU, nccl for GPUs."""

    def __init__(self, patience: float = PATIENCE) -> None:
        import torch.distributed as dist

        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._patience = patience
        with self._together("joining"):
            idle = dist.new_group(backend="gloo", timeout=IDLE)
        assert isinstance(idle, dist.ProcessGroup)
        self._idle = idle

    def total(self, tensor: "Tensor") -> "Tensor":
        return self._reduced(tensor, "sum")

    def largest(self, tensor: "Tensor") -> "Tensor":
        return self._reduced(tensor, "largest")

    def gathered(self, tensor: "Tensor") -> "Tensor":
        import torch.distributed as dist

        rows = tensor.detach().contiguous()
        counts = torch.zeros(self.world, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        lengths: list[int] = self.total(counts).tolist()
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        with self._together("gathering rows"):
            dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def collected(self, tensor: "Tensor") -> "Tensor | None":
        import torch.distributed as dist

        own = tensor.detach().cpu().contiguous()
        count = int(self.total(torch.tensor(len(own))))
        with self._together("collecting rows"):
            if self.rank:
                dist.send(own, 0)
                return None
            whole = own.new_empty(count, *own.shape[1:])
            whole[self.share(count)] = own
            for rank in range(1, self.world):
                dist.recv(whole[self._share(count, rank)], rank)
        return whole

    def share(self, count: int) -> slice:
        return self._share(count, self.rank)

    def sum_gradients(self, parameters: "Iterable[Tensor]") -> None:
        import torch.distributed as dist

        gradients: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if not parameter.grad.is_contiguous():
                parameter.grad = parameter.grad.contiguous()
            gradients.append(parameter.grad)
        with self._together("summing gradients"):
            for bucket in buckets(gradients):
                if len(bucket) == 1:
                    dist.all_reduce(bucket[0])
                    continue
                flat = torch.cat([each.reshape(-1) for each in bucket])
                dist.all_reduce(flat)
                for each, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                    each.copy_(part.view_as(each))

    def broadcast(self, tensors: "Sequence[Tensor]") -> None:
        with self._together("receiving from rank 0"):
            for tensor in tensors:
                self._sent(tensor.detach(), 0)

    def spread(self, tensor: "Tensor") -> None:
        with self._together("receiving rows"):
            for rank in range(self.world):
                self._sent(tensor.detach()[self._share(len(tensor), rank)], rank)

    def told(self, thing: Any) -> Any:
        import torch.distributed as dist

        data = bytearray(json.dumps(thing).encode())
        size = torch.tensor([len(data)])
        with self._together("waiting for rank 0"):
            dist.broadcast(size, 0, group=self._idle)
            sent = torch.frombuffer(data if self.rank == 0 else bytearray(int(size)), dtype=torch.uint8)
            dist.broadcast(sent, 0, group=self._idle)
        return json.loads(sent.numpy().tobytes())

    def barrier(self) -> None:
        self.total(torch.zeros(1))

    def _share(self, count: int, rank: int) -> slice:
        return slice(count * rank // self.world, count * (rank + 1) // self.world)

    def _sent(self, tensor: "Tensor", rank: int) -> None:
        """Overwrite a tensor by that of `rank`."""
        import torch.distributed as dist

        whole = tensor.contiguous()
        dist.broadcast(whole, rank)
        if self.rank != rank and whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)

    def _reduced(self, tensor: "Tensor", how: str) -> "Tensor":
        import torch.distributed as dist

        whole = tensor.detach().to(torch.int64 if tensor.dtype == torch.bool else tensor.dtype, copy=True).contiguous()
        with self._together("summing" if how == "sum" else "comparing"):
            dist.all_reduce(whole, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
        return whole.bool() if tensor.dtype == torch.bool and how == "largest" else whole

    @contextmanager
    def _together(self, doing: str) -> Iterator[None]:
        """Words for what torch says when another process is gone or too late."""
        try:
            yield
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0].split(". ")[0]
            raise Unreachable(
                f"rank {self.rank} of {self.world} lost the others while {doing} (it waits {self._patience:g} s for a "
                f"sum): {why}. Look at the output of the rank that ended first, then start all ranks again: training "
                f"goes on from its last save"
            ) from error


_joined: Group | None = None


def joined() -> Ranks:
    """The processes this one belongs to; alone, unless `join` was called in it."""
    return _joined or ALONE


def join(device: str = "cpu", patience: float = PATIENCE) -> str:
    """Join the processes that torchrun has started, if it has; gives this one's own device."""
    import torch.distributed as dist

    global _joined
    if _joined is not None or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return own_device(device)
    rank = os.environ.get("RANK", "?")
    if ":" in device:
        raise SettingError(
            f"each of several processes takes the GPU of its own number, so none can be named: device={device}. "
            f"Use --device cuda"
        )
    own = own_device(device)
    if own != "cpu":
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("gloo" if own == "cpu" else "cpu:gloo,cuda:nccl", timeout=timedelta(seconds=patience))
    except (RuntimeError, ValueError) as error:  # torch has no narrower ones, of an unreachable or unnamed rank 0
        raise Unreachable(
            f"rank {rank} cannot join the others at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: "
            f"{str(error).strip().splitlines()[0]}. Start every rank by torchrun, with the same --rdzv-endpoint"
        ) from error
    _joined = Group(patience)
    return own


def leave() -> None:
    """Leave the others, so that a process that goes on is alone again."""
    import torch.distributed as dist

    global _joined
    if _joined is not None:
        dist.destroy_process_group()
        _joined = None


def own_device(device: str) -> str:
    """cuda, in one of several processes on a machine, is the GPU of its number there."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def buckets(gradients: "Sequence[Tensor]") -> "Iterator[list[Tensor]]":
    """The gradients in their order, neighbours of one type together up to `BUCKET` elements."""
    for _, alike in groupby(gradients, lambda each: (each.dtype, each.device)):
        bucket: list[Tensor] = []
        for each in alike:
            if bucket and sum(one.numel() for one in bucket) + each.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(each)
        yield bucket
