"""The one truth about what has been made: attempts, manifests, and whether an artifact can be trusted now.

    objects/<kind>/<digest>/<attempt>/...    files of one attempt; never overwritten
    manifests/<kind>/<digest>.json           written last, once

In: an artifact's name and a folder that a step filled. Out: a manifest, or a finding that says why there is none.
Invariant: the manifest is the commit. Listings decide nothing, an outage is an error, and a reader gets the bytes that
were hashed when they were written.
"""

import hashlib
import logging
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from nlrewrite.artifacts.manifest import Artifact, FileEntry, InputRecord, Manifest
from nlrewrite.artifacts.place import place
from nlrewrite.errors import CorruptArtifact, StoreError

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 600
UNNAMED_IS_GARBAGE_AFTER = 7 * 86400
HEARTBEAT = ".heartbeat"


@dataclass(frozen=True)
class Finding:
    """What the store knows of an artifact. Only `state == "hit"` may be used."""

    state: Literal["hit", "missing", "damaged", "stale"]
    why: str
    manifest: Manifest | None = None

    @property
    def hit(self) -> Manifest | None:
        return self.manifest if self.state == "hit" else None


@dataclass(frozen=True)
class Attempt:
    """A folder being filled. Becomes the artifact when it is committed, and garbage when it is not."""

    artifact: Artifact
    name: str
    folder: Path


class Folder:
    """The files of an artifact, to read."""

    def __init__(self, store: "Store", manifest: Manifest) -> None:
        self._store = store
        self.manifest = manifest

    def path(self, name: str) -> Path:
        """A local file with the content of `name`, fetched and checked if the store is remote."""
        for entry in self.manifest.files:
            if entry.path == name:
                return self._store.fetch(self.manifest, entry)
        raise FileNotFoundError(f"{self.manifest.artifact} has no file {name!r}")

    def root(self) -> Path:
        """A local folder with every file of the artifact, for libraries that want a folder."""
        paths = [self.path(entry.path) for entry in self.manifest.files]
        depth = len(Path(self.manifest.files[0].path).parts)
        return paths[0].parents[depth - 1]


