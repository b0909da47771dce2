"""Answers of a language model about latents and contexts of one split, as files and as what calibrators read.

In: a reader, explanations, the windows of a split, and for questions by cases the true activations. Out: blocks of 64
latents (`answers-*.safetensors`: log-probabilities of the ten digits, their mass, outcomes), `contexts.safetensors`
(which position each answer is about), `outcomes.parquet` (a row a latent, with counts of its questions by outcome) and
`usage.json` (what was spent, by which engine). Invariants: every log-probability that was read is kept, so that all
that follows can be done again for nothing; an answer that is missing is NaN, never a number; the activations decide
which contexts are asked about, and no question tells them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import read as read_pairs
from nlrewrite.activations.statistics import read_latents, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.reading import DIGITS
from nlrewrite.language.template import template
from nlrewrite.llm.engine import Engine, Outcome
from nlrewrite.llm.opening import Wanted, opened, tokenizer
from nlrewrite.questions import AskSpec
from nlrewrite.simulate import expectation
from nlrewrite.simulate.ask import NOTHING, Asked, ask
from nlrewrite.simulate.drawing import at_random, by_activity
from nlrewrite.simulate.expectation import Flavour
from nlrewrite.simulate.rules import Simulated, read_sentences, shuffled
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

BLOCK = 64
"""Latents in a file: a reader of some latents fetches only theirs."""
CONTEXTS = "contexts.safetensors"


def build(spec: AskSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    sentences = read_sentences(inputs["explanations"])
    source = shuffled(sentences, spec.seed) if spec.shuffle else np.arange(len(sentences))
    where = positions(read_windows(inputs["tokens"], spec.split))
    position_LS = questions(spec, where, inputs, len(sentences))
    read = [sentences[origin] for origin in source]
    explained = np.array([bool(sentence) for sentence in read])
    closed_LS = _closed(inputs, where, position_LS) & explained[:, None] if spec.gate else None
    asked_about, context_LS = np.unique(position_LS, return_inverse=True)
    context_LS = context_LS.reshape(position_LS.shape).astype(np.int32)
    if asked_about[0] == NOTHING:
        asked_about, context_LS = asked_about[1:], context_LS - 1  # NOTHING is the smallest
    if closed_LS is not None:
        context_LS = np.where(closed_LS, NOTHING, context_LS)
    cuts = tokenizer(inputs["reader"])
    compiled = prompts(template(spec.prompt), cuts, spec.order, scored=spec.with_score, name=spec.prompt.name)
    wanted = Wanted(compiled.labels, spec.mass, top=spec.flavour == "paper_top10")
    texts = token_texts(inputs["subject"].root())

    def shown(where: Positions, chosen: np.ndarray) -> list[str]:
        contexts = (last_tokens(where, texts, position, spec.window) for position in chosen.tolist())
        return [compiled.shown(tokens, (len(tokens) - 1,)) for tokens in contexts]

    told = _scores(inputs) if spec.with_score else None
    engine, _ = opened(inputs["reader"], running.execution, wanted)
    try:
        if spec.screen != "none":
            engine = _screened(spec, engine, compiled, read, told, shown, inputs, running)
        known = shown(where, asked_about)
        asked = ask(engine, compiled, read, known, context_LS, spec.order, running.progress, running.work, told)
        about = {"engine": engine.name, **engine.about(), "usage": vars(engine.usage)}
    finally:
        engine.close()
    if spec.screen != "none":
        dropped = (context_LS != NOTHING) & (asked.outcome == Outcome.SKIPPED)
        asked = _with_closed(asked, dropped & explained[:, None])
    if closed_LS is not None:
        asked = _with_closed(asked, closed_LS)
    _write(out, asked, position_LS)
    (out / "usage.json").write_text(json.dumps(about, indent=1, default=str))
    _write_outcomes(out, asked, explained, source)


def _screened(
    spec: AskSpec,
    engine: Engine,
    compiled: Prompts,
    sentences: list[str],
    told: list[float] | None,
    shown: Callable[[Positions, np.ndarray], list[str]],
    inputs: dict[str, Folder],
    running: "Running",
) -> Engine:
    """The engine behind a screen, which a pilot on last positions of the explain split sets up."""
    from nlrewrite.simulate.sparing import behind

    where = positions(read_windows(inputs["tokens"], "explain"))
    ends = np.flatnonzero(np.diff(where.window, append=-1))
    chosen = ends[at_random(len(ends), spec.screen_contexts, seed=spec.seed)]
    asked = [latent for latent, sentence in enumerate(sentences) if sentence]
    said: list[dict[str, Any]] = [
        {"explanation": sentences[latent], **({} if told is None else {"score": told[latent]})} for latent in asked
    ]
    frequency_L = read_latents(inputs["seen"])["frequency"].to_numpy()[asked]

    def smaller() -> Engine:
        return opened(inputs["screener"], running.execution, Wanted(compiled.labels, spec.mass))[0]

    return behind(spec, engine, compiled, said, shown(where, chosen), frequency_L, smaller)


def questions(spec: AskSpec, where: Positions, inputs: dict[str, Folder], latents: int) -> np.ndarray:
    """Positions that are asked about: [1, S] where all latents have the same, else [L, S], NOTHING behind the last."""
    if spec.contexts == "last":
        return np.flatnonzero(np.diff(where.window, append=-1))[None].astype(np.int32)
    truth_PL = true_codes(read_pairs(inputs["activations"]), latents).extra_PL
    drawn = [np.sort(np.concatenate(each)) for each in by_activity(truth_PL, spec.active, spec.inactive, spec.seed)]
    position_LS = np.full((latents, max(map(len, drawn))), NOTHING, dtype=np.int32)
    for latent, each in enumerate(drawn):
        position_LS[latent, : len(each)] = each
    return position_LS


def last_tokens(where: Positions, texts: list[bytes], position: int, window: int) -> list[bytes]:
    """The tokens that a reader is shown of the context that ends at `position`, the last one included."""
    first = position - min(int(where.offset[position]), window - 1)
    return [texts[token] for token in where.token[first : position + 1].tolist()]


def _closed(inputs: dict[str, Folder], where: Positions, position_LS: np.ndarray) -> np.ndarray:
    """Which questions a latent's gate answers: there its digit is 0."""
    from nlrewrite.explain.gate import read_gates

    gates = read_gates(inputs["gates"])
    token_LS = np.broadcast_to(where.token[np.maximum(position_LS, 0)], (gates.latents, position_LS.shape[1]))
    size = 1 + max(int(where.token.max()), int(gates.token.max(initial=0)))
    opened = np.sort(gates.latent.astype(np.int64) * size + gates.token)
    asked = np.arange(gates.latents)[:, None] * size + token_LS
    at = np.minimum(np.searchsorted(opened, asked), max(len(opened) - 1, 0))
    open_LS = ~gates.there[:, None] | ((opened[at] == asked) if len(opened) else False)
    return ~open_LS & (position_LS != NOTHING)


