"""The kernels by Triton's interpreter, their translation for a GPU, and top-k in two stages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrewrite.coders import kernels
from nlrewrite.coders.ops import unbag
from nlrewrite.seeds import torch_generator

ROOT = Path(__file__).parents[2]


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_the_kernels_compute_what_float64_does():
    """In a process of its own: Triton asks for TRITON_INTERPRET once, when it is imported."""
    done = python("-m", "pytest", "-q", "tests/coders/interpreted_kernels.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "100%" in done.stdout


SIZES = {"PIECE": kernels.PIECE, "COLUMNS": kernels.COLUMNS, "PAIRS": kernels.PAIRS}
INTEGERS = {"indices", "offsets", "order", "rows", "starts", "owners", "firsts"}


@pytest.mark.parametrize("floats", ["*fp32", "*bf16"])
@pytest.mark.parametrize("name", ["bag", "dots", "pieces", "join"])
def test_the_kernels_are_translated_for_a_hopper_gpu(name, floats, tmp_path, monkeypatch):
    """As far as the machine code of an H100 or H200, which needs no GPU; atomics would leave the sums to chance."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, f"{name}_kernel")
    sizes = {size: number for size, number in SIZES.items() if size in kernel.arg_names}
    types = {"width": "i32", "latents": "i32", "partial": "*fp32"} | dict.fromkeys(INTEGERS, "*i64")
    types |= dict.fromkeys(sizes, "constexpr")
    source = ASTSource(kernel, {each: types.get(each, floats) for each in kernel.arg_names}, sizes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
    assert ".target sm_90" in made.asm["ptx"]
    assert made.asm["cubin"][:4] == b"\x7fELF"
    assert "atom." not in made.asm["ptx"] and "red.global" not in made.asm["ptx"]
    assert ".local" not in made.asm["ptx"]  # no array that would live in memory


# -- top-k ------------------------------------------------------------------------------------------------------------


def test_two_stages_find_what_one_does():
    @settings(max_examples=80, deadline=None, database=None)
    @given(st.sampled_from([16, 60, 64, 96, 97, 256]), st.integers(1, 16), st.integers(1, 5), st.integers(0, 999))
    def holds(latents, k, rows, seed):
        p = torch.randn(rows, latents, generator=torch_generator(seed, "topk"))
        values, indices = kernels.topk(p, k)
        wanted = torch.topk(p, k, dim=-1)
        assert torch.equal(values.sort(descending=True).values, wanted.values)
        assert torch.equal(indices.sort().values, wanted.indices.sort().values)
        assert torch.equal(p.gather(1, indices), values)

    holds()


def test_ties_move_indices_and_never_values():
    p = torch.randint(0, 4, (20, 256), generator=torch_generator(0, "ties")).to(torch.bfloat16)
    values, indices = kernels.topk(p, 9)
    assert torch.equal(values.sort(descending=True).values, torch.topk(p, 9, dim=-1).values)
    assert torch.equal(p.gather(1, indices), values)
    assert all(len(set(row)) == 9 for row in indices.tolist())


@pytest.mark.parametrize(
    ("latents", "k", "size"), [(32768, 32, 32), (18432, 128, 12), (131072, 64, 64), (97, 8, 1), (64, 64, 1)]
)
def test_a_group_divides_the_latents_and_leaves_k(latents, k, size):
    assert kernels.group(latents, k) == size
    assert latents % size == 0 and latents // size >= k


# -- where they are not -----------------------------------------------------------------------------------------------


def test_tensors_of_the_cpu_know_nothing_of_kernels():
    """A triton that can be imported, and even one that is broken, decides nothing."""
    code = (
        "import sys, types, torch\n"
        "sys.modules['triton'] = types.ModuleType('triton')\n"
        "from nlrewrite.coders import ops\n"
        "i, o, w = torch.tensor([1, 0, 2]), torch.tensor([0, 2, 3]), torch.eye(3)\n"
        "ops.bag(torch.ones(3), i, o, w), ops.dots(i, o, w[:2], w), ops.unbag(torch.ones(3), i, o, w[:2], 3)\n"
        "ops.topk(w, 2)\n"
        "assert 'nlrewrite.coders.kernels' not in sys.modules\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_cpu_and_the_gpu_take_the_same_arguments():
    """One latent's rows, by the operation of the CPU and by the sorted pairs the kernels walk."""
    draws = torch_generator(3, "pairs")
    indices, offsets = torch.randint(0, 6, (12,), generator=draws), torch.arange(0, 13, 3)
    values, x = torch.randn(12, generator=draws), torch.randn(4, 5, generator=draws)
    by = kernels.by_latent(indices, offsets, 6)
    for latent in range(6):
        pairs = by.order_P[by.starts[latent] : by.starts[latent + 1]]
        total = (values[pairs, None] * x[by.rows_P[pairs]]).sum(0)
        assert torch.allclose(unbag(values, indices, offsets, x, 6)[latent], total, atol=1e-6)
