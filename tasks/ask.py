"""Tasks that ask language models: who is asked, sentences they write, what they score, and digits they read."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.questions import AskSpec, QuizSpec, ReaderSpec, TunedSpec, WriteSpec
from tasks.step import Work, find_or_build, step


@step
def reader(spec: ReaderSpec, work: Work, **inputs: Artifact) -> State[Artifact]:
    """A language model that is asked: trained here, or a reference to one elsewhere."""
    return find_or_build("reader", spec, inputs, work)


@step
def tuned(
    spec: TunedSpec,
    subject: Artifact,
    tokens: Artifact,
    explanations: Artifact,
    activations: Artifact,
    reader: Artifact,
    work: Work,
) -> State[Artifact]:
    """A reader taught further, on the true digits of the explain split."""
    read = {"subject": subject, "tokens": tokens, "explanations": explanations, "activations": activations}
    return find_or_build("tuned", spec, {**read, "reader": reader}, work)


@step
def sentences(
    spec: WriteSpec,
    subject: Artifact,
    tokens: Artifact,
    activations: Artifact,
    coder: Artifact,
    writer: Artifact,
    work: Work,
) -> State[Artifact]:
    """A sentence for each latent, by a language model that is shown examples."""
    read = {"subject": subject, "tokens": tokens, "activations": activations}
    return find_or_build("sentences", spec, {**read, "coder": coder, "writer": writer}, work)


@step
def quiz(
    spec: QuizSpec,
    subject: Artifact,
    tokens: Artifact,
    activations: Artifact,
    explanations: Artifact,
    reader: Artifact,
    work: Work,
) -> State[Artifact]:
    """How well a language model tells from each sentence where its latent is active."""
    read = {"subject": subject, "tokens": tokens, "activations": activations}
    return find_or_build("quiz", spec, {**read, "explanations": explanations, "reader": reader}, work)


@step
def answers(
    spec: AskSpec,
    subject: Artifact,
    tokens: Artifact,
    explanations: Artifact,
    reader: Artifact,
    work: Work,
    **more: Artifact,
) -> State[Artifact]:
    """The digits that a language model expects of latents in the contexts it is asked about.

    `more`: activations that decide which contexts those are, gates behind which nobody asks, scores to be told.
    """
    read = {"subject": subject, "tokens": tokens, "explanations": explanations, "reader": reader}
    return find_or_build("answers", spec, {**read, **more}, work)
