"""The flows about coders alone: train one, sweep a setting, replace layers.

In: what the flow `rewrite` takes. Out: `results.json` and `report.html` in the profile's folder, in one named after the
flow, and the steps and the curves as artifacts of the run. Invariant: a coder made here is the very artifact that a
rewriting with its settings uses. Light to import, as all flows.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.rewrite import ProfileName, StepName, run_name, walk
from nlrewrite import pipeline
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides, settled

OPTIONS: dict[str, Any] = {"flow_run_name": run_name, "validate_parameters": True, "persist_result": False}


@flow(name="train-coder", **OPTIONS)
def train_coder(
    profile: ProfileName = "tiny",
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    refresh: list[StepName] = [],  # noqa: B006 (only read)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[pipeline.Outcome]:
    """Train the coder of a profile, or take it from where it was published, and show how it learned and what it costs.

    Args:
        profile: Named starting point; tiny downloads nothing.
        overrides: Settings that replace the profile's, for instance coder.activation=batchtopk.
        refresh: Steps to rebuild though the store has them; what is made from them follows by itself.
        execution: Where and how to compute; never changes what a result is called.
    """
    return walk(profile, settled(profile, overrides), refresh, execution, "train-coder")


@flow(name="sweep", **OPTIONS)
def sweep(
    profile: ProfileName = "tiny",
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    refresh: list[StepName] = [],  # noqa: B006 (only read)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[pipeline.Outcome]:
    """Train coders that differ in one setting by one pass of the subject, and draw sparsity against loss.

    Args:
        profile: Named starting point; tiny downloads nothing.
        overrides: Settings that replace the profile's, for instance sweep.over=k and sweep.values=[4,8,16].
        refresh: Steps to rebuild though the store has them; what is made from them follows by itself.
        execution: Where and how to compute; never changes what a result is called.
    """
    return walk(profile, settled(profile, overrides), refresh, execution, "sweep")


@flow(name="replace", **OPTIONS)
def replace(
    profile: ProfileName = "tiny",
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    refresh: list[StepName] = [],  # noqa: B006 (only read)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[pipeline.Outcome]:
    """Replace several layers at once by their coders, and measure what that costs in next-token loss.

    Args:
        profile: Named starting point; tiny downloads nothing.
        overrides: Settings that replace the profile's, for instance layers.layers=[0,1,2].
        refresh: Steps to rebuild though the store has them; what is made from them follows by itself.
        execution: Where and how to compute; never changes what a result is called.
    """
    return walk(profile, settled(profile, overrides), refresh, execution, "replace")


FLOWS: dict[str, Any] = {each.name: each for each in (train_coder, sweep, replace)}
