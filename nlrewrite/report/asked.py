"""What language models were asked, for the page and for results.json: who, in which words, how often, and what failed.

In: the artifacts of a rewriting. Out: a `Asked`, or none where no language model took part. Invariant: every count is
of the answers as they are stored, so that a run that was interrupted tells the same; a failure stands in its own
column, and what was never asked is told apart from it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nlrewrite.artifacts import Folder
from nlrewrite.llm.engine import Outcome
from nlrewrite.report.markup import Markup, element, together
from nlrewrite.report.tables import Column, table
from nlrewrite.report.wording import count, many, percent
from nlrewrite.simulate.heard import ANSWERS
from nlrewrite.simulate.rules import read_outcomes

el = element
FAILED = (Outcome.UNPARSEABLE, Outcome.REFUSED, Outcome.TRANSPORT)
LABELS = {
    "simulation": "sentences",
    "on-calibrate": "sentences",
    "simulation-shuffled": "shuffled sentences",
    "on-calibrate-shuffled": "shuffled sentences",
}
"""What the page calls a simulation; others by the name of their step."""
WROTE = {
    "ok": "written",
    "unparseable": "without one in the reply",
    "refused": "refused",
    "transport": "without a reply",
    "skipped": "not asked about (too few activations, or one token says it all)",
}
UNASKED = "embedding"
"""The scorer that is a cosine."""


@dataclass(frozen=True)
class Question:
    """What became of the questions of one simulation."""

    step: str
    split: str
    contexts: str
    asked: int
    ok: int
    unparseable: int
    refused: int
    transport: int
    skipped: int
    """Not asked: behind a closed gate, or left out by a screen."""
    engine: str


@dataclass(frozen=True)
class Quizzed:
    """What became of one scorer's questions to who wrote the sentences."""

    scorer: str
    asked: int
    ok: int
    unparseable: int
    refused: int
    transport: int
    skipped: int


@dataclass(frozen=True)
class Asked:
    """Everything that was asked in one rewriting."""

    reader: dict[str, Any]
    spec: dict[str, Any]
    questions: tuple[Question, ...]
    writer: dict[str, Any] | None = None
    sentences: dict[str, int] | None = None
    quizzes: tuple[Quizzed, ...] = ()
    tuned: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """For results.json."""
        spec = {name: value for name, value in self.spec.items() if name not in ("split", "shuffle")}
        return {
            "reader": self.reader,
            "spec": spec,
            "questions": [asdict(each) for each in self.questions],
            "writer": self.writer,
            "sentences": self.sentences,
            "quizzes": [asdict(each) for each in self.quizzes],
            **({} if self.tuned is None else {"tuned": self.tuned}),
        }


def gather(inputs: dict[str, Folder]) -> Asked | None:
    if inputs["simulation"].manifest.artifact.kind != ANSWERS:
        return None
    by_model = inputs["explanations"].manifest.artifact.kind == "sentences"
    return Asked(
        reader=_model(inputs["reader"]),
        spec=inputs["simulation"].manifest.spec,
        questions=tuple(_questions(inputs)),
        writer=_model(inputs["writer"]) if by_model else None,
        sentences=_sentences(inputs["explanations"]) if by_model else None,
        quizzes=tuple(_quizzes(inputs["scores"])),
        tuned=_tuned(inputs["tuned"]) if "tuned" in inputs else None,
    )


def section(asked: Asked) -> Markup:
    """What the page says of it."""
    spec = asked.spec
    first = "the context and then the sentence" if spec["order"] == "context" else "the sentence and then the context"
    said = [
        f"{_name(asked.reader)} read the sentences. It was shown {first}, at most {spec['window']} tokens of text, in "
        f"the words of the template “{spec['prompt']['name']}”. The expected digit is “{spec['flavour']}”."
    ]
    if asked.tuned is not None:
        said.append(_taught(asked.tuned))
    if any(each.contexts == "cases" for each in asked.questions):
        said.append(
            f"For calibration each latent was asked about contexts of its own, at most {spec['active']} where it is "
            f"active and {spec['inactive']} where it is not; weights undo the drawing."
        )
    if spec.get("gate"):
        said.append("Nothing was asked where a latent's lexical gate is closed: there its digit is 0.")
    if spec.get("screen", "none") != "none":
        cheap = (
            f"a probe behind {many(spec['screen_layer'], 'layer')} of it"
            if spec["screen"] == "exit"
            else "a smaller reader"
        )
        said.append(
            f"On the report split {cheap} decided what was answered in full, so that what matters should get through "
            f"with a chance of {percent(spec['screen_recall'])}; what was left out counts as digit 0."
        )
    if asked.writer is not None and asked.sentences is not None:
        told = ", ".join(f"{count(number)} {WROTE.get(name, name)}" for name, number in sorted(asked.sentences.items()))
        said.append(f"{_name(asked.writer)} was asked for a sentence about every latent: {told}.")
    reader = [
        _row(LABELS.get(each.step, each.step), f"{each.split}, {_contexts(each)}", each) for each in asked.questions
    ]
    tables = [_outcomes("Simulation", reader, "Questions to the reader", "A failed answer is missing, not a value.")]
    if asked.quizzes:
        quiz = [_row(each.scorer, "calibrate", each) for each in asked.quizzes]
        tables.append(_outcomes("Scorer", quiz, "Questions of the quiz", "A failed one is left out of every score."))
    return together([*(el("p", each) for each in said), *tables])


