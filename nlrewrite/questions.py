"""Specs of questions to language models: who is asked, in which words, about which contexts.

In: a profile and the user's overrides. Out: frozen models, each a part of what identifies a result. Invariant: that of
`specs.py`, which has all specs under one name. A prompt is in here by its whole text, a model by its revision or the
hash of its files; which engine runs the model is execution.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nlrewrite.material import Revision, Sha256, Spec, Split

Dtype = Literal["float32", "bfloat16", "float16"]
Order = Literal["context", "explanation"]
WRITTEN = ("rules", "sentences")
"""What the explanations that are measured are called: written by rules, or by a language model."""

# -- who ---------------------------------------------------------------------------------------------------------------


class RuleReader(Spec):
    """No language model: the rule explainer writes, and the rule reader reads."""

    kind: Literal["rules"] = "rules"


class TrainedReader(Spec):
    """A small Llama trained here, from scratch, to read the rule language."""

    kind: Literal["trained"] = "trained"
    layers: int = Field(default=4, ge=1, le=32)
    width: int = Field(default=128, ge=32, le=4096, multiple_of=32, description="Heads are 32 wide.")
    steps: int = Field(default=1800, ge=1, le=10_000_000)
    batch: int = Field(default=128, ge=1, le=65536, description="Questions in one training step.")
    learning_rate: float = Field(default=3e-3, gt=0, lt=1)
    order: Order = Field(default="explanation", description="What comes first in its prompts: ask it in this order.")
    window: int = Field(default=9, ge=1, le=64, description="Tokens of a context that it is shown: rules look 8 back.")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="Share of the sentences it is never trained on.")
    template: Sha256 = Field(default="", description="Filled in: sha256 of the template that it is trained with.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class HubReader(Spec):
    """A Hugging Face causal language model at a fixed revision."""

    kind: Literal["hub"] = "hub"
    model: str = Field(min_length=1, description="Model id, for instance meta-llama/Llama-3.1-8B-Instruct.")
    revision: Revision
    dtype: Dtype = "bfloat16"
    quantisation: str = Field(default="", description="As vLLM names it, for instance awq; empty: none.")


class FolderReader(Spec):
    """A local folder in Hugging Face's format; the execution says where it is."""

    kind: Literal["folder"] = "folder"
    content: Sha256 = Field(default="", description="Filled in: sha256 of the folder's files.")
    dtype: Dtype = "float32"


class ServedReader(Spec):
    """A model behind an OpenAI-compatible endpoint; the execution says where. Its provider answers for the revision."""

    kind: Literal["served"] = "served"
    model: str = Field(min_length=1, description="Name the endpoint knows the model by.")
    revision: str = Field(default="", description="What the provider calls this version of it.")
    tokenizer: str = Field(default="", description="Hub model whose tokenizer cuts the prompts; empty: the subject's.")
    tokenizer_revision: Revision | Literal[""] = ""


ReaderSpec = Annotated[
    RuleReader | TrainedReader | HubReader | FolderReader | ServedReader, Field(discriminator="kind")
]


