"""Requests to one HTTP endpoint, many at a time and none for ever, from code that knows nothing of event loops.

In: a path, a JSON body, a reader of the reply. Out: what the reader made of it, or why there is nothing. Invariants:
requests in flight, bytes of a reply, tries and waits are bounded; redirects are not followed, so that the key goes to
the endpoint alone; a fault of the whole endpoint (no such key, no such model) is raised, one of a request is told.
"""

import asyncio
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.llm.key import VARIABLE, Discreet, Key
from nlrewrite.llm.patience import Circuit, Gate, Patience, retry_after
from nlrewrite.llm.purse import Purse

log = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_ERROR = 1 << 16
"""Bytes read of a reply that says what went wrong."""
NOT_HERE = frozenset({404, 405, 410, 415, 501})
"""The endpoint has no such route, or no such model."""
LATER = frozenset({408, 409, 425})
"""Refusals that may be gone at the next try."""


class Garbled(Exception):
    """A reply that cannot be what was asked for."""


@dataclass(frozen=True)
class Declined:
    """The server understood the request and will not answer it."""

    status: int
    why: str


@dataclass(frozen=True)
class Lost:
    """No usable reply after all tries."""

    why: str
    perhaps_one: bool = False
    """The server fails at this request while it may answer others: one question of many may be the cause."""


@dataclass(frozen=True)
class Unaffordable:
    """Not sent, since it might pass the spending limit."""

    why: str


@dataclass(frozen=True)
class _Reply:
    status: int
    wait: float | None
    location: str = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class _Trouble:
    why: str
    paid: bool
    """Whether the server may have done its work."""
    perhaps_one: bool = False


@dataclass(frozen=True)
class _Pause:
    wait: float | None
    why: str


@dataclass(frozen=True)
class _Good(Generic[T]):
    value: T


def base_url(endpoint: str) -> httpx.URL:
    """The endpoint's address, `/v1` behind it if it has no path."""
    try:
        url = httpx.URL(endpoint.strip())
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.userinfo:
        raise SettingError(f"an endpoint must hold no user or password. Leave them out; a key goes into {VARIABLE}")
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingError(
            "an endpoint must begin with http:// or https:// and name a host. For instance http://localhost:8000/v1"
        )
    if url.query or url.fragment:
        raise SettingError(f"an endpoint must end with its path. Leave out what follows; a key goes into {VARIABLE}")
    path = url.path.rstrip("/")
    return url.copy_with(path=path or "/v1")


