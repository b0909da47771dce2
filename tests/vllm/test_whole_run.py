"""A whole rewriting read through vLLM: the same digits, calibrators and losses as through `packed`."""

from pathlib import Path

import numpy as np
import pytest

from tests.test_engines import agree, logp, run

pytestmark = pytest.mark.vllm


def test_a_rewriting_through_vllm_has_the_same_losses(tmp_path: Path) -> None:
    packed = run(tmp_path, engine="packed")
    through = run(tmp_path, ("answers",), engine="vllm")
    first, second = logp(packed, "simulation-report"), logp(through, "simulation-report")
    told = np.isfinite(first)
    assert told.any() and np.array_equal(told, np.isfinite(second))
    assert len(set(np.exp(first[told]).round(4))) > 10
    np.testing.assert_allclose(np.exp(first[told]), np.exp(second[told]), atol=2e-3)  # kept in half precision
    agree(packed[0], through[0])
