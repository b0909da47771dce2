import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlrewrite.coders import ops
from nlrewrite.seeds import torch_generator

LENGTHS = [3, 0, 1, 5, 0]
L, D = 7, 4


def pairs(lengths: list[int] = LENGTHS, latents: int = L, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, latents and offsets; a latent can be named twice in a row."""
    draws = torch_generator(seed, "pairs")
    count = sum(lengths)
    values = torch.randn(count, generator=draws, dtype=torch.float64)
    indices = torch.randint(latents, (count,), generator=draws)
    return values, indices, torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "table", *shape), dtype=torch.float64)


def matrix(values: Tensor, indices: Tensor, offsets: Tensor, latents: int) -> Tensor:
    """The pairs as [N, L], one after another."""
    out = torch.zeros(len(offsets) - 1, latents, dtype=values.dtype)
    for row in range(len(offsets) - 1):
        for pair in range(int(offsets[row]), int(offsets[row + 1])):
            out[row, indices[pair]] += values[pair]
    return out


@pytest.fixture(params=[1 / 8, 0.0, 2.0], ids=["measured", "dense", "sparse"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "DENSE", request.param)
    monkeypatch.setattr(ops, "DENSE_ENTRIES", 2 * L)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("lengths", [LENGTHS, [1, 1, 1], [0, 0], [7, 7], [4]])
def test_the_three_are_products_with_the_matrix_of_the_pairs(lengths: list[int]) -> None:
    values, indices, offsets = pairs(lengths)
    z_NL, W_LD, g_ND = matrix(values, indices, offsets, L), normal(L, D), normal(len(lengths), D, seed=1)
    assert torch.allclose(ops.bag(values, indices, offsets, W_LD), z_NL @ W_LD)
    assert torch.allclose(ops.unbag(values, indices, offsets, g_ND, L), z_NL.T @ g_ND)
    rows = ops.rows_of(offsets)
    assert torch.allclose(ops.dots(indices, offsets, g_ND, W_LD), (g_ND @ W_LD.T)[rows, indices])


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("lengths", [LENGTHS, [2, 2], [0, 0]])
def test_each_is_differentiated_by_the_other_two(lengths: list[int]) -> None:
    values, indices, offsets = pairs(lengths)
    W_LD, g_ND = normal(L, D), normal(len(lengths), D, seed=1)
    for tensor in (values, W_LD, g_ND):
        tensor.requires_grad_(True)
    check: Callable[..., bool] = torch.autograd.gradcheck
    assert check(lambda v, W: ops.bag(v, indices, offsets, W), (values, W_LD))
    assert check(lambda v, g: ops.unbag(v, indices, offsets, g, L), (values, g_ND))
    assert check(lambda g, W: ops.dots(indices, offsets, g, W), (g_ND, W_LD))
    assert torch.autograd.gradgradcheck(lambda v, W: ops.bag(v, indices, offsets, W), (values, W_LD))


def test_half_precision_is_summed_in_float32() -> None:
    values, indices, offsets = torch.full((4096,), 2.0**-9), torch.zeros(4096, dtype=torch.int64), [0, 4096]
    ones = torch.ones(64, 1, dtype=torch.bfloat16)
    out = ops.bag(values.bfloat16(), indices, torch.tensor(offsets), ones)
    assert out.dtype == torch.bfloat16
    assert float(out) == 8.0  # a sum in bfloat16 would have stopped growing at 0.5
    one = ops.unbag(values.bfloat16(), indices, torch.arange(4097), ones[:1].expand(4096, 1), 64)
    assert (one.dtype, float(one[0])) == (torch.bfloat16, 8.0)
    assert ops.dots(indices[:2], torch.tensor([0, 2]), ones[:1], ones).dtype == torch.bfloat16


def test_twice_gives_the_same_bits() -> None:
    values, indices, offsets = pairs([32] * 64, latents=50)
    values, g_ND = values.float(), normal(64, 8).float()
    indices[::2] = 3  # a latent that is active everywhere
    once = ops.unbag(values, indices, offsets, g_ND, 50)
    assert torch.equal(once, ops.unbag(values, indices, offsets, g_ND, 50))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    latents=st.integers(1, 150),
    k=st.integers(1, 9),
    levels=st.sampled_from([0, 2, 30]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_topk_finds_the_largest_however_it_looks(
    rows: int, latents: int, k: int, levels: int, dtype: torch.dtype, seed: int
) -> None:
    k = min(k, latents)
    p_NL = normal(rows, latents, seed=seed)
    p_NL = (p_NL if levels == 0 else (p_NL * levels).round() / levels).to(dtype)
    values, indices = ops.topk(p_NL, k)
    assert values.dtype == dtype
    assert torch.equal(values.sort(1).values, p_NL.sort(1).values[:, latents - k :])
    assert torch.equal(p_NL.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_topk_of_no_rows_and_of_nothing_but_ties() -> None:
    assert ops.topk(torch.zeros(0, 500), 3)[1].shape == (0, 3)
    values, indices = ops.topk(torch.zeros(4, 500), 3)
    assert torch.equal(values, torch.zeros(4, 3)) and all(len(set(row)) == 3 for row in indices.tolist())
    assert not ops.topk(torch.randn(4, 500, generator=torch_generator(0), requires_grad=True), 3)[0].requires_grad


def test_topk_looks_at_whole_rows_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(p_NL: Tensor, k: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("the rows differ enough to be chosen from by groups")

    monkeypatch.setattr(ops, "_plain_topk", whole)
    monkeypatch.setattr(ops, "SERIAL_THREADS", 1 << 10)
    p_NL = normal(20, 1000).float()
    assert torch.equal(ops.topk(p_NL, 7)[0].sort(1).values, p_NL.sort(1).values[:, -7:])
    with pytest.raises(AssertionError, match="differ enough"):
        ops.topk(torch.zeros(4, 1000), 7)


def test_kernels_are_for_tensors_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))  # what can be imported decides nothing
    monkeypatch.setitem(sys.modules, "nlrewrite.coders.kernels", None)
    values, indices, offsets = pairs()
    W_LD, g_ND = normal(L, D), normal(len(LENGTHS), D)
    ops.bag(values, indices, offsets, W_LD)
    ops.unbag(values, indices, offsets, g_ND, L)
    ops.dots(indices, offsets, g_ND, W_LD)
    ops.tally(values, indices, offsets, L)
    ops.topk(g_ND, 2)
    ops.above(g_ND, torch.zeros(D, dtype=torch.float64))
