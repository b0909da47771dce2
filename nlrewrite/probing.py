"""Specs of probes: questions about the method, answered on the same subject and coder, and the pilot of a rewriting.

In: a profile and the user's overrides. Out: frozen models, each a part of what identifies a result. Invariant: that of
`specs.py`, which has all specs under one name.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nlrewrite.calibrate import names
from nlrewrite.material import Spec
from nlrewrite.questions import AskSpec

Fraction = Annotated[float, Field(gt=0, le=1, description="Share of the latents that are replaced.")]
Auc = Annotated[float, Field(ge=0.5, lt=1, description="Area under the ROC curve of a simulator's score.")]


class LadderSpec(Spec):
    """From the published protocol to ours, one change a row, with the paired effect of each."""

    aucs: tuple[Auc, ...] = Field(default=(0.84, 0.95), description="Oracle simulators, beside the rules.")
    fractions: tuple[Fraction, ...] = Field(default=(0.5, 1.0), min_length=1)
    resamples: int = Field(default=2000, ge=200, le=100_000)
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class RequirementSpec(Spec):
    """How good a simulator must be: gap closed against specificity, and against AUC, by oracle simulators."""

    specificities: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        min_length=1,
        default=(0.8, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997, 0.9999),
        description="Of flags, at the sensitivity below.",
    )
    sensitivity: float = Field(default=0.8, gt=0, le=1)
    aucs: tuple[Auc, ...] = Field(min_length=1, default=(0.6, 0.76, 0.84, 0.9, 0.95, 0.98, 0.99, 0.999))
    resamples: int = Field(default=2000, ge=200, le=100_000)
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class SampleSizeSpec(Spec):
    """How many contexts calibration takes: drawn at random, or by whether the latent is active."""

    contexts: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(250, 500, 1000, 2000, 4000, 10_000), description="Random contexts; more than there are means all."
    )
    cases: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = Field(
        default=((10, 40), (20, 80), (50, 200), (100, 400)), description="Active and inactive contexts of each latent."
    )
    auc: Auc = 0.9
    calibrators: tuple[str, ...] = Field(default=("quantile-7", "quantile-6", "hurdle"), min_length=1)
    resamples: int = Field(default=2000, ge=200, le=100_000)
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _names(self) -> "SampleSizeSpec":
        names.check(self.calibrators, "sample_size.calibrators")
        for name in self.calibrators:
            if names.parse(name).refit:
                raise ValueError(
                    f"sample sizes are measured with the coder's own decoder, and {name} has one of its own. "
                    f"Leave +refit out of --set sample_size.calibrators"
                )
        return self


class PilotSpec(Spec):
    """What the whole rewriting will come to, from some of its latents and some contexts, before it is paid for."""

    latents: int = Field(default=500, ge=2, le=1 << 20, description="Latents that are asked about, drawn at random.")
    active: int = Field(default=50, ge=1, description="Contexts of each latent where it is active.")
    inactive: int = Field(
        default=200, ge=20, description="Random contexts, the same for all: inactive cases, and the joint replacement."
    )
    position: Literal["all", "last"] = Field(
        default="all", description="Where the whole run replaces: at every position, or at windows' last ones."
    )
    calibrator: str = Field(default="hurdle", description="The calibrator of the whole run; docs/calibrators.md.")
    free: int = Field(default=2000, ge=100, description="Contexts on which rewritings that cost nothing are measured.")
    gradients: int = Field(default=8, ge=1, le=256, description="Tokens drawn a context to see how loss reads errors.")
    level: float = Field(default=0.8, gt=0, lt=1, description="Of the interval.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _names(self) -> "PilotSpec":
        names.check((self.calibrator,), "pilot.calibrator")
        return self


class PilotedSpec(Spec):
    """A pilot, and how a language model is asked in it; none: the rule reader, which costs nothing."""

    pilot: PilotSpec = PilotSpec()
    ask: AskSpec | None = None


Probe = Literal["ladder", "requirement", "sample-size"]
PROBES: tuple[Probe, ...] = ("ladder", "requirement", "sample-size")