class Store:
    def __init__(self, uri: str, scratch: str | None = None) -> None:
        self.place = place(uri)
        self.uri = self.place.uri
        self._scratch = Path(scratch) if scratch else Path(tempfile.gettempdir()) / "nlrewrite"

    # -- reading ------------------------------------------------------------------------------------------------------

    def manifest(self, artifact: Artifact) -> Manifest | None:
        try:
            data = self.place.read(_manifest_key(artifact))
        except FileNotFoundError:
            return None
        try:
            return Manifest.model_validate_json(data)
        except ValidationError as error:
            raise CorruptArtifact(
                f"the manifest of {artifact} in {self.uri} cannot be read: {error.errors()[0]['msg']}. "
                f"Remove {_manifest_key(artifact)} and run again"
            ) from error

    def find(self, artifact: Artifact) -> Finding:
        """Whether `artifact` can be used now, and if not, why."""
        manifest = self.manifest(artifact)
        if manifest is None:
            return Finding("missing", "not in the store")
        with ThreadPoolExecutor(8) as pool:
            for problem in pool.map(lambda entry: self._problem(manifest, entry), manifest.files):
                if problem:
                    return Finding("damaged", problem, manifest)
        for name, record in manifest.inputs.items():
            now = self.manifest(record.artifact)
            if now is None:
                return Finding("stale", f"its input {name} ({record.artifact}) is no longer in the store", manifest)
            if now.attempt != record.attempt:
                return Finding("stale", f"its input {name} ({record.artifact}) was rebuilt since", manifest)
        return Finding("hit", f"built {manifest.made.time} by {manifest.made.run}", manifest)

    def folder(self, artifact: Artifact) -> Folder:
        manifest = self.manifest(artifact)
        if manifest is None:
            raise StoreError(f"{artifact} is not in {self.uri}. Build it with: nlrewrite run")
        return Folder(self, manifest)

    def fetch(self, manifest: Manifest, entry: FileEntry) -> Path:
        key = _object_key(manifest.artifact, manifest.attempt, entry.path)
        local = self.place.local(key)
        if local is not None:
            return local
        target = self._scratch / "fetched" / manifest.attempt / entry.path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            self.place.get(key, temporary)
            found = sha256(temporary)
            if found != entry.sha256:
                temporary.unlink()
                raise CorruptArtifact(_corrupt(manifest.artifact, entry, found))
            temporary.rename(target)
        return target

    def listed(self) -> list[Artifact]:
        """Artifacts whose manifests a listing shows. For people and for gc; proves nothing."""
        keys = [key for key, _ in self.place.keys("manifests") if key.endswith(".json")]
        return [Artifact(kind=kind, digest=name[:-5]) for _, kind, name in (key.split("/") for key in keys)]

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def attempt(self, artifact: Artifact) -> Iterator[Attempt]:
        """A fresh folder for one try at building `artifact`, kept alive by a heartbeat while it is being filled."""
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        local = self.place.local(_object_key(artifact, name, ""))
        folder = local or Path(tempfile.mkdtemp(prefix=f"{artifact.kind}-", dir=self._made_scratch()))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.uri}: {error.strerror}. Check its permissions, or choose another with --store"
            ) from error
        ended = threading.Event()
        pulse = threading.Thread(target=self._beat, args=(artifact, name, ended), daemon=True)
        pulse.start()
        try:
            yield Attempt(artifact, name, folder)
        finally:
            ended.set()
            pulse.join()
            if local is None:
                shutil.rmtree(folder, ignore_errors=True)

    def commit(self, attempt: Attempt, describe: "Describe") -> Manifest:
        """Hash and store the attempt's files, then write the manifest. If another builder was first, theirs counts."""
        paths = sorted(path for path in attempt.folder.rglob("*") if path.is_file() and path.name != HEARTBEAT)
        names = [path.relative_to(attempt.folder).as_posix() for path in paths]
        files = [
            FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256(path))
            for name, path in zip(names, paths, strict=True)
        ]
        if not files:
            raise RuntimeError(f"the step that builds {attempt.artifact} left no files")
        for name, path in zip(names, paths, strict=True):
            self.place.put(path, _object_key(attempt.artifact, attempt.name, name))
        manifest = describe(attempt.name, files)
        data = manifest.model_dump_json(indent=1).encode()
        if self.place.write_once(_manifest_key(attempt.artifact), data):
            return manifest
        winner = self.manifest(attempt.artifact)
        if winner is None:
            raise StoreError(f"the manifest of {attempt.artifact} vanished while it was written. Run again")
        log.info("%s was built by someone else meanwhile; theirs is used", attempt.artifact)
        return winner

    def forget(self, artifact: Artifact) -> None:
        """Remove the manifest, so that the artifact is built anew. Its files stay until gc."""
        self.place.remove(_manifest_key(artifact))

    # -- keeping ------------------------------------------------------------------------------------------------------

    def verify(self, artifact: Artifact) -> list[str]:
        """Read every byte; what is not as the manifest says, one line each."""
        manifest = self.manifest(artifact)
        if manifest is None:
            return [f"{artifact} is not in the store"]
        problems = []
        for entry in manifest.files:
            problem = self._problem(manifest, entry)
            if problem is None:
                found = self._hash(_object_key(artifact, manifest.attempt, entry.path))
                problem = None if found == entry.sha256 else _corrupt(artifact, entry, found)
            if problem:
                problems.append(problem)
        return problems

    def garbage(self, older_than: float = UNNAMED_IS_GARBAGE_AFTER) -> dict[str, list[str]]:
        """Attempts that no manifest names and whose newest object is older than `older_than` seconds, with their keys."""
        named = set()
        for artifact in self.listed():
            manifest = self.manifest(artifact)
            if manifest is not None:
                named.add(f"{artifact}/{manifest.attempt}")
                named.update(f"{record.artifact}/{record.attempt}" for record in manifest.inputs.values())
        attempts: dict[str, list[str]] = {}
        newest: dict[str, float] = {}
        for key, written in self.place.keys("objects"):
            attempt = "/".join(key.split("/")[1:4])
            attempts.setdefault(attempt, []).append(key)
            newest[attempt] = max(newest.get(attempt, 0.0), written)
        now = time.time()
        return {
            attempt: keys
            for attempt, keys in attempts.items()
            if attempt not in named and now - newest[attempt] > older_than
        }

    def collect(self, garbage: dict[str, list[str]]) -> int:
        """Remove what `garbage` found, and dangling multipart uploads; how many objects went."""
        for keys in garbage.values():
            for key in keys:
                self.place.remove(key)
        self.place.clear_uploads()
        return sum(len(keys) for keys in garbage.values())

    # -- within -------------------------------------------------------------------------------------------------------

    def _made_scratch(self) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def _beat(self, artifact: Artifact, attempt: str, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            self.place.write(_object_key(artifact, attempt, HEARTBEAT), b"")

    def _problem(self, manifest: Manifest, entry: FileEntry) -> str | None:
        try:
            size = self.place.size(_object_key(manifest.artifact, manifest.attempt, entry.path))
        except FileNotFoundError:
            return f"{manifest.artifact} lacks its file {entry.path}"
        if size != entry.bytes:
            return f"{manifest.artifact}: {entry.path} has {size} bytes where the manifest says {entry.bytes}"
        return None

    def _hash(self, key: str) -> str:
        local = self.place.local(key)
        if local is not None:
            return sha256(local)
        with tempfile.TemporaryDirectory(dir=self._made_scratch()) as folder:
            target = Path(folder) / "file"
            self.place.get(key, target)
            return sha256(target)


class Describe:
    """Makes the manifest once the files are known: everything about an attempt but its name and its files."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __call__(self, attempt: str, files: list[FileEntry]) -> Manifest:
        return Manifest.model_validate({**self._fields, "attempt": attempt, "files": files})


def input_record(manifest: Manifest) -> InputRecord:
    text = "\n".join(f"{entry.path} {entry.sha256}" for entry in manifest.files)
    return InputRecord(
        artifact=manifest.artifact, attempt=manifest.attempt, files=hashlib.sha256(text.encode()).hexdigest()
    )


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _corrupt(artifact: Artifact, entry: FileEntry, found: str) -> str:
    return (
        f"{artifact}: {entry.path} does not have the content that was written: sha256 {found[:12]}... where the "
        f"manifest says {entry.sha256[:12]}.... Rebuild it with: nlrewrite run --refresh {artifact.kind}"
    )


def _manifest_key(artifact: Artifact) -> str:
    return f"manifests/{artifact.kind}/{artifact.digest}.json"


def _object_key(artifact: Artifact, attempt: str, path: str) -> str:
    return f"objects/{artifact.kind}/{artifact.digest}/{attempt}/{path}".rstrip("/")