def _with_closed(asked: Asked, closed_LS: np.ndarray) -> Asked:
    """Digit 0 for certain behind closed gates; nobody was asked, and the outcome says so."""
    logp = asked.logp.copy()
    logp[closed_LS] = -np.inf
    logp[closed_LS, 0] = 0
    mass = None if asked.logmass is None else np.where(closed_LS, np.float16(0), asked.logmass)
    top = None if asked.top is None else asked.top | closed_LS[..., None]
    return Asked(logp, mass, asked.outcome, top, asked.missing)


def _scores(inputs: dict[str, Folder]) -> list[float]:
    """The detection score of each latent; the middle one where a latent was in no quiz."""
    import pandas as pd

    score_L = pd.read_parquet(inputs["scores"].path("scores.parquet"))["detection_f1"].to_numpy()
    middle = float(np.nanmedian(score_L)) if np.isfinite(score_L).any() else 0.5
    return np.where(np.isfinite(score_L), score_L, middle).tolist()


# -- files -------------------------------------------------------------------------------------------------------------


def _write(out: Path, asked: Asked, position_LS: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"position": np.ascontiguousarray(position_LS)}, out / CONTEXTS)
    fields = {"logp": asked.logp, "logmass": asked.logmass, "outcome": asked.outcome, "missing": asked.missing}
    if asked.top is not None:
        fields["top"] = np.packbits(asked.top, axis=-1)
    for start in range(0, len(asked.logp), BLOCK):
        part = {name: value[start : start + BLOCK] for name, value in fields.items() if value is not None}
        arrays = {name: np.ascontiguousarray(value) for name, value in part.items()}
        save_file(arrays, out / f"answers-{start // BLOCK:06d}.safetensors")


def _write_outcomes(out: Path, asked: Asked, explained: np.ndarray, source: np.ndarray) -> None:
    counts = {each.name.lower(): (asked.outcome == each).sum(1).astype(np.int32) for each in Outcome}
    answered = ~np.isnan(asked.logp[..., 0]).all(1)
    outcome = np.where(~explained, "unexplained", np.where(answered, "ok", "unparseable"))
    latents = np.arange(len(explained), dtype=np.int32)
    table = {"latent": latents, "sentence_of": source.astype(np.int32), "outcome": outcome}
    write_table({**table, **counts}, out / "outcomes.parquet")


