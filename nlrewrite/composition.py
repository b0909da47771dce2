"""How one layer is rewritten, step by step: the table of contents of the whole program.

In: the spec of a rewriting and a `step` function. Out: the report's artifact. The same composition is run by whoever
gives it a `step`: one that only names artifacts (`plan`, `status`), one that builds them (`run --local`), one that
calls Prefect tasks (`flows/rewrite.py`). Invariant: nothing is fitted on a later split than the one it is applied to.
"""

from dataclasses import dataclass
from typing import Protocol

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import RewriteSpec, Spec


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
    explanations = step("explanations", "explanations", spec.explain, **read, activations=active["explain"])

    def simulate(split: str, shuffle: bool = False) -> Artifact:
        simulation = spec.simulate.model_copy(update={"split": split, "shuffle": shuffle})
        label = f"simulation-{split}" + ("-shuffled" if shuffle else "")
        return step(label, "simulation", simulation, **read, explanations=explanations)

    def calibrate(label: str, simulation: Artifact) -> Artifact:
        known = {"tokens": tokens, "activations": active["calibrate"], "explain": active["explain"], "coder": coder}
        return step(label, "calibration", spec.calibrate, **known, simulation=simulation)

    on_calibrate, shuffled_on_calibrate = simulate("calibrate"), simulate("calibrate", shuffle=True)
    scores = step(
        "scores", "scores", spec.score, tokens=tokens, activations=active["calibrate"], simulation=on_calibrate
    )
    calibration = calibrate("calibration", on_calibrate)
    shuffled_calibration = calibrate("calibration-shuffled", shuffled_on_calibrate)
    evaluated = {
        **read,
        "coder": coder,
        "explain": active["explain"],
        "calibrate": active["calibrate"],
        "report": active["report"],
        "explanations": explanations,
        "scores": scores,
        "simulation": simulate("report"),
        "calibration": calibration,
        "shuffled": simulate("report", shuffle=True),
        "shuffled_calibration": shuffled_calibration,
    }
    evaluation = step("evaluation", "evaluation", spec.evaluate, **evaluated)
    report = step("report", "report", spec.report, **evaluated, corpus=corpus, evaluation=evaluation)
    return Rewritten(evaluation=evaluation, report=report)
