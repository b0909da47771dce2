"""The flow that rewrites one layer of a language model in natural language and measures what it costs in loss.

In: a profile, what to change in it, the steps to rebuild, and where to compute. Out: `results.json` and `report.html`
in the runs folder, and in the Prefect UI the steps table, the result table and the place of the report. Invariant: the
flow walks the same composition as `nlrewrite run --local` and adds nothing to it but task runs. This module is light to
import, or the form of its deployment would be lost.
"""

import base64
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.history import wait_until_whole
from nlrewrite import pipeline
from nlrewrite.artifacts import Artifact, Store, digest
from nlrewrite.coders import telling
from nlrewrite.composition import WALKS
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.filling import filled
from nlrewrite.printing import results_markdown
from nlrewrite.probes.telling import tables
from nlrewrite.profiles import Overrides, profile_names, require_runnable, settled
from nlrewrite.specs import PROBES, RewriteSpec, Spec
from tasks import TASKS
from tasks.learn import coders
from tasks.step import CACHED, Work

MOST_BYTES_OF_A_PICTURE = 500_000
EVERYTHING = RewriteSpec(probes=PROBES)
STEP_NAMES = list(
    dict.fromkeys(
        [
            *(name for each in pipeline.labels(EVERYTHING).items() for name in reversed(each)),
            *(kind for walk in WALKS for kind in pipeline.labels(EVERYTHING, walk).values()),
        ]
    )
)

ProfileName = Annotated[str, Field(json_schema_extra={"enum": [*profile_names()]})]
StepName = Annotated[str, Field(json_schema_extra={"enum": [*STEP_NAMES]})]


def run_name() -> str:
    """What the run is, for a list of runs: profile, site, size of the coder, and a digest of all settings."""
    parameters: dict[str, Any] = flow_run.parameters
    profile = parameters["profile"]
    try:
        spec = settled(profile, parameters["overrides"])
    except SettingError:
        return str(profile)
    site, coder = spec.coder.site, spec.coder
    return f"{profile} {site.kind}.{site.layer} {coder.width}x{coder.k} {digest(spec)[:8]}"


