"""The flows that ask about the method, on the same subject and coder as the rewriting that they contain.

In: what the flow `rewrite` takes. Out: what it leaves behind, and an artifact for every probe. Invariant: a study is
the rewriting with `probes` set, step for step; whatever a run before it has built is a hit. Light to import, as all
flows.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.rewrite import ProfileName, StepName, run_name, walk
from nlrewrite import pipeline
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides, probing, settled
from nlrewrite.specs import PROBES, Probe

OPTIONS: dict[str, Any] = {"flow_run_name": run_name, "validate_parameters": True, "persist_result": False}


@flow(name="study", **OPTIONS)
def study(
    profile: ProfileName = "tiny",
    probes: list[Probe] = [*PROBES],  # noqa: B006 (only read)
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    refresh: list[StepName] = [],  # noqa: B006 (only read)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[pipeline.Outcome]:
    """Rewrite one layer, and ask what the published protocol loses, how good a simulator must be, and on how much text.

    Args:
        profile: Named starting point; tiny downloads nothing.
        probes: Questions to answer beside the rewriting.
        overrides: Settings that replace the profile's.
        refresh: Steps to rebuild though the store has them; what is made from them follows by itself.
        execution: Where and how to compute; never changes what a result is called.
    """
    return walk(profile, settled(profile, probing(overrides, probes)), refresh, execution)


@flow(name="sample-size", **OPTIONS)
def sample_size(
    profile: ProfileName = "tiny",
    overrides: Overrides = Overrides(),  # noqa: B008 (frozen)
    refresh: list[StepName] = [],  # noqa: B006 (only read)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> State[pipeline.Outcome]:
    """Rewrite one layer, and measure how many contexts its calibration takes.

    Args:
        profile: Named starting point; tiny downloads nothing.
        overrides: Settings that replace the profile's, for instance sample_size.contexts=[250,1000].
        refresh: Steps to rebuild though the store has them; what is made from them follows by itself.
        execution: Where and how to compute; never changes what a result is called.
    """
    return walk(profile, settled(profile, probing(overrides, ["sample-size"])), refresh, execution)
