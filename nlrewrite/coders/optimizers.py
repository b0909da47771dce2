"""What moves the weights of a coder: Adam, or Signum without a schedule; and the learning rate of a step.

In: parameters with their gradients. Out: moved parameters, and a state of plain tensors that goes on exactly where it
was. Invariant: the optimizer that a spec names is the one that runs, whatever else is installed; asking for the answer
or for the state leaves every bit of the run as it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from nlrewrite.specs import CoderSpec

if TYPE_CHECKING:
    from torch import Tensor


def rate(spec: CoderSpec, step: int) -> float:
    """The learning rate of a step: of adam it rises, stays, and falls to zero; of signum it stays."""
    if spec.optimizer == "signum":
        return spec.rate
    rising = min(1.0, (step + 1) / spec.warm_up) if spec.warm_up else 1.0
    falling = spec.decay * (spec.steps - spec.warm_up)
    return spec.rate * rising * (min(1.0, (spec.steps - step) / falling) if falling > 0 else 1.0)


def optimizer(spec: CoderSpec, parameters: "Sequence[Tensor]", settle: Callable[[], None]) -> "Adam | Signum":
    """The one that the spec names; `settle` holds parameters to what the spec asks of them, such as unit length."""
    return Signum(parameters, spec.momentum, settle) if spec.optimizer == "signum" else Adam(parameters)


class Adam:
    """torch's own, all parameters in one call."""

    MOMENTS = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, parameters: "Sequence[Tensor]") -> None:
        self._parameters = list(parameters)
        self.inner = torch.optim.Adam(self._parameters, lr=0.0, betas=(0.9, 0.999), fused=True)

    def step(self, rate: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()

    @contextmanager
    def answer(self) -> Iterator[None]:
        yield

    def state(self) -> "dict[str, Tensor]":
        return {
            f"{number}.{name}": self.inner.state[parameter][name]
            for number, parameter in enumerate(self._parameters)
            for name in self.MOMENTS
            if parameter in self.inner.state
        }

    def restore(self, state: "dict[str, Tensor]") -> None:
        for number, parameter in enumerate(self._parameters):
            if f"{number}.step" in state:
                self.inner.state[parameter] = {
                    name: state[f"{number}.{name}"].to(parameter.device, copy=True) for name in self.MOMENTS
                }


class Signum:
    """Steps of one size along the gradient's sign, and their running mean, which needs no schedule.

    z takes the steps, x is its mean and the answer; the parameters hold y, a little of z in x, where gradients are
    taken.
    """

    def __init__(
        self, parameters: "Sequence[Tensor]", momentum: float, settle: Callable[[], None] = lambda: None
    ) -> None:
        self._parameters = list(parameters)
        self._settle = settle
        self._toward_z = 1 - momentum
        self._steps = 0
        self._x = [parameter.detach().clone() for parameter in parameters]
        self._z = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self._steps += 1
        for y, x, z in zip(self._parameters, self._x, self._z, strict=True):
            if y.grad is not None:
                z.sub_(y.grad.sign(), alpha=rate)
            x.lerp_(z, 1 / self._steps)
            torch.lerp(x, z, self._toward_z, out=y.data)

    @contextmanager
    def answer(self) -> Iterator[None]:
        held = [parameter.detach().clone() for parameter in self._parameters]
        self._put(self._x)
        try:
            self._settle()
            yield
        finally:
            self._put(held)

    def state(self) -> "dict[str, Tensor]":
        named = {f"{number}.x": x for number, x in enumerate(self._x)}
        named |= {f"{number}.z": z for number, z in enumerate(self._z)}
        return named | {"steps": torch.tensor(self._steps)}

    def restore(self, state: "dict[str, Tensor]") -> None:
        """Beside the parameters themselves, which are kept as they are: they may have been settled since."""
        self._steps = int(state["steps"])
        for number, parameter in enumerate(self._parameters):
            self._x[number] = state[f"{number}.x"].to(parameter.device, copy=True)
            self._z[number] = state[f"{number}.z"].to(parameter.device, copy=True)

    def _put(self, values: "Sequence[Tensor]") -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.data.copy_(value)
