"""What the page tells of a run besides its losses: the subject, the coder, the text, what became of every sentence.

In: the artifacts of a rewriting. Out: `Facts`. Invariant: read from artifacts alone, so that equal artifacts give equal
pages, and every count comes with what it is a part of.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nlrewrite.artifacts import Folder
from nlrewrite.simulate.rules import read_outcomes

PLACES = {
    "mlp": "the MLP of layer {}",
    "mlp-output": "the MLP output of layer {}",
    "residual": "the residual stream after layer {}",
}

CODERS = {"sae": "sparse autoencoder", "transcoder": "transcoder", "skip-transcoder": "skip transcoder"}


@dataclass(frozen=True)
class Facts:
    """Everything the words of the page are made of."""

    place: str
    """The site in words."""
    site: dict[str, Any]
    layers: int | None
    subject: dict[str, Any]
    training: dict[str, Any] | None
    """The subject's training, if it was trained here."""
    coder: dict[str, Any]
    coder_training: dict[str, Any]
    """Empty for a coder from elsewhere that has none."""
    corpus: dict[str, Any]
    tokens: dict[str, Any]
    explain: dict[str, Any]
    simulate: dict[str, Any]
    evaluate: dict[str, Any]
    calibration: dict[str, Any]
    outcomes: dict[str, int]
    """Latents by what became of their sentence: ok, unexplained, unparseable."""
    latents: int
    coder_record: dict[str, Any] = field(default_factory=dict)
    """Whose coder it is, where it stood and on what it was measured; empty in artifacts that have no record."""
    coder_form: dict[str, Any] = field(default_factory=dict)
    """Activation and k of the coder as it is used, whatever its spec says or leaves unsaid."""

    @property
    def sentences(self) -> int:
        return self.outcomes.get("ok", 0)


def gather(inputs: dict[str, Folder]) -> Facts:
    spec = {label: folder.manifest.spec for label, folder in inputs.items()}
    outcomes = Counter(read_outcomes(inputs["simulation"])["outcome"].tolist())
    site = spec["coder"]["site"]
    return Facts(
        place=PLACES[site["kind"]].format(site["layer"]),
        site=site,
        layers=_layers(inputs["subject"]),
        subject=spec["subject"],
        training=_optional(inputs["subject"], "training.json"),
        coder=spec["coder"],
        coder_training=_optional(inputs["coder"], "training.json") or {},
        coder_record=_optional(inputs["coder"], "record.json") or {},
        coder_form=_optional(inputs["coder"], "coder.json") or {},
        corpus=_required(inputs["corpus"], "corpus.json"),
        tokens=_required(inputs["tokens"], "tokens.json"),
        explain=spec["explanations"],
        simulate=spec["simulation"],
        evaluate=spec["evaluation"],
        calibration=_required(inputs["calibration"], "calibration.json"),
        outcomes=dict(sorted(outcomes.items())),
        latents=sum(outcomes.values()),
    )


def coder_kind(spec: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What kind of coder it is, by its spec, or by its record where the spec does not say."""
    if spec["site"]["kind"] != "mlp":
        return CODERS["sae"]
    if "skip" in spec:
        return CODERS["skip-transcoder" if spec["skip"] else "transcoder"]
    return CODERS.get(str(record.get("kind")), CODERS["transcoder"])


def _layers(subject: Folder) -> int | None:
    config = _optional(subject, "config.json") or {}
    layers = config.get("num_hidden_layers", config.get("n_layer", subject.manifest.spec.get("layers")))
    return layers if isinstance(layers, int) else None


def _required(folder: Folder, name: str) -> dict[str, Any]:
    return json.loads(folder.path(name).read_text(encoding="utf-8"))


def _optional(folder: Folder, name: str) -> dict[str, Any] | None:
    """A file of the artifact, if it has one by that name."""
    present = any(entry.path == name for entry in folder.manifest.files)
    return _required(folder, name) if present else None
