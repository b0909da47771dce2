"""What identifies a result: one frozen model per step, holding only what changes the numbers.

In: a profile and the user's overrides. Out: the specs that, with the digests of their inputs, name every artifact.
Invariant: no path, device, batch size or time is in here (those are `Execution`), and unknown fields are refused. A
field added later carries `json_schema_extra={"since": version}` and is left out of a name while it has its default.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nlrewrite.calibrate import names
from nlrewrite.coding import (
    AnyCoderSpec,
    CoderSpec,
    CoderTokens,
    FolderCoder,
    FolderTokens,
    HubCoder,
    HubTokens,
    LayersSpec,
    MeasureSpec,
    PublishedCoder,
    Site,
    SplitTokens,
    SweepSpec,
    TokenRows,
)
from nlrewrite.material import (
    SPLITS,
    ActivationsSpec,
    FolderSubject,
    HubDataset,
    HubSubject,
    PythonDocs,
    Revision,
    Sha256,
    Shares,
    Spec,
    Split,
    SubjectSpec,
    TextFolder,
    TextSpec,
    TinySubject,
    TokensSpec,
)
from nlrewrite.probing import (
    PROBES,
    Auc,
    Fraction,
    LadderSpec,
    PilotedSpec,
    PilotSpec,
    Probe,
    RequirementSpec,
    SampleSizeSpec,
)
from nlrewrite.questions import (
    AskSpec,
    FolderReader,
    HubReader,
    PromptSpec,
    QuizSpec,
    ReaderSpec,
    RuleReader,
    ServedReader,
    TrainedReader,
    TuneSpec,
    WriteSpec,
    check_models,
)

__all__ = [
    "PROBES",
    "SPLITS",
    "ActivationsSpec",
    "AnyCoderSpec",
    "AskSpec",
    "Auc",
    "CalibrateSpec",
    "CoderSpec",
    "CoderTokens",
    "EvaluateSpec",
    "ExplainSpec",
    "FolderCoder",
    "FolderReader",
    "FolderSubject",
    "FolderTokens",
    "Fraction",
    "GatesSpec",
    "GatingSpec",
    "HubCoder",
    "HubDataset",
    "HubReader",
    "HubSubject",
    "HubTokens",
    "LadderSpec",
    "LayersSpec",
    "MeasureSpec",
    "PilotSpec",
    "PilotedSpec",
    "Probe",
    "PromptSpec",
    "PublishedCoder",
    "PythonDocs",
    "QuizSpec",
    "ReaderSpec",
    "ReportSpec",
    "RequirementSpec",
    "Revision",
    "RewriteSpec",
    "RuleReader",
    "SampleSizeSpec",
    "ScoreSpec",
    "ServedReader",
    "Sha256",
    "Shares",
    "SimulateSpec",
    "Site",
    "Spec",
    "Split",
    "SplitTokens",
    "SubjectSpec",
    "SweepSpec",
    "TextFolder",
    "TextSpec",
    "TinySubject",
    "TokenRows",
    "TokensSpec",
    "TrainedReader",
    "TuneSpec",
    "WriteSpec",
    "with_seed",
]

# -- language ---------------------------------------------------------------------------------------------------------


class ExplainSpec(Spec):
    """The rule explainer: sentences in controlled English, learned on the explain split."""

    max_quotes: int = Field(default=12, ge=1, le=200, description="Quoted tokens in a sentence, at most.")
    max_words: int = Field(default=60, ge=10, le=1000, description="Words in a sentence, at most.")
    min_active: int = Field(default=20, ge=1, description="Latents active on fewer tokens get no sentence.")
    reach: int = Field(default=8, ge=2, le=64, description="How many tokens back a sentence may look.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class SimulateSpec(Spec):
    """The rule reader applied to every sentence and every position of one split's windows."""

    split: Split = "report"
    window: int = Field(
        default=32, ge=1, le=4096, description="Tokens of the context that the simulator sees, the last ones."
    )
    shuffle: bool = Field(default=False, description="Control: every latent gets another latent's sentence.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class GatesSpec(Spec):
    """Lexical gates: for each latent the tokens on which it may be active at all, learned on the explain split."""

    keep: float = Field(default=0.95, gt=0, le=1, description="Share of a latent's activations that its gate keeps.")
    tokens: int = Field(default=200, ge=1, le=100_000, description="Tokens in a gate, at most.")


class GatingSpec(Spec):
    """A gate applied to every position of one split: alone, or with what the sentence says inside it."""

    split: Split = "report"
    sentence: bool = Field(default=False, description="Inside the gate the sentence speaks; else the gate alone.")


class ScoreSpec(Spec):
    """Detection and fuzzing at 50/50, and the scores that hold at natural prevalence."""

    examples: int = Field(
        default=50, ge=10, le=1000, description="Activating examples per latent, and as many that are not."
    )
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class CalibrateSpec(Spec):
    """Maps from the simulator's digits to activations, fitted on the calibrate split."""

    calibrators: tuple[str, ...] = Field(
        default=(
            "none",
            "quantile-6",
            "quantile-7",
            "quantile-6+gain",
            "prior-shift",
            "platt",
            "isotonic-shrunk",
            "digit-values",
            "hurdle",
            "levels",
        ),
        min_length=1,
        description="Calibrators to fit; docs/calibrators.md names them all.",
    )
    folds: int = Field(
        default=4, ge=2, le=20, description="Folds over document groups that choose the default calibrator."
    )
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _names(self) -> "CalibrateSpec":
        names.check(self.calibrators, names.SETTING)
        names.check_choice(self.calibrators)
        return self


# -- evaluation -------------------------------------------------------------------------------------------------------


class EvaluateSpec(Spec):
    """Which arms are patched in, where, and how their losses are summed up."""

    fractions: tuple[Fraction, ...] = Field(default=(0.1, 0.25, 0.5, 0.75, 1.0), min_length=1)
    positions: tuple[Literal["all", "last"], ...] = Field(default=("all", "last"), min_length=1)
    selections: tuple[Literal["top", "sampled", "gain"], ...] = Field(
        default=("top", "sampled"),
        description="top: best rank_by first; sampled: random; gain: largest held-out gain of the calibrator first.",
    )
    rank_by: Literal[
        "detection_f1", "fuzzing_f1", "detection_balanced_accuracy", "mcc", "auprc", "sensitivity", "specificity"
    ] = Field(
        default="detection_f1",
        description="The score by which 'top' orders the latents.",
        json_schema_extra={"since": 2},
    )
    harmless: bool = Field(
        default=True,
        description="Add an arm that uses a latent's sentence only where it is sure to help on the calibrate split.",
        json_schema_extra={"since": 2},
    )
    subsets: int = Field(default=2, ge=1, le=100, description="Random subsets of latents that 'sampled' draws.")
    draw: Literal["nested", "fresh"] = Field(
        default="nested",
        description="nested: one order of latents for all fractions, windows and arms; fresh: drawn again every time.",
        json_schema_extra={"since": 2},
    )
    topk: tuple[Literal["none", "values", "deviations", "mixed"], ...] = Field(
        default=("none", "values", "deviations"),
        min_length=1,
        description="mixed: over predicted and true values together, as published; it evicts true ones.",
    )
    unexplained: Literal["mean", "true", "zero", "largest"] = Field(
        default="mean",
        description="What a latent without a readable sentence is given.",
        json_schema_extra={"since": 2},
    )
    least_base_loss: float = Field(
        default=0.0, ge=0, description="Prompts with a lower base loss are left out (P2: 0.1)."
    )
    interval: Literal["percentile", "bca"] = Field(
        default="percentile", description="How an interval is read off the resamples.", json_schema_extra={"since": 2}
    )
    resamples: int = Field(default=2000, ge=200, le=100_000, description="Bootstrap resamples over document groups.")
    checkpoints: tuple[str, ...] = Field(
        default=(),
        description="Revisions of a hub subject (step1000, ...) by which a loss is told as a share of its training.",
        json_schema_extra={"since": 2},
    )
    protocol: Literal["ours", "p1", "p2", "p1-code"] = Field(
        default="ours",
        description="Whose protocol the settings follow; the results name it and its defects.",
        json_schema_extra={"since": 2},
    )
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _once(self) -> "EvaluateSpec":
        for name in ("fractions", "positions", "selections", "topk", "checkpoints"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"evaluate.{name} names one twice: {', '.join(map(str, values))}. Name each once")
        return self


class ReportSpec(Spec):
    """What the pages show; the numbers come from the evaluation."""

    latents: int = Field(
        default=200, ge=0, le=100_000, description="Latents the page lists, the most energetic ones first."
    )
    examples: int = Field(default=6, ge=0, le=40, description="Examples shown for each of them.")


MODELS = ("reader", "screener", "writer")


class RewriteSpec(Spec):
    """Everything that identifies one rewriting, from the text to the report."""

    text: TextSpec = TextSpec()
    tokens: TokensSpec = TokensSpec()
    subject: SubjectSpec = TinySubject()
    coder: AnyCoderSpec = CoderSpec()
    activations: ActivationsSpec = ActivationsSpec()
    explain: ExplainSpec = ExplainSpec()
    lengths: tuple[Annotated[int, Field(ge=1, le=200)], ...] = Field(
        default=(2, 4, 8), description="Other limits of quoted tokens, to plot what length buys."
    )
    simulate: SimulateSpec = SimulateSpec()
    score: ScoreSpec = ScoreSpec()
    calibrate: CalibrateSpec = CalibrateSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    report: ReportSpec = ReportSpec()
    gates: GatesSpec = Field(default=GatesSpec(), json_schema_extra={"since": 2})
    rungs: bool = Field(
        default=True,
        description="Measure the lexical gate alone and the sentence inside it, beside the sentence alone.",
        json_schema_extra={"since": 2},
    )
    probes: tuple[Probe, ...] = Field(
        default=(), description="Questions about the method to answer as well.", json_schema_extra={"since": 2}
    )
    ladder: LadderSpec = Field(default=LadderSpec(), json_schema_extra={"since": 2})
    requirement: RequirementSpec = Field(default=RequirementSpec(), json_schema_extra={"since": 2})
    sample_size: SampleSizeSpec = Field(default=SampleSizeSpec(), json_schema_extra={"since": 2})
    reader: ReaderSpec = Field(default=RuleReader(), json_schema_extra={"since": 3})
    screener: ReaderSpec = Field(default=RuleReader(), json_schema_extra={"since": 3})
    tune: TuneSpec = Field(default=TuneSpec(), json_schema_extra={"since": 3})
    ask: AskSpec = Field(default=AskSpec(), json_schema_extra={"since": 3})
    writer: ReaderSpec = Field(default=RuleReader(), json_schema_extra={"since": 3})
    write: WriteSpec = Field(default=WriteSpec(), json_schema_extra={"since": 3})
    quiz: QuizSpec = Field(default=QuizSpec(), json_schema_extra={"since": 3})
    pilot: PilotSpec = Field(default=PilotSpec(), json_schema_extra={"since": 3})
    sweep: SweepSpec = Field(default=SweepSpec(), json_schema_extra={"since": 4})
    layers: LayersSpec = Field(default=LayersSpec(), json_schema_extra={"since": 4})
    measure: MeasureSpec = Field(default=MeasureSpec(), json_schema_extra={"since": 4})

    @model_validator(mode="after")
    def _asked(self) -> "RewriteSpec":
        models = {name: getattr(self, name) for name in MODELS}
        check_models(models, self.ask, self.tune, self.evaluate.positions, self.probes)
        return self


def with_seed(fields: dict[str, Any], seed: int) -> dict[str, Any]:
    """`fields` of a RewriteSpec with `seed` in every stage that draws and does not name its own."""
    stages = {
        name: dict(fields.get(name, {}))
        for name in (
            "text",
            "tokens",
            "coder",
            "activations",
            "explain",
            "simulate",
            "score",
            "calibrate",
            "evaluate",
            "ladder",
            "requirement",
            "sample_size",
            "tune",
            "ask",
            "write",
            "quiz",
            "pilot",
            "measure",
        )
    }
    if fields.get("coder", {}).get("kind", "trained") != "trained":
        del stages["coder"]  # nothing is drawn for a coder from elsewhere
    stages |= {name: dict(fields[name]) for name in MODELS if fields.get(name, {}).get("kind") == "trained"}
    if fields.get("subject", {}).get("kind", "tiny") == "tiny":
        stages["subject"] = dict(fields.get("subject", {}))
    for stage in stages.values():
        stage.setdefault("seed", seed)
    return fields | stages
