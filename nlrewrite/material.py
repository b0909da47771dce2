"""Specs of what a rewriting is made from: the text, its tokens, the subject and its coder's activations.

In: a profile and the user's overrides. Out: frozen models, each a part of what identifies a result. Invariant: that of
`specs.py`, which has all specs under one name; here is also what every one of them is a kind of.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "explain", "calibrate", "report"]
SPLITS: tuple[Split, ...] = ("train", "explain", "calibrate", "report")
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="Full commit id; never a branch such as main.")]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# -- text -------------------------------------------------------------------------------------------------------------


class PythonDocs(Spec):
    """The English documentation that ships with the running Python interpreter."""

    kind: Literal["python-docs"] = "python-docs"
    content: Sha256 = Field(default="", description="Filled in: sha256 of the sources the documents are read from.")


class TextFolder(Spec):
    """Every *.txt, *.md and *.rst file below the folder that the execution names, one document each."""

    kind: Literal["folder"] = "folder"
    content: Sha256 = Field(default="", description="Filled in: sha256 of the files.")


class HubDataset(Spec):
    """A Hugging Face dataset at a fixed revision, streamed."""

    kind: Literal["hub"] = "hub"
    dataset: str = Field(min_length=1, description="Dataset id, for instance HuggingFaceFW/fineweb-edu.")
    revision: Revision
    config: str | None = Field(default=None, description="Configuration of the dataset, for instance sample-10BT.")
    split: str = Field(default="train", description="The dataset's own split to read.")
    field: str = Field(default="text", description="Column that holds the text.")
    documents: int = Field(default=100_000, ge=1, description="Documents to read from the start of the stream.")


class Shares(Spec):
    """Share of the document groups that each split receives; they add up to one."""

    train: float = Field(default=0.6, gt=0, lt=1)
    explain: float = Field(default=0.2, gt=0, lt=1)
    calibrate: float = Field(default=0.1, gt=0, lt=1)
    report: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum(self) -> "Shares":
        total = self.train + self.explain + self.calibrate + self.report
        if abs(total - 1) > 1e-9:
            raise ValueError(f"shares must add up to 1: they add up to {total:g}. Change one of text.shares")
        return self


class TextSpec(Spec):
    source: PythonDocs | TextFolder | HubDataset = Field(default=PythonDocs(), discriminator="kind")
    shares: Shares = Shares()
    seed: int = Field(default=0, ge=0, lt=1 << 31, description="Decides which document groups go to which split.")


class TokensSpec(Spec):
    """How a document becomes windows of token ids."""

    window: int = Field(default=64, ge=8, le=4096, description="Tokens in a window; the subject sees all of them.")
    shortest: int = Field(default=32, ge=4, le=4096, description="Windows with fewer tokens are left out.")
    windows_per_document: int = Field(
        default=32, ge=1, le=1024, description="Windows one document may give, but for train."
    )
    limits: dict[Split, int] = Field(default_factory=dict, description="Most windows of a split; none: all there are.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _order(self) -> "TokensSpec":
        if self.shortest > self.window:
            raise ValueError(
                f"tokens.shortest must be at most tokens.window: shortest={self.shortest}, window={self.window}. "
                f"Lower --set tokens.shortest"
            )
        return self


# -- the subject and what its coder finds -----------------------------------------------------------------------------


class TinySubject(Spec):
    """A small GPT-NeoX (parallel residual) and its byte-level BPE tokenizer, trained here on the train split."""

    kind: Literal["tiny"] = "tiny"
    layers: int = Field(default=3, ge=1, le=24)
    width: int = Field(default=96, ge=32, le=2048, multiple_of=32, description="Residual width; heads are 32 wide.")
    vocabulary: int = Field(default=512, ge=300, le=65536)
    context: int = Field(default=64, ge=32, le=4096, description="Longest text the model is trained on, in tokens.")
    batch: int = Field(default=16, ge=1, le=4096, description="Windows in one training step.")
    steps: int = Field(default=1500, ge=1, le=1_000_000)
    learning_rate: float = Field(default=6e-3, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class HubSubject(Spec):
    """A Hugging Face causal language model at a fixed revision."""

    kind: Literal["hub"] = "hub"
    model: str = Field(min_length=1, description="Model id, for instance EleutherAI/pythia-160m.")
    revision: Revision
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class FolderSubject(Spec):
    """A local folder in Hugging Face's format; the execution says where it is."""

    kind: Literal["folder"] = "folder"
    content: Sha256 = Field(default="", description="Filled in: sha256 of the folder's files.")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


SubjectSpec = Annotated[TinySubject | HubSubject | FolderSubject, Field(discriminator="kind")]


class ActivationsSpec(Spec):
    """The coder's activations on one split, and what is known of each latent from them."""

    split: Split = "explain"
    examples: int = Field(default=2, ge=0, le=100, description="Example windows kept per latent and decile.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)
