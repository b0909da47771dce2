"""What asking less saves, and what it costs: gates, cases, a cascade of two simulators, an early exit.

    python -m benchmarks.less gate cases cascade screen --store store --out less.jsonl

Every figure is one line of JSON, printed and appended to `--out`: `what`, `saved` (share of the questions, or of the
layers' arithmetic, that is not spent) and what is lost: in gap closed, paired, or in recall. `gate`, `cases` and
`cascade` ask oracles of AUC .84 and .95 about the rewriting of `--profile`; the steps they read are built where they
are missing. `screen` asks a language model: a random one, or with `--reader` the one in a Hugging Face folder, whose
prompt is that of the profile's `ask` settings.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.science import ACTIVATIONS, MODELLED, SAID, Line, Needed, finite, machine
from nlrewrite import profiles
from nlrewrite.artifacts import Folder, Store
from nlrewrite.calibrate import apply
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.explain.gate import read_gates
from nlrewrite.llm.engine import PrefixBlock
from nlrewrite.probes import panel, sample_size, upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.upstream import Chosen, Upstream
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.simulate import cascade, screen
from nlrewrite.simulate.cascade import Dropped
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.simulate.said import Said
from nlrewrite.specs import RewriteSpec, SampleSizeSpec
from nlrewrite.steps import Running

AUCS = (0.84, 0.95)
PILOT = 4000
"""Contexts from which thresholds are learned."""
CASCADES = ((0.9, 0.9), (0.9, 0.99), (0.8, 0.9), (0.7, 0.9))
"""Correlation of the cheap with the dear score, and the recall that is wanted."""
CASES = ((10, 40), (50, 200), (100, 400))
RECALLS = (0.9, 0.99)
LATENTS, CONTEXTS = 48, 400
"""Of an early exit: latents that are asked about, and contexts of each of its three draws."""
RESAMPLES = 1000
SPOKEN = {"on-calibrate": "simulation-calibrate", "simulation": "simulation-report"}
Kept = Callable[[slice], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*MEASURED, []], help="all, if none is named")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--store", default="store")
    parser.add_argument("--reader", metavar="FOLDER", help="a language model for the screen; a random one, if none")
    parser.add_argument("--latents", type=int, default=LATENTS)
    parser.add_argument("--contexts", type=int, default=CONTEXTS)
    parser.add_argument("--out", default="less.jsonl")
    given = parser.parse_args()
    for part in given.parts or list(MEASURED):
        for line in MEASURED[part](given):
            text = json.dumps(finite({**line, "machine": machine()}), allow_nan=False)
            with Path(given.out).open("a") as file:
                file.write(text + "\n")
            print(text, flush=True)


# -- what has to be there ----------------------------------------------------------------------------------------------


def settled(given: argparse.Namespace) -> tuple[RewriteSpec, Execution]:
    execution = Execution(store=given.store)
    return profiles.resolve(given.profile, Overrides(settings=tuple(given.set)), execution), execution


def built(given: argparse.Namespace, *more: str) -> tuple[dict[str, Folder], RewriteSpec, Execution]:
    """The artifacts that are read here, by the labels that probes have for them: the subject's, and `more`."""
    spec, execution = settled(given)
    store = Store(given.store, execution.scratch)
    needed = Needed(store, execution, lambda label: label in (*MODELLED, *more))
    rewrite(spec, needed)
    named = dict(zip(("explain", "calibrate", "report"), ACTIVATIONS, strict=True))
    named |= {label: label for label in ("subject", "tokens", "coder", *more)}
    found = {label: store.folder(needed.made[made]) for label, made in named.items()}
    return {**found, **{label: found[made] for label, made in SPOKEN.items() if made in found}}, spec, execution


@dataclass(frozen=True)
class Asked:
    """A simulator that is asked about some pairs alone; the others are missing, or below all that were asked about."""

    said: Said
    kept: Kept
    lowest: bool = False

    @property
    def explained(self) -> np.ndarray:
        return self.said.explained

    @property
    def contexts(self) -> int:
        return self.said.contexts

    def scores(self, latents: slice) -> np.ndarray:
        score, kept = self.said.scores(latents), self.kept(latents)
        return (cascade.lowest(score, kept) if self.lowest else np.where(kept, score, np.nan)).astype(np.float32)

    def digits(self, latents: slice) -> None:
        return None


