"""Steps for tests of the machinery: real functions for every kind of the table, over in a moment, exact and repeatable.

Each writes its spec and the hashes of what it read, so that an artifact changes exactly when something before it does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nlrewrite import steps
from nlrewrite.artifacts import Folder
from nlrewrite.specs import Spec
from nlrewrite.steps import Job, Running, Step

FAILING: set[str] = set()
"""Kinds whose step fails, half-way through its files."""

SPLITS = {"train": 1000, "explain": 400, "calibrate": 300, "report": 200}


def build(spec: Spec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    with running.progress.stage("write", total=2) as advance:
        read = {name: [entry.sha256 for entry in folder.manifest.files] for name, folder in inputs.items()}
        (out / "made.json").write_text(json.dumps({"spec": spec.model_dump(mode="json"), "read": read}))
        advance()
        if type(spec).__name__ in FAILING:
            raise ZeroDivisionError("a step that fails")
        (out / "data.bin").write_bytes(b"\0" * 1000)
        advance()


def build_tokens(spec: Spec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    build(spec, inputs, out, running)
    counts = {split: {"tokens": count} for split, count in SPLITS.items()}
    (out / "tokens.json").write_text(json.dumps({"splits": counts}))


def build_together(jobs: Sequence[Job], inputs: Mapping[str, Folder], running: Running) -> None:
    for job in jobs:
        build(job.spec, inputs, job.out, running)
        (job.out / "passes.json").write_text(json.dumps(len(jobs)))


def build_report(spec: Spec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    build(spec, inputs, out, running)
    (out / "results.json").write_text(json.dumps(RESULTS))
    (out / "report.html").write_text("<!doctype html><title>a report</title>")


def build_pilot(spec: Spec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    build(spec, inputs, out, running)
    (out / "pilot.json").write_text(json.dumps(PILOT))


def install(monkeypatch: pytest.MonkeyPatch | None = None, sources: tuple[str, ...] = (__name__,)) -> None:
    """Put these functions into the table of steps."""
    special = {
        "tokens": "build_tokens",
        "report": "build_report",
        "coders-report": "build_report",
        "pilot": "build_pilot",
    }
    for kind, step in steps.STEPS.items():
        together = f"{__name__}:build_together" if step.together else ""
        small = Step(
            kind, step.version, f"{__name__}:{special.get(kind, 'build')}", sources, step.inputs, together=together
        )
        if monkeypatch is None:
            steps.STEPS[kind] = small
        else:
            monkeypatch.setitem(steps.STEPS, kind, small)


def _arm(arm: str, gap: float | None, **changes: object) -> dict[str, object]:
    row = {
        "arm": arm,
        "site": "mlp.1",
        "simulator": "rules",
        "explanation": "rules",
        "calibrator": "hurdle" if arm == "rewritten" else None,
        "information": "paired" if arm == "rewritten" else None,
        "topk": "none",
        "selection": "top",
        "fraction": 1,
        "position": "all",
        "subset_seed": 0,
        "ce": 3.25,
        "delta_ce": 0.125,
        "delta_ce_low": 0.1,
        "delta_ce_high": 0.15,
        "kl": 0.0625,
        "kl_low": 0.06,
        "kl_high": 0.065,
        "gap_closed": gap,
        "gap_closed_low": None if gap is None else gap - 0.1,
        "gap_closed_high": None if gap is None else gap + 0.1,
    }
    return {**row, **changes}


RESULTS: dict[str, Any] = {
    "headline": {
        "position": "all",
        "fraction": 1,
        "chosen_on": "calibrate",
        "gap_closed": 0.75,
        "low": 0.65,
        "high": 0.85,
        "token_lookup": 0.25,
        "bigram_lookup": 0.5,
        "shuffled": 0.01,
        "oracle": 0.9,
        "coder_share": 0.8,
        "over_token_lookup": {"mean": 0.5, "low": 0.4, "high": 0.6},
    },
    "arms": [
        _arm("original", None, fraction=0),
        _arm("rewritten", 0.75),
        _arm("rewritten", 0.75, selection="sampled"),
        _arm("rewritten", 0.35, fraction=0.5),
        _arm("rewritten", 0.7, position="last"),
        _arm("token lookup | unigram", 0.25),
    ],
    "provenance": {},
}
PILOT: dict[str, Any] = {
    "level": 0.8,
    "queries": 4000,
    "latents": 24,
    "of_latents": 64,
    "prediction": {
        name: {"value": value, "low": value - 0.1, "high": value + 0.1}
        for name, value in {"gap_closed": 0.5, "added_loss": 0.2, "in_output": 0.6, "alone": 0.7}.items()
    },
}
