"""What a step that is not finished has done so far: named pieces under `work/<kind>/<digest>/`, in the store.

In: bytes by name. Out: the same bytes, to whoever goes on with the artifact, on this machine or another. Invariant: a
piece is there whole or not at all, pieces are asked for by name and never listed, and once the artifact is committed
they are gone.
"""

from pathlib import PurePosixPath

from nlrewrite.artifacts.manifest import Artifact
from nlrewrite.artifacts.place import Place


class Work:
    """The unfinished pieces of one artifact."""

    def __init__(self, place: Place, artifact: Artifact) -> None:
        self._place, self._artifact = place, artifact
        self._seen: set[str] = set()

    def read(self, name: str) -> bytes | None:
        """The piece called `name`; None if it is not there."""
        try:
            data = self._place.read(self._key(name))
        except FileNotFoundError:
            return None
        self._seen.add(name)
        return data

    def write(self, name: str, data: bytes) -> None:
        self._place.write(self._key(name), data)
        self._seen.add(name)

    def where(self, name: str) -> str:
        """Where a person finds the piece called `name`."""
        return f"{self._place.uri}/{self._key(name)}"

    def clear(self) -> None:
        """Remove the pieces that were read or written here."""
        self._place.remove(self._key(name) for name in sorted(self._seen))

    def _key(self, name: str) -> str:
        assert PurePosixPath(name).name == name, f"a piece of work has a plain name, not {name!r}"
        return f"work/{self._artifact.kind}/{self._artifact.digest}/{name}"
