"""Progress of long work as a Prefect progress artifact, kept up to date in place.

In: `stage(label, total)` and its `advance`. Out: one artifact per stage that lasts, and whatever the progress that is
shown beside it makes of it (bars, when a flow runs on a terminal). Invariant: progress never changes
a result and never fails a run; a stage that is over in a moment costs no request.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from nlrewrite.progress import Advance, Progress

log = logging.getLogger("nlrewrite.progress")

UPDATE_SECONDS = 2.0

_beside: ContextVar[Progress] = ContextVar("progress shown beside the artifacts", default=Progress())  # noqa: B039


@contextmanager
def beside(progress: Progress) -> Iterator[None]:
    """Show the progress of all tasks called within in `progress` too."""
    token = _beside.set(progress)
    try:
        yield
    finally:
        _beside.reset(token)


class ArtifactProgress(Progress):
    """Progress shown in the Prefect UI."""

    def __init__(self, update_seconds: float = UPDATE_SECONDS) -> None:
        self.update_seconds = update_seconds

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        shown = _Shown(label, total, self.update_seconds)
        with _beside.get().stage(label, total) as advance_beside:

            def advance(amount: int = 1, note: str = "") -> None:
                advance_beside(amount, note)
                shown.advance(amount, note)

            yield advance
        shown.close()


class _Shown:
    """One stage: what is done of it, and the artifact that shows it, made when the stage turns out to last."""

    def __init__(self, label: str, total: int, every: float) -> None:
        self.label = label
        self.total = total
        self.every = every
        self.done = 0
        self.note = ""
        self._artifact: UUID | None = None
        self._silent = False
        self._sent = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self._sent >= self.every:
            self._sent = now
            self._send()

    def close(self) -> None:
        if self._artifact is not None:
            self._send()

    def _sentence(self) -> str:
        return f"{self.label}: {self.done} of {self.total}" + (f", {self.note}" if self.note else "")

    def _send(self) -> None:
        if self._silent:
            return
        percent = min(100.0, 100.0 * self.done / max(1, self.total))
        try:
            if self._artifact is None:
                made = create_progress_artifact(percent, key=artifact_key(self.label), description=self.label)
                assert isinstance(made, UUID)  # and not a coroutine: a task is synchronous
                self._artifact = made
            update_progress_artifact(self._artifact, percent, description=self._sentence())
        except (httpx.HTTPError, PrefectException) as error:
            self._silent = True
            log.warning("the progress of %r is no longer shown: %s", self.label, error)


def artifact_key(label: str) -> str:
    """`label` in the letters that Prefect allows in an artifact's key."""
    return "progress-" + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
