"""A store in a local folder. Values appear by `link` of a complete, synced file.

In: keys, as relative paths. Out: what `place.py` says. Invariant: a value that was once seen survives a power cut, and
everything half-written lies under `tmp`, where nobody reads.
"""

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nlrewrite.artifacts.place import Item, Result
from nlrewrite.errors import StoreError

log = logging.getLogger(__name__)

UNFINISHED = "tmp"
OF_ONE_ATTEMPT = len(("objects", "kind", "digest", "attempt"))
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalPlace:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    # -- reading ------------------------------------------------------------------------------------------------------

    def local(self, key: str) -> Path | None:
        return self.root / key

    def read(self, key: str) -> bytes:
        with self._reading(key):
            return (self.root / key).read_bytes()

    def size(self, key: str) -> int:
        with self._reading(key):
            return (self.root / key).stat().st_size

    def get(self, key: str, target: Path) -> None:
        with self._reading(key):
            shutil.copyfile(self.root / key, target)

    def keys(self, prefix: str) -> list[tuple[str, float]]:
        found = []
        with self._reading(prefix):
            for folder, _, names in os.walk(self.root / prefix, onerror=_raise_unless_gone):
                for path in (Path(folder, name) for name in names):
                    try:
                        found.append((path.relative_to(self.root).as_posix(), path.stat().st_mtime))
                    except FileNotFoundError:
                        continue  # removed by another process since it was listed
        return sorted(found)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, key: str, data: bytes) -> None:
        with self._writing(key), self._complete(data) as complete:
            target = self._in_folder(key)
            os.replace(complete, target)
            self._sync_folders([target])

    def write_once(self, key: str, data: bytes) -> bool:
        with self._writing(key), self._complete(data) as complete:
            target = self._in_folder(key)
            try:
                os.link(complete, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if target.exists():
                    return False
                log.warning("%s has no hard links: of two writers of one manifest the last wins", self.root)
                os.replace(complete, target)
            self._sync_folders([target])
            return True

    def publish(self, files: Mapping[str, Path]) -> None:
        """Make files durable that were written where they belong."""
        for key, path in files.items():
            assert path == self.root / key, f"an attempt's files are written in place: {path} is not {self.root / key}"
            with self._writing(key):
                _sync(path)
        with self._writing(""):
            self._sync_folders(files.values())

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._writing(key):
                (self.root / key).unlink(missing_ok=True)
            for folder in Path(key).parents:
                if len(folder.parts) < OF_ONE_ATTEMPT:
                    break  # shared with other writers, who may be about to use it
                try:
                    (self.root / folder).rmdir()
                except OSError:
                    break  # not empty

    def clear_unfinished(self, older_than: float) -> int:
        old = [key for key, written in self.keys(UNFINISHED) if time.time() - written > older_than]
        self.remove(old)
        return len(old)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        return map(function, items)

    # -- within -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(
                f"cannot read {self.root / key}: {error.strerror or error}. "
                f"Check that the store is a folder you may read, or choose another with --store"
            ) from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {self.root / key}: {error.strerror or error}. "
                f"Check the folder's permissions and free space, or choose another with --store"
            ) from error

    @contextmanager
    def _complete(self, data: bytes) -> Iterator[Path]:
        """A synced file with `data` under `tmp`, gone afterwards unless it was moved."""
        path = self._in_folder(f"{UNFINISHED}/{uuid.uuid4().hex}")
        try:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _in_folder(self, key: str) -> Path:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _sync_folders(self, paths: Iterable[Path]) -> None:
        """Make the entries of every folder between the root and `paths` durable, the deepest first."""
        folders = {folder for path in paths for folder in path.parents if folder.is_relative_to(self.root)}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            _sync(folder)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error  # a listing that shows nothing because it failed would make everything garbage


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
