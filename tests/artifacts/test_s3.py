"""A store on S3: requests, endpoints, conditional puts, uploads left behind, and outages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from werkzeug.serving import make_server

from nlrewrite.artifacts import Store
from nlrewrite.artifacts.s3 import ENDPOINTS, S3Place, endpoint_of
from nlrewrite.errors import CorruptArtifact, SettingError, StoreError
from tests.artifacts.conftest import Server, new_bucket, use
from tests.artifacts.making import FILES, Recipe, artifact, make, object_keys

CODER = artifact("coder")


def s3(store: Store) -> S3Place:
    assert isinstance(store.place, S3Place)
    return store.place


@pytest.fixture
def store(s3_uri: str, tmp_path: Any) -> Store:
    return Store(s3_uri, str(tmp_path / "scratch"))


@contextmanager
def served(application: Callable[..., Any]) -> Iterator[str]:
    """The endpoint of a WSGI application over real HTTP."""
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def counted(place: S3Place) -> Iterator[list[str]]:
    """The requests made meanwhile."""
    calls: list[str] = []
    call = place.fs._call_s3

    async def counting(method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await call(method, *args, **kwargs)

    place.fs._call_s3 = counting
    try:
        yield calls
    finally:
        del place.fs._call_s3


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_hit_costs_one_request_per_file_and_input(store: Store) -> None:
    inputs = {name: make(store, artifact(name, name)) for name in ("subject", "tokens")}
    make(store, CODER, inputs=inputs)
    store.find(CODER)
    with counted(s3(store)) as calls:
        assert store.find(CODER).state == "hit"
    # call_s3 does not pass through the counter, so that only the gets of manifests are here.
    assert calls == ["get_object"] * 3
    with counted(s3(store)) as calls:
        assert store.find(artifact("missing")).state == "missing"
    assert calls == ["get_object"]


def test_files_are_checked_at_once(store: Store) -> None:
    make(store, CODER, {f"part-{number}": b"1" for number in range(24)})
    place, together = s3(store), threading.Barrier(8, timeout=30)
    size = place.size

    def meeting(key: str) -> int:
        together.wait()  # breaks unless eight checks are under way together
        return size(key)

    place.size = meeting  # type: ignore[method-assign]
    assert store.find(CODER).state == "hit"


def test_fifteen_hits_take_seconds_at_most(store: Store) -> None:
    inputs = {name: make(store, artifact(name, name)) for name in ("subject", "tokens", "activations")}
    made = [make(store, artifact(f"step {number}"), inputs=inputs) for number in range(15)]
    start = time.perf_counter()
    assert all(store.find(each.artifact).hit for each in made)
    assert time.perf_counter() - start < 5


def test_listings_have_more_than_one_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    place = s3(store)
    call, pages = place.fs.call_s3, []

    def in_pages_of_two(method: str, **parameters: Any) -> Any:
        pages.append(method)
        return call(method, MaxKeys=2, **parameters)

    names = [f"objects/coder/{number}" for number in range(5)]
    for name in names:
        place.write(name, b"")
    monkeypatch.setattr(place.fs, "call_s3", in_pages_of_two)
    keys = place.keys("objects")
    assert pages == ["list_objects_v2"] * 3
    assert [key for key, _ in keys] == names
    assert all(abs(written - time.time()) < 600 for _, written in keys)
    place.remove(names)
    assert place.keys("objects") == []


def test_prefixes_with_a_common_start_are_apart(store: Store) -> None:
    make(store, CODER)
    other = Store(store.uri + "-two")
    make(other, artifact("other"))
    assert store.listed() == [CODER]
    assert other.listed() == [artifact("other")]
    assert store.listed("code") == []


def test_a_bucket_without_prefix_is_a_store(store: Store) -> None:
    whole = Store(f"s3://{s3(store).bucket}")
    make(whole, CODER)
    assert whole.find(CODER).hit
    assert whole.listed() == [CODER]
    assert store.listed() == []


# -- what is fetched is checked ---------------------------------------------------------------------------------------


def test_what_is_fetched_is_checked_once_and_kept(store: Store) -> None:
    made = make(store, CODER)
    first = store.folder(CODER).path("table.parquet")
    assert first.read_bytes() == FILES["table.parquet"]
    with counted(s3(store)) as calls:
        assert store.folder(CODER).path("table.parquet") == first
    assert calls == ["get_object"]  # the manifest
    store.place.write(object_keys(store, made)["deep/er/notes.json"], b"[]")
    with pytest.raises(CorruptArtifact, match=r"notes\.json does not have the content that was written"):
        store.folder(CODER).path("deep/er/notes.json")
    assert not list(first.parents[2].glob("*.part"))


# -- conditions -------------------------------------------------------------------------------------------------------


def test_of_many_writers_exactly_one_wins(store: Store) -> None:
    for turn in range(5):
        won = list(store.place.each(lambda n, t=turn: store.place.write_once(f"manifests/x/{t}", b"%d" % n), range(8)))
        assert won.count(True) == 1
        assert store.place.read(f"manifests/x/{turn}") == b"%d" % won.index(True)
    assert store.place.keys("tmp") == []


def test_an_endpoint_that_ignores_conditions_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moto = DomainDispatcherApplication(create_backend_app)

    def deaf(environment: dict[str, Any], respond: Callable[..., Any]) -> Any:
        environment.pop("HTTP_IF_NONE_MATCH", None)
        return moto(environment, respond)

    with served(deaf) as endpoint:
        server = Server(endpoint, "any", "any")
        use(server, monkeypatch)
        store = Store(new_bucket(server))
        first = make(store, CODER)
        assert "ignores If-None-Match" in caplog.text
        assert store.find(CODER).hit == first
        second = make(store, CODER)
        assert store.find(CODER).hit == second
        assert caplog.text.count("ignores If-None-Match") == 1


# -- uploads left behind ----------------------------------------------------------------------------------------------


def start_upload(place: S3Place, key: str) -> None:
    place.fs.call_s3("create_multipart_upload", Bucket=place.bucket, Key=key)


def uploads(place: S3Place) -> list[str]:
    answer = place.fs.call_s3("list_multipart_uploads", Bucket=place.bucket)
    return sorted(upload["Key"] for upload in answer.get("Uploads", []))


def test_only_our_uploads_are_cleared(store: Store) -> None:
    place = s3(store)
    ours, theirs = f"{place.prefix}objects/coder/x/1/part", "another/prefix/part"
    start_upload(place, ours)
    start_upload(place, theirs)
    assert store.collect({}, older_than=-600) == 1
    assert uploads(place) == [theirs]


@pytest.fixture
def ceph_store(ceph_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Store:
    use(ceph_server, monkeypatch)
    return Store(new_bucket(ceph_server), str(tmp_path / "scratch"))


@pytest.mark.system  # moto does not know when an upload began
def test_young_uploads_are_left_alone(ceph_store: Store) -> None:
    place = s3(ceph_store)
    start_upload(place, f"{place.prefix}objects/coder/x/1/part")
    assert ceph_store.collect({}) == 0
    assert len(uploads(place)) == 1


@pytest.mark.system  # too slow on moto
def test_a_file_of_several_parts_arrives_whole(ceph_store: Store) -> None:
    data = bytes(range(256)) * (110 * 4096)  # over the size that goes up in one piece
    with counted(s3(ceph_store)) as calls:
        made = make(ceph_store, CODER, {"large": data})
    assert calls.count("upload_part") > 1
    assert made.bytes == len(data)
    assert ceph_store.verify(CODER) == []
    assert uploads(s3(ceph_store)) == []


# -- outages are never misses -----------------------------------------------------------------------------------------


def assert_refused(store: Store, message: str) -> None:
    for act in (
        lambda: store.find(CODER),
        lambda: store.listed(),
        lambda: store.garbage(),
        lambda: store.folder(CODER),
        lambda: make(store, CODER),
        lambda: store.forget(CODER),
    ):
        with pytest.raises(StoreError, match=message):
            act()


def test_a_bucket_that_is_not_there_is_no_miss(store: Store) -> None:
    assert_refused(Store("s3://no-such-bucket-here/prefix"), "(?i)bucket")


def test_a_server_that_has_stopped_is_no_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    server = Server(f"http://{host}:{port}", "any", "any")
    use(server, monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(new_bucket(server))
    make(store, CODER)
    assert store.find(CODER).hit
    moto.stop()
    with pytest.raises(StoreError, match=rf"Could not connect.*Check the endpoint \(http://127\.0\.0\.1:{port}\)"):
        store.find(CODER)


def test_a_port_that_refuses_is_an_error_to_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Server("http://127.0.0.1:9", "any", "any"), monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match=r"cannot write.*Could not connect"):
        make(Store("s3://bucket/prefix"), CODER)


@pytest.mark.parametrize(
    ("status", "environment", "tries"),
    [
        ("503 Slow Down", {}, 3),
        ("500 Internal Server Error", {"AWS_MAX_ATTEMPTS": "2"}, 2),
        ("403 Forbidden", {}, 1),
    ],
)
def test_a_server_that_answers_with_errors_is_no_miss(
    status: str, environment: dict[str, str], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def broken(request: dict[str, Any], respond: Callable[..., Any]) -> list[bytes]:
        asked.append(request["PATH_INFO"])
        respond(status, [("Content-Length", "0")])
        return [b""]

    with served(broken) as endpoint:
        use(Server(endpoint, "any", "any"), monkeypatch)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(StoreError, match="cannot read"):
            Store("s3://bucket/prefix").find(CODER)
    assert asked == [f"/bucket/prefix/manifests/{CODER}.json"] * tries


def test_credentials_that_are_not_there_are_no_miss(
    moto_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    use(moto_server, monkeypatch)
    uri = new_bucket(moto_server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="credentials"):
        Store(uri).find(CODER)


@pytest.mark.system
@pytest.mark.parametrize(("access_key", "secret_key"), [(None, "wrong"), ("UNKNOWN", None)])
def test_a_wrong_key_is_no_miss(
    access_key: str | None, secret_key: str | None, ceph_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(ceph_server, monkeypatch)
    uri = new_bucket(ceph_server)
    make(Store(uri), CODER)
    wrong = Server(ceph_server.endpoint, access_key or ceph_server.access_key, secret_key or ceph_server.secret_key)
    use(wrong, monkeypatch)
    assert_refused(Store(uri), "credentials")


# -- where the server is ----------------------------------------------------------------------------------------------


def test_the_endpoint_is_taken_from_the_environment() -> None:
    named = {variable: f"http://{number}.example" for number, variable in enumerate(ENDPOINTS)}
    assert endpoint_of(named) == "http://0.example"
    assert endpoint_of({"AWS_ENDPOINT_URL_S3": "https://a", "AWS_ENDPOINT_URL": "https://b"}) == "https://a"
    assert endpoint_of({"AWS_ENDPOINT_URL": "https://b"}) == "https://b"
    assert endpoint_of({"NLREWRITE_S3_ENDPOINT": ""}) is None
    with pytest.raises(SettingError, match=r"'minio:9000'\. Change NLREWRITE_S3_ENDPOINT"):
        endpoint_of({"NLREWRITE_S3_ENDPOINT": "minio:9000"})


@pytest.mark.parametrize("variable", ENDPOINTS)
def test_every_variable_leads_to_the_server(
    variable: str, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(moto_server, monkeypatch)
    uri = new_bucket(moto_server)
    monkeypatch.delenv("NLREWRITE_S3_ENDPOINT")
    monkeypatch.setenv(variable, moto_server.endpoint)
    assert Store(uri).find(CODER).state == "missing"
    assert s3(Store(uri)).write_once("tmp/x", b"1")


def test_two_attempts_share_nothing_in_scratch(store: Store) -> None:
    with store.attempt(CODER) as one, store.attempt(CODER) as other:
        assert one.folder != other.folder
        (one.folder / "numbers").write_bytes(b"one")
        (other.folder / "numbers").write_bytes(b"other")
        made = make(store, artifact("x")).made
        manifest = store.commit(other, version=1, spec=Recipe(), inputs={}, made=made)
    assert manifest.attempt == other.name
    assert not one.folder.exists()
    assert not other.folder.exists()
    assert store.folder(CODER).path("numbers").read_bytes() == b"other"
