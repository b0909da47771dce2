"""Tasks about language: a sentence for each latent, and what a reader of the sentence expects the latent to do."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import ExplainSpec, SimulateSpec
from tasks.step import Work, find_or_build, step


@step
def explanations(
    spec: ExplainSpec, subject: Artifact, tokens: Artifact, activations: Artifact, work: Work
) -> State[Artifact]:
    """One or a few sentences for each latent."""
    inputs = {"subject": subject, "tokens": tokens, "activations": activations}
    return find_or_build("explanations", spec, inputs, work)


@step
def simulation(
    spec: SimulateSpec, subject: Artifact, tokens: Artifact, explanations: Artifact, work: Work
) -> State[Artifact]:
    """The digits that a reader of the sentences expects on one split."""
    inputs = {"subject": subject, "tokens": tokens, "explanations": explanations}
    return find_or_build("simulation", spec, inputs, work)
