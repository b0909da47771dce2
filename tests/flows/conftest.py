"""One real Prefect server for the tests of this folder, on a database of its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    temporary_settings,
)

from flows import server
from nlrewrite.progress import Advance, Progress


class Seen(Progress):
    """Progress that remembers what it was told: label, total, done so far, note."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int, str]] = []

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal done
            done += amount
            self.told.append((label, total, done, note))

        yield advance


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect")
    kept = {name: os.environ.pop(name, None) for name in ("PREFECT_HOME", "PREFECT_API_URL")}
    os.environ["PREFECT_HOME"] = str(home)
    try:
        with server.attached() as at:
            server.wait_until_healthy(at)
            settings = {PREFECT_HOME: home, PREFECT_API_URL: at.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
            with temporary_settings(settings):
                yield at.api
                APILogHandler().flush()
        assert server.noted(home) is None, "the tests' server was left running"
    finally:
        os.environ.update({name: value for name, value in kept.items() if value is not None})


@pytest.fixture(scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for tests that start their own servers. One for all, for the migrations of a new database take long."""
    return tmp_path_factory.mktemp("own-prefect")


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as each:
        yield each


@pytest.fixture(autouse=True)
def _quiet_library() -> Iterator[None]:
    """A flow raises the library's log level, where nobody has chosen one; the next test finds it as it was."""
    library = logging.getLogger("nlrewrite")
    level = library.level
    yield
    library.setLevel(level)


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """An execution whose store and runs folder are this test's own."""
    return {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs")}
