"""What every task does: find the step's artifact in the store, or build it; and the options that every task has.

In: the kind, the spec, the upstream handles and `Work`. Out: a state that carries the handle, `Cached` for a hit and
`Completed` for something built, with a message that says why. Invariant: Prefect's own result cache is never asked,
for it would hand out handles whose data is gone; and only what can pass by itself is tried again, never a setting.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from nlrewrite import pipeline, steps
from nlrewrite.artifacts import Artifact, Store
from nlrewrite.errors import CorruptArtifact, StoreError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.specs import Spec
from tasks.progress import ArtifactProgress

CACHED = "Cached"

P = ParamSpec("P")
R = TypeVar("R")


class Work(BaseModel):
    """What a task is told beside what it works on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str = Field(description="The step's label in the composition; steps of one kind differ in it.")
    execution: Execution
    refresh: bool = Field(False, description="Build the artifact though the store has it.")


def artifact_name() -> str:
    """`kind/digest` of the task that is being called: the name of its task run."""
    parameters: dict[str, Any] = task_run.parameters
    given = parameters | parameters.get("simulated", {}) | parameters.get("inputs", {}) | parameters.get("more", {})
    inputs = {name: value for name, value in given.items() if isinstance(value, Artifact)}
    return str(steps.name(str(task_run.task_name), parameters["spec"], inputs))


def can_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to try again: the network and the store may come back, a wrong setting or a damaged file will not."""
    return isinstance(state.data, Unreachable | StoreError) and not isinstance(state.data, CorruptArtifact)


def step(function: Callable[P, R]) -> Task[P, R]:
    """The Prefect task around one kind of step, named after it."""
    return Task(
        function,
        name=function.__name__.replace("_", "-"),
        task_run_name=artifact_name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[1, 5],
        retry_condition_fn=can_pass,
    )


def several(function: Callable[P, R]) -> Task[P, R]:
    """The Prefect task around a pass that makes several artifacts of one kind."""
    return Task(
        function,
        name=function.__name__,
        task_run_name=lambda: f"{len(task_run.parameters['wanted'])} {function.__name__} in one pass",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[1, 5],
        retry_condition_fn=can_pass,
    )


def build_together(
    kind: str, wanted: Mapping[str, Spec], inputs: Mapping[str, Artifact], work: Work
) -> State[dict[str, Artifact]]:
    started = time.perf_counter()
    store = Store(work.execution.store, work.execution.scratch)
    making = pipeline.one_pass(store, kind, wanted, inputs, (kind,) if work.refresh else ())
    run = f"flow-run {flow_run.id}"
    if making:
        steps.build_together(list(making.values()), inputs, store, work.execution, ArtifactProgress(), run)
    made = {label: each.artifact for label, each in making.items()}
    return Completed(message=f"{len(made)} built in {time.perf_counter() - started:.1f} s", data=made)


def find_or_build(kind: str, spec: Spec, inputs: Mapping[str, Artifact], work: Work) -> State[Artifact]:
    started = time.perf_counter()
    store = Store(work.execution.store, work.execution.scratch)
    refresh = (kind,) if work.refresh else ()
    artifact, finding = pipeline.decide(store, work.step, kind, spec, inputs, refresh)
    if finding.hit is not None:
        return Completed(name=CACHED, message=finding.why, data=artifact)
    run = f"flow-run {flow_run.id}"
    steps.build(artifact, spec, inputs, store, work.execution, ArtifactProgress(), run, finding)
    return Completed(message=f"{finding.why}; built in {time.perf_counter() - started:.1f} s", data=artifact)
