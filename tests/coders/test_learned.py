from typing import Any

import pytest
import torch
from torch import Tensor

from nlrewrite.coders import ops
from nlrewrite.coders.learned import Learned
from nlrewrite.coders.losses import Loss
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec, Site
from tests.coders.dense_coder import dense

N, D, E, L, K = 48, 10, 7, 64, 5
SAE = Site(kind="mlp-output")


def normal(*shape: int, seed: int = 0, mean: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "normal", *shape)) + mean


def learned(out: int = E, seed: int = 0, **settings: Any) -> Learned:
    """A coder somewhere on its way: no weight is zero, and biases matter."""
    sae = settings.get("tied_bias", False) or settings.get("init") == "tied"
    fixed: dict[str, Any] = {"width": L, "k": K, "site": SAE if sae else Site(), "skip": not sae}
    spec = CoderSpec(**fixed | settings)
    out = D if sae else out
    weights = {
        "enc": normal(L, D, seed=seed + 1) / D**0.5,
        "enc_bias": normal(L, seed=seed + 2) / 4,
        "dec": normal(L, out, seed=seed + 3) / D**0.5,
        "dec_bias": normal(out, seed=seed + 4),
    }
    if spec.skip:
        weights["skip"] = normal(out, D, seed=seed + 5) / D
    if spec.activation == "jumprelu":
        weights["threshold"] = 0.2 + 0.6 * torch.rand(L, generator=torch_generator(seed, "threshold"))
    if spec.unit_decoder:
        weights["dec"] = torch.nn.functional.normalize(weights["dec"], dim=-1)
    return Learned(spec, weights)


def batch(made: Learned, rows: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    x_ND, out = normal(rows, D, seed=seed, mean=0.3), made.weights["dec"].shape[1]
    return x_ND, x_ND if made.spec.site.kind != "mlp" else normal(rows, out, seed=seed + 9, mean=-0.5)


def gradients(made: Learned, x_ND: Tensor, y_NE: Tensor, step: int = 0) -> tuple[Loss, dict[str, Tensor]]:
    loss = made.loss(x_ND, y_NE, step)
    loss.total.backward()
    given = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in made.weights.items()}
    for each in made.parameters():
        each.grad = None
    return loss, given


def apart(one: Tensor, other: Tensor) -> float:
    """Relative difference, in the Frobenius norm."""
    one, other = one.detach().double(), other.detach()
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


CASES: list[dict[str, Any]] = [
    {},
    {"loss": "fvu"},
    {"loss": "relative", "skip": False},
    {"k": 30},
    {"k": L},
    {"k": 1, "loss": "fvu"},
    {"tied_bias": True, "loss": "fvu"},
    {"init": "tied", "unit_decoder": True, "tied_bias": True},
    {"activation": "batchtopk"},
    {"activation": "batchtopk", "k": 40, "loss": "fvu", "tied_bias": True},
    {"activation": "relu", "penalty": 0.03},
    {"activation": "relu", "penalty": 0.03, "penalty_warm_up": 10, "loss": "relative"},
    {"activation": "jumprelu", "penalty": 0.05, "bandwidth": 0.3},
    {"activation": "jumprelu", "penalty": 0.05, "bandwidth": 2.0, "loss": "fvu", "penalty_warm_up": 7},
    {"activation": "jumprelu", "penalty": 0.05, "tied_bias": True},
]


@pytest.mark.parametrize("whole", [0.0, 2.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_loss_and_gradients_are_those_written_out(
    settings: dict[str, Any], whole: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("nlrewrite.coders.choosing.DENSE", "nlrewrite.coders.ops.AT_ONCE"):
        monkeypatch.setattr(place, {"cpu": whole if "DENSE" in place else 20 * L})
    monkeypatch.setattr(ops, "LEAST_ROWS", 1)
    monkeypatch.setattr(ops, "DENSE", whole)
    made = learned(**settings)
    x_ND, y_NE = batch(made)
    loss, given = gradients(made, x_ND, y_NE, step=3)
    expected = dense(made.spec, made.weights, x_ND, y_NE, step=3)
    for name in ("total", "error", "variance", "active", "penalty"):
        assert apart(getattr(loss, name), getattr(expected, name)) < 1e-6, name
    assert set(given) == set(expected.gradients)
    for name, gradient in expected.gradients.items():
        assert gradient.norm() > 0, name
        assert apart(given[name], gradient) < 2e-6, name
