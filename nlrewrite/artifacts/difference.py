"""Why an artifact is not there: what differs from the most similar one that is.

In: the spec and inputs of an artifact that is missing, and manifests of its kind. Out: the nearest manifest and one
line for each field that differs, such as `coder.width: 1024 -> 2048`. Invariant: advice only; decides nothing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nlrewrite.artifacts.manifest import Artifact, Manifest

LONGEST = 60


class Nearest(NamedTuple):
    manifest: Manifest
    differences: list[str]


def nearest(
    manifests: Iterable[Manifest],
    artifact: Artifact,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Artifact] | None = None,
    version: int | None = None,
) -> Nearest | None:
    """The manifest of `artifact`'s kind that differs least from what `artifact` is made of; of equals the latest."""
    candidates = [
        Nearest(manifest, differences(manifest, artifact.kind, spec, inputs, version))
        for manifest in manifests
        if manifest.artifact.kind == artifact.kind and manifest.artifact != artifact
    ]
    by_age = sorted(candidates, key=lambda each: each.manifest.made.time, reverse=True)
    return min(by_age, key=lambda each: len(each.differences), default=None)


def differences(
    old: Manifest,
    label: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Artifact] | None = None,
    version: int | None = None,
) -> list[str]:
    """One line for each field in which `old` differs: spec, inputs where given, and the code's version where given."""
    before, after = dict(old.spec), dict(spec)
    if inputs is not None:
        before["inputs"] = {name: str(each.artifact) for name, each in old.inputs.items()}
        after["inputs"] = {name: str(each) for name, each in inputs.items()}
    if version is not None:
        before["VERSION"], after["VERSION"] = old.version, version
    was, now = dict(_leaves(before, label)), dict(_leaves(after, label))
    return [
        f"{path}: {_shown(was.get(path))} -> {_shown(now.get(path))}"
        for path in {**was, **now}
        if was.get(path) != now.get(path)
    ]


def _leaves(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, each in value.items():
        if isinstance(each, dict):
            yield from _leaves(each, f"{path}.{name}")
        else:
            yield f"{path}.{name}", json.dumps(each, ensure_ascii=False)


def _shown(text: str | None) -> str:
    if text is None:
        return "(none)"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
