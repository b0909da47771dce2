"""Sums and shares over processes, by two real ones."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrewrite.coders import ranks
from nlrewrite.coders.ranks import ALONE, Group, buckets
from nlrewrite.errors import SettingError, Unreachable
from tests.coders.processes import STEPS, computing, dawdling, ended, found, losing, said, start, stepped


def test_two_processes_read_the_same_sums_and_take_the_same_step(tmp_path):
    assert ended(start(computing, tmp_path)) == [0, 0], said(tmp_path)
    both = found(tmp_path)
    one, other = (each["sums"] for each in both)
    assert [one.pop("share"), other.pop("share")] == [[0, 3], [3, 7]]
    assert one == other
    assert one.pop("gradients") == [
        [3.0] * 2,
        [11.0] * 3,
        [[43.0] * 2] * 2,
        [63.0] * 7,
        [[0.0, 9.0], [3.0, 12.0], [6.0, 15.0]],
    ]
    assert one == {
        "total": [3.0, 1.0],
        "counted": [2, 1],
        "largest": [1, 0],
        "any": [False, True],
        "gathered": [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]],
        "low": [1.0, 2.0],
        "none": 1,
        "weights": [[[0.0] * 2] * 3, [0]],
        "told": {"a": [1, "é"]},
        "spread": [[[10.0] * 2, [11.0] * 2, [11.0] * 2]] * 2,
    }
    check_step(*(each["step"] for each in both))
    for rank, each in enumerate(both):
        for kind in ("adam", "signum"):
            found_split = each["split"][kind]
            assert found_split["parameters"] == found_split["answers"] == [True] * 3
            assert found_split["held"] == [[[1, 4], [2], [3, 3]], [[1, 4], [3], [4, 3]]][rank]


def check_step(one, other):
    """The step of a coder by two processes is the step of one."""
    assert one == other
    for name, spec in STEPS.items():
        alone = stepped(spec, ALONE)
        assert any(alone["dead"]) == (spec.dead_after == 1)
        for number in ("total", "error", "variance", "active", "penalty", "auxk", "threshold"):
            assert one[name][number] == pytest.approx(alone[number], rel=1e-6), (name, number)
        assert one[name]["dead"] == alone["dead"]
        for weight, gradient in alone["gradients"].items():
            wanted, got = torch.tensor(gradient), torch.tensor(one[name]["gradients"][weight])
            assert (wanted - got).norm() < 1e-6 * wanted.norm(), (name, weight)


def test_a_killed_process_ends_those_that_wait_for_it(tmp_path):
    """Of three, so that the ones left are not only its neighbours in a sum."""
    assert ended(start(losing, tmp_path, world=3)) == [0, -9, 0], said(tmp_path, 3)
    for rank in (0, 2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())["lost"]
        assert told["seconds"] < 5
        assert told["said"].startswith(f"rank {rank} of 3 lost the others while ")
        assert "start all ranks again" in told["said"]


def test_a_process_that_does_not_come_is_not_waited_for_for_ever(tmp_path):
    assert ended(start(dawdling, tmp_path))[0] == 0, said(tmp_path)
    told = json.loads((tmp_path / "0.json").read_text())["slow"]
    assert 0.9 < told["seconds"] < 2.9
    assert "rank 0 of 2 lost the others while summing (it waits 1 s for a sum)" in told["said"]


def test_alone_everything_is_what_it_was():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    for call in (ALONE.total, ALONE.largest, ALONE.gathered):
        assert call(x).data_ptr() == x.data_ptr() and not call(x).requires_grad
    assert ALONE.share(5) == slice(0, 5)
    assert ALONE.told({1}) == {1}
    ALONE.sum_gradients([x])
    assert x.grad is None
    assert ranks.joined() is ALONE


def test_shares_of_a_batch_are_all_of_it_and_differ_by_one_row_at_most():
    @settings(max_examples=100, deadline=None, database=None)
    @given(st.integers(0, 1000), st.integers(1, 17))
    def holds(count, world):
        group = object.__new__(Group)
        group.world = world
        rows = []
        sizes = set()
        for rank in range(world):
            group.rank = rank
            share = group.share(count)
            rows += range(count)[share]
            sizes.add(share.stop - share.start)
        assert rows == list(range(count))
        assert max(sizes) - min(sizes) <= 1

    holds()


def test_gradients_travel_in_their_order_by_type_and_no_fuller_than_a_bucket(monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET", 10)
    sizes = [4, 5, 2, 30, 1, 1]
    gradients = [torch.zeros(size) for size in sizes]
    gradients.append(torch.zeros(1, dtype=torch.bfloat16))
    found = list(buckets(gradients))
    assert [[each.numel() for each in bucket] for bucket in found] == [[4, 5], [2], [30], [1, 1], [1]]
    assert [id(each) for bucket in found for each in bucket] == [id(each) for each in gradients]


def test_one_of_several_processes_takes_its_own_gpu(monkeypatch):
    assert ranks.own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ranks.own_device("cuda") == "cuda:3"
    assert ranks.own_device("cpu") == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(SettingError, match="device=cuda:1"):
        ranks.join("cuda:1")


def test_a_process_that_cannot_join_says_where(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable, match=r"rank 1 cannot join the others at 127\.0\.0\.1:1"):
        ranks.join(patience=1.0)
