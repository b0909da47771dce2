"""Killed at any moment, a training that goes on ends in the bits of an unbroken one."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.coders import small_training, training_alone

KILLS = 10


def begun(root: Path) -> BaseProcess:
    """A training in a process of its own, forked from one in which everything is imported and nothing has run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.coders.training_alone"])
    process = context.Process(target=training_alone.run, args=(root,))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join()
    return process.exitcode


def writes(root: Path) -> str:
    return (root / "writes").read_text() if (root / "writes").exists() else ""


def test_killed_ten_times_also_inside_a_save_the_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    given = small_training.inputs(tmp_path / "store")
    root = tmp_path / "killed"
    root.mkdir()
    draws = random.Random(7)
    inside = 0
    for number in range(KILLS):
        running = begun(root)
        before = len(writes(root))
        while len(writes(root)) == before:  # the training has begun where the one before was killed
            assert running.is_alive(), f"the training ended by itself, behind {number} kills"
            time.sleep(0.002)
        if number % 2:  # behind the mark of a write that has begun
            while writes(root).count("(") == writes(root).count(")"):
                assert running.is_alive(), f"the training ended by itself, behind {number} kills"
        else:
            time.sleep(draws.uniform(0.0, 0.1))
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
        assert ended(running) == -signal.SIGKILL
        told = writes(root)
        inside += told.endswith("(")
        with open(root / "writes", "a") as file:
            file.write(")" * (told.count("(") - told.count(")")))
    assert inside >= 1, "no kill fell inside a save"
    assert ended(begun(root)) == 0
    assert (root / "done").exists()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (("train", "OPENING_TOKENS"), ("order", "HELD_OUT_TOKENS"), ("finish", "LIVE_TOKENS")):
            patch.setattr(f"nlrewrite.coders.{module}.{name}", 256)
        small_training.build(given, tmp_path / "unbroken", training_alone.SPEC)
    assert small_training.made(tmp_path / "killed" / "out") == small_training.made(tmp_path / "unbroken")