class Requests:
    """A connection pool with its own thread, and the manners of using it."""

    def __init__(self, endpoint: str, patience: Patience, purse: Purse) -> None:
        self.url, self.patience, self.purse = base_url(endpoint), patience.checked(), purse
        self.key = Key.from_environment()
        self.sent = self.failed = self.paused = self._asked = 0
        self.circuit = Circuit(patience.failures, patience.rest)
        self._gate = Gate(patience.concurrency)
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(patience.timeout, connect=min(patience.connect, patience.timeout)),
            limits=httpx.Limits(max_connections=patience.concurrency, max_keepalive_connections=patience.concurrency),
            follow_redirects=False,
            headers={"User-Agent": "nlrewrite", "Accept": "application/json", "Accept-Encoding": "identity"},
        )
        discreet = Discreet(self.key)
        discreet.attach()
        thread = threading.Thread(target=self._loop.run_forever, name="nlrewrite-requests", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _ended, self._loop, self._client, thread, discreet)
        if self.key and self.url.scheme == "http" and self.url.host not in ("localhost", "127.0.0.1", "::1"):
            log.warning("the key in %s goes to %s unencrypted", VARIABLE, self.url.host)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` in the thread of the requests and wait for it, also where an event loop runs already."""
        if not self._end.alive:
            work.close()
            raise SettingError("this engine was closed. Make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # work that an interrupt left behind; on work that is done it does nothing

    def close(self) -> None:
        self._end()

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[bytes], tuple[T, float]],
        *,
        most: int,
        cost: float = 0.0,
        tries: int | None = None,
        strange: bool = False,
    ) -> T | Declined | Lost | Unaffordable:
        """POST a body, or GET without one; `read` returns what it made of at most `most` bytes and what they cost.

        `strange`: a route or model that is not there is told like any refusal.
        """
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        tries = self.patience.tries if tries is None else tries
        self._asked += 1
        number, failed, paused = self._asked, 0, 0
        while True:
            got = await self._attempt(path, content, read, most, cost, strange)
            if isinstance(got, _Pause) and paused < self.patience.pauses:
                paused += 1
                wait = self.patience.before_try(number, paused) if got.wait is None else got.wait
                if wait > self.patience.longest:
                    why = f"it asks for a pause of {wait:.0f} s, more than {self.patience.longest:.0f}: {got.why}"
                    self.circuit.failed(why, at_once=True)
                    return Lost(why)
                self.paused += 1
                self._gate.busy(self.patience.asked_for(wait, number, paused))
            elif isinstance(got, _Pause | _Trouble):
                failed += 1
                self.failed += 1
                log.info("try %d of %d at %s failed: %s", failed, tries, path, got.why)
                if failed >= tries or isinstance(got, _Pause):
                    return Lost(got.why, perhaps_one=isinstance(got, _Trouble) and got.perhaps_one)
                await asyncio.sleep(self.patience.before_try(number, failed))
            elif isinstance(got, _Good):
                return got.value
            else:
                return got

    async def _attempt(
        self,
        path: str,
        content: bytes | None,
        read: Callable[[bytes], tuple[T, float]],
        most: int,
        cost: float,
        strange: bool,
    ) -> "_Good[T] | _Trouble | _Pause | Declined | Lost | Unaffordable":
        if self.circuit.open:
            return Lost(f"the endpoint is not asked any more: {self.circuit.why}")
        if not self.purse.promise(cost):
            return Unaffordable(f"{self.purse.spent:.6g} of {self.purse.limit or 0:.6g} is spent")
        paid = 0.0
        try:
            async with self._gate.passed():
                if self.circuit.open:
                    return Lost(f"the endpoint is not asked any more: {self.circuit.why}")
                self.sent += 1
                paid = cost
                reply = await self._once(path, content, most)
            if isinstance(reply, _Trouble):
                paid = cost if reply.paid else 0.0
                return reply
            if 200 <= reply.status < 300:
                value, paid = read(reply.data)
                self._gate.answered()
                self.circuit.answered()
                return _Good(value)
            paid = 0.0
            return self._judged(reply, path, strange)
        except Garbled as fault:
            return _Trouble(self.key.clean(f"its reply is unusable: {fault}"), paid=True, perhaps_one=True)
        finally:
            self.purse.settle(cost, paid)

    async def alive(self) -> bool:
        """Whether the server answers anything at all; asked before the first question behind a failure."""
        self.circuit.looked()
        self.sent += 1
        got = await self._once("models", None, LONGEST_ERROR, timeout=self.patience.connect)
        if isinstance(got, _Trouble) or got.status >= 500:
            return False
        self.circuit.answered()
        return True

    async def _once(
        self, path: str, content: bytes | None, most: int, timeout: float | None = None
    ) -> _Reply | _Trouble:
        url = self.url.copy_with(path=f"{self.url.path.rstrip('/')}/{path}")
        headers = self.key.headers() | ({} if content is None else {"Content-Type": "application/json"})
        limit = self.patience.timeout if timeout is None else min(timeout, self.patience.timeout)
        try:
            async with asyncio.timeout(limit):
                request = self._client.stream(
                    "GET" if content is None else "POST", url, content=content, headers=headers
                )
                async with request as reply:
                    return await self._received(reply, most)
        except TimeoutError:
            return _Trouble(f"no reply within {limit:g} s", paid=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as fault:
            return _Trouble(self.key.clean(f"no connection: {fault or type(fault).__name__}"), paid=False)
        except (httpx.HTTPError, httpx.StreamError, OSError) as fault:
            return _Trouble(self.key.clean(f"the connection broke: {fault or type(fault).__name__}"), paid=True)

    async def _received(self, reply: httpx.Response, most: int) -> _Reply | _Trouble:
        good = reply.is_success
        if good and reply.headers.get("Content-Encoding", "identity") != "identity":
            return _Trouble("its reply is compressed, which was not asked for", paid=True)
        data = bytearray()
        async for chunk in reply.aiter_raw():
            data += chunk
            if len(data) > (most if good else LONGEST_ERROR):
                if good:
                    return _Trouble(f"its reply is longer than {most} bytes", paid=True)
                break
        wait = retry_after(reply.headers.get("Retry-After"), time.time())
        return _Reply(reply.status_code, wait, reply.headers.get("Location", ""), bytes(data))

    def _told(self, reply: _Reply) -> str:
        """What a reply that is no success says."""
        text = reply.data.decode("utf-8", errors="replace")
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            told = text
        for name in ("error", "message", "detail"):
            if isinstance(told, dict) and told.get(name):
                told = told[name]
        return self.key.clean(f"HTTP {reply.status} {told if isinstance(told, str) else json.dumps(told)}")

    def _judged(self, reply: _Reply, path: str, strange: bool) -> Declined | _Pause | _Trouble:
        """What a reply that is no success means; raises what is wrong with the whole endpoint."""
        where, why = f"{self.url}/{path}", self._told(reply)
        if 300 <= reply.status < 400:
            elsewhere = self.key.clean(reply.location)
            raise Unreachable(
                f"{where} redirects to {elsewhere or 'nowhere'}, which is not followed: a key goes to the endpoint "
                f"alone. Give the address it is meant to have as --endpoint"
            )
        if reply.status in (401, 403):
            told = f"the key in {VARIABLE}" if self.key else f"a request without a key; {VARIABLE} is not set"
            raise Unreachable(f"{where} refuses {told}: {why}. Set {VARIABLE} to a key that may use this model")
        if reply.status == 402:
            raise Unreachable(f"{where} wants to be paid: {why}. Settle the account, or use another endpoint")
        if reply.status in NOT_HERE and not strange:
            raise SettingError(f"{where} does not exist, or not for this model: {why}. Correct --endpoint or the model")
        if reply.status == 429 or (reply.status == 503 and reply.wait is not None):
            return _Pause(reply.wait, why)
        if reply.status in LATER or (reply.status >= 500 and reply.status not in NOT_HERE):
            return _Trouble(why, paid=False, perhaps_one=reply.status == 500)
        self.circuit.answered()
        return Declined(reply.status, why)


def _ended(
    loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient, thread: threading.Thread, discreet: Discreet
) -> None:
    async def stop() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.aclose()

    if thread is not threading.current_thread() and thread.is_alive():
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
    if not loop.is_running():
        loop.close()
    discreet.detach()
