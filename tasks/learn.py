"""Tasks about the model being rewritten: the model, its sparse coder, and when the latents are active."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import ActivationsSpec, AnyCoderSpec, CoderSpec, CoderTokens, SubjectSpec
from tasks.step import Work, build_together, find_or_build, several, step


@step
def subject(spec: SubjectSpec, corpus: Artifact, work: Work) -> State[Artifact]:
    """The language model whose layer is rewritten, trained here or fetched."""
    return find_or_build("subject", spec, {"corpus": corpus}, work)


@step
def stream(spec: CoderTokens, subject: Artifact, work: Work) -> State[Artifact]:
    """The token ids that a coder is trained on, where they are not the corpus's own."""
    return find_or_build("stream", spec, {"subject": subject}, work)


@step
def coder(
    spec: AnyCoderSpec, subject: Artifact, tokens: Artifact, work: Work, stream: Artifact | None = None
) -> State[Artifact]:
    """The sparse coder at the subject's site."""
    more = {} if stream is None else {"stream": stream}
    return find_or_build("coder", spec, {"subject": subject, "tokens": tokens, **more}, work)


@several
def coders(wanted: dict[str, CoderSpec], inputs: dict[str, Artifact], work: Work) -> State[dict[str, Artifact]]:
    """Several coders by one pass of the subject; each is then found by a task of its own."""
    return build_together("coder", wanted, inputs, work)


@step
def activations(
    spec: ActivationsSpec, subject: Artifact, tokens: Artifact, coder: Artifact, work: Work
) -> State[Artifact]:
    """The coder's sparse activations on one split, with what is known of each latent."""
    return find_or_build("activations", spec, {"subject": subject, "tokens": tokens, "coder": coder}, work)
