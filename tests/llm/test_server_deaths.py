"""A server that dies, hangs or comes back: no answer is lost that was there, and nobody waits for ever."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from nlrewrite.errors import Unreachable
from nlrewrite.llm.engine import Outcome
from tests.llm.asking import HASTY, TOKENIZER, asked, engine, questions, ready, right
from tests.llm.small_server import Small, serving


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_server_that_was_never_there_is_said_so() -> None:
    server = engine(f"http://127.0.0.1:{free_port()}", tries=2)
    with pytest.raises(Unreachable, match=r"does not answer.*Start the server, or correct --endpoint"):
        server.digits(questions(2))
    server.close()


def test_a_server_that_dies_loses_no_answer_that_was_there() -> None:
    of = questions(120)
    with serving(TOKENIZER, slow=0.01) as small:
        server = ready(small, batch=4, concurrency=2)
        done: list[int] = []

        def spoil(prompts: list[Any], reply: dict[str, Any]) -> dict[str, Any]:
            done.append(len(prompts))
            if len(done) == 10:
                threading.Thread(target=small.stop).start()
            return reply

        small.spoil = spoil
        started = time.monotonic()
        scores = server.digits(of)
        known = right(scores, of)
        assert 30 <= known.sum() < 120, "what was answered before it died is there"
        assert (scores.outcome[~known] == Outcome.TRANSPORT).all()
        assert server.usage.failed == {"TRANSPORT": int((~known).sum())} and server.usage.queries == 121 + 1
        sent = server.about()["requests"]
        again = server.digits(questions(50))
        assert (again.outcome == Outcome.TRANSPORT).all()
        assert server.about()["requests"] <= sent + 1, "a dead server is looked at, not asked"  # type: ignore[operator]
        assert time.monotonic() - started < 20
        server.close()


def test_a_server_that_comes_back_goes_on() -> None:
    of, port = questions(60), free_port()
    first = Small(TOKENIZER).start(port)
    server = ready(first, batch=4, concurrency=2, tries=8, patience=replace(HASTY, backoff=0.05))
    first.spoil = lambda prompts, reply: threading.Thread(target=first.stop).start() or reply
    later: list[Small] = []
    timer = threading.Timer(0.3, lambda: later.append(Small(TOKENIZER).start(port)))
    timer.start()
    assert right(server.digits(of), of).all() and server.usage.failed == {}
    assert asked(later[0])
    server.close()
    later[0].stop()


def test_an_engine_recovers_with_its_server() -> None:
    of, port = questions(20), free_port()
    small = Small(TOKENIZER).start(port)
    server = ready(small)
    small.stop()
    assert (server.digits(of).outcome == Outcome.TRANSPORT).all()
    assert (server.digits(of).outcome == Outcome.TRANSPORT).all()
    again = Small(TOKENIZER).start(port)
    time.sleep(HASTY.rest + 0.01)
    assert right(server.digits(of), of).all()
    server.close()
    again.stop()


def test_a_process_that_is_killed_is_a_server_that_died() -> None:
    of, port = questions(60), free_port()
    command = [sys.executable, "-m", "tests.llm.small_server", str(port), "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        server = engine(endpoint, batch=2, concurrency=2)
        assert right(server.digits(questions(4)), questions(4)).all()
        before = int(str(server.about()["requests"]))

        def kill() -> None:
            while int(str(server.about()["requests"])) < before + 10:
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)

        threading.Thread(target=kill).start()
        scores = server.digits(of)
        known = right(scores, of)
        assert 0 < known.sum() < 60 and (scores.outcome[~known] == Outcome.TRANSPORT).all()
        assert server.usage.failed == {"TRANSPORT": int((~known).sum())}
        server.close()


def test_a_server_that_hangs_for_ever_is_left() -> None:
    of = questions(40)
    with serving(TOKENIZER) as small:
        server = ready(small, timeout=0.05, tries=2, batch=1, concurrency=2)
        small.script = ["hang"] * 100
        started = time.monotonic()
        assert (server.digits(of).outcome == Outcome.TRANSPORT).all()
        assert len(asked(small)) <= 8 and time.monotonic() - started < 15
        server.close()


def test_asking_can_be_broken_off() -> None:
    with serving(TOKENIZER, slow=0.05) as small:
        server = ready(small, batch=1, concurrency=1)
        small.seen.clear()
        cancel = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        cancel.start()
        with pytest.raises(KeyboardInterrupt):
            server.digits(questions(400))
        cancel.join()
        time.sleep(0.1)
        sent = len(small.seen)
        time.sleep(0.15)
        assert len(small.seen) == sent < 400, "nothing goes on behind"
        server.close()
