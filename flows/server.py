"""The Prefect server of this checkout: adopted when one is up, started when none is, ended by whoever uses it last.

In: `PREFECT_HOME` (default `.prefect` in the checkout), or `PREFECT_API_URL` of a server that someone else keeps.
Out: the address of a healthy server. Everyone who uses the server holds a shared lock on one file, which the system
lets go of however its holder ends; the one who leaves and finds no other holder ends the server. The server itself
writes down its pid and port before it starts, so that nobody can be killed between starting it and noting it.
Invariant: no server is left that the next user does not adopt, and none is ended while somebody uses it.

    python -m flows.server ui [port]     keep a server up in the foreground, to look at the runs made (make ui)
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from nlrewrite.errors import SettingError, Unreachable

ROOT = Path(__file__).resolve().parents[1]
USUAL_PORT = 4200
START_SECONDS = 120
STOP_SECONDS = 15

_started: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True)
class Server:
    """A server process of this home, which may still be starting."""

    pid: int
    port: int

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def alive(self) -> bool:
        """Whether the process of that id is the server that was noted, and not a later process of the same id."""
        for _ in range(4):
            command = _command_line(self.pid)
            if command:
                return f"--port {self.port}" in command
            time.sleep(0.05)  # a process that turns into another program has no command line for a moment
        return False


@dataclass(frozen=True)
class Elsewhere:
    """A server that someone else keeps; never ended from here."""

    api: str

    def alive(self) -> bool:
        return healthy(self.api)


def settle_environment() -> Path:
    """Give Prefect's settings their defaults for this checkout, before Prefect is imported; the home they name."""
    os.environ.setdefault("PREFECT_HOME", str(ROOT / ".prefect"))
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    home = Path(os.environ["PREFECT_HOME"]).expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    return home


@contextmanager
def attached(port: int | None = None) -> Iterator[Server | Elsewhere]:
    """The server to use, its address in `PREFECT_API_URL`. Call `wait_until_healthy` before the first request.

    A `PREFECT_API_URL` that is already in the environment wins.
    """
    home = settle_environment()
    if os.environ.get("PREFECT_API_URL"):
        yield Elsewhere(os.environ["PREFECT_API_URL"].rstrip("/"))
        return
    with open(home / "server.users", "w") as users:
        with _locked(home):
            server = noted(home) or _start(home, port)
            fcntl.flock(users, fcntl.LOCK_SH)
        os.environ["PREFECT_API_URL"] = server.api
        try:
            yield server
        finally:
            del os.environ["PREFECT_API_URL"]
            with _locked(home):
                if _nobody_else(users):
                    end(home)
            if server.pid in _started and not server.alive():
                _started.pop(server.pid).wait()


def wait_until_healthy(server: Server | Elsewhere, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not healthy(server.api):
        if not server.alive() or time.monotonic() > deadline:
            raise Unreachable(_advice(server))
        time.sleep(0.1)


def _advice(server: Server | Elsewhere) -> str:
    if isinstance(server, Elsewhere):
        return f"the Prefect server that PREFECT_API_URL names does not answer: {server.api}. Start it, or unset it"
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    return f"the Prefect server did not start: see {log}. To do without it: nlrewrite run --local"


def healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def noted(home: Path) -> Server | None:
    """The server process of `home`, if there is one."""
    try:
        server = Server(**json.loads((home / "server.json").read_text()))
    except FileNotFoundError:
        return None
    return server if server.alive() else None


def end(home: Path) -> None:
    """End the server of `home`: first as Ctrl-C would, so that it writes down what it still holds."""
    server = noted(home)
    if server is not None:
        for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(server.pid, how)
            except ProcessLookupError:
                break
            if _gone(server, STOP_SECONDS):
                break
    (home / "server.json").unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -- within -----------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with open(home / "server.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _nobody_else(users: IO[str]) -> bool:
    fcntl.flock(users, fcntl.LOCK_UN)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _command_line(pid: int) -> str:
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    asked = ["ps", "-p", str(pid), "-o", "command="]
    return subprocess.run(asked, capture_output=True, text=True).stdout


def _start(home: Path, port: int | None) -> Server:
    if port is None:
        port = free_port()
    elif not is_free(port):
        raise SettingError(f"port {port} is taken by another program. Choose another: make ui PORT={port + 1}")
    environment = {**os.environ, "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api"}
    (home / "server.json").unlink(missing_ok=True)
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", "become", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C meant for the run must not reach the server first
        )
    _started[process.pid] = process
    server = Server(process.pid, port)
    _note(home, server, "parent")
    return server


def _note(home: Path, server: Server, who: str) -> None:
    draft = home / f"server.json.{who}"
    draft.write_text(json.dumps(asdict(server)))
    os.replace(draft, home / "server.json")


def _become(home: Path, port: int) -> None:
    """Note this process down as the server, in case its parent was killed before it could, then turn into it."""
    _note(home, Server(os.getpid(), port), "child")
    arguments = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, *arguments])


def _gone(server: Server, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.pid in _started:
            _started[server.pid].poll()  # our own child is there until it has been asked after
        if not server.alive():
            return True
        time.sleep(0.05)
    return False


def _ui(port: int | None) -> None:
    wanted = port if port is not None else (USUAL_PORT if is_free(USUAL_PORT) else None)
    with attached(wanted) as server:
        wait_until_healthy(server)
        address = server.api.removesuffix("/api")
        print(f"Prefect: {address}    the runs made: {address}/v2/runs    Ctrl-C ends it", flush=True)
        while server.alive():
            time.sleep(1)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["become", "--port", port]:
            _become(settle_environment(), int(port))
        case ["ui", *port] if all(each.isdecimal() and 0 < int(each) < 65536 for each in port) and len(port) < 2:
            try:
                _ui(int(port[0]) if port else None)
            except KeyboardInterrupt:
                print()
        case _:
            print("usage: python -m flows.server ui [port]", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        raise SystemExit(main(sys.argv[1:]))
    except (SettingError, Unreachable) as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
