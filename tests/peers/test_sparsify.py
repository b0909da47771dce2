"""Loss and gradients of one step equal to sparsify's, from equal weights."""

import json

import pytest

from tests.coders.one_step import KINDS, Kind, drawn, ours, summary, taught
from tests.peers import step

pytestmark = pytest.mark.peers

CLOSE = 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_equal(kind: Kind) -> None:
    made = drawn(kind, rows=512, d=64, latents=1024, k=32)
    loss, theirs = step.step(made)
    mine, gradients = taught(ours(made), made)
    assert mine == pytest.approx(loss, rel=CLOSE)
    assert set(gradients) == set(theirs)
    for name, gradient in gradients.items():
        assert float((gradient - theirs[name]).norm() / theirs[name].norm()) < CLOSE, name


def test_the_golden_step_is_what_sparsify_does_now() -> None:
    golden = json.loads(step.GOLDEN.read_text())["steps"]
    for kind in KINDS:
        found = summary(*step.step(drawn(kind)))
        assert found["loss"] == pytest.approx(golden[kind]["loss"], rel=CLOSE)
        for name, gradient in golden[kind]["gradients"].items():
            assert found["gradients"][name]["norm"] == pytest.approx(gradient["norm"], rel=CLOSE), (kind, name)
