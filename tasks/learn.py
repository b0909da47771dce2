"""Tasks about the model being rewritten: the model, its sparse coder, and when the latents are active."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import ActivationsSpec, CoderSpec, SubjectSpec
from tasks.step import Work, find_or_build, step


@step
def subject(spec: SubjectSpec, corpus: Artifact, work: Work) -> State[Artifact]:
    """The language model whose layer is rewritten, trained here or fetched."""
    return find_or_build("subject", spec, {"corpus": corpus}, work)


@step
def coder(spec: CoderSpec, subject: Artifact, tokens: Artifact, work: Work) -> State[Artifact]:
    """The sparse coder at the subject's site."""
    return find_or_build("coder", spec, {"subject": subject, "tokens": tokens}, work)


@step
def activations(
    spec: ActivationsSpec, subject: Artifact, tokens: Artifact, coder: Artifact, work: Work
) -> State[Artifact]:
    """The coder's sparse activations on one split, with what is known of each latent."""
    return find_or_build("activations", spec, {"subject": subject, "tokens": tokens, "coder": coder}, work)
