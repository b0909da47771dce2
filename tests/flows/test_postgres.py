"""Prefect's server on Postgres, which it needs as soon as there is more than one worker."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import server
from tests.flows.test_launch import STEPS, ask, run

pytestmark = pytest.mark.system


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    where = str(found[-1]) if found else shutil.which(name)
    assert where, f"{name} is missing: apt-get install -y postgresql"
    return where


@pytest.fixture
def database() -> Iterator[str]:
    """A Postgres of our own; it refuses to run as root, so root lends it to the user `postgres`."""
    user = "postgres" if os.geteuid() == 0 else None
    root = Path(tempfile.mkdtemp(prefix="nlrewrite-postgres-"))
    if user:
        entry = pwd.getpwnam(user)
        os.chown(root, entry.pw_uid, entry.pw_gid)
    port = server.free_port()
    initdb = [_program("initdb"), "--pgdata", str(root / "data"), "--username", "prefect", "--auth", "trust"]
    subprocess.run(initdb, user=user, cwd=root, check=True, capture_output=True)
    command = [_program("postgres"), "-D", str(root / "data"), "-k", str(root), "-p", str(port), "-F"]
    with open(root / "log", "wb") as log:
        process = subprocess.Popen(command, user=user, cwd=root, stdout=log, stderr=log)
    try:
        createdb = [_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"]
        deadline = time.monotonic() + 60
        while (tried := subprocess.run(createdb, capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, tried.stderr + (root / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(root)


def test_history_is_whole_on_postgres(
    database: str, tmp_path: Path, place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", database)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for _ in range(2):
        done = run({"profile": "smoke", "execution": place})
        assert done.returncode == 0, done.stderr
    with server.attached() as at:
        server.wait_until_healthy(at)
        states = [each["state_name"] for each in ask(at.api, "/task_runs/filter")]
        assert (states.count("Completed"), states.count("Cached")) == (STEPS, STEPS)
    assert not (tmp_path / "prefect" / "prefect.db").exists()
