"""A language model asked about the pairs of a pilot, and which of several engines answers fastest.

In: a reader, sentences, windows, and the pairs. Out: what it said, with columns as contexts, and what that took.
Invariant: the questions are those of the whole run about the same pairs, to the token; nothing else is asked.
"""

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Engine, PrefixBlock
from nlrewrite.probes.pilot_pairs import NOTHING, Pairs
from nlrewrite.questions import AskSpec
from nlrewrite.simulate.answers import Columned
from nlrewrite.simulate.ask import ask
from nlrewrite.simulate.inquiry import closed, with_closed
from nlrewrite.simulate.rules import read_sentences
from nlrewrite.text.positions import Positions, last_tokens
from nlrewrite.text.tokenizer import token_texts

if TYPE_CHECKING:
    from nlrewrite.execution import Execution
    from nlrewrite.llm.opening import Wanted
    from nlrewrite.steps import Running

ENGINES = ("packed", "vllm")
"""What may answer with digits, where nobody chose."""
TIMED = 64
"""Questions in the block that engines are timed on."""


def answered(
    spec: AskSpec, pairs: Pairs, where: Positions, inputs: Mapping[str, Folder], running: "Running"
) -> tuple[Columned, dict[str, Any]]:
    from nlrewrite.language.prompts import prompts
    from nlrewrite.language.template import template
    from nlrewrite.llm.opening import Wanted, opened, tokenizer

    plain = AskSpec()
    for name in ("with_score", "shuffle", "screen"):
        asked, least = getattr(spec, name), getattr(plain, name)
        if asked != least:
            raise SettingError(
                f"a pilot asks every question plainly: ask.{name}={json.dumps(asked)}. "
                f"For the pilot use --set ask.{name}={json.dumps(least)}"
            )
    sentences = read_sentences(inputs["explanations"])
    contexts = np.unique(pairs.context_LS[pairs.asked_LS])
    place_LS = np.where(pairs.asked_LS, np.searchsorted(contexts, pairs.context_LS), NOTHING).astype(np.int32)
    closed_LS = np.zeros(place_LS.shape, dtype=bool)
    if spec.gate:
        closed_LS = closed(inputs["gates"], where, pairs.context_LS, pairs.latent_L) & pairs.explained_L[:, None]
        place_LS = np.where(closed_LS, NOTHING, place_LS)
    cuts = tokenizer(inputs["reader"])
    compiled = prompts(template(spec.prompt), cuts, spec.order, scored=False, name=spec.prompt.name)
    texts = token_texts(inputs["subject"].root())
    windows = (last_tokens(where, texts, position, spec.window) for position in contexts.tolist())
    shown = [compiled.shown(tokens, (len(tokens) - 1,)) for tokens in windows]
    read = [sentences[latent] for latent in pairs.latent_L.tolist()]
    wanted = Wanted(compiled.labels, spec.mass, top=spec.flavour == "paper_top10")
    engine, _ = opened(inputs["reader"], running.execution, wanted)
    try:
        started = time.perf_counter()
        asked = ask(engine, compiled, read, shown, place_LS, spec.order, running.progress, running.work)
        seconds = time.perf_counter() - started
        fresh = engine.usage.queries  # what an earlier try had answered was not asked again
        spent = {"engine": engine.name, "queries": fresh, "seconds": round(seconds, 3), "usage": vars(engine.usage)}
        spent |= {"behind_gates": int(closed_LS.sum())} if spec.gate else {}
    finally:
        engine.close()
    known = [sentence for sentence in read if sentence][:TIMED]
    if running.execution.engine == "auto" and known:
        first, second = ({"context": shown[0]}, [{"explanation": each} for each in known])
        if spec.order == "explanation":
            first, second = {"explanation": known[0]}, [{"context": each} for each in shown[:TIMED]]
        suffixes = [compiled.suffix(**each) for each in second]
        block = PrefixBlock.of(compiled.prefix(**first), suffixes, compiled.labels)
        spent["seconds_each"] = timed(inputs["reader"], running.execution, wanted, block)
    return Columned(with_closed(asked, closed_LS), pairs.explained_L, spec.flavour), spent


def timed(
    reader: Folder, execution: "Execution", wanted: "Wanted", block: PrefixBlock, names: Sequence[str] = ENGINES
) -> dict[str, float]:
    """Seconds a question of every engine that is installed, each opened and closed by itself, the fastest first."""
    from nlrewrite.llm.opening import REFERENCE, opened

    seconds: dict[str, float] = {}
    about = json.loads(reader.path(REFERENCE).read_text(encoding="utf-8"))
    if about["kind"] == "served":  # by its server alone
        return seconds
    for name in names:
        if name == "vllm" and (importlib.util.find_spec("vllm") is None or execution.device == "cpu"):
            continue
        if name == "packed" and about.get("quantisation"):  # which vLLM alone runs
            continue
        engine, _ = opened(reader, execution.model_copy(update={"engine": name}), wanted)
        try:
            seconds |= faster({name: engine}, block)
        finally:
            engine.close()
    return dict(sorted(seconds.items(), key=lambda each: each[1]))


def faster(engines: Mapping[str, Engine], block: PrefixBlock, repeats: int = 2) -> dict[str, float]:
    """Seconds a question of each engine, the fastest first: the best of some repeats, after one that warms it up."""
    seconds: dict[str, float] = {}
    for name, engine in engines.items():
        engine.digits(block)
        times: list[float] = []
        for _ in range(repeats):
            started = time.perf_counter()
            engine.digits(block)
            times.append(time.perf_counter() - started)
        seconds[name] = min(times) / len(block)
    return dict(sorted(seconds.items(), key=lambda each: each[1]))
