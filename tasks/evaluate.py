"""Tasks that judge: scores of the sentences, calibrators, the losses of every arm, and the report about them."""

from prefect.client.schemas.objects import State

from nlrewrite.artifacts import Artifact
from nlrewrite.specs import CalibrateSpec, EvaluateSpec, ReportSpec, ScoreSpec
from tasks.step import Work, find_or_build, step


@step
def scores(
    spec: ScoreSpec, tokens: Artifact, activations: Artifact, simulation: Artifact, work: Work
) -> State[Artifact]:
    """How well each sentence tells where its latent is active."""
    return find_or_build("scores", spec, {"tokens": tokens, "activations": activations, "simulation": simulation}, work)


@step
def calibration(
    spec: CalibrateSpec,
    tokens: Artifact,
    activations: Artifact,
    explain: Artifact,
    coder: Artifact,
    simulation: Artifact,
    work: Work,
) -> State[Artifact]:
    """Maps from the simulator's digits to activations; `explain` is the activations that the sentences came from."""
    inputs = {
        "tokens": tokens,
        "activations": activations,
        "explain": explain,
        "coder": coder,
        "simulation": simulation,
    }
    return find_or_build("calibration", spec, inputs, work)


@step
def evaluation(
    spec: EvaluateSpec,
    subject: Artifact,
    tokens: Artifact,
    coder: Artifact,
    explain: Artifact,
    calibrate: Artifact,
    report: Artifact,
    explanations: Artifact,
    scores: Artifact,
    work: Work,
    **simulated: Artifact,
) -> State[Artifact]:
    """The loss of every arm.

    `explain`, `calibrate` and `report` are the activations on those splits; `simulated` is what the sentences and their
    controls led to, simulations and calibrators.
    """
    inputs = {
        "subject": subject,
        "tokens": tokens,
        "coder": coder,
        "explain": explain,
        "calibrate": calibrate,
        "report": report,
        "explanations": explanations,
        "scores": scores,
        **simulated,
    }
    return find_or_build("evaluation", spec, inputs, work)


@step
def report(
    spec: ReportSpec,
    corpus: Artifact,
    subject: Artifact,
    tokens: Artifact,
    coder: Artifact,
    explain: Artifact,
    calibrate: Artifact,
    report: Artifact,
    explanations: Artifact,
    scores: Artifact,
    evaluation: Artifact,
    work: Work,
    **simulated: Artifact,
) -> State[Artifact]:
    """results.json and report.html, of the same inputs as the evaluation and of the evaluation itself."""
    inputs = {
        "corpus": corpus,
        "subject": subject,
        "tokens": tokens,
        "coder": coder,
        "explain": explain,
        "calibrate": calibrate,
        "report": report,
        "explanations": explanations,
        "scores": scores,
        "evaluation": evaluation,
        **simulated,
    }
    return find_or_build("report", spec, inputs, work)
