"""Servers are adopted, shared, and ended by whoever leaves last, however the others ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import server
from nlrewrite.errors import SettingError, Unreachable

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, time
from flows import server
with server.attached() as at:
    server.wait_until_healthy(at)
    print(at.pid, at.port, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PREFECT_HOME", str(own_home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    yield own_home
    try:
        assert server.noted(own_home) is None, "a server was left running"
    finally:
        server.end(own_home)


def _holder() -> tuple["subprocess.Popen[str]", server.Server]:
    """Another process that uses the server until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, port = process.stdout.readline().split()
    return process, server.Server(int(pid), int(port))


def _end(process: "subprocess.Popen[str]", how: signal.Signals) -> None:
    process.send_signal(how)
    process.communicate(timeout=30)


def test_starts_one_and_ends_it(home: Path) -> None:
    with server.attached() as at:
        server.wait_until_healthy(at)
        assert os.environ["PREFECT_API_URL"] == at.api
        assert server.noted(home) == at
        assert server.healthy(at.api)
    assert not server.healthy(at.api)
    assert "PREFECT_API_URL" not in os.environ
    assert not (home / "server.json").exists()


def test_adopts_what_a_killed_run_left_and_ends_it(home: Path) -> None:
    process, left = _holder()
    _end(process, signal.SIGKILL)
    assert server.noted(home) == left, "the kill was to leave the server behind"
    with server.attached() as at:
        assert at == left
        server.wait_until_healthy(at)
    assert not left.alive()


def test_leaves_what_another_still_uses(home: Path) -> None:
    process, used = _holder()
    with server.attached() as at:
        assert at == used
    assert used.alive()
    with server.attached() as at:
        _end(process, signal.SIGINT)
        assert at.alive(), "the other one must leave it to us"
    assert not used.alive()


def test_a_note_about_a_process_that_is_gone_is_no_server(home: Path) -> None:
    (home / "server.json").write_text(json.dumps({"pid": os.getpid(), "port": 4200}))
    assert server.noted(home) is None
    (home / "server.json").unlink()


def test_a_server_that_dies_at_once_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense://")
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"server\.log"), server.attached() as at:
        server.wait_until_healthy(at)
    assert time.monotonic() - started < 30
    assert "nonsense" in (home / "server.log").read_text()


def test_a_server_elsewhere_is_used_and_never_ended(api: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{api}/")
    with server.attached() as at:
        assert at == server.Elsewhere(api)
        server.wait_until_healthy(at)
    assert server.healthy(api)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with server.attached() as at, pytest.raises(Unreachable, match="PREFECT_API_URL"):
        server.wait_until_healthy(at)


def test_a_taken_port_is_told(home: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"port {port} is taken"), server.attached(port):
            pass


def test_ui_is_kept_in_the_foreground_on_the_port_that_was_asked_for(home: Path) -> None:
    port = server.free_port()
    command = [sys.executable, "-m", "flows.server", "ui", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}" in process.stdout.readline()
    with server.attached() as at:  # a run adopts it
        assert at == server.Server(at.pid, port)
    assert at.alive()
    _end(process, signal.SIGTERM)
    assert process.returncode == 0
    assert not at.alive()


@pytest.mark.parametrize("arguments", [["ui", "0"], ["ui", "http"], ["ui", "1", "2"], ["down"]])
def test_says_how_it_is_used(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert server.main(arguments) == 2
    assert "usage" in capsys.readouterr().err