class TuneSpec(Spec):
    """A reader taught further, on the true digits of some latents, by adapters that are merged into its weights."""

    steps: int = Field(default=0, ge=0, le=10_000_000, description="Training steps; 0: it is asked as it is.")
    rank: int = Field(default=8, ge=1, le=1024, description="Of each adapter.")
    alpha: float = Field(default=16.0, gt=0, description="An adapter's output is multiplied by alpha / rank.")
    sentences: int = Field(default=8, ge=1, le=4096, description="Latents in one training step.")
    active: int = Field(default=8, ge=1, description="Contexts of a latent where it is active, in one step.")
    inactive: int = Field(default=8, ge=1, description="Contexts of a latent where it is not, in one step.")
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    held_out: float = Field(default=0.1, gt=0, lt=1, description="Share of the latents it is judged by, untaught.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


# -- in which words ----------------------------------------------------------------------------------------------------


class PromptSpec(Spec):
    """A template, by its whole text."""

    name: str = Field(default="", description="Name of a built-in template, or of a file in the template folder.")
    text: str = Field(default="", description="Filled in: the text of the template.")


# -- about what --------------------------------------------------------------------------------------------------------


class AskSpec(Spec):
    """A digit for latents and contexts of one split, by a language model that reads the sentences."""

    split: Split = "report"
    contexts: Literal["last", "cases"] = Field(
        default="last", description="last: every window's last position; cases: each latent's own, by its activity."
    )
    active: int = Field(default=50, ge=1, description="Contexts of a latent where it is active, if by cases.")
    inactive: int = Field(default=200, ge=1, description="Contexts of a latent where it is not, if by cases.")
    window: int = Field(default=32, ge=1, le=4096, description="Tokens of the context that are shown, the last ones.")
    order: Order = Field(default="context", description="What the shared prefix ends with.")
    prompt: PromptSpec = PromptSpec(name="simulate")
    with_score: bool = Field(default=False, description="Put the explanation's detection score into the prompt.")
    mass: bool = Field(default=True, description="Ask for the digits' total probability too.")
    flavour: Literal["renormalised", "full", "paper_top10"] = Field(
        default="renormalised", description="How an expected digit is read from ten probabilities."
    )
    screen: Literal["none", "exit", "cascade"] = Field(
        default="none",
        description="Answer in full only what a probe behind some layers of the reader (exit), or a smaller reader "
        "(cascade), finds worth it; the rest counts as digit 0. Never for calibration by cases.",
    )
    screen_layer: int = Field(default=1, ge=1, le=1000, description="Layers before the exit.")
    screen_recall: float = Field(
        default=0.95, gt=0, lt=1, description="Chance that an answer that matters gets through the screen."
    )
    screen_contexts: int = Field(
        default=256, ge=8, le=100_000, description="Contexts of its pilot, on the explain split."
    )
    gate: bool = Field(
        default=False, description="Ask only where the latent's lexical gate is open; elsewhere it is 0."
    )
    shuffle: bool = Field(default=False, description="Control: every latent gets another latent's sentence.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class TunedSpec(Spec):
    """How a reader is taught, and the questions it is taught: those that it will be asked."""

    tune: TuneSpec
    prompt: PromptSpec
    order: Order
    window: int = Field(ge=1, le=4096, description="Tokens of the context that are shown, the last ones.")


class WriteSpec(Spec):
    """Explanations written by a language model from examples of the explain split."""

    style: Literal["quantile", "top"] = Field(
        default="quantile", description="Examples of all deciles, or the largest."
    )
    examples: int = Field(default=40, ge=1, le=400)
    window: int = Field(default=32, ge=4, le=4096, description="Tokens of an example.")
    single_token: bool = Field(default=True, description="A latent active on one token alone is said so, unasked.")
    contrast: int = Field(
        default=0, ge=0, le=100, description="Examples of latents it is confused with, beside its own."
    )
    refine: int = Field(default=0, ge=0, le=10, description="Rounds in which errors are shown and an edit may be kept.")
    prompt: PromptSpec = PromptSpec(name="explain")
    refining: PromptSpec = Field(default=PromptSpec(name="refine"), description="How an edit is asked for, if refine.")
    reading: PromptSpec = Field(
        default=PromptSpec(name="simulate"), description="How the writer reads its own sentences, if refine."
    )
    most_words: int = Field(default=60, ge=5, le=1000, description="Words of a sentence that are kept, at most.")
    min_active: int = Field(default=20, ge=1, description="Latents active on fewer tokens get no sentence.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class QuizSpec(Spec):
    """Detection and fuzzing by a language model, and what holds at natural prevalence."""

    examples: int = Field(default=50, ge=5, le=1000, description="Activating examples per latent, and as many others.")
    window: int = Field(default=32, ge=4, le=4096)
    answers: Literal["probabilities", "list"] = Field(
        default="probabilities", description="A probability an example, or a list of 0 and 1 for several at once."
    )
    at_once: int = Field(default=5, ge=1, le=50, description="Examples in one prompt, if a list is asked for.")
    detection: PromptSpec = PromptSpec(name="detection")
    fuzzing: PromptSpec = PromptSpec(name="fuzzing")
    intruder: PromptSpec = PromptSpec(name="intruder")
    also: tuple[Literal["intruder", "embedding"], ...] = ()
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _once(self) -> "QuizSpec":
        if len(set(self.also)) < len(self.also):
            raise ValueError(f"quiz.also names one twice: {', '.join(self.also)}. Name each once")
        return self


# -- together ----------------------------------------------------------------------------------------------------------


def check_models(
    models: Mapping[str, ReaderSpec], ask: AskSpec, tune: TuneSpec, positions: Sequence[str], probes: Sequence[str]
) -> None:
    """ValueError where the language models of a rewriting do not fit together, or with what is to be measured."""
    kinds = {name: model.kind for name, model in models.items()}
    asked = kinds["reader"] != "rules"
    if asked and tuple(positions) != ("last",):
        raise ValueError(
            f"a language model is asked about each window's last position: evaluate.positions is "
            f"{', '.join(positions)}. Use --set 'evaluate.positions=[\"last\"]'"
        )
    if asked and probes:
        raise ValueError(
            f"questions about the method are answered with the rule reader: probes are {', '.join(probes)}. "
            f"Leave --probes out, or use --set reader.kind=rules"
        )
    if asked and (ask.screen == "cascade") != (kinds["screener"] != "rules"):
        raise ValueError(
            f"a cascade has a smaller reader, and nothing else has one: ask.screen={ask.screen}, "
            f"screener.kind={kinds['screener']}. Change --set ask.screen or screener.kind"
        )
    if kinds["writer"] != "rules" and not asked:
        raise ValueError(
            f"the rule reader cannot read what a language model writes: writer.kind={kinds['writer']}. "
            f"Choose a reader with --set reader.kind"
        )
    if tune.steps:
        check_taught(models["reader"], ask, tune)


def check_taught(reader: ReaderSpec, ask: AskSpec, tune: TuneSpec) -> None:
    """ValueError where a reader cannot be taught further."""
    wanted = f"tune.steps={tune.steps}"
    if isinstance(reader, RuleReader):
        raise ValueError(f"the rule reader has nothing to be taught: {wanted}. Choose another with --set reader.kind")
    if isinstance(reader, ServedReader):
        raise ValueError(
            f"a served reader's weights are out of reach: {wanted}, reader.kind=served. "
            f"Use --set reader.kind=hub or folder, or tune.steps=0"
        )
    if isinstance(reader, HubReader) and reader.quantisation:
        raise ValueError(
            f"quantised weights cannot be taught: {wanted}, reader.quantisation={reader.quantisation}. "
            f"Use --set reader.quantisation= and the revision of whole weights, or tune.steps=0"
        )
    if isinstance(reader, HubReader | FolderReader) and reader.dtype == "float16":
        raise ValueError(
            f"gradients vanish in float16: {wanted}, reader.dtype=float16. Use --set reader.dtype=bfloat16 or float32"
        )
    if ask.with_score:
        raise ValueError(
            f"scores come from the calibrate split, and a reader is taught on the explain split alone: {wanted}, "
            f"ask.with_score=true. Use --set ask.with_score=false, or tune.steps=0"
        )