@dataclass(frozen=True)
class Cheap:
    """A simulator that goes with a dear one, and with the truth only through it."""

    dear: Said
    correlation: float
    split: str

    def scores(self, latents: slice) -> np.ndarray:
        dear = self.dear.scores(latents)
        start, stop, _ = latents.indices(len(self.dear.explained))
        noise = [generator(0, "cheap", self.split, each).standard_normal(dear.shape[1]) for each in range(start, stop)]
        return (self.correlation * dear + np.sqrt(1 - self.correlation**2) * np.stack(noise)).astype(np.float32)


def oracles(up: Upstream, on: Chosen, auc: float) -> tuple[Heard, Heard]:
    """On the calibrate and on the report split."""
    return tuple(
        Heard(oracle(truth, up.known.magnitude, Scored.of_auc(auc), Manner(), seed=0, split=split), "own")
        for truth, split in ((on.truth_SL, "calibrate"), (up.report.truth_PL, "report"))
    )  # type: ignore[return-value]


class Arms:
    """Arms with all latents replaced, between mean ablation and the coder."""

    def __init__(self, up: Upstream) -> None:
        self.up, self.panel = up, Panel(up, Progress())
        everything = np.ones(up.latents, dtype=bool)
        self.panel.add("coder", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE, ~everything))
        self.panel.add("mean", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE))

    def add(self, name: str, predicted: Iterator[tuple[slice, np.ndarray]]) -> None:
        everything = {"all": np.ones(self.up.latents, dtype=bool)}
        self.panel.add(
            name, panel.output(predicted, self.up.report.truth_PL, self.up.dec_LE, everything).written["all"]
        )

    def told(self, pairs: dict[str, str]) -> dict[str, Line]:
        """Of each arm: gap closed, that of the one it is compared with, and what it loses, as a share of the gap."""
        figures = self.panel.measured(RESAMPLES, 0)
        whole = figures.added("mean", "coder").mean
        found = {}
        for arm, base in pairs.items():
            lost, gaps = figures.added(arm, base), [figures.gap(each, "mean", "coder") for each in (arm, base)]
            found[arm] = {
                "gap_closed": gaps[0].mean if gaps[0] else None,
                "gap_closed_asking_all": gaps[1].mean if gaps[1] else None,
                "lost": [lost.mean / whole, lost.low / whole, lost.high / whole],
            }
        return found


