"""Tasks: one Prefect task per kind of step, named after the kind. In: a spec, upstream handles, `Work`. Out: a handle.

Invariant: a task decides nothing of its own. It asks the store, and either says `Cached` because the data is there and
was checked, or has the library build it. No numerics, and nothing heavy is imported before a step has to be built.
"""

from typing import Any

from prefect import Task

from tasks.ask import answers, quiz, reader, sentences, tuned
from tasks.evaluate import calibration, evaluation, report, scores
from tasks.explain import explanations, gates, gating, simulation
from tasks.learn import activations, coder, stream, subject
from tasks.measure import coders_report, frontier, replacement
from tasks.probe import ladder, pilot, requirement, sample_size
from tasks.read import corpus, tokens

TASKS: dict[str, Task[..., Any]] = {
    task.name: task
    for task in (
        corpus,
        subject,
        tokens,
        stream,
        coder,
        activations,
        explanations,
        gates,
        simulation,
        gating,
        reader,
        tuned,
        sentences,
        quiz,
        answers,
        scores,
        calibration,
        evaluation,
        ladder,
        requirement,
        sample_size,
        pilot,
        frontier,
        replacement,
        coders_report,
        report,
    )
}
