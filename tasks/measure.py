"""Tasks about coders alone: what each costs in the subject's loss, and the page that shows it."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import MeasureSpec, Spec
from tasks.step import Work, find_or_build, step


@step
def frontier(spec: MeasureSpec, subject: Artifact, tokens: Artifact, work: Work, **inputs: Artifact) -> State[Artifact]:
    """What each coder of a sweep costs in loss, and how many latents it keeps active."""
    return find_or_build("frontier", spec, {"subject": subject, "tokens": tokens, **inputs}, work)


@step
def replacement(
    spec: MeasureSpec, subject: Artifact, tokens: Artifact, work: Work, **inputs: Artifact
) -> State[Artifact]:
    """What it costs to replace several layers at once by their coders."""
    return find_or_build("replacement", spec, {"subject": subject, "tokens": tokens, **inputs}, work)


@step
def coders_report(spec: Spec, work: Work, **inputs: Artifact) -> State[Artifact]:
    """The page of coders: how they learned, and what they cost."""
    return find_or_build("coders-report", spec, inputs, work)
