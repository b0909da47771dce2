"""The record beside a coder: whose it is, where it stands, what it was made from, and how well it does there.

In: what a training or a loading knows. Out: `record.json` in the coder's artifact, JSON that needs no class of ours.
Invariant: what nobody has said is None and what nobody has measured is None; a number that was measured says on how
many tokens, so that whoever loads the coder elsewhere can hold it to that.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nlrewrite.artifacts import Folder
from nlrewrite.coders.files import RECORD
from nlrewrite.errors import CorruptArtifact
from nlrewrite.specs import Site

if TYPE_CHECKING:
    from nlrewrite.coders.form import Coder

Kind = Literal["sae", "transcoder", "skip-transcoder"]


class Record(BaseModel):
    """What is known of a coder; forgiving, so that a field which a later version adds keeps nobody from reading."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    format: str
    """Whose files it came from: nlrewrite for one trained here."""
    source: str
    """repository@revision/path, sha256:..., or trained."""
    site: Site | None = None
    hook_in: str | None = None
    """What it reads, in the words of its source."""
    hook_out: str | None = None
    """What it writes, in the words of its source."""
    model: str | None = None
    """The model it was trained on, as the source calls it."""
    revision: str | None = None
    data: str | None = None
    steps: int | None = None
    tokens: int | None = None
    """Tokens it was trained on."""
    width: int | None = None
    k: int | None = None
    fvu: float | None = None
    """Fraction of variance unexplained at the site, the first position of every window left out."""
    l0: float | None = None
    """Mean latents active on a token."""
    folded_from: str | None = None
    """The normalised input that it read before the subject's LayerNorm was folded into it; hook_in is then our own."""
    centred: bool = False
    """Whether it writes without the mean over the width, so that its FVU is that of y without it."""
    measured_on: int | None = None
    """Tokens that fvu and l0 were measured on."""


def kind_of(coder: "Coder", site: Site) -> Kind:
    if coder.skip_ED is not None:
        return "skip-transcoder"
    return "transcoder" if site.kind == "mlp" else "sae"


def write(record: Record, folder: Path) -> None:
    (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read(folder: Folder | Path) -> Record:
    """The record of a coder's artifact, or of a folder that holds its files."""
    path = folder / RECORD if isinstance(folder, Path) else folder.path(RECORD)
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
        raise CorruptArtifact(f"{path} is no record of a coder: {field} is wrong. Build the coder again") from error
