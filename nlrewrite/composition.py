"""How one layer is rewritten, step by step: the table of contents of the whole program.

In: the spec of a rewriting and a `step` function. Out: the report's artifact. The same composition is run by whoever
gives it a `step`: one that only names artifacts (`plan`, `status`), one that builds them (`run --local`), one that
calls Prefect tasks (`flows/rewrite.py`). Invariant: nothing is fitted on the split it is judged on, or on a later one.
"""

from dataclasses import dataclass
from typing import Protocol

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import GatingSpec, Probe, RewriteSpec, Spec, Split

_KNOWN = ("subject", "tokens", "coder", "explain", "calibrate", "report")
_SAID = ("on-calibrate", "simulation")
PROBED: dict[Probe, tuple[str, ...]] = {
    "ladder": (*_KNOWN, *(f"{label}{rung}" for rung in ("", "-gate", "-gated") for label in _SAID)),
    "requirement": _KNOWN,
    "sample-size": (*_KNOWN, *_SAID),
}
"""What each probe reads, by the labels that the evaluation has for it; gates where they are measured at all."""


class StepRunner(Protocol):
    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        """The artifact that `kind` makes of `spec` and `inputs`; `label` tells steps of one kind apart."""
        ...


@dataclass(frozen=True)
class Rewritten:
    """What a rewriting leaves behind."""

    evaluation: Artifact
    report: Artifact


def rewrite(spec: RewriteSpec, step: StepRunner) -> Rewritten:
    corpus = step("corpus", "corpus", spec.text)
    subject = step("subject", "subject", spec.subject, corpus=corpus)
    tokens = step("tokens", "tokens", spec.tokens, corpus=corpus, subject=subject)
    coder = step("coder", "coder", spec.coder, subject=subject, tokens=tokens)

    read = {"subject": subject, "tokens": tokens}
    active = {
        split: step(
            f"activations-{split}",
            "activations",
            spec.activations.model_copy(update={"split": split}),
            **read,
            coder=coder,
        )
        for split in ("explain", "calibrate", "report")
    }

    def explain(label: str, most: int) -> Artifact:
        limited = spec.explain.model_copy(update={"max_quotes": most})
        return step(label, "explanations", limited, **read, activations=active["explain"])

    def simulate(label: str, explanations: Artifact, split: str, shuffle: bool = False) -> Artifact:
        simulation = spec.simulate.model_copy(update={"split": split, "shuffle": shuffle})
        return step(label, "simulation", simulation, **read, explanations=explanations)

    def calibrate(label: str, simulation: Artifact) -> Artifact:
        known = {"tokens": tokens, "activations": active["calibrate"], "explain": active["explain"], "coder": coder}
        return step(label, "calibration", spec.calibrate, **known, simulation=simulation)

    def rewritten(suffix: str, explanations: Artifact, shuffle: bool = False) -> dict[str, Artifact]:
        """Simulate the report split, with calibrators fitted on the calibrate split."""
        on_calibrate = simulate(f"simulation-calibrate{suffix}", explanations, "calibrate", shuffle)
        return {
            f"on-calibrate{suffix}": on_calibrate,
            f"calibration{suffix}": calibrate(f"calibration{suffix}", on_calibrate),
            f"simulation{suffix}": simulate(f"simulation-report{suffix}", explanations, "report", shuffle),
        }

    def behind(gates: Artifact, suffix: str, sentence: bool, simulated: dict[str, Artifact]) -> dict[str, Artifact]:
        """The same behind lexical gates, with or without what the sentences say inside them."""

        def gating(split: Split, simulation: Artifact) -> Artifact:
            gated = GatingSpec(split=split, sentence=sentence)
            return step(
                f"simulation-{split}{suffix}", "gating", gated, tokens=tokens, gates=gates, simulation=simulation
            )

        on_calibrate = gating("calibrate", simulated["on-calibrate"])
        return {
            f"on-calibrate{suffix}": on_calibrate,
            f"calibration{suffix}": calibrate(f"calibration{suffix}", on_calibrate),
            f"simulation{suffix}": gating("report", simulated["simulation"]),
        }

    explanations = explain("explanations", spec.explain.max_quotes)
    simulated = rewritten("", explanations)
    scored = {"tokens": tokens, "activations": active["calibrate"], "simulation": simulated["on-calibrate"]}
    scores = step("scores", "scores", spec.score, **scored)
    controls = rewritten("-shuffled", explanations, shuffle=True)
    for most in spec.lengths:
        controls |= rewritten(f"-{most}", explain(f"explanations-{most}", most))
    if spec.rungs:
        gates = step("gates", "gates", spec.gates, **read, activations=active["explain"])
        for suffix, sentence in (("-gate", False), ("-gated", True)):
            controls |= behind(gates, suffix, sentence, simulated)

    evaluated = {
        **read,
        "coder": coder,
        **active,
        "explanations": explanations,
        "scores": scores,
        **simulated,
        **controls,
    }
    evaluation = step("evaluation", "evaluation", spec.evaluate, **evaluated)
    asked: dict[str, Spec] = {"ladder": spec.ladder, "requirement": spec.requirement, "sample-size": spec.sample_size}
    probed = {
        probe: step(
            probe, probe, asked[probe], **{label: evaluated[label] for label in PROBED[probe] if label in evaluated}
        )
        for probe in dict.fromkeys(spec.probes)
    }
    report = step("report", "report", spec.report, **evaluated, corpus=corpus, evaluation=evaluation, **probed)
    return Rewritten(evaluation=evaluation, report=report)
