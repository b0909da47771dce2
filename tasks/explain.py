"""Tasks about language: a sentence for each latent, and what a reader of the sentence expects the latent to do."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import ExplainSpec, GatesSpec, GatingSpec, SimulateSpec
from tasks.step import Work, find_or_build, step


@step
def explanations(
    spec: ExplainSpec, subject: Artifact, tokens: Artifact, activations: Artifact, work: Work
) -> State[Artifact]:
    """One or a few sentences for each latent."""
    inputs = {"subject": subject, "tokens": tokens, "activations": activations}
    return find_or_build("explanations", spec, inputs, work)


@step
def gates(spec: GatesSpec, subject: Artifact, tokens: Artifact, activations: Artifact, work: Work) -> State[Artifact]:
    """The tokens on which each latent may be active at all."""
    return find_or_build("gates", spec, {"subject": subject, "tokens": tokens, "activations": activations}, work)


@step
def simulation(
    spec: SimulateSpec, subject: Artifact, tokens: Artifact, explanations: Artifact, work: Work
) -> State[Artifact]:
    """The digits that a reader of the sentences expects on one split."""
    inputs = {"subject": subject, "tokens": tokens, "explanations": explanations}
    return find_or_build("simulation", spec, inputs, work)


@step
def gating(spec: GatingSpec, tokens: Artifact, gates: Artifact, simulation: Artifact, work: Work) -> State[Artifact]:
    """Gates read on one split, alone or with what the sentences say inside them."""
    return find_or_build("gating", spec, {"tokens": tokens, "gates": gates, "simulation": simulation}, work)
