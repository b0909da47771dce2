"""Asking a language model about latents and contexts of one split: the step that fills an artifact of answers.

In: a reader, explanations, the windows of a split, and for questions by cases the true activations; gates, scores and a
smaller reader where the spec asks for them. Out: the files of `answers.py`, and `usage.json` (what was spent, by which
engine). Invariant: the activations decide which contexts are asked about, and no question tells them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import read as read_pairs
from nlrewrite.activations.statistics import read_latents
from nlrewrite.artifacts import Folder
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.template import template
from nlrewrite.llm.engine import Engine, Outcome
from nlrewrite.llm.opening import Wanted, opened, tokenizer
from nlrewrite.questions import AskSpec
from nlrewrite.simulate import answers
from nlrewrite.simulate.ask import NOTHING, Asked, ask
from nlrewrite.simulate.drawing import at_random, by_activity
from nlrewrite.simulate.rules import read_sentences, shuffled
from nlrewrite.text.positions import Positions, last_tokens, positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running


def build(spec: AskSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    for label, split in (("activations", spec.split), ("seen", "explain")):
        given = inputs[label].manifest.spec["split"] if label in inputs else split
        assert given == split, f"{label} must be of the {split} split, and is of the {given} split"
    sentences = read_sentences(inputs["explanations"])
    source = shuffled(sentences, spec.seed) if spec.shuffle else np.arange(len(sentences))
    where = positions(read_windows(inputs["tokens"], spec.split))
    position_LS = questions(spec, where, inputs, len(sentences))
    read = [sentences[origin] for origin in source]
    explained = np.array([bool(sentence) for sentence in read])
    closed_LS = closed(inputs["gates"], where, position_LS) & explained[:, None] if spec.gate else None
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

    told = _scores(inputs)[source].tolist() if spec.with_score else None
    engine, _ = opened(inputs["reader"], running.execution, wanted)
    try:
        if spec.screen != "none":
            engine = _screened(spec, engine, compiled, read, told, shown, inputs, running)
        known = shown(where, asked_about)
        asked = ask(
            engine,
            compiled,
            read,
            known,
            context_LS,
            spec.order,
            running.progress,
            running.work,
            told,
            screened=spec.screen != "none",
        )
        about = {"engine": engine.name, **engine.about(), "usage": vars(engine.usage)}
    finally:
        engine.close()
    if spec.screen != "none":
        dropped = (context_LS != NOTHING) & (asked.outcome == Outcome.SKIPPED)
        asked = with_closed(asked, dropped & explained[:, None])
    if closed_LS is not None:
        asked = with_closed(asked, closed_LS)
    answers.write(out, asked, position_LS, explained, source)
    (out / "usage.json").write_text(json.dumps(about, indent=1, default=str))


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


def closed(folder: Folder, where: Positions, position_LS: np.ndarray, latent_L: np.ndarray | None = None) -> np.ndarray:
    """Which questions a latent's gate answers: there its digit is 0. `latent_L`: of which latents; all, if none."""
    from nlrewrite.explain.gate import read_gates

    gates = read_gates(folder)
    latent_L = np.arange(gates.latents) if latent_L is None else latent_L
    token_LS = np.broadcast_to(where.token[np.maximum(position_LS, 0)], (len(latent_L), position_LS.shape[1]))
    size = 1 + max(int(where.token.max()), int(gates.token.max(initial=0)))
    opened = np.sort(gates.latent.astype(np.int64) * size + gates.token)
    asked = latent_L.astype(np.int64)[:, None] * size + token_LS
    at = np.minimum(np.searchsorted(opened, asked), max(len(opened) - 1, 0))
    open_LS = ~gates.there[latent_L, None] | ((opened[at] == asked) if len(opened) else False)
    return ~open_LS & (position_LS != NOTHING)


def with_closed(asked: Asked, closed_LS: np.ndarray) -> Asked:
    """Digit 0 for certain behind closed gates; nobody was asked, and the outcome says so."""
    logp = asked.logp.copy()
    logp[closed_LS] = -np.inf
    logp[closed_LS, 0] = 0
    mass = None if asked.logmass is None else np.where(closed_LS, np.float16(0), asked.logmass)
    top = None if asked.top is None else asked.top | closed_LS[..., None]
    return Asked(logp, mass, asked.outcome, top, asked.missing)


def _scores(inputs: dict[str, Folder]) -> np.ndarray:
    """The detection score of each latent's sentence; the middle one where a latent was in no quiz."""
    import pandas as pd

    score_L = pd.read_parquet(inputs["scores"].path("scores.parquet"))["detection_f1"].to_numpy()
    middle = float(np.nanmedian(score_L)) if np.isfinite(score_L).any() else 0.5
    return np.where(np.isfinite(score_L), score_L, middle)
