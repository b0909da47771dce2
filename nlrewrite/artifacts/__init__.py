"""Artifacts: what a step leaves behind, where it lies, and when it counts.

In: a folder that a step has filled, and what made it. Out: `kind/digest`, for ever the same. Invariant: an artifact
exists exactly when its manifest can be read, every file the manifest names answers with the right size, and the inputs
it was made from are the ones their manifests name now. Nothing half-written is ever taken for whole.
"""

from nlrewrite.artifacts.difference import Nearest
from nlrewrite.artifacts.digest import canonical, digest
from nlrewrite.artifacts.manifest import Artifact, FileEntry, InputRecord, Manifest, Provenance
from nlrewrite.artifacts.store import Attempt, Finding, Folder, Store
from nlrewrite.artifacts.work import Work

__all__ = [
    "Artifact",
    "Attempt",
    "FileEntry",
    "Finding",
    "Folder",
    "InputRecord",
    "Manifest",
    "Nearest",
    "Provenance",
    "Store",
    "Work",
    "canonical",
    "digest",
]
