"""What moves a coder's weights, held against torch and against schedulefree's numbers."""

import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nlrewrite.coders import optimizers
from nlrewrite.coders.optimizers import Adam, Signum
from nlrewrite.specs import CoderSpec


def least_squares(step: int, weight: torch.Tensor) -> torch.Tensor:
    """The loss of 16 rows drawn for the step."""
    fixed = torch.Generator().manual_seed(0)
    a, y = torch.randn(64, 32, generator=fixed), torch.randn(64, 8, generator=fixed)
    rows = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(step))
    return (a[rows] @ weight - y[rows]).square().mean()


def run(made: Adam | Signum, weight: torch.Tensor, steps: range, rate: float = 5e-3) -> None:
    for step in steps:
        weight.grad = None
        least_squares(step, weight).backward()
        made.step(rate)


def fresh(name: str) -> tuple[Adam | Signum, torch.Tensor]:
    weight = torch.zeros(32, 8, requires_grad=True)
    spec = CoderSpec.model_validate({"optimizer": name})
    return optimizers.optimizer(spec, [weight], lambda: None), weight


def test_signum_is_schedulefree_s_wrapper_around_steps_by_sign() -> None:
    """Golden: schedulefree.ScheduleFreeWrapper(SignSGD(lr=5e-3), momentum=0.95), executed on the same 200 steps."""
    made, weight = fresh("signum")
    run(made, weight, range(200))
    with made.answer():
        golden = torch.tensor([0.1222500279545784, 0.012199997901916504, 0.08520003408193588, 0.2590000033378601])
        assert torch.allclose(weight[::8, 0], golden, rtol=0, atol=2e-7)
        assert weight.abs().sum().item() == pytest.approx(23.330152218884905, abs=1e-5)


def test_the_mean_of_signum_s_steps_is_what_it_answers() -> None:
    made, weight = fresh("signum")
    assert isinstance(made, Signum)
    z, total = torch.zeros(32, 8), torch.zeros(32, 8)
    for step in range(7):
        weight.grad = None
        least_squares(step, weight).backward()
        assert weight.grad is not None
        z = z - 0.01 * weight.grad.sign()
        total += z
        made.step(0.01)
        mean = total / (step + 1)
        assert torch.allclose(weight, 0.95 * mean + 0.05 * z, atol=1e-7)
        with made.answer():
            assert torch.allclose(weight, mean, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "signum"])
def test_what_was_saved_goes_on_to_the_bit_and_saving_disturbs_nothing(name: str) -> None:
    straight, one = fresh(name)
    run(straight, one, range(40))
    for stop in (1, 2, 7, 39):
        made, weight = fresh(name)
        run(made, weight, range(stop))
        state = {key: tensor.clone() for key, tensor in made.state().items()}
        with made.answer():
            pass
        other, continued = fresh(name)
        other.restore(state)
        continued.data.copy_(weight.data)
        for each, its in ((made, weight), (other, continued)):
            run(each, its, range(stop, 40))
            assert torch.equal(its, one)
            assert all(torch.equal(value, straight.state()[key]) for key, value in each.state().items())


def test_the_answer_is_settled_and_the_run_is_not() -> None:
    weight = torch.ones(3, requires_grad=True)
    made = Signum([weight], 0.5, lambda: weight.data.clamp_min_(0.9))
    weight.grad = torch.tensor([1.0, -1.0, 1.0])
    made.step(1.0)
    before = weight.detach().clone()
    with made.answer():
        assert torch.equal(weight.detach(), torch.tensor([0.9, 2.0, 0.9]))
    assert torch.equal(weight.detach(), before)


def test_adam_is_torch_s_own_fused_one_whatever_else_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = types.ModuleType("bitsandbytes")
    fake.optim = types.SimpleNamespace(Adam8bit=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    made, weight = fresh("adam")
    assert isinstance(made, Adam) and type(made.inner) is torch.optim.Adam
    assert made.inner.defaults["fused"] and made.inner.defaults["betas"] == (0.9, 0.999)
    run(made, weight, range(20))
    plain = torch.zeros(32, 8, requires_grad=True)
    other = torch.optim.Adam([plain], lr=5e-3)
    for step in range(20):
        other.zero_grad()
        least_squares(step, plain).backward()
        other.step()
    assert torch.allclose(weight, plain, atol=1e-6)


# -- the learning rate ------------------------------------------------------------------------------------------------


def rates(**changed: object) -> list[float]:
    spec = CoderSpec.model_validate({"learning_rate": 0.1, "steps": 1000, "warm_up": 50, "decay": 0.3} | changed)
    return [optimizers.rate(spec, step) / 0.1 for step in range(spec.steps)]


def test_the_rate_of_adam_rises_stays_and_falls() -> None:
    shares = rates()
    assert shares[0] == pytest.approx(1 / 50) and shares[24] == pytest.approx(0.5)
    assert shares[49:715] == pytest.approx([1.0] * 666)
    assert shares[1000 - 142] == pytest.approx(142 / 285)
    assert shares[999] == pytest.approx(1 / 285)


def test_a_decay_over_all_steps_is_the_sources_schedule() -> None:
    shares = rates(warm_up=100, decay=1.0)
    assert max(shares) == pytest.approx(1.0)
    assert shares[550] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(shares[100:]))


def test_neither_warm_up_nor_decay_need_be() -> None:
    assert rates(warm_up=0, decay=0.0) == pytest.approx([1.0] * 1000)
    assert rates(warm_up=0, decay=0.5)[0] == pytest.approx(1.0)
    assert all(0 < share <= 1 for share in rates(steps=3))


def test_the_rate_of_signum_stays() -> None:
    assert rates(optimizer="signum") == pytest.approx([1.0] * 1000)


def test_no_rate_given_is_the_sources_rule() -> None:
    def highest(**changed: object) -> float:
        return CoderSpec.model_validate({"learning_rate": None, "width": 32768, "k": 32} | changed).rate

    assert highest() == pytest.approx(2e-4 / 2**0.5)
    assert highest(optimizer="signum", width=18432) == pytest.approx(4.714e-3, rel=1e-3)
