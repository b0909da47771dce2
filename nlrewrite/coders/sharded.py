"""An optimizer split over processes: each moves its own rows of every parameter, and hears of the others'.

In: an optimizer to be made of parts of parameters, and the processes. Out: an optimizer of whole ones. Invariant: it
does what the unsplit one does, but for the rounding of a few entries at the end of a part (on a CPU torch computes
those another way); the state that is saved is that of the unsplit one; all processes make every call together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from nlrewrite.coders.optimizers import Adam, Signum, optimizer
from nlrewrite.coders.ranks import Ranks
from nlrewrite.specs import CoderSpec

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = 8 << 30
"""Bytes of an optimizer's state up to which every process keeps all of it; beyond, memory counts for more than a second
exchange in every step."""
STATE_BYTES = 8
"""Of a parameter: two moments of Adam, or the two averages of Signum, in float32."""


def optimizer_of(
    spec: CoderSpec, parameters: "Sequence[Tensor]", settle: Callable[[], None], ranks: Ranks
) -> "Adam | Signum | Sharded":
    """The one that the spec names, split where there are several processes and its state is large."""
    if ranks.world > 1 and STATE_BYTES * sum(each.numel() for each in parameters) > WHOLE:
        return Sharded(spec, parameters, settle, ranks)
    return optimizer(spec, parameters, settle)


class Sharded:
    """Adam or Signum of this process's rows of each parameter; of one with fewer rows than processes, of all of it."""

    def __init__(
        self, spec: CoderSpec, parameters: "Sequence[Tensor]", settle: Callable[[], None], ranks: Ranks
    ) -> None:
        self._parameters, self._settle, self._ranks = list(parameters), settle, ranks
        self._split = [len(each) >= ranks.world for each in self._parameters]
        self._own = [self._rows(number, each.detach()) for number, each in enumerate(self._parameters)]
        self._inner = optimizer(spec, self._own, lambda: None)

    def step(self, rate: float) -> None:
        for number, (own, parameter) in enumerate(zip(self._own, self._parameters, strict=True)):
            own.grad = None if parameter.grad is None else self._rows(number, parameter.grad)
        self._inner.step(rate)
        for own in self._own:
            own.grad = None
        self._spread()

    @contextmanager
    def answer(self) -> Iterator[None]:
        if isinstance(self._inner, Adam):
            yield
            return
        held = [each.detach().clone() for each in self._parameters]
        with self._inner.answer():
            self._spread()
            self._settle()
            yield
        for parameter, value in zip(self._parameters, held, strict=True):
            parameter.data.copy_(value)

    def state(self) -> "dict[str, Tensor]":
        """On the process of rank 0 the state of all, in main memory; on the others nothing."""
        whole: dict[str, Tensor] = {}
        for name, own in self._inner.state().items():
            tensor = self._ranks.collected(own) if self._is_split(name, own) else own.cpu()
            if tensor is not None and self._ranks.rank == 0:
                whole[name] = tensor
        return whole

    def restore(self, state: "dict[str, Tensor]") -> None:
        """From the state of all, which every process is given."""
        self._inner.restore(
            {
                name: whole[self._ranks.share(len(whole))] if self._is_split(name, whole) else whole
                for name, whole in state.items()
            }
        )

    def _rows(self, number: int, tensor: "Tensor") -> "Tensor":
        return tensor[self._ranks.share(len(tensor))] if self._split[number] else tensor

    def _is_split(self, name: str, tensor: "Tensor") -> bool:
        number = name.split(".")[0]
        return tensor.ndim > 0 and number.isdigit() and self._split[int(number)]

    @torch.no_grad()
    def _spread(self) -> None:
        for split, parameter in zip(self._split, self._parameters, strict=True):
            if split:
                self._ranks.spread(parameter)
