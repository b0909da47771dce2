"""The latents that the page lists: sentence, scores, and windows of text with true and simulated activations.

In: explanations, scores, statistics, and the report split with its true and simulated activations. Out: `Dossier`s, the
most energetic latent first. Invariant: examples come from the report split, on which nothing was fitted, and they are
drawn over all tenths of a latent's activations, not picked; the simulator's worst false alarms stand beside them.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from nlrewrite.activations import pairs, statistics
from nlrewrite.activations.pairs import ByLatent
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.stored import read_calibrated
from nlrewrite.report.markup import visible
from nlrewrite.score.build import read_scores
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.heard import heard, levels
from nlrewrite.simulate.rules import Simulated, read_outcomes
from nlrewrite.simulate.said import Said, answers, centre
from nlrewrite.specs import ReportSpec
from nlrewrite.text.corpus import read_documents
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import Windows, read_windows

BEFORE, AFTER = 20, 6
FALSE_ALARMS = 2
SCORES = ("detection_f1", "fuzzing_f1", "mcc", "auprc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Piece:
    """Some text: one token with its two values, or a stretch of tokens that neither side marks."""

    text: str
    true: float = 0.0
    simulated: float = 0.0
    level: int = 0
    target: bool = False

    @property
    def marked(self) -> bool:
        return self.true > 0 or self.level > 0 or self.target


@dataclass(frozen=True)
class Example:
    """A window around one position."""

    why: str
    document: str
    true: float
    simulated: float
    level: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Dossier:
    """One latent."""

    latent: int
    sentence: str
    words: int
    why_none: str
    outcome: str
    energy: float
    energy_explained: float | None
    frequency: float
    count: int
    largest: float
    silent: float
    """What the calibrator writes where the sentence says nothing."""
    scores: dict[str, float | None]
    examples: tuple[Example, ...]


def dossiers(spec: ReportSpec, inputs: dict[str, Folder]) -> list[Dossier]:
    """The `spec.latents` most energetic latents."""
    import pandas as pd

    told = pd.read_parquet(inputs["evaluation"].path("latents.parquet"))
    energy = told["energy"].to_numpy()
    scores = read_scores(inputs["scores"])
    sentences = pd.read_parquet(inputs["explanations"].path("explanations.parquet"))
    known = statistics.read_latents(inputs["report"])
    outcomes = read_outcomes(inputs["simulation"])["outcome"].tolist()
    scene = _Scene(spec, inputs)
    order = np.lexsort((np.arange(len(energy)), -energy))[: spec.latents]
    found = []
    for latent in order.tolist():
        sentence = sentences.iloc[latent]
        written_P = scene.written(latent)
        found.append(
            Dossier(
                latent=latent,
                sentence=str(sentence["sentence"]),
                words=int(sentence["words"]),
                why_none=str(sentence["why_none"]),
                outcome=outcomes[latent],
                energy=float(energy[latent] / max(float(energy.sum()), 1e-30)),
                energy_explained=_number(sentence["energy_explained"]),
                frequency=float(known["frequency"].iloc[latent]),
                count=int(known["count"].iloc[latent]),
                largest=float(known["max"].iloc[latent]),
                silent=scene.silent(latent, written_P),
                scores={name: _number(scores[name].iloc[latent]) for name in SCORES},
                examples=tuple(scene.examples(latent, written_P)),
            )
        )
    return found


class _Scene:
    """The report split, ready to be quoted from."""

    def __init__(self, spec: ReportSpec, inputs: dict[str, Folder]) -> None:
        self.most = spec.examples
        self.windows: Windows = read_windows(inputs["tokens"], "report")
        self.where: Positions = positions(self.windows)
        self.starts = np.cumsum(self.windows.lengths) - self.windows.lengths
        calibrators, chosen = read_calibrated(inputs["calibration"])
        self.fitted = calibrators[chosen]
        self.truth: ByLatent = pairs.read(inputs["report"]).by_latent(self.fitted.latents)
        said = heard(inputs["simulation"], len(self.where))
        self.rows_S = said.rows if isinstance(said, Answered) else np.arange(len(self.where))
        self.spoken: Said = said.at_rows() if isinstance(said, Answered) else said
        told = levels(self.spoken)
        self.said: Simulated = replace(told, position=self.rows_S[told.position])
        reading = self.fitted.reading
        self.centre_S = centre(self.spoken, reading) if reading.centred else None
        self.bounds = np.searchsorted(self.said.latent, np.arange(self.fitted.latents + 1))
        table = statistics.read_examples(inputs["report"])
        bounds = np.searchsorted(table["latent"].to_numpy(), np.arange(self.fitted.latents + 1))
        self.drawn = [table.iloc[start:end] for start, end in pairwise(bounds)]
        self.tokens = token_texts(inputs["subject"].root())
        documents = read_documents(inputs["corpus"], "report")
        self.names = dict(zip(documents.document.tolist(), documents.name, strict=True))

    def written(self, latent: int) -> np.ndarray:
        """What the chosen calibrator makes of the latent's sentence at every position: [P]; its mean if not asked."""
        block = slice(latent, latent + 1)
        written_P = np.full(len(self.where), self.fitted.mean[latent], dtype=np.float32)
        said = answers(self.spoken, block, self.fitted.reading, self.centre_S)
        written_P[self.rows_S] = self.fitted.predict(said, block)[0]
        return written_P

    def silent(self, latent: int, written_P: np.ndarray) -> float:
        """What it writes where the sentence says nothing; the middle of it, should that differ between texts."""
        quiet = np.ones(len(written_P), dtype=bool)
        quiet[self.said.position[self.bounds[latent] : self.bounds[latent + 1]]] = False
        return float(np.median(written_P[quiet])) if quiet.any() else float(self.fitted.mean[latent])

    def examples(self, latent: int, written_P: np.ndarray) -> list[Example]:
        if not self.most:
            return []
        position, value = self.truth.of(latent)
        true = dict(zip(position.tolist(), value.tolist(), strict=True))
        pairs = slice(self.bounds[latent], self.bounds[latent + 1])
        level = dict(zip(self.said.position[pairs].tolist(), self.said.level[pairs].tolist(), strict=True))
        found = []
        rows = self.drawn[latent]
        if len(rows):
            spread = np.unique(np.linspace(0, len(rows) - 1, min(self.most, len(rows))).round().astype(int))
            for decile, place in zip(rows["decile"].iloc[spread], rows["position"].iloc[spread], strict=True):
                found.append(self._example(f"decile {int(decile) + 1}", int(place), true, level, written_P))
        for place in self._false_alarms(latent, true, level):
            found.append(self._example("false alarm", place, true, level, written_P))
        return found

    def _false_alarms(self, latent: int, true: dict[int, float], level: dict[int, int]) -> list[int]:
        """Where the simulator is most sure and the latent is silent, each in another window."""
        wrong = [(-said, place) for place, said in level.items() if place not in true]
        found: list[int] = []
        for _, place in sorted(wrong):
            if all(self.where.window[place] != self.where.window[other] for other in found):
                found.append(place)
            if len(found) == FALSE_ALARMS:
                break
        return found

    def _example(
        self, why: str, place: int, true: dict[int, float], level: dict[int, int], written_P: np.ndarray
    ) -> Example:
        window = int(self.where.window[place])
        first, last = int(self.starts[window]), int(self.starts[window] + self.windows.lengths[window])
        pieces: list[Piece] = []
        plain = b""
        for at in range(max(first, place - BEFORE), min(last, place + AFTER + 1)):
            token = self.tokens[int(self.where.token[at])]
            said = level.get(at, 0)
            if at not in true and not said and at != place:
                plain += token
                continue
            if plain:
                pieces.append(Piece(readable(plain)))
                plain = b""
            simulated = float(written_P[at])
            pieces.append(Piece(readable(token), true.get(at, 0.0), simulated, said, at == place))
        if plain:
            pieces.append(Piece(readable(plain)))
        said = level.get(place, 0)
        name = self.names.get(int(self.windows.document[window]), "")
        return Example(why, name, true.get(place, 0.0), float(written_P[place]), said, tuple(pieces))


def readable(token: bytes) -> str:
    """Bytes as text in which nothing is invisible."""
    return visible(token.decode("utf-8", "backslashreplace"))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