def filled(
    up: Upstream, predicted: Iterator[tuple[slice, np.ndarray]], kept: Kept, instead: Callable[[slice], np.ndarray]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Predictions where the simulator was asked, and something else elsewhere."""
    for block, values in predicted:
        yield block, np.where(kept(block), values, instead(block)).astype(np.float32)


def share(kept: Kept, latents: int) -> float:
    return float(np.mean([kept(block).mean() for block in upstream.in_blocks(latents, 10_000)]))


# -- the four measurements ---------------------------------------------------------------------------------------------


def measure_gate(given: argparse.Namespace) -> Iterator[Line]:
    """Ask only at tokens of the gate; elsewhere a latent has its mean activation outside the gate."""
    inputs, _, execution = built(given, "gates")
    up = upstream.read(inputs, Running(execution, Progress()))
    on, gates, everything = upstream.chosen(up.calibrate, upstream.CONTEXTS, 0), read_gates(inputs["gates"]), None
    everything = np.ones(up.latents, dtype=bool)
    on_report = cascade.behind(gates, up.report.where.token, everything)
    on_calibrate = cascade.behind(gates, up.calibrate.where.token[on.rows], everything)
    recall = on_report.recall(up.report.truth_PL)
    arms, pairs = Arms(up), {}
    truth = on.truth_SL.tocsc()
    for auc in AUCS:
        said, reported = oracles(up, on, auc)
        arms.add(f"{auc}", apply.predictions(up.fit("hurdle", said, on), reported))
        inside = up.fit("hurdle", Asked(said, lambda block: on_calibrate.open_LP[block].toarray()), on)

        def outside(block: slice) -> np.ndarray:
            shut = ~on_calibrate.open_LP[block].toarray()
            sums = (truth[:, block].toarray().T * shut).sum(1, keepdims=True)
            return sums / np.maximum(shut.sum(1, keepdims=True), 1)

        def opened(block: slice) -> np.ndarray:
            return on_report.open_LP[block].toarray()

        arms.add(f"{auc} gated", filled(up, apply.predictions(inside, reported), opened, outside))
        pairs[f"{auc} gated"] = f"{auc}"
    for arm, told in arms.told(pairs).items():
        yield {
            "what": f"gate first, oracle {arm.split()[0]}",
            "saved": 1 - on_report.kept,
            "recall": float(np.nanmean(recall)),
            "energy_recall": on_report.energy_recall(up.report.truth_PL),
            **told,
        }


def measure_cases(given: argparse.Namespace) -> Iterator[Line]:
    """Calibrate on cases drawn by activity, against all contexts that the published experiments had."""
    inputs, _, execution = built(given, *SAID)
    running = Running(execution, Progress())
    up = upstream.read(inputs, running)
    everywhere = upstream.chosen(up.calibrate, up.calibrate.count, 0)
    for auc in AUCS:
        spec = SampleSizeSpec(
            contexts=(upstream.CONTEXTS,), cases=CASES, auc=auc, calibrators=("hurdle",), resamples=RESAMPLES
        )
        asked = sample_size.simulators(spec, inputs, up, everywhere)
        asked = {name: each for name, each in asked.items() if name != "rules" or auc == AUCS[0]}
        rows = sample_size.rows(spec, up, everywhere, asked, running)
        for row in rows:
            whole = next(each for each in rows if each["drawn"] == "random" and each["simulator"] == row["simulator"])
            if row is not whole:
                yield {
                    "what": f"{row['active']} + {row['inactive']} cases, {row['simulator']}",
                    "saved": 1 - row["questions"] / whole["questions"],
                    "gap_closed": row["gap_closed"],
                    "gap_closed_asking_all": whole["gap_closed"],
                    "lost": whole["gap_closed"] - row["gap_closed"],
                }


def measure_cascade(given: argparse.Namespace) -> Iterator[Line]:
    """Ask a dear oracle of AUC .95 only where a cheap one that goes with it is above a threshold from a pilot."""
    inputs, _, execution = built(given)
    up = upstream.read(inputs, Running(execution, Progress()))
    on = upstream.chosen(up.calibrate, PILOT, 0)
    said, reported = oracles(up, on, AUCS[-1])
    arms, pairs, kept_share, recalls = Arms(up), {}, {}, {}
    rate, truth = up.known.rate, on.truth_SL.tocsc()
    for name in ("hurdle", "quantile-6"):
        arms.add(name, apply.predictions(up.fit(name, said, on), reported))
    for correlation, recall in CASCADES:
        cheap, on_report = Cheap(said, correlation, "calibrate"), Cheap(reported, correlation, "report")
        found = [
            (block, cascade.thresholds(cheap.scores(block), said.scores(block), rate[block], recall))
            for block in upstream.in_blocks(up.latents, PILOT)
        ]
        bar = np.concatenate([each for _, each in found])

        def kept(block: slice, cheap: Cheap = cheap, bar: np.ndarray = bar) -> np.ndarray:
            return cascade.keep(cheap.scores(block), bar[block])

        def kept_later(block: slice, cheap: Cheap = on_report, bar: np.ndarray = bar) -> np.ndarray:
            return cascade.keep(cheap.scores(block), bar[block])

        def dropped(block: slice, kept: Kept = kept, cheap: Cheap = cheap, later: Cheap = on_report) -> np.ndarray:
            found = Dropped.fit(cheap.scores(block), truth[:, block].toarray().T, kept(block))
            return found(later.scores(block))

        key = f"correlation {correlation:g}, recall {recall:g}"
        blocks = list(upstream.in_blocks(up.latents, up.report.count))
        kept_share[key] = share(kept_later, up.latents)
        hits = [
            (kept_later(block)[top].sum(), top.sum())
            for block in blocks
            for top in (cascade.top(reported.scores(block), rate[block]),)
        ]
        recalls[key] = float(sum(hit for hit, _ in hits) / sum(there for _, there in hits))
        inside = up.fit("hurdle", Asked(said, kept), on)
        arms.add(f"hurdle, {key}", filled(up, apply.predictions(inside, reported), kept_later, dropped))
        ranked = up.fit("quantile-6", Asked(said, kept, lowest=True), on)
        arms.add(f"quantile-6, {key}", apply.predictions(ranked, Asked(reported, kept_later, lowest=True)))
        pairs |= {f"{name}, {key}": name for name in ("hurdle", "quantile-6")}
    for arm, told in arms.told(pairs).items():
        key = arm.partition(", ")[2]
        yield {"what": f"cascade, {arm}", "saved": 1 - kept_share[key], "recall": recalls[key], **told}


# -- an early exit -----------------------------------------------------------------------------------------------------


def measure_screen(given: argparse.Namespace) -> Iterator[Line]:
    """Probes behind every layer, thresholds for a recall, and what both do in contexts they have not seen."""
    engine, draws, frequency, truth, by_prefix, name = asked_of(given)
    layers = len(engine.anatomy.layers)
    for layer in range(1, layers):
        first, second, third = (screen.pilot(engine, blocks, layer, by_prefix=by_prefix) for blocks in draws)
        for recall in RECALLS:
            found = screen.fitted(first, second, frequency, recall, layers)
            told = found.probe(third.hidden_LSD)
            kept = cascade.keep(np.where(np.isnan(third.digit_LS), np.nan, told), found.threshold_L)
            cost = screen.cost(layer, layers, float(kept.mean()))
            yield {
                "what": f"early exit behind layer {layer} of {layers}, recall {recall:g}, {name}",
                "saved": 1 - cost,
                "kept": float(kept.mean()),
                "correlation": found.probe.correlation,
                "recall": cascade.recalled(kept, third.digit_LS, frequency),
                "recall_of_true_activations": float(kept[truth].mean()) if truth is not None and truth.any() else None,
                "curve": cascade.curve(told, third.digit_LS, frequency, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
            }


def asked_of(given: argparse.Namespace) -> tuple[Any, list[list[PrefixBlock]], np.ndarray, Any, bool, str]:
    """An engine, three draws of questions, how often latents are active, where they truly are in the last draw."""
    if given.reader is None:
        return (*_at_random(given.latents, given.contexts), None, False, "random model")
    return _of_reader(given)


def _at_random(latents: int, contexts: int) -> tuple[Any, list[list[PrefixBlock]], np.ndarray]:
    from benchmarks.simulate import LABELS, VOCABULARY, model
    from nlrewrite.llm.packed import Packed

    draws = generator(0, "less")
    suffixes = [draws.integers(20, VOCABULARY, draws.integers(8, 16)).tolist() for _ in range(latents)]
    blocks = [
        [PrefixBlock.of(draws.integers(20, VOCABULARY, 24).tolist(), suffixes, LABELS) for _ in range(contexts)]
        for _ in range(3)
    ]
    return Packed(model(), None, mass=False), blocks, np.full(latents, 0.02)


def _of_reader(given: argparse.Namespace) -> tuple[Any, list[list[PrefixBlock]], np.ndarray, Any, bool, str]:
    from nlrewrite.activations.codes import true_codes
    from nlrewrite.activations.pairs import read as read_pairs
    from nlrewrite.language.prompts import prompts
    from nlrewrite.language.template import template
    from nlrewrite.llm.loading import load
    from nlrewrite.llm.packed import Packed
    from nlrewrite.simulate.rules import read_sentences
    from nlrewrite.text.positions import positions
    from nlrewrite.text.tokenizer import token_texts
    from nlrewrite.text.tokens import read_windows

    inputs, spec, execution = built(given, "explanations")
    model, tokenizer = load(Path(given.reader), execution, "float32", attention="sdpa")
    compiled = prompts(template(spec.ask.prompt), tokenizer, spec.ask.order, name=spec.ask.prompt.name)
    where, texts = positions(read_windows(inputs["tokens"], "calibrate")), token_texts(inputs["subject"].root())
    sentences = read_sentences(inputs["explanations"])
    truth_PL = true_codes(read_pairs(inputs["calibrate"]), len(sentences)).extra_PL
    there = np.array([bool(each) for each in sentences])
    active = np.asarray((truth_PL > 0).sum(0)).ravel()
    chosen = np.sort(np.argsort(-np.where(there, active, -1), kind="stable")[: given.latents])
    rows = generator(0, "less", "contexts").permutation(len(where))[: 3 * given.contexts]
    by_prefix = spec.ask.order == "explanation"
    told = [{"explanation": sentences[latent]} for latent in chosen.tolist()]
    draws = []
    for part in np.split(rows, 3):
        first_P = part - np.minimum(where.offset[part], spec.ask.window - 1)
        contexts = (
            [texts[token] for token in where.token[first : last + 1].tolist()]
            for first, last in zip(first_P.tolist(), part.tolist(), strict=True)
        )
        shown = [{"context": compiled.shown(tokens, (len(tokens) - 1,))} for tokens in contexts]
        first, last = (told, shown) if by_prefix else (shown, told)
        suffixes = [compiled.suffix(**each).tolist() for each in last]
        draws.append([PrefixBlock.of(compiled.prefix(**each).tolist(), suffixes, compiled.labels) for each in first])
    truth = (truth_PL[rows[-given.contexts :]][:, chosen].toarray() > 0).T
    frequency = active[chosen] / len(where)
    return Packed(model, tokenizer, mass=False), draws, frequency, truth, by_prefix, "reader"


MEASURED: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "gate": measure_gate,
    "cases": measure_cases,
    "cascade": measure_cascade,
    "screen": measure_screen,
}


if __name__ == "__main__":
    main()
