"""Score every explanation by a language model that reads it: detection, fuzzing, and whatever else is registered.

In: text and activations of the calibrate split, explanations, and a model. Out: `scores.parquet`, one row a latent: the
columns of the rule reader's scores, the AUC of probabilities, and for each scorer how many questions were asked and how
many failed; `quiz.json`, the outcomes of all questions. Invariants: no document that an explainer saw is asked about;
draws depend on seed, scorer and latent alone; a failed question is missing, never wrong, and in every count; what a
killed run had been told is not asked again.

A probability above 0.5 is a yes. Sensitivity, specificity and what follows from them are those of detection, at the
share of stretches of text that hold an activation. Without a sentence a score is NaN, unless it needs none.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.pairs import ByLatent, read
from nlrewrite.activations.statistics import latents_counted, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.explain.examples import Text
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.template import filled, template
from nlrewrite.llm.engine import Outcome
from nlrewrite.llm.purse import check_asked
from nlrewrite.questions import PromptSpec, QuizSpec
from nlrewrite.score import tally
from nlrewrite.score.embedding import of_subject
from nlrewrite.score.quizzes import Latent
from nlrewrite.score.scorers import SCORERS, Asking, Detection, Scorer
from nlrewrite.seeds import generator
from nlrewrite.simulate.rules import read_sentences
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

BATCH = 128
"""Latents whose questions are handed to the engine at once, and kept once they are answered."""
NATURAL = ("sensitivity", "specificity", "mcc", "mcc2", "explained_by_flags", "auprc")

Row = dict[str, float]


def build(spec: QuizSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from nlrewrite.llm.opening import opened

    windows = read_windows(inputs["tokens"], "calibrate")
    seen = set(read_windows(inputs["tokens"], "explain").group.tolist())
    assert not seen.intersection(windows.group.tolist()), "an explainer has seen documents that it is asked about"
    latents = latents_counted(inputs["activations"])
    truth = read(inputs["activations"]).by_latent(latents)
    sentences = read_sentences(inputs["explanations"])
    assert len(sentences) == latents, (
        f"there are explanations of {len(sentences)} latents, and activations of {latents}"
    )
    text = Text(positions(windows), token_texts(inputs["subject"].root()))
    engine, tokenizer = opened(inputs["reader"], running.execution)

    known: dict[str, Prompts] = {}

    def compiled(prompt: PromptSpec) -> Prompts:
        whole = prompt if prompt.text else filled(prompt, running.execution.template_folder)
        if whole.text not in known:
            known[whole.text] = prompts(template(whole), tokenizer, "explanation", name=whole.name)
        return known[whole.text]

    embedder = of_subject(inputs["subject"], running.execution) if "embedding" in spec.also else None
    asking = Asking(spec, text, engine, compiled, embedder)
    scorers = {name: SCORERS[name](asking) for name in ("detection", "fuzzing", *spec.also)}
    rows: list[Row] = []
    outcomes: Counter[str] = Counter()
    try:
        with running.progress.stage("quiz", latents) as advance:
            for start in range(0, latents, BATCH):
                batch = [_latent(truth, number, sentences) for number in range(start, min(start + BATCH, latents))]
                found, told = _kept(batch, scorers, spec, running)
                rows += found
                outcomes.update(told)
                advance(len(batch))
    finally:
        engine.close()
    names = [f"{name}_{column}" for name, each in scorers.items() for column in each.columns]
    columns = {
        "latent": np.arange(latents, dtype=np.int32),
        "explained": np.array([bool(sentence) for sentence in sentences]),
        **{name: _column(rows, name) for name in (*names, *NATURAL)},
        "active": np.diff(truth.bounds).astype(np.int64),
    }
    write_table(columns, out / "scores.parquet")
    told = {"threshold": tally.THRESHOLD, "outcomes": outcomes, "engine": engine.about()}
    (out / "quiz.json").write_text(json.dumps(told, indent=1, default=str, sort_keys=True) + "\n", encoding="utf-8")


def ask(batch: list[Latent], scorers: dict[str, Scorer], spec: QuizSpec) -> tuple[list[Row], Counter[str]]:
    """The scores of some latents, and how often each scorer had which outcome."""
    rows: list[Row] = [{} for _ in batch]
    outcomes: Counter[str] = Counter()
    for name, scorer in scorers.items():
        asked = [row for row, latent in enumerate(batch) if latent.sentence or not scorer.needs_sentence]
        made = [scorer.quiz(batch[row], generator(spec.seed, "quiz", name, batch[row].number)) for row in asked]
        for row, quiz, answers in zip(asked, made, scorer.answers(made), strict=True):
            check_asked(answers.outcome)
            outcomes.update(f"{name} {Outcome(each).name.lower()}" for each in answers.outcome.tolist())
            scores = scorer.scores(batch[row], quiz, answers)
            rows[row] |= {f"{name}_{column}": score for column, score in scores.items()}
            if name == "detection" and isinstance(scorer, Detection):
                rate, spread = scorer.rate(batch[row]), _spread(batch[row].value)
                rows[row] |= tally.natural(answers, quiz.truth, rate, spread)
    return rows, outcomes


def _kept(
    batch: list[Latent], scorers: dict[str, Scorer], spec: QuizSpec, running: "Running"
) -> tuple[list[Row], Counter[str]]:
    """What an earlier run was told, or what is told now."""
    name = f"quiz-{batch[0].number:08d}"
    kept = running.work.read(name) if running.work is not None else None
    if kept is not None:
        stored = json.loads(kept)
        return stored["rows"], Counter(stored["outcomes"])
    rows, outcomes = ask(batch, scorers, spec)
    reached = not any(each.endswith(f" {Outcome.TRANSPORT.name.lower()}") for each in outcomes)
    if running.work is not None and reached:  # who goes on may reach what this run could not
        running.work.write(name, json.dumps({"rows": rows, "outcomes": outcomes}).encode())
    return rows, outcomes


def _latent(truth: ByLatent, number: int, sentences: list[str]) -> Latent:
    return Latent(number, sentences[number], *truth.of(number))


def _spread(value: np.ndarray) -> float:
    """Coefficient of variation of activations above 0."""
    return float(value.std(dtype=np.float64) / value.mean(dtype=np.float64)) if len(value) else 0.0


def _column(rows: list[Row], name: str) -> np.ndarray:
    """Counts are whole numbers, 0 where nothing was asked; other scores NaN."""
    if name.endswith(tuple(f"_{each}" for each in tally.COUNTED)):
        return np.array([row.get(name, 0) for row in rows], dtype=np.int32)
    return np.array([row.get(name, np.nan) for row in rows], dtype=np.float32)
