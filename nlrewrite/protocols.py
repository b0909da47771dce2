"""Whose protocol an experiment follows: settings of the published ones by name, and what is known to be wrong there.

In: a name. Out: the fields of a RewriteSpec that the protocol fixes, the calibrator and the baseline it is quoted with,
and its known defects in sentences, which go wherever its numbers go. Invariant: a protocol is data; what it fixes can
be said with settings alone, and a user's settings win over it.

| protocol | calibrator quoted         | patched | TopK             | floor | summary of the effect  | subsets         |
|----------|---------------------------|---------|------------------|-------|------------------------|-----------------|
| ours     | chosen on the calibrate   | both    | none             | mean  | mean, paired interval  | nested, paired  |
|          | split                     |         |                  |       |                        |                 |
| p1       | quantile-7                | last    | of the predicted | zero  | median absolute        | nested, paired  |
| p2       | quantile-7-tenth          | last    | of the predicted | mean  | mean and its error     | nested, paired  |
| p1-code  | published                 | last    | of the mixture   | zero  | median absolute        | anew every time |

p1 and p2 follow the texts of the two versions of the paper, p1-code the program that was published with the first.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

_MARGINALS = (
    "Quantile normalisation gives predictions the spread of the truth, so that a wrong one costs as much as a right "
    "one saves: it beats the mean only where it correlates above one half with the truth. At one active latent in a "
    "thousand that takes an area under the ROC curve of about .99."
)
_PLOTTING = (
    "Which definition of a quantile was used is not said. The usual one, type 7, is assumed: it carries the largest "
    "prediction onto the largest activation of the whole target sample, which makes the result depend on how many "
    "contexts calibrate."
)
_LAST = (
    "Only the last position of a context is patched and judged, so that every earlier one keeps the true activations "
    "and a context gives one noisy number."
)
_SPLIT = (
    "Neither the text nor the program says which documents calibrate and which are judged. Here they are disjoint, "
    "which is stricter."
)
_ABSOLUTE = (
    "The median of the absolute difference is above zero where nothing happens, and hides whether a change helps or "
    "hurts."
)
_ZERO = (
    "The floor sets latents to zero, so that their means are lost too. The mean of the same latents is the fair floor."
)


class Protocol(BaseModel):
    """Settings that belong together because one experiment used them, and what one should know of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    fields: dict[str, Any] = Field(default_factory=dict, description="Fields of a RewriteSpec that it fixes.")
    calibrator: str | None = Field(default=None, description="The one quoted; none: chosen on the calibrate split.")
    ablation: Literal["mean", "zero"] = Field(default="mean", description="Its floor.")
    summary_of_effect: Literal["mean", "median absolute"] = "mean"
    defects: tuple[str, ...] = ()

    def told(self, name: str) -> dict[str, Any]:
        """What results say of the protocol that they were made by."""
        return {"name": name, **self.model_dump(mode="json", exclude={"fields"})}


def _published(calibrators: tuple[str, ...], **evaluate: Any) -> dict[str, Any]:
    """The last position of a context, the published fractions, and nothing that the papers did not have."""
    shared = {"fractions": FRACTIONS, "positions": ("last",), "selections": ("top", "sampled"), "harmless": False}
    return {"calibrate": {"calibrators": calibrators}, "evaluate": {**shared, **evaluate}, "rungs": False}


PROTOCOLS: dict[str, Protocol] = {
    "ours": Protocol(summary="Ours: conditional means, paired arms, matched floors, all positions and the last."),
    "p1": Protocol(
        summary="The first version's text: quantile normalisation, zero ablation, the median absolute difference.",
        fields=_published(("none", "quantile-7", "quantile-7-on-prompt"), topk=("values",)),
        calibrator="quantile-7",
        ablation="zero",
        summary_of_effect="median absolute",
        defects=(
            _MARGINALS,
            _PLOTTING,
            "The target “on the prompts” looks at the true activations of the very prompts that are judged.",
            _ABSOLUTE,
            _ZERO,
            _LAST,
            _SPLIT,
        ),
    ),
    "p2": Protocol(
        summary="The later version's text: quantile normalisation on a tenth of the data, mean ablation.",
        fields=_published(("none", "quantile-7-tenth", "quantile-7-on-prompt"), topk=("values",), least_base_loss=0.1),
        calibrator="quantile-7-tenth",
        defects=(
            _MARGINALS,
            _PLOTTING,
            "Prompts on which the model loses less than 0.1 nats are left out. That is fair between arms, but answers "
            "another question: what happens on harder text.",
            "Means are given with the error of each, as if arms were unpaired; the text ablates random latents beside "
            "the top-scoring ones it rewrites. Here both floors are of the same latents, and differences are paired.",
            _LAST,
            _SPLIT,
        ),
    ),
    "p1-code": Protocol(
        summary="What the published program does, which is not what the text says.",
        fields=_published(
            ("published",),
            topk=("mixed",),
            draw="fresh",
            subsets=1,
            unexplained="largest",
            rank_by="detection_balanced_accuracy",
        ),
        calibrator="published",
        ablation="zero",
        summary_of_effect="median absolute",
        defects=(
            "An answer that cannot be read becomes the latent's largest activation. So does, here, a latent without a "
            "readable sentence.",
            "An expected digit of 9 or more becomes 0: the surest answer means inactive.",
            "TopK is taken over predicted and true values together, so that wrong predictions push out true values of "
            "latents that nobody predicted. The share is the eviction rate of each row.",
            "Subsets are drawn anew for every context and arm, so that arms are not paired and the floor is of other "
            "latents than the rewriting. The program draws without a seed; here the draws are seeded.",
            "The best latents are those of the best balanced accuracy, where the text says F1.",
            "The expected digit is summed over the ten likeliest tokens and not divided by the mass of the digits.",
            _ABSOLUTE,
            _ZERO,
            _LAST,
            _SPLIT,
        ),
    ),
}


def merged(fields: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with those of `over` in their place, section by section."""
    out = dict(fields)
    for name, value in over.items():
        mine = out.get(name)
        inner = mine if isinstance(mine, Mapping) else {}
        out[name] = merged(inner, value) if isinstance(value, Mapping) else value
    return out