def _row(what: str, where: str, each: Question | Quizzed) -> Markup:
    return el(
        "tr",
        el("th", what, el("small", where), scope="row"),
        *(el("td", count(number), class_="n") for number in (each.asked, each.ok)),
        *(el("td", _failure(each, outcome), class_="n") for outcome in FAILED),
        el("td", count(each.skipped), class_="n"),
    )


def _outcomes(first: str, body: list[Markup], words: str, note: str) -> Markup:
    names = ("Asked", "Answered", "Unreadable", "Refused", "No reply", "Not asked")
    columns = [Column(first), *(Column(name, True) for name in names)]
    return table([el("strong", words), f". {note}"], columns, body, words)


def _contexts(each: Question) -> str:
    return "contexts by activity" if each.contexts == "cases" else "last tokens of windows"


def _failure(each: Question | Quizzed, outcome: Outcome) -> str:
    number = getattr(each, outcome.name.lower())
    return f"{count(number)} ({percent(number / each.asked)})" if number else count(0)


def _questions(inputs: dict[str, Folder]) -> Iterator[Question]:
    for label, folder in sorted(inputs.items()):
        if folder.manifest.artifact.kind != ANSWERS:
            continue
        table = read_outcomes(folder)
        counts = {name: int(table[name].to_numpy().sum()) for name in (each.name.lower() for each in Outcome)}
        spec = folder.manifest.spec
        about = json.loads(folder.path("usage.json").read_text(encoding="utf-8"))
        yield Question(
            step=label,
            split=spec["split"],
            contexts=spec["contexts"],
            asked=sum(counts.values()) - counts["skipped"],
            engine=str(about["engine"]),
            **counts,
        )


def _quizzes(scores: Folder) -> Iterator[Quizzed]:
    if scores.manifest.artifact.kind != "quiz":
        return
    told: dict[str, int] = json.loads(scores.path("quiz.json").read_text(encoding="utf-8"))["outcomes"]
    for scorer in sorted({key.rpartition(" ")[0] for key in told} - {UNASKED}):
        counts = {name: told.get(f"{scorer} {name}", 0) for name in (each.name.lower() for each in Outcome)}
        yield Quizzed(scorer, asked=sum(counts.values()) - counts["skipped"], **counts)


def _model(folder: Folder) -> dict[str, Any]:
    return {**folder.manifest.spec, "artifact": str(folder.manifest.artifact)}


def _name(model: dict[str, Any]) -> str:
    if model["kind"] == "trained":
        return f"A Llama of {many(model['layers'], 'layer')}, {model['width']} wide, trained for it,"
    return f"“{model['model']}”" if model.get("model") else f"A local model ({str(model.get('content', ''))[:12]})"


def _tuned(folder: Folder) -> dict[str, Any]:
    told = json.loads(folder.path("reader.json").read_text(encoding="utf-8"))
    kept = ("tune", "tuned_on", "loss", "before", "after")
    return {"artifact": str(folder.manifest.artifact), **{name: told[name] for name in kept}}


def _taught(tuned: dict[str, Any]) -> str:
    def auc(name: str) -> str:
        found = tuned[name]["auc"]
        return "unknown" if found is None else f"{found:.3f}"

    return (
        f"Before that it was taught further: {many(tuned['tune']['steps'], 'step')} on the true digits of "
        f"{many(tuned['tuned_on']['latents'], 'latent')} on the explain split. Of "
        f"{many(tuned['after']['sentences'], 'latent')} that it was not taught by, it then told where they are active "
        f"(AUC {auc('after')}, and {auc('before')} before). Sentences that it was taught by it may know by heart."
    )


def _sentences(folder: Folder) -> dict[str, int]:
    import pandas as pd

    table = pd.read_parquet(folder.path("explanations.parquet"), columns=["outcome"])
    return dict(Counter(table["outcome"].tolist()))
