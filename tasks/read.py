"""Tasks that read text: documents and their splits, and windows of token ids."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import TextSpec, TokensSpec
from tasks.step import Work, find_or_build, step


@step
def corpus(spec: TextSpec, work: Work) -> State[Artifact]:
    """Documents, de-duplicated into groups and split."""
    return find_or_build("corpus", spec, {}, work)


@step
def tokens(spec: TokensSpec, corpus: Artifact, subject: Artifact, work: Work) -> State[Artifact]:
    """Windows of token ids of every split."""
    return find_or_build("tokens", spec, {"corpus": corpus, "subject": subject}, work)
