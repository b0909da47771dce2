"""Matrix products of a float32 model on a CPU, with weights laid out for them once.

torch's own float32 product may run on a library that is slow on other makers' processors (measured on an AMD one: 100
against 240 GFLOP/s); the library it uses for reduced precision is fast on both, once a weight is in its layout.
In: a model. Out: the same model, whose linear layers hold such a weight too, at twice their memory. Invariant: what a
layer says changes by rounding alone; its parameters stay what they were, and tied weights stay tied. Weights that are
still trained are left alone, for the layout would not follow them.
"""

import torch
from torch import Tensor, nn


class Laid(nn.Linear):
    """A linear layer that keeps its weight in the library's layout as well."""

    laid: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.laid, self.bias, "none", [], "")


def prepack(model: nn.Module) -> int:
    """Lay out the weights of all plain, frozen float32 linear layers on the CPU, and say how many there were."""
    if not torch.backends.mkldnn.is_available():
        return 0
    plain = [module for module in model.modules() if type(module) is nn.Linear and not module.weight.requires_grad]
    found = [each for each in plain if each.weight.dtype == torch.float32 and each.weight.device.type == "cpu"]
    for module in found:
        module.__class__ = Laid
        module.laid = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
    return len(found)