@flow(name="rewrite", flow_run_name=run_name, validate_parameters=True, persist_result=False)
def rewrite(
    profile: ProfileName = "tiny",
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    refresh: list[StepName] = [],  # noqa: B006 (only read)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[pipeline.Outcome]:
    """Rewrite one layer of a language model in natural language, and measure what it costs in next-token loss.

    Args:
        profile: Named starting point; tiny downloads nothing and takes minutes on a laptop.
        overrides: Settings that replace the profile's.
        refresh: Steps to rebuild though the store has them; what is made from them follows by itself.
        execution: Where and how to compute; never changes what a result is called.
    """
    return walk(profile, settled(profile, overrides), refresh, execution)


def walk(
    profile: str, spec: RewriteSpec, refresh: Collection[str], execution: Execution, name: str = "rewrite"
) -> State[pipeline.Outcome]:
    """What every flow does, called inside of it: each step of the composition as a task, and what the UI shows."""
    show_library_log()
    require_runnable(profile, spec, name)
    spec = filled(spec, execution)
    steps = StepTasks(execution, pipeline.check_refresh(refresh, pipeline.labels(spec, name)))
    try:
        report = WALKS[name](spec, steps, steps.together)
    finally:
        show_steps(steps.rows)
        wait_until_whole(UUID(flow_run.id), steps.called)
    outcome = pipeline.publish(steps.store, report, steps.rows, pipeline.published_in(execution, profile, name))
    show_results(outcome)
    hits = sum(row.state == "hit" for row in outcome.rows)
    return Completed(message=f"{hits} of {len(outcome.rows)} steps were hits; {outcome.report_path}", data=outcome)


def show_library_log() -> None:
    """Let what the library says reach the run's log, where nobody has chosen a level."""
    library = logging.getLogger("nlrewrite")
    if library.level == logging.NOTSET:
        library.setLevel(logging.INFO)


class StepTasks:
    """A step runner that calls the step's Prefect task. `rows` says what became of each step."""

    def __init__(self, execution: Execution, refresh: frozenset[str]) -> None:
        self.execution = execution
        self.refresh = refresh
        self.store = Store(execution.store, execution.scratch)
        self.rows: list[pipeline.StepRow] = []
        self.called = 0
        self._states: dict[Artifact, State[Any]] = {}

    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        artifact = pipeline.steps.name(kind, spec, inputs)
        again = artifact not in self._states and not self.refresh.isdisjoint((label, kind))
        started = time.perf_counter()
        work = Work(step=label, execution=self.execution, refresh=again)
        before = [self._states[each] for each in inputs.values()]  # the edges of the run's graph
        state: State[Artifact] = TASKS[kind](spec=spec, work=work, **inputs, wait_for=before, return_state=True)
        self.called += 1
        artifact = state.result()
        self._states[artifact] = state
        self.rows.append(self._row(label, artifact, state, time.perf_counter() - started))
        return artifact

    def together(self, kind: str, wanted: Mapping[str, Spec], **inputs: Artifact) -> dict[str, Artifact]:
        """Several artifacts of one kind; what is missing is built by one task, where one pass can make them."""
        making = pipeline.one_pass(self.store, kind, wanted, inputs, self.refresh)
        if making:
            work = Work(step=kind, execution=self.execution, refresh=not self.refresh.isdisjoint((kind, *making)))
            before = [self._states[each] for each in inputs.values()]
            specs = {label: each.spec for label, each in making.items()}
            state = coders(wanted=specs, inputs=inputs, work=work, wait_for=before, return_state=True)
            self.called += 1
            state.result()
            self._states |= {each.artifact: state for each in making.values()}
        made = {label: self(label, kind, spec, **inputs) for label, spec in wanted.items()}
        for at, row in enumerate(self.rows):
            if row.step in making:
                seconds = self.store.folder(row.artifact).manifest.made.seconds  # its share of the pass
                why = making[row.step].finding.why
                self.rows[at] = row.model_copy(update={"state": "built", "why": why, "seconds": seconds})
        return made

    def _row(self, label: str, artifact: Artifact, state: State[Artifact], seconds: float) -> pipeline.StepRow:
        manifest = self.store.folder(artifact).manifest
        return pipeline.StepRow(
            step=label,
            artifact=artifact,
            state="hit" if state.name == CACHED else "built",
            seconds=round(seconds, 3),
            bytes=manifest.bytes,
            drift=pipeline.drifted(manifest),
            why=state.message or "",
        )


def show_steps(rows: list[pipeline.StepRow]) -> None:
    table = [
        {
            "step": row.step,
            "artifact": str(row.artifact),
            "state": row.state,
            "seconds": row.seconds,
            "bytes": row.bytes,
            "drift": "sources edited since" if row.drift else "",
            "why": row.why,
        }
        for row in rows
    ]
    create_table_artifact(table=table, key="steps", description="What became of every step of this run.")


def show_results(outcome: pipeline.Outcome) -> None:
    report = outcome.report_path.resolve()
    create_link_artifact(report.as_uri(), link_text=str(report), key="report", description="The report, one file.")
    if telling.is_of_coders(outcome.results):
        create_markdown_artifact(telling.headline(outcome.results), key="results", description="What was found.")
        for name, table in telling.tables(outcome.results).items():
            create_markdown_artifact(table, key=name, description=f"The {name} of this run.")
        show_plots(outcome.report_path.parent)
        return
    create_markdown_artifact(results_markdown(outcome.results), key="results", description="What the rewriting costs.")
    for probe, table in tables(outcome.results).items():
        create_markdown_artifact(table, key=f"probe-{probe}", description=f"What the probe {probe} found.")


def show_plots(folder: Path) -> None:
    """The report's figures as one artifact; a picture that a browser need not fetch is shown where the table is."""
    files = sorted((folder / pipeline.FIGURES).glob("*.svg"))
    pictures = [
        f"![{file.stem}](data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()})"
        for file in files
        if file.stat().st_size <= MOST_BYTES_OF_A_PICTURE
    ]
    if pictures:
        create_markdown_artifact("\n\n".join(pictures), key="plots", description="The report's figures.")
