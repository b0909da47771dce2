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
class Asked:
    """Everything that was asked in one rewriting."""

    reader: dict[str, Any]
    spec: dict[str, Any]
    questions: tuple[Question, ...]
    writer: dict[str, Any] | None = None
    sentences: dict[str, int] | None = None

    def told(self) -> dict[str, Any]:
        """For results.json."""
        spec = {name: value for name, value in self.spec.items() if name not in ("split", "shuffle")}
        return {
            "reader": self.reader,
            "spec": spec,
            "questions": [asdict(each) for each in self.questions],
            "writer": self.writer,
            "sentences": self.sentences,
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
    )


def section(asked: Asked) -> Markup:
    """What the page says of it."""
    spec = asked.spec
    first = "the context and then the sentence" if spec["order"] == "context" else "the sentence and then the context"
    said = [
        f"{_name(asked.reader)} read the sentences. It was shown {first}, at most {spec['window']} tokens of it, in "
        f"the words of the template “{spec['prompt']['name']}”, and its digits are read as {spec['flavour']}."
    ]
    if any(each.contexts == "cases" for each in asked.questions):
        said.append(
            f"For calibration each latent was asked about contexts of its own, at most {spec['active']} where it is "
            f"active and {spec['inactive']} where it is not; weights undo the drawing."
        )
    if spec.get("gate"):
        said.append("Nothing was asked where a latent's lexical gate is closed: there its digit is 0.")
    if asked.writer is not None and asked.sentences is not None:
        told = ", ".join(f"{count(number)} {name}" for name, number in sorted(asked.sentences.items()))
        said.append(f"{_name(asked.writer)} wrote the sentences: {told}.")
    body = [
        el(
            "tr",
            el("th", each.step, el("small", f"{each.split}, {_contexts(each)}"), scope="row"),
            *(el("td", count(number), class_="n") for number in (each.asked, each.ok)),
            *(el("td", _failure(each, outcome), class_="n") for outcome in FAILED),
            el("td", count(each.skipped), class_="n"),
        )
        for each in asked.questions
    ]
    columns = [
        Column("Simulation"),
        *(Column(name, True) for name in ("Asked", "Answered", "Unreadable", "Refused", "No reply", "Not asked")),
    ]
    words = "Questions to the reader"
    caption = [el("strong", words), ". A failed answer is missing, not a value."]
    return together([*(el("p", each) for each in said), table(caption, columns, body, words)])


def _contexts(each: Question) -> str:
    return "contexts by activity" if each.contexts == "cases" else "last tokens of windows"


def _failure(each: Question, outcome: Outcome) -> str:
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


def _model(folder: Folder) -> dict[str, Any]:
    return {**folder.manifest.spec, "artifact": str(folder.manifest.artifact)}


def _name(model: dict[str, Any]) -> str:
    if model["kind"] == "trained":
        return f"A Llama of {many(model['layers'], 'layer')}, {model['width']} wide, trained for it,"
    return str(model.get("model") or f"a local model ({str(model.get('content', ''))[:12]})")


def _sentences(folder: Folder) -> dict[str, int]:
    import pandas as pd

    table = pd.read_parquet(folder.path("explanations.parquet"), columns=["outcome"])
    return dict(Counter(table["outcome"].tolist()))
