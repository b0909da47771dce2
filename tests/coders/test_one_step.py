"""One training step against sparsify's numbers, where it is right, and against finite differences, where it is not.

`tests/peers/step.py` writes the numbers, and `tests/peers/test_wrong_gradients.py` shows what is wrong there.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.coders import dense_loss
from tests.coders.one_step import KINDS, Drawn, Kind, drawn, ours, summary, taught

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training" / "step.json").read_text())["steps"]
CLOSE = 1e-4
"""Of slopes, in float32; those compared are above 1e-3."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_the_loss_and_the_gradients_of_sparsify(kind: Kind) -> None:
    found = summary(*taught(ours(drawn(kind)), drawn(kind)))
    golden = GOLDEN[kind]
    assert found["loss"] == pytest.approx(golden["loss"], rel=1e-6)
    assert set(found["gradients"]) == set(golden["gradients"])
    for name, theirs in golden["gradients"].items():
        mine = found["gradients"][name]
        assert mine["norm"] == pytest.approx(theirs["norm"], rel=1e-6), name
        assert mine["sum"] == pytest.approx(theirs["sum"], abs=1e-5 * theirs["norm"]), name
        assert mine["some"] == pytest.approx(theirs["some"], abs=1e-6 * theirs["norm"]), name


# -- where sparsify is wrong ------------------------------------------------------------------------------------------


def slopes(made: Drawn, learned, loss, names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Along a random direction of each weight: what the gradients say, and finite differences of `loss`."""
    _, gradients = taught(learned, made)
    return {
        name: (
            float((gradients[name].double() * dense_loss.direction(made.weights[name])).sum()),
            dense_loss.slope(loss, made.weights, name),
        )
        for name in names
    }


def test_dead_latents_learn_from_the_error_in_encoder_and_decoder() -> None:
    made = dense_loss.with_dead(drawn("transcoder"))
    count, weight, dead = 8, 0.5, dense_loss.dead(made)
    learned = ours(made, auxk=count, auxk_weight=weight, dead_after=100)
    learned.restore(learned.state() | {"since": torch.where(dead, 100, 0)})
    assert torch.equal(learned.dead(), dead)

    def loss(weights: dense_loss.Weights) -> float:
        return dense_loss.fvu(made, weights, made.k) + weight * dense_loss.auxk_of_error(made, weights, count)

    assert taught(learned, made)[0] == pytest.approx(loss(made.weights), rel=1e-5)
    learned = ours(made, auxk=count, auxk_weight=weight, dead_after=100)
    learned.restore(learned.state() | {"since": torch.where(dead, 100, 0)})
    found = slopes(made, learned, loss, ("enc", "enc_bias", "dec", "dec_bias"))
    for name, (mine, right) in found.items():
        assert abs(right) > 1e-3, name
        assert mine == pytest.approx(right, rel=CLOSE), name
    for name in ("enc", "enc_bias", "dec"):
        gradient = learned.weights[name].grad
        assert gradient is not None and gradient[dead].abs().max() > 1e-3, name


def test_four_times_as_many_latents_learn_in_the_encoder() -> None:
    made = drawn("transcoder")
    learned = ours(made, k=4 * made.k)
    found = slopes(made, learned, lambda weights: dense_loss.fvu(made, weights, 4 * made.k), ("enc", "enc_bias", "dec"))
    for name, (mine, right) in found.items():
        assert abs(right) > 1e-3, name
        assert mine == pytest.approx(right, rel=CLOSE), name


def test_latents_at_zero_learn_nothing() -> None:
    made = dense_loss.silent(drawn("transcoder"))
    _, gradients = taught(ours(made), made)
    for name in ("enc", "enc_bias", "dec"):
        assert gradients[name].abs().max() == 0, name
    assert gradients["dec_bias"].abs().max() > 0


def test_where_fewer_than_k_latents_are_active_the_others_learn_nothing() -> None:
    made = dense_loss.silent(drawn("transcoder"), bias=-2.0)
    active = (dense_loss.preactivations(made, made.weights) > 0).sum(1)
    assert active.min() < made.k and active.max() > 0
    found = slopes(made, ours(made), lambda weights: dense_loss.fvu(made, weights, made.k), ("enc", "enc_bias", "dec"))
    for name, (mine, right) in found.items():
        assert mine == pytest.approx(right, abs=1e-6), name
    assert abs(found["enc"][1]) > 1e-3
