"""One small interface for the progress of long work, shown by whoever runs it.

A step calls `with progress.stage("train the coder", total=600) as advance: advance(1, "loss 0.31")`. The command line
shows bars, a Prefect task shows a progress artifact, a test shows nothing. Invariant: progress never changes a result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, amount: int = 1, note: str = "") -> None: ...


class Progress:
    """Silent progress, and the base of the ones that speak."""

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        def advance(amount: int = 1, note: str = "") -> None:
            return None

        yield advance
