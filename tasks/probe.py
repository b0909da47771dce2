"""Tasks that ask about the method: the walk from the published protocol to ours, and what a simulator has to be like.

What each of them reads, `composition.PROBED` says, and the table of steps holds it to that.
"""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import LadderSpec, PilotedSpec, RequirementSpec, SampleSizeSpec
from tasks.step import Work, find_or_build, step


@step
def ladder(spec: LadderSpec, work: Work, **inputs: Artifact) -> State[Artifact]:
    """From the published protocol to ours, one change a row."""
    return find_or_build("ladder", spec, inputs, work)


@step
def requirement(spec: RequirementSpec, work: Work, **inputs: Artifact) -> State[Artifact]:
    """How good a simulator must be, by simulators of known quality."""
    return find_or_build("requirement", spec, inputs, work)


@step
def sample_size(spec: SampleSizeSpec, work: Work, **inputs: Artifact) -> State[Artifact]:
    """How many contexts calibration takes."""
    return find_or_build("sample-size", spec, inputs, work)


@step
def pilot(spec: PilotedSpec, work: Work, **inputs: Artifact) -> State[Artifact]:
    """What rewriting all latents will come to, from some of them."""
    return find_or_build("pilot", spec, inputs, work)
