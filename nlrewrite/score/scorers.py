"""Scorers, by name: what each asks about a latent, who answers, and which scores come of it.

        @dataclass(frozen=True)
    class Letters(Detection):
        '''How many letters of the sentence's words are in the text.'''

        def answers(self, quizzes):
            return [Answers.known([share(quiz.sentence, item) for item in quiz.examples]) for quiz in quizzes]

In: what all scorers share (`Asking`). Out: a class for each name in `SCORERS`. Invariant: a scorer hands all its
questions about many latents to the engine together, and a question that fails is a missing answer of its own latent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.explain.examples import Example, Text, share_active
from nlrewrite.language import replies
from nlrewrite.language.prompts import Prompts
from nlrewrite.llm.engine import Completion, Engine, Outcome, PrefixBlock, Sampling
from nlrewrite.questions import PromptSpec, QuizSpec
from nlrewrite.score import quizzes, tally
from nlrewrite.score.quizzes import Latent, Quiz
from nlrewrite.score.tally import Answers, Scores
from nlrewrite.seeds import derive

LIST_TOKENS = 8
"""New tokens of a list for each of its numbers, at most; and as many as LIST_ROOM for words around it."""
LIST_ROOM = 64


class Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A vector for each text: [N, D]."""
        ...


@dataclass(frozen=True)
class Asking:
    """What scorers share."""

    spec: QuizSpec
    text: Text
    engine: Engine
    compiled: Callable[[PromptSpec], Prompts]
    embedder: Embedder | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(most=LIST_ROOM + LIST_TOKENS * self.spec.at_once, seed=derive(self.spec.seed, "quiz"))


class Scorer(Protocol):
    needs_sentence: ClassVar[bool]
    columns: ClassVar[tuple[str, ...]]
    """Names of its scores, without its own."""

    def quiz(self, latent: Latent, draws: np.random.Generator) -> Quiz: ...

    def answers(self, quizzes: Sequence[Quiz]) -> list[Answers]: ...

    def scores(self, latent: Latent, quiz: Quiz, answers: Answers) -> Scores: ...


