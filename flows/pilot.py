"""The flow that foresees a rewriting from some of its latents, before anyone pays for all of them.

In: a profile, what to change in it, and where to compute. Out: the prediction as an artifact of the run, and the steps
it took, which a rewriting finds as hits. Invariant: it builds what a pilot needs and only names the rest. Light to
import, as all flows.
"""

import json
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.history import wait_until_whole
from flows.rewrite import ProfileName, StepTasks, run_name, show_library_log, show_steps
from nlrewrite import pipeline, planning
from nlrewrite.composition import pilot as compose
from nlrewrite.execution import Execution
from nlrewrite.filling import filled
from nlrewrite.printing import pilot_text
from nlrewrite.profiles import Overrides, require_runnable, settled


@flow(name="pilot", flow_run_name=run_name, validate_parameters=True, persist_result=False)
def pilot(
    profile: ProfileName = "tiny",
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[dict[str, Any]]:
    """Ask about some of the latents, and predict with an interval what rewriting all of them will come to.

    Args:
        profile: Named starting point; tiny downloads nothing.
        overrides: Settings that replace the profile's, for instance pilot.latents=200.
        execution: Where and how to compute; never changes what a result is called.
    """
    show_library_log()
    spec = settled(profile, overrides)
    require_runnable(profile, spec)
    spec = filled(spec, execution)
    steps = StepTasks(execution, frozenset())
    try:
        made = compose(spec, steps, pipeline.named)
    finally:
        show_steps(steps.rows)
        wait_until_whole(UUID(flow_run.id), steps.called)
    result = json.loads(steps.store.folder(made).path("pilot.json").read_bytes())
    whole = planning.plan(profile, spec, (), execution).whole
    text = pilot_text(result, whole)
    create_markdown_artifact(
        key="pilot", markdown=f"```\n{text}\n```", description="What rewriting all latents will come to."
    )
    return Completed(message=text.splitlines()[0], data=result)
