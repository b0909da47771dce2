"""The Triton kernels themselves, run by Triton's interpreter on CPU tensors, against dense float64 references.

`test_kernels.py` runs this file in a process of its own, because Triton decides once, when it is imported.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrewrite.coders import kernels
from nlrewrite.coders.code import Code
from nlrewrite.seeds import torch_generator


def ragged(lengths, latents, seed=0, dtype=torch.float32):
    """A code with rows of those lengths, no latent twice in a row, values of both signs."""
    draws = torch_generator(seed, "kernels")
    rows = [torch.randperm(latents, generator=draws)[:length] for length in lengths]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.randn(int(offsets[-1]), generator=draws).to(dtype)
    return Code(torch.cat([*rows, torch.zeros(0, dtype=torch.int64)]), values, offsets)


def normal(rows, columns, seed=1, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch_generator(seed, "kernels", "matrix")).to(dtype)


def dense(code, latents):
    """[N, L] float64"""
    full = torch.zeros(len(code), latents, dtype=torch.float64)
    full[code.rows(), code.indices] = code.values.double()
    return full


def near(found, wanted, tolerance=2e-6):
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    return torch.allclose(found.double(), wanted, rtol=0, atol=tolerance * scale)


CODES = {
    "table": ragged([5] * 12, 40),
    "ragged": ragged([0, 3, 17, 1, 0, 9, 40, 0], 40),
    "one row": ragged([7], 40),
    "nothing at all": ragged([0, 0, 0], 40),
}
WIDTHS = (1, 48, 300)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_bag_is_the_product_of_code_and_matrix(code, width):
    weight = normal(40, width)
    found = kernels.bag(code.values, code.indices, code.offsets, weight)
    assert found.dtype == torch.float32
    assert near(found, dense(code, 40) @ weight.double())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_dots_are_the_products_of_the_rows_of_each_pair(code, width):
    weight, x = normal(40, width), normal(len(code), width, 2)
    wanted = (x.double()[code.rows()] * weight.double()[code.indices]).sum(1)
    assert near(kernels.dots(code.indices, code.offsets, x, weight), wanted)


@pytest.mark.parametrize("piece", [4, 128])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_unbag_is_the_product_of_the_transposed_code_and_matrix(code, width, piece):
    x = normal(len(code), width, 2)
    by = kernels.by_latent(code.indices, code.offsets, 40, piece)
    found = kernels.unbag(code.values, code.indices, code.offsets, x, 40, by)
    assert near(found, dense(code, 40).T @ x.double())


@pytest.mark.parametrize("piece", [4, 16])
def test_a_latent_active_on_every_row_is_summed_in_pieces(piece):
    rows = 70
    indices = torch.stack([torch.full((rows,), 3), 4 + torch.arange(rows) % 9], 1)
    code = Code.table(normal(rows, 2), indices)
    x = normal(rows, 5, 2)
    by = kernels.by_latent(code.indices, code.offsets, 16, piece)
    assert (by.owners_S == 3).sum() == -(-rows // piece)
    assert near(kernels.unbag(code.values, code.indices, code.offsets, x, 16, by), dense(code, 16).T @ x.double())


def test_every_pair_is_in_one_piece_of_its_latent_and_there_is_room_for_all():
    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 99))
    def holds(lengths, piece, seed):
        code = ragged(lengths, 12, seed)
        by = kernels.by_latent(code.indices, code.offsets, 12, piece)
        counts = torch.bincount(code.indices, minlength=12)
        pieces = torch.bincount(by.owners_S, minlength=13)
        assert pieces[:12].tolist() == [-(-int(count) // piece) for count in counts]
        assert by.starts.diff().tolist() == counts.tolist()
        assert torch.equal(code.indices[by.order_P], code.indices.sort().values)
        assert torch.equal(by.rows_P, code.rows())

    holds()


def test_pairs_of_a_latent_stay_in_the_order_of_their_rows():
    code = Code.table(torch.ones(50, 1), torch.zeros(50, 1, dtype=torch.int64))
    assert kernels.by_latent(code.indices, code.offsets, 4).order_P.tolist() == list(range(50))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    """A thousand ones and a large number: in bfloat16 the ones would vanish beside it."""
    count = 1000
    code = Code.table(torch.ones(1, count, dtype=dtype), torch.arange(count)[None])
    weight = torch.ones(count, 1, dtype=dtype)
    weight[0] = 2048.0
    wanted = torch.tensor([[2048.0 + count - 1]]).to(dtype)
    found = kernels.bag(code.values, code.indices, code.offsets, weight)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)
    back = Code.table(torch.ones(count, 1, dtype=dtype), torch.zeros(count, 1, dtype=torch.int64))
    assert torch.equal(kernels.unbag(back.values, back.indices, back.offsets, weight, 1), wanted)
    long = normal(1, count, dtype=dtype)
    product = kernels.dots(torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1]), long, long)
    assert near(product, long.double().square().sum()[None], 0.004)


def test_results_have_the_type_of_the_matrix():
    code, x, weight = ragged([5] * 4, 16), normal(4, 3, dtype=torch.bfloat16), normal(16, 3, 2)
    found = kernels.unbag(code.values, code.indices, code.offsets, x, 16)
    assert found.dtype == torch.bfloat16
    assert near(found, dense(code, 16).T @ x.double(), 0.004)
    assert kernels.bag(code.values.bfloat16(), code.indices, code.offsets, weight).dtype == torch.float32
    assert kernels.dots(code.indices, code.offsets, x, weight).dtype == torch.bfloat16


def test_two_sums_of_one_code_sort_its_pairs_once_and_a_changed_code_anew():
    code = ragged([5] * 6, 16)
    x = normal(6, 3)
    kernels.unbag(code.values, code.indices, code.offsets, x, 16)
    by = kernels._sorted_once(code.indices, code.offsets, 16)
    assert kernels._sorted_once(code.indices, code.offsets, 16) is by
    assert kernels._sorted_once(code.indices, code.offsets, 17) is not by
    kernels.unbag(code.values, code.indices, code.offsets, x, 16)
    code.indices.copy_((code.indices + 1) % 16)
    assert near(kernels.unbag(code.values, code.indices, code.offsets, x, 16), dense(code, 16).T @ x.double())


def test_what_lies_apart_in_memory_is_read_as_it_is_seen():
    code = ragged([4, 2, 6], 10)
    weight, x = normal(7, 10).T, normal(7, 3, 2).T
    assert near(kernels.bag(code.values, code.indices, code.offsets, weight), dense(code, 10) @ weight.double())
    assert near(kernels.unbag(code.values, code.indices, code.offsets, x, 10), dense(code, 10).T @ x.double())
