"""Waiting: as long as was asked for, ever longer, never for ever, and never all at once."""

import asyncio
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.llm.patience import Circuit, Gate, Patience, retry_after

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Wed, 99 Oct 2099 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, NOW) == seconds


@given(st.text(max_size=60))
def test_no_header_breaks_it(header: str) -> None:
    seconds = retry_after(header, NOW)
    assert seconds is None or seconds >= 0


@given(st.integers(1, 200), st.integers(0, 10_000))
def test_waits_double_within_bounds_and_differ_by_request(failed: int, request: int) -> None:
    patience = Patience(backoff=0.5, longest=60.0)
    wait = patience.before_try(request, failed)
    middle = min(60.0, 0.5 * 2.0 ** (failed - 1))
    assert 0.5 * middle <= wait <= 1.5 * middle
    assert wait == patience.before_try(request, failed) != patience.before_try(request + 1, failed)
    asked = patience.asked_for(10.0, request, failed)
    assert 10.0 <= asked <= 11.0 and asked != patience.asked_for(10.0, request + 1, failed)


def test_a_gate_lets_so_many_through_and_fewer_after_a_complaint() -> None:
    async def most_inside(gate: Gate, visitors: int) -> int:
        inside, most = 0, 0

        async def visit() -> None:
            nonlocal inside, most
            async with gate.passed():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= 1

        await asyncio.gather(*(visit() for _ in range(visitors)))
        return most

    async def visits() -> None:
        gate = Gate(8)
        assert await most_inside(gate, 40) == 8
        gate.busy(0.02)
        gate.busy(0.01)
        started = time.monotonic()
        assert await most_inside(gate, 40) == 4, "what is said while all wait is said once"
        assert time.monotonic() - started >= 0.02
        for _ in range(100):
            gate.busy(0.0)
        assert await most_inside(gate, 5) == 1, "one always may"
        for _ in range(100):
            gate.answered()
        assert await most_inside(gate, 40) == 8 and gate.flying == 0

    asyncio.run(visits())


def test_who_breaks_off_leaves_the_gate() -> None:
    async def visits() -> None:
        gate = Gate(1)

        async def visit() -> None:
            async with gate.passed():
                await asyncio.sleep(10)

        tasks = [asyncio.ensure_future(visit()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(1), gate.passed():
            assert gate.flying == 1

    asyncio.run(visits())


def test_a_circuit_opens_after_failures_in_a_row_alone() -> None:
    circuit = Circuit(failures=3, rest=0.0)
    for _ in range(10):
        circuit.failed("a")
        circuit.failed("b")
        circuit.answered()
    assert not circuit.open and not circuit.due
    for why in ("a", "b", "c", "d"):
        circuit.failed(why)
    assert circuit.open and circuit.why == "c" and circuit.due
    circuit.answered()
    assert not circuit.open
    circuit.failed("no", at_once=True)
    assert circuit.open


def test_a_dead_server_is_left_alone_for_a_while() -> None:
    circuit = Circuit(failures=1, rest=60.0)
    circuit.failed("gone")
    assert circuit.open and not circuit.due
