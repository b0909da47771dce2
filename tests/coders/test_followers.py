"""Coders trained by two real processes against one, and by two of which one is killed."""

import json
import shlex
import shutil
import time
from pathlib import Path

import pytest

from nlrewrite.cli import ACTS
from nlrewrite.coders import finish, followers
from nlrewrite.coders.ranks import ALONE, joined
from nlrewrite.execution import Execution
from nlrewrite.options import parser
from nlrewrite.steps import Job
from tests.coders import small_training
from tests.coders.processes import LIVE_TOKENS, ended, said, start, training

SPECS = {
    "topk": small_training.spec(steps=30),
    "batchtopk": small_training.spec(steps=30, activation="batchtopk", k=3),
    "relu": small_training.spec(steps=30, activation="relu", penalty=0.01, mix=0),
}


def stored(root, specs):
    """A store with what coders are trained on, and the specs that the processes read."""
    given = small_training.inputs(root)
    (root / "specs.json").write_text(json.dumps([each.model_dump(mode="json") for each in specs]))
    return given


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Coders trained by two processes: the folder with the store and, in `two`, what they made."""
    root = tmp_path_factory.mktemp("two")
    stored(root / "store", SPECS.values())
    assert ended(start(training, root / "two", arguments=[root / "store", 300.0])) == [0, 0], said(root / "two")
    return root


def test_thirty_steps_of_two_processes_come_to_what_one_process_makes(two, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "LIVE_TOKENS", LIVE_TOKENS)
    jobs = [Job(spec, tmp_path / str(number)) for number, spec in enumerate(SPECS.values())]
    small_training.together(small_training.inputs(two / "store"), jobs)
    for number, name in enumerate(SPECS):
        by_one, by_two = (folder / str(number) for folder in (tmp_path, two / "two"))
        wanted, got = small_training.weights(by_one), small_training.weights(by_two)
        assert set(wanted) == set(got)
        for weight in wanted:
            assert (wanted[weight] - got[weight]).norm() <= 1e-4 * wanted[weight].norm(), (name, weight)
        one, other = (json.loads((each / "training.json").read_text()) for each in (by_one, by_two))
        assert {**other, "curve": 0, "fvu": 0, "ce": 0} == {**one, "curve": 0, "fvu": 0, "ce": 0}
        assert other["ce"] == pytest.approx(one["ce"], rel=1e-4, abs=1e-6)
        for point, wanted_point in zip(other["curve"], one["curve"], strict=True):
            assert point == pytest.approx(wanted_point, rel=1e-4)


def test_a_killed_follower_ends_all_and_both_go_on_to_the_same_bits(two, tmp_path):
    spec = SPECS["topk"]
    stored(tmp_path / "store", [spec])
    work = small_training.work(tmp_path / "store", "coder 0")
    arguments = [tmp_path / "store", 1e-6]
    first = start(training, tmp_path / "out", arguments=[*arguments, 12])
    first[1].join(60)
    began = time.monotonic()
    assert ended(first) == [1, -9], said(tmp_path / "out")
    assert time.monotonic() - began < 5, "the one that was left did not end"
    assert "Unreachable: rank 0 of 2 lost the others while " in said(tmp_path / "out")[0]
    assert json.loads(work.read("state.json") or b"{}")["step"] == 12
    assert not (tmp_path / "out" / "0" / "coder.safetensors").exists()

    assert ended(start(training, tmp_path / "out", arguments=arguments)) == [0, 0], said(tmp_path / "out")
    assert small_training.made(tmp_path / "out" / "0") == small_training.made(two / "two" / "0")


SHARDED = {"adam": SPECS["topk"], "signum": small_training.spec(steps=30, optimizer="signum", learning_rate=1e-3)}


def test_an_optimizer_split_over_processes_moves_the_same_bits_and_goes_on(two, tmp_path):
    """Saved by two processes of which one is killed; gone on with split, and each process having all of it."""
    stored(tmp_path / "store", SHARDED.values())
    arguments = [tmp_path / "store", 1e-6]
    assert ended(start(training, tmp_path / "out", arguments=[*arguments, 12, 0])) == [1, -9], said(tmp_path / "out")
    for number in range(2):
        work = small_training.work(tmp_path / "store", f"coder {number}")
        assert json.loads(work.read("state.json") or b"{}")["step"] == 12
    shutil.copytree(tmp_path / "store", tmp_path / "copy")

    out = tmp_path / "out"
    assert ended(start(training, out, arguments=[*arguments, None, 0])) == [0, 0], said(out)
    assert small_training.made(out / "0") == small_training.made(two / "two" / "0")

    whole = tmp_path / "whole"
    assert ended(start(training, whole, arguments=[tmp_path / "copy", 300.0])) == [0, 0], said(whole)
    for number in range(2):
        assert small_training.made(out / str(number)) == small_training.made(whole / str(number))


def test_alone_nobody_is_called(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with followers.together(Execution()) as leads:
        assert leads
        with followers.called([], {}):
            assert joined() is ALONE


def test_the_lines_of_the_page_are_understood_by_torchrun_and_by_us():
    """torchrun reads options up to its own abbreviations out of the whole line, ours included."""
    from torch.distributed.run import get_args_parser

    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("torchrun ")]
    assert len(lines) == 3
    for line in lines:
        torchrun = get_args_parser().parse_args(shlex.split(line)[1:])
        assert (torchrun.module, torchrun.training_script) == (True, "nlrewrite")
        assert int(torchrun.nproc_per_node) == 8
        ours = parser(ACTS).parse_args(torchrun.training_script_args)
        assert (ours.command, ours.profile, ours.device) == ("train-coder", "tiny", "cuda")


def test_one_of_several_processes_hands_nothing_over_to_a_flow(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not followers.several()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not followers.several()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert followers.several()
