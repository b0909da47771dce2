"""Running the composition: build what the store does not hold, and publish the report.

In: the spec of a rewriting, a store, the steps to refresh. Out: one row per step, and after a run the published
`results.json` and `report.html`. The pieces `decide`, `built`, `hit` and `publish` are what a Prefect task calls too,
so that both ways of running give the same artifacts. Invariant: the store alone decides what is a hit, and nothing here
loads a numeric library before a step has to be built.
"""

import difflib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Finding, Manifest, Store
from nlrewrite.composition import WALKS, one_by_one, pilot
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.profiles import require_runnable
from nlrewrite.progress import Progress
from nlrewrite.specs import RewriteSpec, Spec

log = logging.getLogger(__name__)

REFRESH = "a refresh was asked for"
FIGURES = "figures/"


class StepRow(BaseModel):
    """What became of one step of a run."""

    model_config = ConfigDict(frozen=True)

    step: str
    artifact: Artifact
    state: Literal["hit", "built"]
    seconds: float
    bytes: int
    drift: bool
    why: str

    def published(self) -> dict[str, Any]:
        """The row as it stands in results.json."""
        fields = self.model_dump(include={"step", "state", "seconds", "bytes"})
        return {"step": fields["step"], "artifact": str(self.artifact), **fields}


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind."""

    rows: tuple[StepRow, ...]
    results: dict[str, Any]
    results_path: Path
    report_path: Path


# -- the pieces that every way of running shares ----------------------------------------------------------------------


def labels(spec: RewriteSpec, walk: str = "rewrite") -> dict[str, str]:
    """The steps of a rewriting, or of another walk, in order: label to kind."""
    found: dict[str, str] = {}

    def note(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        found[label] = kind
        return steps.name(kind, spec, inputs)

    WALKS[walk](spec, note, one_by_one(note))
    return found


def named(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
    """A step runner that only says what the step's artifact is called."""
    return steps.name(kind, spec, inputs)


def check_refresh(refresh: Collection[str], known: Mapping[str, str]) -> frozenset[str]:
    """`refresh` if every name in it is a step's label or kind."""
    names = {*known, *known.values()}
    for name in refresh:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=3) or sorted(known)
            raise SettingError(f"no step is called {name!r} that could be refreshed. Choose from: {', '.join(near)}")
    return frozenset(refresh)


def decide(
    store: Store,
    label: str,
    kind: str,
    spec: Spec,
    inputs: Mapping[str, Artifact],
    refresh: Collection[str] = (),
) -> tuple[Artifact, Finding]:
    """What the step's artifact is called, and whether it is there; what is to be refreshed counts as stale."""
    artifact = steps.name(kind, spec, inputs)
    finding = store.find(artifact)
    if finding.hit and (label in refresh or kind in refresh):
        finding = Finding("stale", REFRESH, finding.manifest)
    log.info("%s: %s %s: %s", label, artifact, finding.state, finding.why)
    return artifact, finding


def one_pass(
    store: Store, kind: str, wanted: Mapping[str, Spec], inputs: Mapping[str, Artifact], refresh: Collection[str] = ()
) -> dict[str, steps.Making]:
    """What is missing of `wanted`, by label, if there are several and one pass can make them; else nothing."""
    making: dict[str, steps.Making] = {}
    for label, spec in wanted.items():
        artifact, finding = decide(store, label, kind, spec, inputs, refresh)
        if finding.hit is None:
            making[label] = steps.Making(artifact, spec, finding)
    return making if steps.joint(list(making.values())) else {}


def drifted(manifest: Manifest) -> bool:
    """Whether the step's sources were edited since the artifact was built."""
    return manifest.made.source != steps.source_hash(steps.STEPS[manifest.artifact.kind])


def hit(label: str, manifest: Manifest, finding: Finding, seconds: float) -> StepRow:
    """The row of a step that was there."""
    return StepRow(
        step=label,
        artifact=manifest.artifact,
        state="hit",
        seconds=round(seconds, 3),
        bytes=manifest.bytes,
        drift=drifted(manifest),
        why=finding.why,
    )


def built(label: str, manifest: Manifest, finding: Finding, seconds: float) -> StepRow:
    """The row of a step that had to be built."""
    return StepRow(
        step=label,
        artifact=manifest.artifact,
        state="built",
        seconds=round(seconds, 3),
        bytes=manifest.bytes,
        drift=False,
        why=finding.why,
    )


