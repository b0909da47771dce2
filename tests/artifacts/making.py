"""Artifacts made by hand, for tests of the store."""

import hashlib
import json

from nlrewrite.artifacts import Artifact, Manifest, Provenance, Store
from nlrewrite.specs import Spec

FILES = {"table.parquet": b"columns", "deep/er/notes.json": b"{}", "empty": b""}
MADE = Provenance(
    time="2026-01-02T03:04:05Z", seconds=1.5, run="test", commit="", dirty=False, source="", packages={}, execution={}
)


class Recipe(Spec):
    """Stands for the spec of any step."""

    samples: int = 10
    fractions: tuple[float, ...] = (0.5, 1.0)


def artifact(name: str, kind: str = "coder") -> Artifact:
    return Artifact(kind=kind, digest=hashlib.sha256(name.encode()).hexdigest()[:16])


def make(
    store: Store,
    made: Artifact,
    files: dict[str, bytes] | None = None,
    inputs: dict[str, Manifest] | None = None,
    spec: Spec | None = None,
    instead_of: Manifest | None = None,
    time: str = MADE.time,
    version: int = 1,
) -> Manifest:
    with store.attempt(made) as attempt:
        for name, data in (FILES if files is None else files).items():
            path = attempt.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return store.commit(
            attempt,
            version=version,
            spec=spec or Recipe(),
            inputs=inputs or {},
            made=MADE.model_copy(update={"time": time}),
            instead_of=instead_of,
        )


def object_keys(store: Store, manifest: Manifest) -> dict[str, str]:
    """The key of each of the artifact's files."""
    return {entry.path: f"objects/{manifest.artifact}/{manifest.attempt}/{entry.path}" for entry in manifest.files}


def manifest_key(made: Artifact) -> str:
    return f"manifests/{made}.json"


def manifest_of(store: Store, made: Artifact) -> dict[str, object]:
    """The manifest as plain JSON."""
    return json.loads(store.place.read(manifest_key(made)))
