"""Coders trained by several real processes against one: a step, thirty steps, and a run that was killed."""

import json
import time

import pytest
import torch

from nlrewrite.coders import finish
from nlrewrite.coders.ranks import ALONE
from nlrewrite.steps import Job
from tests.coders import processes, small_training
from tests.coders.processes import LIVE_TOKENS, STEPS, ended, found, start, stepped

SPECS = {
    "topk": small_training.spec(steps=30),
    "batchtopk": small_training.spec(steps=30, activation="batchtopk", k=3),
    "relu": small_training.spec(steps=30, activation="relu", penalty=0.01, mix=0),
}


def apart(one, other):
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def stored(root, specs):
    """A store with what coders are trained on, and the specs that the processes read."""
    given = small_training.inputs(root)
    (root / "specs.json").write_text(json.dumps([each.model_dump(mode="json") for each in specs]))
    return given


def test_a_step_of_three_processes_is_the_step_of_one(tmp_path):
    codes, said = ended(start("step", tmp_path, world=3))
    assert codes == [0, 0, 0], said
    one, *others = found(tmp_path, 3)
    assert all(other == one for other in others), "every process must read the same sums"
    for name, spec in STEPS.items():
        alone = stepped(spec, ALONE)
        assert any(alone["dead"]) == (spec.dead_after == 1)
        for number in ("total", "error", "variance", "active", "penalty", "auxk", "threshold"):
            assert one[name][number] == pytest.approx(alone[number], rel=1e-6), (name, number)
        assert one[name]["dead"] == alone["dead"]
        for weight, gradient in alone["gradients"].items():
            got = torch.tensor(one[name]["gradients"][weight])
            assert apart(torch.tensor(gradient), got) < 1e-6, (name, weight)


def test_thirty_steps_of_two_processes_come_to_what_one_process_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "LIVE_TOKENS", LIVE_TOKENS)
    given = stored(tmp_path / "store", SPECS.values())
    running = start("train", tmp_path / "two", arguments=[tmp_path / "store", 300])
    small_training.together(
        given, [Job(spec, tmp_path / "one" / str(number)) for number, spec in enumerate(SPECS.values())]
    )
    codes, said = ended(running)
    assert codes == [0, 0], said
    for number, name in enumerate(SPECS):
        one, two = (small_training.weights(tmp_path / each / str(number)) for each in ("one", "two"))
        for weight in one:
            assert apart(one[weight], two[weight]) < 1e-4, (name, weight)
        said_one, said_two = (
            json.loads((tmp_path / each / str(number) / "training.json").read_text()) for each in ("one", "two")
        )
        assert said_two["live_share"] == said_one["live_share"]
        assert said_two["tokens_seen"] == said_one["tokens_seen"]
        for point_one, point_two in zip(said_one["curve"], said_two["curve"], strict=True):
            assert point_two == pytest.approx(point_one, rel=1e-4)


def test_a_killed_follower_ends_all_and_both_go_on_to_the_same_bits(tmp_path):
    spec = small_training.spec(steps=40)
    for store in ("whole", "broken"):
        stored(tmp_path / store, [spec])
    whole = start("train", tmp_path / "whole-out", arguments=[tmp_path / "whole", 300])
    assert ended(whole)[0] == [0, 0]

    state = tmp_path / "broken" / "work" / "coder" / small_training.work(tmp_path, "coder 0")._artifact.digest
    arguments = [tmp_path / "broken", 1e-6]
    first = start("train", tmp_path / "broken-out", arguments=arguments)
    until = time.monotonic() + 30
    while time.monotonic() < until and not (state / "state.json").exists():
        time.sleep(0.005)
    first[1].kill()
    began = time.monotonic()
    codes, said = ended(first)
    assert time.monotonic() - began < 5, "the one that was left did not end"
    assert codes[1] == -9 and codes[0] not in (0, -9)
    assert "Unreachable: rank 0 of 2 lost the others while " in said[0]
    assert 0 < json.loads((state / "state.json").read_text())["step"] < spec.steps
    assert not (tmp_path / "broken-out" / "0" / "coder.safetensors").exists()

    assert ended(start("train", tmp_path / "broken-out", arguments=arguments))[0] == [0, 0]
    assert small_training.made(tmp_path / "broken-out" / "0") == small_training.made(tmp_path / "whole-out" / "0")


def test_alone_nobody_is_called(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.followers.together(processes.Execution()) as leads:
        assert leads
        with processes.followers.called([], {}):
            assert processes.ranks.joined() is ALONE