def publish(store: Store, report: Artifact, rows: Collection[StepRow], folder: Path) -> Outcome:
    """Put the report's files into `folder`, results.json with the run's steps added; figures of an old run go."""
    files = store.folder(report)
    results = json.loads(files.path("results.json").read_bytes())
    results["steps"] = [row.published() for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    results_path, report_path = folder / "results.json", folder / "report.html"
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _replace(results_path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    _replace(report_path, lambda temporary: shutil.copyfile(files.path("report.html"), temporary))
    figures = [entry.path for entry in files.manifest.files if entry.path.startswith(FIGURES)]
    if figures:
        (folder / FIGURES).mkdir(exist_ok=True)
    for path in figures:
        _replace(folder / path, lambda temporary, path=path: shutil.copyfile(files.path(path), temporary))
    for old in sorted((folder / FIGURES).glob("*")):
        if f"{FIGURES}{old.name}" not in figures and old.suffix in (".svg", ".parquet"):
            old.unlink(missing_ok=True)
    return Outcome(rows=tuple(rows), results=results, results_path=results_path, report_path=report_path)


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Readers of `target` see the old file or the new one, never a part."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    write(temporary)
    os.replace(temporary, target)


# -- running ----------------------------------------------------------------------------------------------------------


class Builder:
    """A step runner that builds what the store does not hold, here and now. `rows` says what it did."""

    def __init__(
        self, store: Store, execution: Execution, progress: Progress, run: str, refresh: Collection[str] = ()
    ) -> None:
        self.store = store
        self.execution = execution
        self.progress = progress
        self.run = run
        self.refresh = refresh
        self.rows: list[StepRow] = []
        self._done: set[Artifact] = set()

    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        started = time.perf_counter()
        again = () if steps.name(kind, spec, inputs) in self._done else self.refresh
        artifact, finding = decide(self.store, label, kind, spec, inputs, again)
        if finding.hit is not None:
            row = hit(label, finding.hit, finding, time.perf_counter() - started)
        else:
            with Naming(label, artifact):
                manifest = steps.build(
                    artifact, spec, inputs, self.store, self.execution, self.progress, self.run, finding
                )
            row = built(label, manifest, finding, time.perf_counter() - started)
            log.info("%s: %s built in %.1f s, %d bytes", label, artifact, row.seconds, row.bytes)
        self._done.add(artifact)
        self.rows.append(row)
        return artifact

    def together(self, kind: str, wanted: Mapping[str, Spec], **inputs: Artifact) -> dict[str, Artifact]:
        """Several artifacts of one kind: those that are missing are built by one pass, where one can make them."""
        making = one_pass(self.store, kind, wanted, inputs, self.refresh)
        if making:
            with Naming(kind, next(iter(making.values())).artifact):
                made = steps.build_together(
                    list(making.values()), inputs, self.store, self.execution, self.progress, self.run
                )
            for (label, each), manifest in zip(making.items(), made, strict=True):
                self._done.add(each.artifact)
                self.rows.append(built(label, manifest, each.finding, manifest.made.seconds))
        return {
            label: making[label].artifact if label in making else self(label, kind, spec, **inputs)
            for label, spec in wanted.items()
        }


class Naming:
    """Adds to an exception which step it came from; the command line shows it."""

    def __init__(self, label: str, artifact: Artifact) -> None:
        self._note = f"while building {label} ({artifact})"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self._note)


def run_local(
    spec: RewriteSpec,
    profile: str,
    refresh: Collection[str],
    execution: Execution,
    progress: Progress,
    walk: str = "rewrite",
) -> Outcome:
    """Build what is missing for `spec`, one step after the other in this process, and publish the report."""
    require_runnable(profile, spec, walk)
    refresh = check_refresh(refresh, labels(spec, walk))
    store = Store(execution.store, execution.scratch)
    run = f"local-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
    builder = Builder(store, execution, progress, run, refresh)
    report = WALKS[walk](spec, builder, builder.together)
    return publish(store, report, builder.rows, published_in(execution, profile, walk))


def published_in(execution: Execution, profile: str, walk: str = "rewrite") -> Path:
    """The folder of a profile's reports; what is no rewriting has one of its own in it."""
    folder = Path(execution.runs) / profile
    return folder if walk == "rewrite" else folder / walk


def run_pilot(spec: RewriteSpec, profile: str, execution: Execution, progress: Progress) -> dict[str, Any]:
    """What a pilot of `spec` predicts, with what it needs built where it is missing."""
    require_runnable(profile, spec)
    store = Store(execution.store, execution.scratch)
    builder = Builder(store, execution, progress, f"pilot-{os.getpid()}")
    return json.loads(store.folder(pilot(spec, builder, named)).path("pilot.json").read_bytes())
