"""How long to wait for a server, how many may wait at once, and when to stop asking.

In: what became of requests. Out: delays, a gate, a circuit. Invariants: no more requests than allowed are in flight;
what the server asked for with Retry-After is waited for, or the question is given up; every wait and every number of
tries is bounded, so that a dead server ends in typed failures and never in an endless wait.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator


@dataclass(frozen=True)
class Patience:
    """Bounds of waiting. Times are in seconds."""

    concurrency: int = 8
    """Requests in flight, at most."""
    timeout: float = 120.0
    """Of one request, from its first byte to the reply's last."""
    connect: float = 10.0
    tries: int = 5
    """Of a request that gets no usable reply."""
    backoff: float = 1.0
    """Before the second try; twice as much before each next one, give or take a half."""
    longest: float = 120.0
    """A server that asks for a longer wait is given up."""
    failures: int = 3
    """Requests in a row that failed for good, after which the server counts as dead."""
    rest: float = 30.0
    """Until a dead server is looked at again."""
    seed: int = 0

    def checked(self) -> "Patience":
        whole = {"concurrency": self.concurrency, "tries": self.tries, "failures": self.failures}
        for name, value in whole.items():
            if value < 1:
                raise SettingError(f"{name} must be at least 1: {name}={value}. Raise it")
        for name, value in {"timeout": self.timeout, "connect": self.connect}.items():
            if not 0 < value < float("inf"):
                raise SettingError(f"{name} must be a number of seconds above 0: {name}={value}. Change it")
        return self

    @property
    def pauses(self) -> int:
        """How often one request may be told to come back later: politeness is no failure, yet it has an end."""
        return 10 * self.tries

    def before_try(self, request: int, failed: int) -> float:
        """The wait after the `failed`-th failure (from 1 on) of a request."""
        growing = min(self.longest, self.backoff * 2.0 ** (failed - 1))
        return growing * float(generator(self.seed, "server", "wait", request, failed).uniform(0.5, 1.5))

    def asked_for(self, wait: float, request: int, paused: int) -> float:
        """A wait the server asked for: never shorter, and not the same for all who were told so."""
        return wait * (1 + 0.1 * float(generator(self.seed, "server", "pause", request, paused).uniform()))


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None if it says nothing usable."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except (ValueError, OverflowError, OSError):
            return None
        return max(seconds, 0.0)
    return seconds if 0 <= seconds < float("inf") else None


class Gate:
    """Lets a number of requests through at a time: fewer once the server says it is too busy, slowly more again."""

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.flying = most, float(most), 0
        self._until = 0.0
        self._free = asyncio.Condition()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        await self._enter()
        try:
            yield
        finally:
            self.flying -= 1
            async with self._free:
                self._free.notify_all()

    async def _enter(self) -> None:
        while True:
            pause = self._until - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
                continue
            async with self._free:
                if self.flying < int(self.limit):
                    self.flying += 1
                    return
                await self._free.wait()

    def busy(self, wait: float) -> None:
        """Nobody passes for so long, and half as many afterwards; said once for all that are in flight."""
        now = time.monotonic()
        if now >= self._until:
            self.limit = max(1.0, self.limit / 2)
        self._until = max(self._until, now + wait)

    def answered(self) -> None:
        self.limit = min(float(self.most), self.limit + 1 / self.limit)


class Circuit:
    """Opens after some failures in a row: then nothing is asked until the server was seen alive."""

    def __init__(self, failures: int, rest: float) -> None:
        self._most, self._rest = failures, rest
        self._failed, self._looked = 0, 0.0
        self.why = ""

    @property
    def open(self) -> bool:
        return bool(self.why)

    @property
    def due(self) -> bool:
        """Whether it is time to look at the server again."""
        return self.open and time.monotonic() >= self._looked + self._rest

    def failed(self, why: str, at_once: bool = False) -> None:
        self._failed += 1
        if self.open:
            return
        if at_once or self._failed >= self._most:
            self.why = why
            self.looked()

    def looked(self) -> None:
        self._looked = time.monotonic()

    def answered(self) -> None:
        self._failed, self.why = 0, ""
