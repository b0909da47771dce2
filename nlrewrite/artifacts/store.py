"""The one truth about what has been made: attempts, manifests, and whether an artifact can be trusted now.

    objects/<kind>/<digest>/<attempt>/...    files of one attempt; never overwritten
    manifests/<kind>/<digest>.json           written last, once

In: an artifact's name and a folder that a step filled. Out: a manifest, or a finding that says why there is none.
Invariant: the manifest is the commit. Listings decide nothing, an outage is an error, and what is fetched from afar is
what was hashed when it was written.
"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from nlrewrite.artifacts.difference import Nearest, nearest
from nlrewrite.artifacts.digest import canonical
from nlrewrite.artifacts.manifest import Artifact, FileEntry, InputRecord, Manifest, Provenance
from nlrewrite.artifacts.place import place
from nlrewrite.errors import CorruptArtifact, StoreError

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 600
UNNAMED_IS_GARBAGE_AFTER = 7 * 86400
HEARTBEAT = ".heartbeat"
COMPARED = 200  # manifests read to explain a miss
MANIFEST_KEY = re.compile(r"manifests/([a-z][a-z0-9-]*)/([0-9a-f]{16})\.json")


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
        fetched = list(self._store.place.each(partial(self._store.fetch, self.manifest), self.manifest.files))
        depth = len(Path(self.manifest.files[0].path).parts)
        return fetched[0].parents[depth - 1]


class Store:
    def __init__(self, uri: str, scratch: str | None = None) -> None:
        self.place = place(uri)
        self.uri = self.place.uri
        self._scratch = Path(scratch) if scratch else Path(tempfile.gettempdir()) / f"nlrewrite-{os.getuid()}"

    # -- reading ------------------------------------------------------------------------------------------------------

    def manifest(self, artifact: Artifact) -> Manifest | None:
        key = _manifest_key(artifact)
        try:
            data = self.place.read(key)
        except FileNotFoundError:
            return None
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise CorruptArtifact(_unreadable(self.uri, artifact, f"{where} {problem['msg']}".strip())) from error
        if manifest.artifact != artifact:
            raise CorruptArtifact(_unreadable(self.uri, artifact, f"it is the manifest of {manifest.artifact}"))
        return manifest

    def find(self, artifact: Artifact) -> Finding:
        """Whether `artifact` can be used now, and if not, why."""
        manifest = self.manifest(artifact)
        if manifest is None:
            return Finding("missing", "not in the store")
        checks: list[Callable[[], Finding | None]] = [
            *(partial(self._damage, manifest, entry) for entry in manifest.files),
            *(partial(self._staleness, manifest, name) for name in manifest.inputs),
        ]
        for finding in self.place.each(lambda check: check(), checks):
            if finding is not None:
                return finding
        return Finding("hit", f"built {manifest.made.time} by {manifest.made.run}", manifest)

    def folder(self, artifact: Artifact) -> Folder:
        manifest = self.manifest(artifact)
        if manifest is None:
            raise StoreError(f"{artifact} is not in {self.uri}. Build it with: nlrewrite run")
        return Folder(self, manifest)

    def fetch(self, manifest: Manifest, entry: FileEntry) -> Path:
        """A local file with the content of `entry`. What comes from afar is checked against its hash."""
        key = _object_key(manifest.artifact, manifest.attempt, entry.path)
        local = self.place.local(key)
        if local is not None:
            damage = self._damage(manifest, entry)
            if damage is not None:
                raise CorruptArtifact(f"{damage.why}. Run again to rebuild it")
            return local
        target = self._scratch / "fetched" / manifest.attempt / entry.path
        if not target.exists():
            temporary = self._made_scratch() / f"{uuid.uuid4().hex}.part"
            try:
                self.place.get(key, temporary)
                found = sha256(temporary)
                if found != entry.sha256:
                    raise CorruptArtifact(_corrupt(manifest.artifact, entry, found))
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.rename(target)
            except FileNotFoundError as error:
                raise CorruptArtifact(f"{_lacks(manifest.artifact, entry)}. Run again to rebuild it") from error
            finally:
                temporary.unlink(missing_ok=True)
        return target

    def listed(self, kind: str = "") -> list[Artifact]:
        """Artifacts whose manifests a listing shows, the latest last. For people and for gc; proves nothing."""
        keys = sorted(self.place.keys(f"manifests/{kind}".rstrip("/")), key=lambda each: each[1])
        matches = (MANIFEST_KEY.fullmatch(key) for key, _ in keys)
        return [Artifact(kind=match[1], digest=match[2]) for match in matches if match]

    def nearest(
        self,
        artifact: Artifact,
        spec: BaseModel,
        inputs: Mapping[str, Artifact] | None = None,
        version: int | None = None,
    ) -> Nearest | None:
        """The manifest of the same kind that differs least from what `artifact` is made of, to explain a miss."""

        def readable(each: Artifact) -> Manifest | None:
            try:
                return self.manifest(each)
            except CorruptArtifact:
                return None  # no help in explaining another artifact; `verify` names it

        latest = self.listed(artifact.kind)[-COMPARED:]
        found = [each for each in self.place.each(readable, latest) if each is not None]
        return nearest(found, artifact, canonical(spec), inputs, version)

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def attempt(self, artifact: Artifact) -> Iterator[Attempt]:
        """A fresh folder for one try at building `artifact`, kept alive by a heartbeat while it is being filled."""
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        local = self.place.local(_object_key(artifact, name))
        folder = local or self._made_scratch() / f"{artifact.kind}-{name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot write to {folder}: {error.strerror}. Check its permissions, or choose another with --store"
            ) from error
        ended = threading.Event()
        pulse = threading.Thread(target=self._beat, args=(_object_key(artifact, name, HEARTBEAT), ended), daemon=True)
        pulse.start()
        try:
            yield Attempt(artifact, name, folder)
        finally:
            ended.set()
            pulse.join()
            if local is None:
                shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self,
        attempt: Attempt,
        *,
        version: int,
        spec: BaseModel,
        inputs: Mapping[str, Manifest],
        made: Provenance,
        instead_of: Manifest | None = None,
    ) -> Manifest:
        """Hash and store the attempt's files, then write the manifest. If another builder was first, theirs counts.

        `instead_of` is the manifest that no longer holds, or that is to be refreshed; a newer one is left alone.
        """
        paths = {
            path.relative_to(attempt.folder).as_posix(): path
            for path in sorted(attempt.folder.rglob("*"))
            if path.is_file() and path.name != HEARTBEAT
        }
        assert paths, f"the step that builds {attempt.artifact} left no files"
        for path in paths.values():
            assert not path.is_symlink(), f"an artifact holds its files, not links to them: {path}"
        manifest = Manifest(
            artifact=attempt.artifact,
            version=version,
            attempt=attempt.name,
            spec=canonical(spec),
            inputs={name: InputRecord.of(each) for name, each in inputs.items()},
            files=[
                FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256(path)) for name, path in paths.items()
            ],
            made=made,
        )
        self.place.publish({_object_key(attempt.artifact, attempt.name, name): path for name, path in paths.items()})
        if instead_of is not None:
            self.forget(attempt.artifact, instead_of.attempt)
        if self.place.write_once(_manifest_key(attempt.artifact), manifest.model_dump_json(indent=1).encode()):
            return manifest
        winner = self.manifest(attempt.artifact)
        if winner is None:
            raise StoreError(f"the manifest of {attempt.artifact} vanished while it was written. Run again")
        if winner.attempt != attempt.name:
            log.info("%s was built by someone else meanwhile; theirs is used", attempt.artifact)
        return winner

    def forget(self, artifact: Artifact, attempt: str | None = None) -> None:
        """Remove the manifest (only if it names `attempt`, when that is given). The files stay until gc."""
        if attempt is not None:
            now = self.manifest(artifact)
            if now is None or now.attempt != attempt:
                return
        self.place.remove([_manifest_key(artifact)])

    # -- keeping ------------------------------------------------------------------------------------------------------

    def verify(self, artifact: Artifact) -> list[str]:
        """Read every byte; what is not as the manifest says, one line each."""
        try:
            manifest = self.manifest(artifact)
        except CorruptArtifact as error:
            return [str(error)]
        if manifest is None:
            return [f"{artifact} is not in the store"]
        return [why for why in self.place.each(partial(self._reread, manifest), manifest.files) if why is not None]

    def garbage(self, older_than: float = UNNAMED_IS_GARBAGE_AFTER) -> dict[str, list[str]]:
        """Attempts that no manifest names, with their keys, when all of these are older than `older_than` seconds."""
        attempts: dict[str, list[str]] = {}
        newest: dict[str, float] = {}
        for key, written in self.place.keys("objects"):  # before the manifests: what is committed since is not here
            attempt = "/".join(key.split("/")[1:4])
            attempts.setdefault(attempt, []).append(key)
            newest[attempt] = max(newest.get(attempt, 0.0), written)
        named = set()
        for manifest in self.place.each(self.manifest, self.listed()):
            if manifest is not None:
                named.add(f"{manifest.artifact}/{manifest.attempt}")
                named.update(f"{record.artifact}/{record.attempt}" for record in manifest.inputs.values())
        now = time.time()
        return {
            attempt: keys
            for attempt, keys in attempts.items()
            if attempt not in named and now - newest[attempt] > older_than
        }

    def collect(self, garbage: Mapping[str, list[str]], older_than: float = UNNAMED_IS_GARBAGE_AFTER) -> int:
        """Remove what `garbage` found, and what writers left half-written before; how many objects went."""
        keys = [key for attempt in garbage.values() for key in attempt]
        self.place.remove(keys)
        return len(keys) + self.place.clear_unfinished(older_than)

    # -- within -------------------------------------------------------------------------------------------------------

    def _made_scratch(self) -> Path:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot use the scratch folder {self._scratch}: {error.strerror}. Choose another with --scratch"
            ) from error
        return self._scratch

    def _beat(self, key: str, ended: threading.Event) -> None:
        beaten = False
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                self.place.write(key, b"")
                beaten = True
            except StoreError as error:
                log.warning("no heartbeat: %s", error)  # the step itself will say whether the store is back
        if beaten:
            self.place.remove([key])

    def _damage(self, manifest: Manifest, entry: FileEntry) -> Finding | None:
        try:
            size = self.place.size(_object_key(manifest.artifact, manifest.attempt, entry.path))
        except FileNotFoundError:
            return Finding("damaged", _lacks(manifest.artifact, entry), manifest)
        if size != entry.bytes:
            why = f"{manifest.artifact}: {entry.path} has {size} bytes where the manifest says {entry.bytes}"
            return Finding("damaged", why, manifest)
        return None

    def _staleness(self, manifest: Manifest, name: str) -> Finding | None:
        record = manifest.inputs[name]
        now = self.manifest(record.artifact)
        if now is None:
            return Finding("stale", f"its input {name} ({record.artifact}) is no longer in the store", manifest)
        if now.attempt != record.attempt:
            return Finding("stale", f"its input {name} ({record.artifact}) was rebuilt since", manifest)
        return None

    def _reread(self, manifest: Manifest, entry: FileEntry) -> str | None:
        damage = self._damage(manifest, entry)
        if damage is not None:
            return damage.why
        found = self._hash(_object_key(manifest.artifact, manifest.attempt, entry.path))
        return None if found == entry.sha256 else _corrupt(manifest.artifact, entry, found)

    def _hash(self, key: str) -> str:
        local = self.place.local(key)
        if local is not None:
            return sha256(local)
        with tempfile.TemporaryDirectory(dir=self._made_scratch()) as folder:
            target = Path(folder) / "file"
            self.place.get(key, target)
            return sha256(target)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(uri: str, artifact: Artifact, why: str) -> str:
    return f"the manifest of {artifact} in {uri} cannot be read: {why}. Remove {_manifest_key(artifact)} and run again"


def _lacks(artifact: Artifact, entry: FileEntry) -> str:
    return f"{artifact} lacks its file {entry.path}"


def _corrupt(artifact: Artifact, entry: FileEntry, found: str) -> str:
    return (
        f"{artifact}: {entry.path} does not have the content that was written: sha256 {found[:12]}... where the "
        f"manifest says {entry.sha256[:12]}.... Rebuild it with: nlrewrite run --refresh {artifact.kind}"
    )


def _manifest_key(artifact: Artifact) -> str:
    return f"manifests/{artifact.kind}/{artifact.digest}.json"


def _object_key(artifact: Artifact, attempt: str, path: str = "") -> str:
    return f"objects/{artifact.kind}/{artifact.digest}/{attempt}/{path}".rstrip("/")
