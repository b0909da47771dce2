"""Where bytes lie: the few verbs that the store needs of a folder or of a bucket.

In: keys below one root. Out: bytes, sizes, and the one atomic act the store is built on: `write_once`, in which exactly
one of many writers wins and no reader ever sees half a value. Invariant: `FileNotFoundError` means that the key is not
there; every other failure is a `StoreError`, so that an outage is never taken for a miss.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from nlrewrite.errors import SettingError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Place(Protocol):
    uri: str

    def local(self, key: str) -> Path | None:
        """Where `key` lies on this machine, if it does."""
        ...

    def read(self, key: str) -> bytes: ...

    def size(self, key: str) -> int: ...

    def get(self, key: str, target: Path) -> None:
        """Copy `key` to the local file `target`."""
        ...

    def keys(self, prefix: str) -> list[tuple[str, float]]:
        """Keys below `prefix` and the times they were written. A hint for people and for gc, never proof."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put `data` at `key`, whole or not at all, whatever lies there."""
        ...

    def write_once(self, key: str, data: bytes) -> bool:
        """Put `data` at `key` unless something is there; whether we were the one."""
        ...

    def publish(self, files: Mapping[str, Path]) -> None:
        """Make finished local files lie at their keys, for good."""
        ...

    def remove(self, keys: Iterable[str]) -> None:
        """Remove what lies at `keys`; what is not there is no error."""
        ...

    def clear_unfinished(self, older_than: float) -> int:
        """Remove what writers that were killed left half-written; how many pieces went."""
        ...

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        """`function` of every item, in order; at once where every call is a round trip."""
        ...


def place(uri: str) -> Place:
    """The place that a store's uri names."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        from nlrewrite.artifacts.s3 import S3Place

        if not parts.netloc:
            raise SettingError(f"a store on S3 needs a bucket: {uri!r}. Write s3://bucket/prefix")
        return S3Place(parts.netloc, parts.path.strip("/"))
    if "://" in uri or not uri.strip():
        raise SettingError(f"a store is a local folder or s3://bucket/prefix: {uri!r}. Change --store")
    from nlrewrite.artifacts.local import LocalPlace

    return LocalPlace(Path(uri).expanduser().resolve())
