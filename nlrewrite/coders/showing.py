"""What a coder is, for people and for programs, and the same coder in somebody else's format.

In: a folder or file in any format, or a coder's artifact. Out: what is known of it as plain values, a table of them, or
files in another format with its record beside them. Invariant: nothing is measured here, and what is said of a coder
comes from its files alone; a conversion keeps every output, or is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrewrite.artifacts import Folder
from nlrewrite.coders import files, form, formats, record
from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import About
from nlrewrite.coders.record import Record
from nlrewrite.errors import CorruptArtifact, SettingError

OWN = "nlrewrite"
LONGEST = 100


@dataclass(frozen=True)
class Shown:
    """A coder and what is known of it."""

    coder: Coder
    format: str
    about: About
    record: Record | None


def opened(place: Folder | Path, format: str = "auto") -> Shown:
    """The coder of an artifact, of a folder with an artifact's files, or of somebody else's files."""
    if isinstance(place, Folder):
        if place.manifest.artifact.kind != "coder":
            raise SettingError(f"{place.manifest.artifact} is no coder. Name one as coder/<digest>")
        return _own(form.read(place), record.read(place))
    if place.is_dir() and (place / form.WEIGHTS).is_file():
        if not (place / form.CONFIG).is_file():
            raise CorruptArtifact(f"{place} has {form.WEIGHTS} and no {form.CONFIG}. Copy both")
        return _own(form.load(place / form.WEIGHTS, place / form.CONFIG), _beside(place))
    loaded = formats.load(place, format)
    return Shown(loaded.coder, loaded.format, loaded.about, _beside(place if place.is_dir() else place.parent))


def facts(shown: Shown) -> dict[str, Any]:
    """Everything there is to say, in the order in which it is read."""
    coder, about = shown.coder, shown.about
    return {
        "format": shown.format,
        "kind": about.kind,
        "activation": coder.activation,
        "latents": coder.latents,
        "k": coder.k or None,
        "reads": coder.enc_LD.shape[1],
        "writes": coder.dec_LE.shape[1],
        "model": about.model,
        "hook_in": about.hook_in,
        "hook_out": about.hook_out,
        "layer": about.layer,
        "dtype": about.dtype,
        "notes": list(about.notes),
        "settings": about.said,
        "record": None if shown.record is None else shown.record.model_dump(mode="json"),
    }


def rows(known: dict[str, Any]) -> list[tuple[str, str]]:
    """The same as two columns; what nobody says is left out."""
    found: list[tuple[str, str]] = []
    for name, value in known.items():
        if isinstance(value, dict):
            found += [(f"{name}.{key}", _word(each)) for key, each in value.items() if each is not None]
        elif isinstance(value, list):
            found += [(name.removesuffix("s"), _word(each)) for each in value]
        elif value is not None:
            found.append((name, _word(value)))
    return found


def convert(shown: Shown, folder: Path, format: str) -> dict[str, Any]:
    """Write the coder in this format, and its record beside it; gives what was written."""
    about = shown.about
    formats.save(shown.coder, folder, format, about)
    known = shown.record or Record(
        kind=about.kind,
        format=shown.format,
        source="converted",
        hook_in=about.hook_in,
        hook_out=about.hook_out,
        model=about.model,
        width=shown.coder.latents,
        k=shown.coder.k or None,
    )
    record.write(known, folder)
    return {"format": format, "files": [str(each) for each in files.files(folder)]}


def _own(coder: Coder, known: Record | None) -> Shown:
    if known is None:
        kind = "skip-transcoder" if coder.skip_ED is not None else "sae"
        return Shown(coder, OWN, About(kind=kind, k=coder.k), None)
    about = About(
        kind=known.kind,
        model=known.model,
        hook_in=known.hook_in,
        hook_out=known.hook_out,
        layer=None if known.site is None else known.site.layer,
        k=coder.k,
    )
    return Shown(coder, OWN, about, known)


def _beside(folder: Path) -> Record | None:
    return record.read(folder) if (folder / files.RECORD).is_file() else None


def _word(value: Any) -> str:
    plain = isinstance(value, str)
    text = value if plain else f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
