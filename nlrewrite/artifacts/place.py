"""Where bytes lie: a local folder or an S3 bucket behind the same few verbs.

In: keys below one root. Out: bytes, sizes, and the one atomic act the store is built on: `write_once`, in which exactly
one of many writers wins and no reader ever sees half a value. Invariant: `FileNotFoundError` means that the key is not
there; every other failure is a `StoreError`, so that an outage is never taken for a miss.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nlrewrite.errors import SettingError, StoreError

log = logging.getLogger(__name__)


class LocalPlace:
    """A folder. Values appear by `link` of a complete, synced file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise StoreError(
                f"cannot {verb} {self.root / key}: {error.strerror or error}. "
                f"Check the folder's permissions and free space, or choose another with --store"
            ) from error

    def local(self, key: str) -> Path | None:
        return self.root / key

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return (self.root / key).read_bytes()

    def size(self, key: str) -> int:
        with self._errors("read", key):
            return (self.root / key).stat().st_size

    def _temporary(self, key: str, data: bytes) -> Path:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def write_once(self, key: str, data: bytes) -> bool:
        """Put `data` at `key` unless something is there; whether we were the one."""
        with self._errors("write", key):
            temporary = self._temporary(key, data)
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            sync_folder((self.root / key).parent)
            return True

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            os.replace(self._temporary(key, data), self.root / key)

    def put(self, source: Path, key: str) -> None:
        """Move a finished local file to `key`; a file that already lies there stays."""
        target = self.root / key
        with self._errors("write", key):
            if source != target:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)
            with open(target, "rb") as file:
                os.fsync(file.fileno())
            sync_folder(target.parent)

    def get(self, key: str, target: Path) -> None:
        with self._errors("read", key):
            shutil.copyfile(self.root / key, target)

    def keys(self, prefix: str) -> list[tuple[str, float]]:
        """Keys below `prefix` and the times they were written. A hint for people and for gc, never proof."""
        with self._errors("list", prefix):
            return [
                (path.relative_to(self.root).as_posix(), path.stat().st_mtime)
                for path in sorted((self.root / prefix).rglob("*"))
                if path.is_file()
            ]

    def remove(self, key: str) -> None:
        with self._errors("remove", key):
            (self.root / key).unlink(missing_ok=True)
            for parent in (self.root / key).parents:
                if parent == self.root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break  # not empty, or another writer is using it

    def clear_uploads(self) -> int:
        return 0


class S3Place:
    """A prefix of an S3 bucket, through s3fs. `write_once` is a conditional put, probed once per endpoint."""

    def __init__(self, bucket: str, prefix: str) -> None:
        import s3fs

        self.bucket = bucket
        self.root = f"{bucket}/{prefix}".rstrip("/")
        self.uri = f"s3://{self.root}"
        endpoint = os.environ.get("NLREWRITE_S3_ENDPOINT") or os.environ.get("AWS_ENDPOINT_URL_S3")
        self.fs: Any = s3fs.S3FileSystem(
            endpoint_url=endpoint or os.environ.get("AWS_ENDPOINT_URL"),
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": 10,
                "read_timeout": 60,
                "retries": {"max_attempts": 5, "mode": "standard"},
                "s3": {"addressing_style": "path" if endpoint else "auto"},
            },
        )
        self._conditional: bool | None = None

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError

        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except (OSError, BotoCoreError) as error:
            raise StoreError(
                f"cannot {verb} s3://{self.root}/{key}: {error or type(error).__name__}. "
                f"Check the endpoint, the bucket and the credentials"
            ) from error

    def local(self, key: str) -> Path | None:
        return None

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return self.fs.cat_file(f"{self.root}/{key}")

    def size(self, key: str) -> int:
        with self._errors("read", key):
            return int(self.fs.info(f"{self.root}/{key}")["size"])

    def write_once(self, key: str, data: bytes) -> bool:
        with self._errors("write", key):
            if not self._honours_conditions():
                self.fs.pipe_file(f"{self.root}/{key}", data)
                return True
            return self._create(key, data)

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self.fs.pipe_file(f"{self.root}/{key}", data)

    def put(self, source: Path, key: str) -> None:
        with self._errors("write", key):
            self.fs.put_file(str(source), f"{self.root}/{key}")
        source.unlink()

    def get(self, key: str, target: Path) -> None:
        with self._errors("read", key):
            self.fs.get_file(f"{self.root}/{key}", str(target))

    def keys(self, prefix: str) -> list[tuple[str, float]]:
        with self._errors("list", prefix):
            found = self.fs.find(f"{self.root}/{prefix}", detail=True)
            return sorted((key[len(self.root) + 1 :], info["LastModified"].timestamp()) for key, info in found.items())

    def remove(self, key: str) -> None:
        with self._errors("remove", key):
            self.fs.rm_file(f"{self.root}/{key}")

    def clear_uploads(self) -> int:
        with self._errors("list", "uploads"):
            before = len(self.fs.list_multipart_uploads(self.bucket) or [])
            self.fs.clear_multipart_uploads(self.bucket)
            return before

    def _create(self, key: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(f"{self.root}/{key}", data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _status(error) == 412:  # Ceph names no condition in its answer, so s3fs raises a plain OSError
                return False
            raise
        return True

    def _honours_conditions(self) -> bool:
        if self._conditional is None:
            probe = f"probe/{uuid.uuid4().hex}"
            self._create(probe, b"first")
            self._conditional = not self._create(probe, b"second")
            self.fs.rm_file(f"{self.root}/{probe}")
            if not self._conditional:
                log.warning(
                    "the endpoint of %s ignores If-None-Match: of two writers of one manifest the last wins", self.uri
                )
        return self._conditional


Place = LocalPlace | S3Place


def place(uri: str) -> Place:
    """The place that a store's uri names."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise SettingError(f"a store on S3 needs a bucket: {uri!r}. Write s3://bucket/prefix")
        return S3Place(parts.netloc, parts.path.strip("/"))
    if "://" in uri:
        raise SettingError(f"a store is a local folder or s3://bucket/prefix: {uri!r}. Change --store")
    return LocalPlace(Path(uri).expanduser().resolve())


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _status(error: OSError) -> int | None:
    response = getattr(error.__cause__, "response", None)
    return response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(response, dict) else None