def read(folder: Folder, contexts: int) -> "Answered":
    """The answers, about a split of so many positions."""
    import pandas as pd
    from safetensors.numpy import load_file

    spec = AskSpec.model_validate(folder.manifest.spec)
    names = sorted(each.path for each in folder.manifest.files if each.path.startswith("answers-"))
    blocks = [load_file(folder.path(name)) for name in names]
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    top = np.unpackbits(arrays["top"], axis=-1, count=arrays["logp"].shape[-1]) > 0 if "top" in arrays else None
    explained = (pd.read_parquet(folder.path("outcomes.parquet"), columns=["outcome"])["outcome"] == "ok").to_numpy()
    return Answered(
        load_file(folder.path(CONTEXTS))["position"],
        Asked(arrays["logp"], arrays.get("logmass"), arrays["outcome"], top, arrays.get("missing")),
        explained,
        contexts,
        spec.flavour,
    )


# -- as what calibrators read ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """A simulation that was asked for some contexts only; the others are missing."""

    position_LS: np.ndarray
    """[1, S] or [L, S], ascending but for NOTHING."""
    asked: Asked
    explained: np.ndarray
    contexts: int
    flavour: Flavour

    @property
    def by_cases(self) -> bool:
        """Whether each latent was asked about contexts of its own."""
        return len(self.position_LS) > 1

    @property
    def rows(self) -> np.ndarray:
        """The positions that all latents were asked about, ascending."""
        if self.by_cases:
            raise SettingError("each latent was asked about contexts of its own. Use --set ask.contexts=last")
        return self.position_LS[0]

    def scores(self, latents: slice) -> np.ndarray:
        return self._spread(self.columned.scores(latents), latents)

    def digits(self, latents: slice) -> np.ndarray:
        return self._spread(self.columned.digits(latents), latents)

    def at_rows(self) -> "Columned":
        """The same with only the positions that all latents were asked about as contexts."""
        assert not self.by_cases
        return self.columned

    @cached_property
    def columned(self) -> "Columned":
        return Columned(self.asked, self.explained, self.flavour)

    def columns(self, latents: slice, context_BC: np.ndarray) -> np.ndarray:
        """The column in which each latent was asked about each of its contexts: [B, C]; it must have been."""
        position_BS = np.broadcast_to(self.position_LS, (len(self.explained), self.position_LS.shape[1]))[latents]
        order = np.where(position_BS == NOTHING, self.contexts, position_BS)
        base = np.arange(len(order))[:, None] * (self.contexts + 1)
        found = np.searchsorted((order + base).ravel(), (np.maximum(context_BC, 0) + base).ravel())
        column = found.reshape(context_BC.shape) - np.arange(len(order))[:, None] * order.shape[1]
        column = np.clip(column, 0, order.shape[1] - 1)
        right = (np.take_along_axis(order, column, axis=1) == context_BC) | (context_BC < 0)
        assert right.all(), "a case was drawn that was not asked about"
        return column

    def _spread(self, values_BS: np.ndarray, latents: slice) -> np.ndarray:
        """Columns at their positions, NaN elsewhere."""
        out = np.full((len(values_BS), self.contexts, *values_BS.shape[2:]), np.nan, dtype=np.float32)
        position_BS = self.position_LS if len(self.position_LS) == 1 else self.position_LS[latents]
        position_BS = np.broadcast_to(position_BS, values_BS.shape[:2])
        row, column = np.nonzero(position_BS != NOTHING)
        out[row, position_BS[row, column]] = values_BS[row, column]
        return out


@dataclass(frozen=True)
class Columned:
    """The answers with their columns as contexts."""

    asked: Asked
    explained: np.ndarray
    flavour: Flavour

    @property
    def contexts(self) -> int:
        return self.asked.logp.shape[1]

    def scores(self, latents: slice) -> np.ndarray:
        """Expected digit."""
        return self.digits(latents) @ np.arange(DIGITS, dtype=np.float32)

    def levels(self) -> Simulated:
        """Answers rounded to whole digits, as pairs: to look at, not to calibrate."""
        level_LS = np.rint(np.nan_to_num(self.scores(slice(None)))).astype(np.int8)
        latent, column = (each.astype(np.int32) for each in np.nonzero(level_LS > 0))
        return Simulated(latent, column, level_LS[latent, column], np.eye(DIGITS), self.explained)

    def digits(self, latents: slice) -> np.ndarray:
        asked = self.asked
        mass = None if asked.logmass is None else asked.logmass[latents]
        top = None if asked.top is None else asked.top[latents]
        return expectation.probabilities(self.flavour, asked.logp[latents], mass, top)
