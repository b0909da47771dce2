from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.llm import packing
from nlrewrite.llm.packing import Map

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
CPU = torch.device("cpu")


@given(LENGTHS, st.integers(1, 120))
def test_every_suffix_is_in_one_chunk_and_chunks_keep_to_the_budget(lengths, tokens):
    lengths = np.array(lengths)
    found = packing.chunks(lengths, tokens)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert all(lengths[chunk].sum() <= tokens or len(chunk) == 1 for chunk in found)
    assert (np.diff(lengths[np.concatenate(found)]) >= 0).all()
    for chunk, behind in pairwise(found):
        assert lengths[chunk].sum() + lengths[behind[0]] > tokens  # no chunk could have taken one more


def test_there_are_no_chunks_of_nothing():
    assert packing.chunks(np.array([], dtype=np.int64), 8) == []


@given(LENGTHS)
def test_a_row_comes_back_from_its_padded_layout_with_zeros_between(lengths):
    lengths = np.array(lengths)
    map = Map.of(lengths, CPU)
    row = map.even(torch.arange(1.0, 1.0 + lengths.sum())[:, None, None].repeat(1, 2, 3))
    padded = map.padded(row)
    tokens = int(lengths.sum())
    assert padded.shape == (len(lengths), map.width, 2, 3)
    assert torch.equal(map.packed(padded)[:tokens], row[:tokens])
    for suffix, length in enumerate(lengths):
        assert (padded[suffix, :length] > 0).all() and (padded[suffix, length:] == 0).all()
    assert len(row) % packing.EVEN == 0 and map.width % packing.WIDE == 0
    assert len(row) - tokens < packing.EVEN and map.width - lengths.max() < packing.WIDE


def test_a_map_in_full():
    map = Map.of(np.array([2, 1, 3]), CPU)
    assert map.off_S[:6].tolist() == [0, 1, 0, 0, 1, 2]
    assert map.slot_S[:6].tolist() == [0, 1, 16, 32, 33, 34]
    assert map.last_N.tolist() == [1, 2, 5]


@pytest.mark.parametrize("chosen", [[2, 0], [1], [0, 1, 2]])
def test_tokens_of_chosen_suffixes(chosen):
    lengths = np.array([2, 1, 3])
    parts = np.split(np.arange(6), np.cumsum(lengths)[:-1])
    assert packing.tokens_of(lengths, np.array(chosen)).tolist() == np.concatenate([parts[c] for c in chosen]).tolist()
