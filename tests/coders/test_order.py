"""The order of the data is a function of the step."""

import numpy as np
import pytest
import torch

from nlrewrite.coders import order as orders
from nlrewrite.coders.order import Order, order
from nlrewrite.errors import SettingError
from nlrewrite.specs import CoderSpec
from nlrewrite.text.rows import Part, Rows

IDS = 1000


def rows(ids: int = IDS, window: int = 10, length: int | None = None) -> Rows:
    every = np.arange(ids)
    return Rows([Part(ids, lambda begin, end: every[begin:end], lambda: every[:1])], window, 0, ids, length)


def of(**changed: object) -> CoderSpec:
    return CoderSpec.model_validate({"window": 10, "batch": 20, "mix": 40, "width": 8, "k": 2} | changed)


def tokens(made: Order, given: Rows, step: int) -> np.ndarray:
    """The ids of a batch, as the stream of activations would have them."""
    parts = []
    for piece in made.pieces(step):
        ids = torch.from_numpy(orders.read(given, made, made.windows(piece.block)).reshape(-1))
        parts.append((ids[made.mixing(piece.block)] if made.mixes else ids)[piece.tokens])
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("kind", ["drawn", "shuffled", "sequential"])
@pytest.mark.parametrize("mix", [0, 15, 40, 70])
def test_a_step_reads_the_same_whatever_was_read_before(kind: str, mix: int) -> None:
    spec, given = of(order=kind, mix=mix), rows()
    forward = [tokens(order(spec, given), given, step) for step in range(12)]
    fresh = [tokens(order(spec, rows()), rows(), step) for step in reversed(range(12))]
    assert all(np.array_equal(one, other) for one, other in zip(forward, reversed(fresh), strict=True))
    assert {len(each) for each in forward} == {20}


@pytest.mark.parametrize("kind", ["shuffled", "sequential"])
@pytest.mark.parametrize("mix", [0, 15, 40, 70])
def test_every_row_but_those_held_out_is_read_once_an_epoch(kind: str, mix: int) -> None:
    spec, given = of(order=kind, mix=mix), rows()
    held = orders.held_out(given)
    made = order(spec, given)
    assert made.trained == given.count - len(held) == held[0]
    in_epoch = made.trained * 10
    blocks = -(-in_epoch // made.block) + 1
    seen = np.concatenate([orders.read(given, made, made.windows(block)).reshape(-1) for block in range(blocks)])
    assert sorted(seen[:in_epoch]) == list(range(in_epoch))
    if kind == "sequential":
        assert np.array_equal(seen[:in_epoch], np.arange(in_epoch))
        assert np.array_equal(seen[in_epoch : in_epoch + 10], np.arange(10))
    else:
        assert not np.array_equal(seen[:in_epoch], np.arange(in_epoch))
        first, second = orders.shuffled(0, 0, made.trained), orders.shuffled(0, 1, made.trained)
        assert not np.array_equal(first, second)


def test_a_sequence_that_is_not_mixed_is_the_stream_itself() -> None:
    spec, given = of(order="sequential", mix=0), rows()
    assert np.array_equal(tokens(order(spec, given), given, 3), np.arange(60, 80))


def test_mixing_permutes_a_block_and_no_token_is_lost_between_blocks() -> None:
    spec, given = of(order="sequential", mix=45), rows()  # blocks of 50 tokens, batches of 20
    made = order(spec, given)
    assert made.block == 50
    read = np.concatenate([tokens(made, given, step) for step in range(5)])
    assert sorted(read[:50]) == list(range(50))
    assert sorted(read[50:]) == list(range(50, 100))
    assert not np.array_equal(read[:50], np.arange(50))


def test_drawn_windows_start_anywhere_and_never_reach_what_is_held_out() -> None:
    spec, given = of(order="drawn", mix=1000), rows()
    made = order(spec, given)
    starts = np.concatenate([made.windows(block) for block in range(40)])
    assert starts.min() == 0 and starts.max() == made.trained * 10 - 10
    assert len(np.unique(starts % 10)) == 10
    other = order(of(order="drawn", mix=1000, seed=1), given)
    assert not np.array_equal(other.windows(0), made.windows(0))
    kept = order(of(order="drawn", mix=1000, seed=1, order_seed=0), given)
    assert np.array_equal(kept.windows(0), made.windows(0))


def test_rows_of_a_file_keep_their_own_length_unless_windows_are_drawn() -> None:
    given = rows(length=25)
    assert order(of(order="sequential", batch=50), given).length == 25
    assert order(of(order="drawn"), given).length == 10


def test_the_opening_is_the_first_windows_of_the_first_blocks() -> None:
    made = order(of(order="shuffled", mix=20), rows())
    opening = made.opening(45)
    assert np.array_equal(opening, np.concatenate([made.windows(block) for block in range(3)])[:5])
    behind = made.opening(45, after=41)  # 20 tokens a block: the third was begun
    assert np.array_equal(behind, np.concatenate([made.windows(block) for block in range(3, 6)])[:5])


def test_a_text_that_is_shorter_than_a_batch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    order(of(batch=20), rows(ids=100))
    assert not caplog.messages
    order(of(batch=200), rows(ids=100))
    assert "80 tokens to train on, and coder.batch=200" in caplog.text


def test_what_does_not_fit_is_refused_with_value_bound_and_remedy() -> None:
    with pytest.raises(SettingError, match=r"coder\.batch=25, 10 tokens in a window\. Use --set coder\.batch=20"):
        order(of(mix=0, batch=25), rows())
    with pytest.raises(SettingError, match=r"too short to train a coder on.*lower --set coder\.window"):
        order(of(), rows(ids=9))
    with pytest.raises(SettingError, match=r"it has 29 tokens, a window has 20.*lower --set coder\.window"):
        order(of(window=20), rows(ids=29, window=20, length=10))
