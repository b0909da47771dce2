"""What a page about coders tells of each: what it is, where it stands, how it learned and what its record says.

In: coders' artifacts, and what a sweep or a replacement measured of them. Out: `CoderFacts` in the order of their
values. Invariant: read from artifacts alone, and what one of them does not say is None, never guessed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlrewrite.artifacts import Folder
from nlrewrite.report.facts import PLACES
from nlrewrite.report.markup import visible

CODER = "coder"
LONGEST = 24
SETTINGS = {"k": "k = {}", "penalty": "penalty {}", "seed": "seed {}", "layer": "layer {}", "width": "{} latents"}
"""What a coder is called by the setting that was varied."""


@dataclass(frozen=True)
class CoderFacts:
    """One coder."""

    label: str
    value: str
    """Of what was varied, as the label has it."""
    name: str
    """What figures and tables call it."""
    place: str
    artifact: str
    spec: dict[str, Any]
    training: dict[str, Any]
    """Of training.json; empty for a coder from elsewhere that has none."""
    record: dict[str, Any]

    @property
    def curve(self) -> list[dict[str, Any]]:
        return list(self.training.get("curve") or ())

    def tokens(self, point: Mapping[str, Any]) -> float:
        """How many tokens had been seen at a point of the curve."""
        if "tokens" in point:
            return float(point["tokens"])
        return float(point["step"]) * float(self.spec.get("batch", 1))


def gather(inputs: Mapping[str, Folder], over: str) -> list[CoderFacts]:
    """The coders, by their values where these are numbers."""
    found = []
    for label, folder in inputs.items():
        if folder.manifest.artifact.kind != CODER:
            continue
        spec = folder.manifest.spec
        value = label.removeprefix(f"{CODER}-")
        short = visible(value)[:LONGEST]
        several = label != CODER
        found.append(
            CoderFacts(
                label,
                value,
                SETTINGS.get(over, "{}").format(short) if several else "the coder",
                PLACES[spec["site"]["kind"]].format(spec["site"]["layer"]),
                str(folder.manifest.artifact),
                spec,
                optional(folder, "training.json"),
                optional(folder, "record.json"),
            )
        )
    return sorted(found, key=lambda each: (number(each.value), each.value))


def number(value: str) -> float:
    """A value to sort by; what is no number comes last."""
    try:
        return float(value)
    except ValueError:
        return float("inf")


def optional(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON file of the artifact; empty where it has none by that name."""
    if not any(entry.path == name for entry in folder.manifest.files):
        return {}
    return json.loads(folder.path(name).read_text(encoding="utf-8"))
