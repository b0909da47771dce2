"""A store below a prefix of an S3 bucket, through s3fs, at AWS or at any endpoint.

In: keys, and the environment: NLREWRITE_S3_ENDPOINT, else AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL, and the usual
AWS credentials. Out: what `place.py` says. Invariant: `write_once` is one conditional put of a small object; listings
are never cached; a bucket that is missing is a failure of the store, not an absence of the key.
"""

import http.client
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from nlrewrite.artifacts.place import Item, Result
from nlrewrite.errors import SettingError, StoreError

log = logging.getLogger(__name__)

ENDPOINTS = ("NLREWRITE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
AT_ONCE = 16
UPLOADS_AT_ONCE = 4  # each may hold a hundred megabytes
UNFINISHED = "tmp"
NEXT_PAGE = {
    "NextContinuationToken": "ContinuationToken",
    "NextKeyMarker": "KeyMarker",
    "NextUploadIdMarker": "UploadIdMarker",
}
FAILURES = (OSError, BotoCoreError, ClientError, aiohttp.ClientError, http.client.HTTPException)


class S3Place:
    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.fs = _filesystem(_settings(), os.getpid())
        self._conditional: bool | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def local(self, key: str) -> Path | None:
        return None

    def read(self, key: str) -> bytes:
        with self._reading(key):
            return self.fs.cat_file(self._path(key))

    def size(self, key: str) -> int:
        with self._reading(key):  # not fs.info, which goes on to list when the object is missing
            return int(self.fs.call_s3("head_object", Bucket=self.bucket, Key=self.prefix + key)["ContentLength"])

    def get(self, key: str, target: Path) -> None:
        with self._reading(key):
            self.fs.get_file(self._path(key), str(target))

    def keys(self, prefix: str) -> list[tuple[str, float]]:
        with self._reading(prefix):  # not fs.find, which takes a prefix without objects for an object of its own
            found = list(self._listed("list_objects_v2", "Contents", f"{self.prefix}{prefix}/"))
        return sorted((each["Key"][len(self.prefix) :], each["LastModified"].timestamp()) for each in found)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, key: str, data: bytes) -> None:
        with self._writing(key):
            self.fs.pipe_file(self._path(key), data)

    def write_once(self, key: str, data: bytes) -> bool:
        with self._writing(key):
            if self._honours_conditions():
                return self._create(key, data)
            self.fs.pipe_file(self._path(key), data)
            return True

    def publish(self, files: Mapping[str, Path]) -> None:
        def upload(item: tuple[str, Path]) -> None:
            key, path = item
            with self._writing(key):
                self.fs.put_file(str(path), self._path(key), max_concurrency=2)

        _at_once(UPLOADS_AT_ONCE, upload, files.items())

    def remove(self, keys: Iterable[str]) -> None:
        def delete(key: str) -> None:  # one by one: not every server has the batch call
            with self._writing(key):
                self.fs.rm_file(self._path(key))

        _at_once(AT_ONCE, delete, keys)

    def clear_unfinished(self, older_than: float) -> int:
        """Abort old multipart uploads below our prefix, and remove what killed probes left."""
        now = time.time()
        old = [key for key, written in self.keys(UNFINISHED) if now - written > older_than]
        self.remove(old)
        with self._writing("uploads"):
            started = self._listed("list_multipart_uploads", "Uploads", self.prefix)
            uploads = [each for each in started if now - each["Initiated"].timestamp() > older_than]
            for each in uploads:
                self.fs.call_s3(
                    "abort_multipart_upload", Bucket=self.bucket, Key=each["Key"], UploadId=each["UploadId"]
                )
        return len(old) + len(uploads)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        return _at_once(AT_ONCE, function, items)

    # -- within -------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self.prefix}{key}"

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if _answer(error).get("Error", {}).get("Code") != "NoSuchBucket":
                raise
            raise StoreError(
                f"there is no bucket {self.bucket!r}. Create it, or choose another with --store"
            ) from error
        except FAILURES as error:
            raise self._failed("read", key, error) from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise self._failed("write", key, error) from error

    def _failed(self, verb: str, key: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {verb} {self.uri}/{key}: {str(error) or type(error).__name__}. "
            f"Check the endpoint ({endpoint_of(os.environ) or 'AWS'}), the bucket and the credentials"
        )

    def _create(self, key: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self._path(key), data, mode="create")
        except OSError as error:  # AWS's answer makes it a FileExistsError, Ceph's does not
            if _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode") == 412:
                return False
            raise
        return True

    def _honours_conditions(self) -> bool:
        if self._conditional is None:
            probe = f"{UNFINISHED}/{uuid.uuid4().hex}"
            self._create(probe, b"first")
            self._conditional = not self._create(probe, b"second")
            self.fs.rm_file(self._path(probe))
            if not self._conditional:
                log.warning(
                    "the endpoint of %s ignores If-None-Match: of two writers of one manifest the last wins", self.uri
                )
        return self._conditional

    def _listed(self, verb: str, field: str, prefix: str) -> Iterator[dict[str, Any]]:
        """What every page of a listing holds under `field`."""
        page: dict[str, str] = {}
        while True:
            answer = self.fs.call_s3(verb, Bucket=self.bucket, Prefix=prefix, **page)
            yield from answer.get(field, [])
            if not answer.get("IsTruncated"):
                return
            page = {request: answer[reply] for reply, request in NEXT_PAGE.items() if answer.get(reply)}


def _at_once(limit: int, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    with ThreadPoolExecutor(limit) as pool:
        return list(pool.map(function, items))


@cache
def _filesystem(settings: tuple[tuple[str, str], ...], process: int) -> Any:
    """One client for all stores with equal settings; a forked process needs its own."""
    endpoint = endpoint_of(dict(settings))
    fs = s3fs.S3FileSystem(
        endpoint_url=endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=1,  # or every read of a manifest asks for its size first
        config_kwargs={
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 2 * AT_ONCE,
            "retries": {"mode": "standard"},  # three tries, or AWS_MAX_ATTEMPTS
            "s3": {"addressing_style": "path" if endpoint else "auto"},
        },
    )
    fs.retries = 3
    return fs


def _settings() -> tuple[tuple[str, str], ...]:
    """The part of the environment that says where S3 is and who asks."""
    return tuple(
        sorted((name, value) for name, value in os.environ.items() if name.startswith(("AWS_", "NLREWRITE_S3_")))
    )


def endpoint_of(environment: Mapping[str, str]) -> str | None:
    """The S3 endpoint that the environment names; none means AWS."""
    for variable in ENDPOINTS:
        endpoint = environment.get(variable)
        if endpoint:
            if not endpoint.startswith(("http://", "https://")):
                raise SettingError(f"an S3 endpoint starts with http:// or https://: {endpoint!r}. Change {variable}")
            return endpoint
    return None


def _answer(error: BaseException) -> dict[str, Any]:
    """What the server answered, if `error` came from an answer."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}
