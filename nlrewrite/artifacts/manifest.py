"""What is written down about an artifact: its files with their hashes, its inputs, its spec and how it was made.

Invariant: a manifest is plain JSON that needs no class of ours to be read, and everything that may differ between two
equal results (times, host, versions, attempt names) stands under `attempt`, `made` and the inputs' attempts.
"""

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrewrite.errors import SettingError


class Record(BaseModel):
    """Frozen, and forgiving: a field that a later version adds does not keep an earlier one from reading."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Artifact(Record):
    """The name of a result. Small, frozen, JSON: what flows and tasks hand to one another."""

    kind: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")

    def __str__(self) -> str:
        return f"{self.kind}/{self.digest}"

    @classmethod
    def parse(cls, name: str) -> "Artifact":
        kind, _, digest = name.partition("/")
        try:
            return cls(kind=kind, digest=digest)
        except ValidationError as error:
            raise SettingError(
                f"an artifact is named kind/digest, the digest having 16 hexadecimal digits: {name!r}. "
                f"See the names with: nlrewrite status"
            ) from error


class FileEntry(Record):
    path: str
    bytes: int
    sha256: str


class InputRecord(Record):
    """An input as it was when it was read: the attempt, and one hash over the files of that attempt."""

    artifact: Artifact
    attempt: str
    files: str

    @classmethod
    def of(cls, manifest: "Manifest") -> "InputRecord":
        text = "\n".join(f"{entry.path} {entry.sha256}" for entry in manifest.files)
        files = hashlib.sha256(text.encode()).hexdigest()
        return cls(artifact=manifest.artifact, attempt=manifest.attempt, files=files)


class Provenance(Record):
    """How an artifact was made. Advice for people; decides nothing."""

    time: str
    seconds: float
    run: str
    commit: str
    dirty: bool
    source: str
    packages: dict[str, str]
    execution: dict[str, Any]


class Manifest(Record):
    artifact: Artifact
    version: int
    attempt: str
    spec: dict[str, Any]
    inputs: dict[str, InputRecord]
    files: list[FileEntry]
    made: Provenance

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)
