"""What a coder costs the subject, held against patching written out; what a point of a curve holds."""

import pytest
import torch

from nlrewrite.coders import curve, replaced
from nlrewrite.coders.form import Coder
from nlrewrite.coders.losses import Loss
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import Site
from nlrewrite.subject import sites
from tests.subject import small_models


def coder(seed: int = 0, width: int = small_models.WIDTH) -> Coder:
    draws = torch_generator(seed, "coder")

    def normal(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=draws)

    return Coder(normal(20, width), normal(20), normal(20, width), normal(width), normal(width, width), 5)


@pytest.fixture(scope="module")
def model():
    return small_models.fresh("gpt_neox").requires_grad_(False)


def test_costs_are_the_losses_of_the_patched_subject(model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = small_models.ids(5)
    places = [sites.locate(model, Site(layer=layer)) for layer in (0, 1, 1)]
    coders = [coder(0), coder(1), coder(2)]
    means = {located: torch.full((small_models.WIDTH,), 0.3) for located in places}
    found = replaced.costs(model, list(zip(places, coders, strict=True)), means, ids)

    def nats(logits: torch.Tensor) -> torch.Tensor:
        return -logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).mean()

    original = sites.logits(model, ids)
    for located, made, cost in zip(places, coders, found, strict=True):
        arms = {
            "coder": replaced.reconstructed(made),
            "mean": lambda x, y: torch.full_like(y, 0.3),
            "zero": lambda x, y: torch.zeros_like(y),
        }
        assert cost["original"] == pytest.approx(float(nats(original)), rel=1e-5)
        for name, replace in arms.items():
            with sites.patched(model, located, replace):
                logits = sites.logits(model, ids)
            assert cost[name] == pytest.approx(float(nats(logits)), rel=1e-5), name
            if name == "coder":
                p = original[:, :-1].double().softmax(-1)
                q = logits[:, :-1].double().softmax(-1)
                assert cost["kl"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    monkeypatch.setattr(replaced, "LOGITS_AT_ONCE", 2 * small_models.VOCABULARY * ids.shape[1])
    again = replaced.costs(model, list(zip(places, coders, strict=True)), means, ids)
    for cost, its in zip(found, again, strict=True):
        assert cost == pytest.approx(its, rel=1e-3)


def test_the_share_recovered_is_one_for_the_original_and_none_where_there_is_nothing_to_recover() -> None:
    measured = {"original": 2.0, "mean": 3.0, "zero": 4.0, "kl": 0.0}
    assert replaced.recovered({**measured, "coder": 2.0})["recovered"] == 1
    assert replaced.recovered({**measured, "coder": 2.25})["recovered"] == 0.75
    assert replaced.recovered({**measured, "coder": 3.5})["recovered"] == -0.5
    assert replaced.recovered({**measured, "mean": 2.0, "coder": 2.0})["recovered"] is None


def test_the_unexplained_variance_in_closed_form() -> None:
    draws = torch_generator(0, "data")
    x_ND, y_NE = 3 + torch.randn(500, 8, generator=draws), 1 + torch.randn(500, 8, generator=draws)
    made = coder(width=8)
    made.dec_LE = torch.zeros(20, 8)
    made.skip_ED = torch.linalg.lstsq(x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)).solution.T
    made.dec_bias_E = y_NE.mean(0) - made.skip_ED @ x_ND.mean(0)
    residual = y_NE - made.beside(x_ND)
    expected = residual.square().sum() / (y_NE - y_NE.mean(0)).square().sum()
    assert curve.fvu(made, x_ND, y_NE) == pytest.approx(float(expected), rel=1e-5)
    assert 0 < expected < 1


def test_a_meter_gives_means_since_it_was_read() -> None:
    meter = curve.Meter(torch.device("cpu"))

    def loss(error: float, active: float) -> Loss:
        one = torch.ones(())
        return Loss(one, one * error, one * 4, one * active, one * 0.5, one * 0)

    for error, active in ((1, 2), (3, 6)):
        meter.add(loss(error, active))
    assert meter.read() == {"batch_fvu": 0.5, "l0": 4, "penalty": 0.5, "auxk": 0}
    meter.add(loss(2, 3))
    assert meter.read() == {"batch_fvu": 0.5, "l0": 3, "penalty": 0.5, "auxk": 0}


def test_latents_that_fired_are_counted_where_they_are_above_zero() -> None:
    made, x_ND = coder(width=8), torch.randn(50, 8, generator=torch_generator(0, "x"))
    before = x_ND @ made.enc_LD.T + made.enc_bias_L
    kept = before >= before.topk(5, dim=1).values[:, -1:]
    assert torch.equal(curve.fired(made, x_ND), ((before > 0) & kept).sum(0))
