"""Three gradients that sparsify has wrong, each beside the loss it is said to be of, written out densely in float64.

Finite differences of that loss say what is right. Ours is held to the same numbers in `tests/coders/test_one_step.py`.
"""

import pytest

from tests.coders import dense_loss
from tests.coders.one_step import drawn
from tests.peers import step

pytestmark = pytest.mark.peers


def test_the_auxiliary_loss_teaches_the_encoder_of_dead_latents_nothing() -> None:
    made = dense_loss.with_dead(drawn("transcoder"))
    coder = step.coder(made)
    dead = dense_loss.dead(made)
    loss = coder(made.x_ND, made.y_ND, dead_mask=dead).auxk_loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(dense_loss.auxk(made, made.weights), rel=1e-5)
    assert coder.encoder.weight.grad[dead].abs().max() == 0
    assert coder.W_dec.grad[dead].abs().max() > 0
    slope = dense_loss.slope(lambda weights: dense_loss.auxk(made, weights), made.weights, "enc")
    assert abs(slope) > 1e-3


def test_several_top_k_teach_the_encoder_nothing() -> None:
    made = drawn("transcoder")
    coder = step.coder(made, multi_topk=True)
    loss = coder(made.x_ND, made.y_ND).multi_topk_fvu
    loss.backward()
    assert float(loss.detach()) == pytest.approx(dense_loss.fvu(made, made.weights, 4 * made.k), rel=1e-5)
    assert coder.encoder.weight.grad is None or coder.encoder.weight.grad.abs().max() == 0
    slope = dense_loss.slope(lambda weights: dense_loss.fvu(made, weights, 4 * made.k), made.weights, "enc")
    assert abs(slope) > 1e-3


def test_latents_at_zero_are_taught_as_if_they_were_active() -> None:
    made = dense_loss.silent(drawn("transcoder"))
    coder = step.coder(made)
    out = coder(made.x_ND, made.y_ND)
    out.fvu.backward()
    assert out.latent_acts.abs().max() == 0
    assert coder.encoder.weight.grad.norm() > 0.05
    slope = dense_loss.slope(lambda weights: dense_loss.fvu(made, weights, made.k), made.weights, "enc")
    assert slope == 0
