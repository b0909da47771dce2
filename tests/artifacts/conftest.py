"""Stores to test on: a folder, moto's server over HTTP, and Ceph's gateway (marked `system`)."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import s3fs

from nlrewrite.artifacts import Store
from nlrewrite.artifacts.s3 import ENDPOINTS
from tests.artifacts import ceph


@dataclass(frozen=True)
class Server:
    endpoint: str
    access_key: str
    secret_key: str


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Server(f"http://{host}:{port}", "any", "any")
    server.stop()


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[Server]:
    root = Path(tempfile.mkdtemp(prefix="ceph-"))
    gateway = None
    try:
        gateway = ceph.Gateway(root)
        yield Server(gateway.start(), ceph.ACCESS_KEY, ceph.SECRET_KEY)
    finally:
        if gateway is not None:
            gateway.stop()
        shutil.rmtree(root)


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `server` the S3 endpoint of this process and of those it starts."""
    for variable in ENDPOINTS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NLREWRITE_S3_ENDPOINT", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@cache
def _administrator(server: Server) -> Any:
    return s3fs.S3FileSystem(
        key=server.access_key,
        secret=server.secret_key,
        endpoint_url=server.endpoint,
        config_kwargs={"s3": {"addressing_style": "path"}},
    )


def new_bucket(server: Server) -> str:
    """The uri of a prefix in a fresh bucket."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    _administrator(server).call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


SERVERS = ["moto", pytest.param("ceph", marks=pytest.mark.system)]


@pytest.fixture(params=SERVERS)
def s3_uri(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    server = request.getfixturevalue(f"{request.param}_server")
    use(server, monkeypatch)
    return new_bucket(server)


@pytest.fixture(params=["local", *SERVERS])
def uri(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    server = request.getfixturevalue(f"{request.param}_server")
    use(server, monkeypatch)
    return new_bucket(server)


@pytest.fixture
def store(uri: str, tmp_path: Path) -> Store:
    return Store(uri, str(tmp_path / "scratch"))
