"""Tasks that ask about the method: the walk from the published protocol to ours, and what a simulator has to be like.

In all of them `explain`, `calibrate` and `report` are the activations on those splits; `simulated` is what the rules
said of the calibrate and the report split, where a probe reads it.
"""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import LadderSpec, RequirementSpec, SampleSizeSpec
from tasks.step import Work, find_or_build, step


@step
def ladder(
    spec: LadderSpec,
    subject: Artifact,
    tokens: Artifact,
    coder: Artifact,
    explain: Artifact,
    calibrate: Artifact,
    report: Artifact,
    work: Work,
    **simulated: Artifact,
) -> State[Artifact]:
    """From the published protocol to ours, one change a row."""
    read = {"subject": subject, "tokens": tokens, "coder": coder}
    active = {"explain": explain, "calibrate": calibrate, "report": report}
    return find_or_build("ladder", spec, {**read, **active, **simulated}, work)


@step
def requirement(
    spec: RequirementSpec,
    subject: Artifact,
    tokens: Artifact,
    coder: Artifact,
    explain: Artifact,
    calibrate: Artifact,
    report: Artifact,
    work: Work,
) -> State[Artifact]:
    """How good a simulator must be, by simulators of known quality."""
    read = {"subject": subject, "tokens": tokens, "coder": coder}
    active = {"explain": explain, "calibrate": calibrate, "report": report}
    return find_or_build("requirement", spec, {**read, **active}, work)


@step
def sample_size(
    spec: SampleSizeSpec,
    subject: Artifact,
    tokens: Artifact,
    coder: Artifact,
    explain: Artifact,
    calibrate: Artifact,
    report: Artifact,
    work: Work,
    **simulated: Artifact,
) -> State[Artifact]:
    """How many contexts calibration takes."""
    read = {"subject": subject, "tokens": tokens, "coder": coder}
    active = {"explain": explain, "calibrate": calibrate, "report": report}
    return find_or_build("sample-size", spec, {**read, **active, **simulated}, work)