@dataclass(frozen=True)
class Detection:
    """Is the latent active in this text?"""

    asking: Asking
    needs_sentence: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = (*tally.BALANCED, *tally.COUNTED)

    @property
    def prompt(self) -> PromptSpec:
        return self.asking.spec.detection

    def quiz(self, latent: Latent, draws: np.random.Generator) -> Quiz:
        spec = self.asking.spec
        return quizzes.detection(self.asking.text, latent, spec.examples, spec.window, draws)

    def answers(self, quizzes: Sequence[Quiz]) -> list[Answers]:
        prompts = self.asking.compiled(self.prompt)
        if self.asking.spec.answers == "list":
            return by_list(self.asking, prompts, quizzes)
        return by_probability(self.asking, prompts, quizzes)

    def rate(self, latent: Latent) -> float:
        """Share of all cases that are active: here of stretches of text."""
        window = self.asking.spec.window
        return share_active(self.asking.text, latent.position, window, (window // 2 + window - 1) // 2)

    def scores(self, latent: Latent, quiz: Quiz, answers: Answers) -> Scores:
        return tally.balanced(answers, quiz.truth, self.rate(latent))


@dataclass(frozen=True)
class Fuzzing(Detection):
    """Are the marked tokens those on which the latent is active?"""

    @property
    def prompt(self) -> PromptSpec:
        return self.asking.spec.fuzzing

    def quiz(self, latent: Latent, draws: np.random.Generator) -> Quiz:
        spec = self.asking.spec
        return quizzes.fuzzing(self.asking.text, latent, spec.examples, spec.window, draws)

    def rate(self, latent: Latent) -> float:
        """Here of tokens."""
        return len(latent.position) / len(self.asking.text.where)


@dataclass(frozen=True)
class Intruder:
    """Which of five texts is not the latent's? No sentence is shown: it tells whether the latent can be understood."""

    asking: Asking
    needs_sentence: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("accuracy", *tally.COUNTED)

    def quiz(self, latent: Latent, draws: np.random.Generator) -> Quiz:
        spec = self.asking.spec
        return quizzes.intruder(self.asking.text, latent, max(1, spec.examples // 5), spec.window, draws)

    def answers(self, quizzes: Sequence[Quiz]) -> list[Answers]:
        """The number of the text that is chosen."""
        asking, prompts = self.asking, self.asking.compiled(self.asking.spec.intruder)
        wholes = [[prompts.whole(examples=_shown(prompts, item)) for item in quiz.items] for quiz in quizzes]
        if asking.spec.answers == "list":
            told = iter(asking.engine.complete([whole for each in wholes for whole in each], asking.sampling))
            return [_chosen(prompts.template.labels, [next(told) for _ in each]) for each in wholes]
        return [_likeliest(asking.engine, each, prompts.labels) for each in wholes]

    def scores(self, latent: Latent, quiz: Quiz, answers: Answers) -> Scores:
        there = answers.there
        right = float((answers.score[there] == quiz.truth[there]).mean()) if there.any() else float("nan")
        return {"accuracy": right, **tally.counted(answers)}


@dataclass(frozen=True)
class Embedding(Detection):
    """How near does the sentence lie to each text, as vectors? Nothing is asked."""

    columns: ClassVar[tuple[str, ...]] = ("auc", *tally.COUNTED)

    def answers(self, quizzes: Sequence[Quiz]) -> list[Answers]:
        embedder = self.asking.embedder
        if embedder is None:
            raise SettingError(
                "the embedding score needs something that embeds texts. Leave embedding out of quiz.also"
            )
        return [_similar(embedder, quiz) for quiz in quizzes]

    def scores(self, latent: Latent, quiz: Quiz, answers: Answers) -> Scores:
        return tally.ranked(answers, quiz.truth)


SCORERS: dict[str, Callable[[Asking], Scorer]] = {
    "detection": Detection,
    "fuzzing": Fuzzing,
    "intruder": Intruder,
    "embedding": Embedding,
}


# -- asking -----------------------------------------------------------------------------------------------------------

NOTHING = Answers.known([])


def by_probability(asking: Asking, prompts: Prompts, quizzes: Sequence[Quiz]) -> list[Answers]:
    """The probability of yes; the sentence is the shared beginning of all questions about a latent."""
    if prompts.template.answer != "label" or len(prompts.labels) != 2:
        raise SettingError(
            f"quiz.answers=probabilities needs a template with two labels, no and yes: {prompts.name!r} has "
            f"{prompts.template.labels}. Use --set quiz.answers=list, or such a template"
        )
    found: list[Answers] = []
    for quiz in quizzes:
        if not len(quiz):
            found.append(NOTHING)
            continue
        suffixes = [prompts.suffix(context=prompts.shown(each.tokens, each.at)) for each in quiz.examples]
        prefix = prompts.prefix(explanation=quiz.sentence)
        scores = asking.engine.digits(
            PrefixBlock.of(prefix.tolist(), [each.tolist() for each in suffixes], prompts.labels)
        )
        found.append(Answers(np.exp(scores.logp[:, 1].astype(np.float64)), _checked(scores.logp, scores.outcome)))
    return found


def by_list(asking: Asking, prompts: Prompts, quizzes: Sequence[Quiz]) -> list[Answers]:
    """0 or 1, read from a list for several questions at once; the last of a latent's lists may be shorter."""
    if prompts.template.answer != "list":
        raise SettingError(
            f"quiz.answers=list needs templates whose answer is a list: {prompts.name!r} answers with a "
            f"{prompts.template.answer}. Set quiz.detection.name=detection-list and quiz.fuzzing.name=fuzzing-list"
        )
    step = asking.spec.at_once
    parts = [
        (row, quiz.examples[start : start + step])
        for row, quiz in enumerate(quizzes)
        for start in range(0, len(quiz), step)
    ]
    asked = [prompts.whole(explanation=quizzes[row].sentence, examples=_shown(prompts, part)) for row, part in parts]
    told = asking.engine.complete(asked, asking.sampling) if asked else []
    scores: list[list[float]] = [[] for _ in quizzes]
    outcomes: list[list[int]] = [[] for _ in quizzes]
    for (row, part), reply in zip(parts, told, strict=True):
        listed = replies.binary_list(reply.text, len(part)) if reply.outcome is Outcome.OK else None
        scores[row] += [float("nan")] * len(part) if listed is None else [float(each) for each in listed]
        outcomes[row] += [int(_outcome(reply, listed is not None))] * len(part)
    return [
        Answers(np.array(score, dtype=np.float64), np.array(outcome, dtype=np.int8))
        for score, outcome in zip(scores, outcomes, strict=True)
    ]


def _shown(prompts: Prompts, examples: Sequence[Example]) -> list[str]:
    return [prompts.shown(each.tokens, each.at) for each in examples]


def _outcome(reply: Completion, readable: bool) -> Outcome:
    if reply.outcome is not Outcome.OK or readable:
        return reply.outcome
    return Outcome.REFUSED if replies.refused(reply.text) else Outcome.UNPARSEABLE


def _chosen(labels: Sequence[str], told: Sequence[Completion]) -> Answers:
    """Which option each reply names; a reply that names none is missing, and not wrong."""
    named = [replies.choice(reply.text, labels) if reply.outcome is Outcome.OK else None for reply in told]
    score = [float("nan") if name is None else float(list(labels).index(name)) for name in named]
    outcome = [int(_outcome(reply, name is not None)) for reply, name in zip(told, named, strict=True)]
    return Answers(np.array(score, dtype=np.float64), np.array(outcome, dtype=np.int8))


def _likeliest(engine: Engine, wholes: Sequence[np.ndarray], labels: Sequence[int]) -> Answers:
    """The likeliest label behind each prompt; what all prompts begin with is the shared prefix."""
    if not wholes:
        return NOTHING
    shortest = min(len(each) for each in wholes) - 1
    alike = np.all([each[:shortest] == wholes[0][:shortest] for each in wholes], axis=0)
    shared = max(1, shortest if alike.all() else int(alike.argmin()))
    block = PrefixBlock.of(wholes[0][:shared].tolist(), [each[shared:].tolist() for each in wholes], labels)
    scores = engine.digits(block)
    outcome = _checked(scores.logp, scores.outcome)
    best = np.nan_to_num(scores.logp, nan=-np.inf).argmax(1).astype(np.float64)
    return Answers(np.where(outcome == Outcome.OK, best, np.nan), outcome)


def _similar(embedder: Embedder, quiz: Quiz) -> Answers:
    if not len(quiz):
        return NOTHING
    texts = [b"".join(each.tokens).decode("utf-8", "replace") for each in quiz.examples]
    vectors = embedder.embed([quiz.sentence, *texts]).astype(np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return Answers.known(unit[1:] @ unit[0])


def _checked(logp: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Outcomes; an answer that is called good and is none is a defect of the engine."""
    assert np.isfinite(logp[outcome == Outcome.OK].max(axis=1, initial=-np.inf)).all(), "an answer has no probabilities"
    return outcome.astype(np.int8)
