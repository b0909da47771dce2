"""A saved state is the state, or is refused by name."""

import json
import logging
from pathlib import Path

import pytest
import torch

from nlrewrite.artifacts import Work
from nlrewrite.coders.saved import SLOTS, STATE, Saved, Slots
from nlrewrite.errors import CorruptArtifact, StoreError
from nlrewrite.execution import Execution
from tests.coders import small_training
from tests.coders.small_training import spec

SPEC = spec()


def state(step: int) -> Saved:
    draws = torch.Generator().manual_seed(step)
    tensors = {"a": torch.randn(5, 3, generator=draws), "b": torch.arange(step), "c": torch.tensor(float(step))}
    return Saved(step, tensors, [{"step": step, "fvu": 0.1 + step / 3}])


def same(one: Saved | None, other: Saved) -> bool:
    assert one is not None
    tensors = one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(each, other.tensors[name]) and each.dtype == other.tensors[name].dtype
        for name, each in one.tensors.items()
    )
    return tensors and one.step == other.step and one.curve == other.curve


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return small_training.work(tmp_path)


def where(work: Work, name: str) -> Path:
    return Path(work.where(name))


def test_the_latest_state_is_read_back_to_the_bit(work: Work) -> None:
    slots = Slots(work, SPEC, Execution())
    assert slots.load() is None
    for step in (3, 5, 9):
        slots.save(state(step))
        assert same(Slots(work, SPEC, Execution()).load(), state(step))


def test_slots_take_turns_also_for_who_goes_on(work: Work) -> None:
    Slots(work, SPEC, Execution()).save(state(1))
    other = Slots(work, SPEC, Execution())
    other.load()
    first = where(work, SLOTS[0]).read_bytes()
    other.save(state(2))
    assert where(work, SLOTS[0]).read_bytes() == first
    assert json.loads(where(work, STATE).read_text())["slot"] == 1


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("broken", ["slot", "state"])
def test_what_breaks_off_in_a_save_leaves_the_state_before(
    work: Work, monkeypatch: pytest.MonkeyPatch, before: int, broken: str
) -> None:
    slots = Slots(work, SPEC, Execution())
    for step in range(1, before + 1):
        slots.save(state(step))
    write, failing = Work.write, STATE if broken == "state" else SLOTS[before % 2]

    def breaking(self: Work, name: str, data: bytes) -> None:
        if name == failing:
            raise StoreError("no space left")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "write", breaking)
        with pytest.raises(StoreError):
            slots.save(state(7))
    assert same(Slots(work, SPEC, Execution()).load(), state(before))


def test_damage_is_refused_by_name_with_what_to_do(work: Work) -> None:
    Slots(work, SPEC, Execution()).save(state(4))
    piece, told = where(work, SLOTS[0]), where(work, STATE)
    data, said = piece.read_bytes(), told.read_text()

    def refused(match: str) -> None:
        with pytest.raises(CorruptArtifact, match=match) as caught:
            Slots(work, SPEC, Execution()).load()
        assert str(told) in str(caught.value) and "remove" in str(caught.value)
        piece.write_bytes(data)
        told.write_text(said)

    piece.write_bytes(data[:-7])
    refused(rf"{piece}: it has {len(data) - 7} bytes where state.json says {len(data)}")
    piece.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(rf"{piece}: its sha256 is [0-9a-f]{{16}}... where state.json says")
    piece.unlink()
    refused(rf"{piece}: it is missing")
    told.write_text(said[: len(said) // 2])
    refused(rf"{told}: it cannot be read: JSON")
    told.write_text(json.dumps(json.loads(said) | {"slot": 2}))
    refused(rf"{told}: it cannot be read: slot")
    assert same(Slots(work, SPEC, Execution()).load(), state(4))


def test_pieces_mixed_up_are_refused(work: Work, tmp_path: Path) -> None:
    other = small_training.work(tmp_path, "other")
    Slots(work, SPEC, Execution()).save(state(1))
    Slots(other, spec(seed=1), Execution()).save(state(2))
    where(work, SLOTS[0]).write_bytes(where(other, SLOTS[0]).read_bytes())
    with pytest.raises(CorruptArtifact, match=r"slot-0\.safetensors: it(s sha256 is| has)"):
        Slots(work, SPEC, Execution()).load()
    where(work, STATE).write_bytes(where(other, STATE).read_bytes())
    with pytest.raises(CorruptArtifact, match=r"state\.json: it is of the coder with spec [0-9a-f]{16}"):
        Slots(work, SPEC, Execution()).load()


def test_other_bits_are_said_and_nothing_is_left_behind(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    slots = Slots(work, SPEC, Execution())
    slots.save(state(1))
    slots.save(state(2))
    with caplog.at_level(logging.WARNING):
        fresh = small_training.work(Path(work.where("x")).parents[3])
        assert Slots(fresh, SPEC, Execution()).load() is not None
        assert not caplog.records
        assert Slots(fresh, SPEC, Execution(threads=2)).load() is not None
    assert "threads=2" in caplog.text and "threads=1" in caplog.text
    fresh.clear()
    assert not any(where(work, name).exists() for name in (*SLOTS, STATE))
