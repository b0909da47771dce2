"""Builders in processes of their own: they build, race, or die where they are told to.

    python -m tests.artifacts.builder build URI NAME               prints the attempt
    python -m tests.artifacts.builder kill URI                     one builder for each point in POINTS, that dies there
    python -m tests.artifacts.builder race URI ROUNDS BUILDERS     prints what each of them was given in each round

The inherited environment says where S3 is. The process forks before it has threads, so that its imports are paid once.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from nlrewrite.artifacts import Store
from tests.artifacts.making import MADE, Recipe, artifact

POINTS = ("writing", "written", "published", "before-commit", "after-commit")
FORK = multiprocessing.get_context("fork")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        die()
        return function(*args, **kwargs)

    return call


def build(store: Store, name: str, point: str = "") -> str:
    place: Any = store.place
    if point == "written":
        place.publish = dying_before(place.publish)
    elif point == "published":
        place.write_once = dying_before(place.write_once)
    elif point == "before-commit" and hasattr(place, "fs"):  # after the probe, in the conditional put itself
        place._honours_conditions()
        place._create = dying_before(place._create)
    elif point == "before-commit":
        os.link = dying_before(os.link)
    with store.attempt(artifact(name)) as attempt:
        with open(attempt.folder / "numbers", "wb") as file:
            for part in range(4):
                file.write(bytes(100_000))
                file.flush()
                if point == "writing" and part == 1:
                    die()
        manifest = store.commit(attempt, version=1, spec=Recipe(), inputs={}, made=MADE)
        if point == "after-commit":
            die()
        return manifest.attempt


def kill(uri: str) -> dict[str, int | None]:
    """The exit code of a builder killed at each point."""
    processes = {point: FORK.Process(target=lambda p=point: build(Store(uri), p, p)) for point in POINTS}
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join()
    return {point: process.exitcode for point, process in processes.items()}


def race(uri: str, rounds: int, builders: int) -> list[list[str]]:
    barrier, answers = FORK.Barrier(builders), FORK.SimpleQueue()

    def run() -> None:
        store, attempts = Store(uri), []
        store.find(artifact("warm up the connection"))
        for turn in range(rounds):
            barrier.wait(timeout=120)
            attempts.append(build(store, f"race {turn}"))
        answers.put(attempts)

    processes = [FORK.Process(target=run) for _ in range(builders)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return found


if __name__ == "__main__":
    task, uri, *rest = sys.argv[1:]
    answer: Any
    if task == "build":
        answer = build(Store(uri), rest[0])
    elif task == "kill":
        answer = kill(uri)
    else:
        answer = race(uri, int(rest[0]), int(rest[1]))
    json.dump(answer, sys.stdout)
