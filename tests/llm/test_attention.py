"""Two-part attention against one softmax under a dense mask."""

import numpy as np
import pytest
import torch

from nlrewrite.llm import attention
from nlrewrite.llm.attention import Growing, KeyValues, Own, Step, Suffixes
from nlrewrite.llm.packing import Map

LENGTHS = np.array([4, 1, 17, 9])
SIZE, SCALE = 8, 0.4


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(q, keys, values, allowed_QK) -> torch.Tensor:
    """[S, H, D] by one softmax in float64; heads of a group are neighbours."""
    groups = q.shape[1] // keys.shape[1]
    keys, values = (each.double().repeat_interleave(groups, dim=1) for each in (keys, values))
    scores = (q.double() @ keys.transpose(-1, -2) * SCALE).masked_fill(~allowed_QK, -torch.inf)
    return (scores.softmax(dim=-1) @ values)[0].transpose(0, 1).float()


def row(heads: int, key_heads: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    sizes = (heads, key_heads, key_heads)
    return tuple(drawn(1, size, tokens, SIZE, seed=10 * seed + part) for part, size in enumerate(sizes))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("before", [0, 1, 37])
def test_suffixes_attend_to_the_prefix_and_to_themselves(heads, key_heads, before):
    map = Map.of(LENGTHS, torch.device("cpu"))
    tokens, whole = int(LENGTHS.sum()), len(map.off_S)
    q, k, v = row(heads, key_heads, whole)
    prefix = KeyValues([drawn(1, key_heads, before, SIZE, seed=7)], [drawn(1, key_heads, before, SIZE, seed=8)])
    suffix_T = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    off_T = map.off_S[:tokens].numpy()
    own_TT = (suffix_T[:, None] == suffix_T) & (off_T <= off_T[:, None])
    allowed = torch.from_numpy(np.concatenate([np.ones((tokens, before), dtype=bool), own_TT], axis=1))
    expected = dense(
        q[:, :, :tokens],
        torch.cat([prefix.keys[0], k[:, :, :tokens]], dim=2),
        torch.cat([prefix.values[0], v[:, :, :tokens]], dim=2),
        allowed,
    )
    found = Suffixes(map, prefix if before else None).attend(0, q, k, v, SCALE)
    assert found.shape == (1, whole, heads, SIZE)
    torch.testing.assert_close(found[0, :tokens], expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.5


@pytest.mark.parametrize("before", [0, 21])
def test_a_text_that_grows_attends_to_all_before_it_and_keeps_it(before):
    q, k, v = row(4, 2, 13)
    past = KeyValues([drawn(1, 2, before, SIZE, seed=7)], [drawn(1, 2, before, SIZE, seed=8)])
    whole = KeyValues.empty(1, 2, before + 13, SIZE, q)
    whole.keys[0][:, :, :before], whole.values[0][:, :, :before] = past.keys[0], past.values[0]
    found = Growing(whole, before).attend(0, q, k, v, SCALE)
    keys, values = torch.cat([past.keys[0], k], dim=2), torch.cat([past.values[0], v], dim=2)
    causal = torch.ones(13, before + 13, dtype=torch.bool).tril(before)
    torch.testing.assert_close(found[0], dense(q, keys, values, causal), atol=1e-5, rtol=0)
    assert torch.equal(whole.keys[0], keys) and torch.equal(whole.values[0], values)
    assert len(whole) == before + 13
    assert torch.equal(whole.cropped(5).values[0], values[:, :, :5])


def test_one_more_token_of_each_suffix_is_the_end_of_a_longer_suffix():
    longer, prefix = LENGTHS + 1, KeyValues([drawn(1, 2, 6, SIZE, seed=7)], [drawn(1, 2, 6, SIZE, seed=8)])
    map, shorter = Map.of(longer, torch.device("cpu")), Map.of(LENGTHS, torch.device("cpu"))
    q, k, v = row(4, 2, len(map.off_S))
    expected = Suffixes(map, prefix).attend(0, q, k, v, SCALE)[0, map.last_N]
    inner = torch.cat(
        [torch.arange(end - length, end - 1) for end, length in zip(np.cumsum(longer), longer, strict=True)]
    )
    own = Own.empty(1, len(LENGTHS), 2, int(longer.max()), SIZE, q)
    before = [shorter.even(each[0, :, inner].transpose(0, 1)).transpose(0, 1)[None] for each in (q, k, v)]
    Suffixes(shorter, prefix, own).attend(0, *before, SCALE)
    last = [each[:, :, map.last_N] for each in (q, k, v)]
    found = Step(prefix, own, torch.from_numpy(LENGTHS), int(longer.max())).attend(0, *last, SCALE)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_the_processors_own_kernel_tells_the_log_of_the_sum(dtype, causal):
    """It is no public function of torch: should it change, this says so."""
    q, k, v = (drawn(3, 4, 19, SIZE, seed=seed).to(dtype) for seed in range(3))
    seen = torch.ones(19, 19, dtype=torch.bool).tril() if causal else None
    out, lse = attention.attention(q, k, v, SCALE, causal=causal)
    expected, expected_lse = attention._in_full(q, k, v, SCALE, seen)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=1e-5 if dtype == torch.float32 else 1e-3, rtol=0)


def test_the_same_without_a_kernel():
    """What a device without one runs, on the CPU."""
    q, k, v = (drawn(3, 4, 19, SIZE, seed=seed) for seed in range(3))
    expected = dense(q[:1], k[:1], v[:1], torch.ones(19, 19, dtype=torch.bool).tril())
    found, _ = attention._in_full(q[:1], k[:1], v[:1], SCALE, torch.ones(19, 19, dtype=torch.bool).tril())
    torch.testing.assert_close(found[0].transpose(0, 1), expected, atol=1e-5, rtol=0)


def test_merging_where_one_part_weighs_all_or_nothing():
    one, other = drawn(2, 1, SIZE, seed=1), drawn(2, 1, SIZE, seed=2)
    low, high = torch.full((2, 1), -300.0), torch.full((2, 1), 300.0)
    assert torch.equal(attention.merged(one, high, other, low), one)
    assert torch.equal(attention.merged(one, low, other, high), other)
    torch.testing.assert_close(attention.merged(one, high, other, high), (one + other) / 2)
