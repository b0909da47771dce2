"""The ladder: from the published protocol to ours, one change a row, and what each change does to the result.

In: a subject, its coder, what the rules said, and oracles of the AUCs of `LadderSpec` that answer as language models
do: digits of a skewed scale, part of the probability on words that are no digits, a mood per context, and now and then
no answer. Out: `rows.parquet`, a row for each simulator, fraction and rung, and `summary.json`. Invariant: a rung
differs from the one before it in one thing; its effect is measured on the same windows and the same latents; a thing
that cannot matter for a simulator is in the table all the same, with an effect of 0 and the reason.

Subsets of latents are drawn for every window anew, as published; the mean ablation of the first rungs has other subsets
than the rewriting that it is compared with. An effect is the change of (rewriting - mean ablation), in nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.activations.codes import largest
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply
from nlrewrite.calibrate.cases import restricted
from nlrewrite.probes import panel, upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.predictions import Predictions, behind_gate, drawn_in, gated, output_gain, raw
from nlrewrite.probes.upstream import Chosen, Upstream
from nlrewrite.seeds import derive, generator
from nlrewrite.simulate import rules
from nlrewrite.simulate.oracle import Manner, Oracle, Scored, oracle
from nlrewrite.simulate.said import Said, Spoken
from nlrewrite.specs import LadderSpec

if TYPE_CHECKING:
    from nlrewrite.steps import Running

MOOD = 0.5
"""Standard deviation of what an oracle adds to all its answers in a context; its AUC is the one within a context."""
MANNER = Manner(mass=0.9, renormalised=False, failed=0.01)
NO_EFFECT = {"effect": 0.0, "effect_low": 0.0, "effect_high": 0.0}


@dataclass(frozen=True)
class Rung:
    """One row of the ladder, before it is measured."""

    name: str
    change: str
    values: str
    """Which predictions."""
    mixed: bool = False
    """TopK over predicted and true values together."""
    matched: bool = True
    """Mean ablation of the same latents."""
    paired: bool = True


RUNGS = (
    Rung("published", "the published program", "published", mixed=True, matched=False, paired=False),
    Rung("missing", "a failed answer is missing, not the maximum", "missing", True, False, False),
    Rung("nine", "an expected 9 is a 9, not a 0", "nine", True, False, False),
    Rung("renormalised", "the digits' probabilities add up to one", "renormalised", True, False, False),
    Rung("quantile-7", "quantile normalisation, type 7", "quantile-7", True, False, False),
    Rung("quantile-6", "quantile normalisation, type 6", "quantile-6", True, False, False),
    Rung("no TopK", "no TopK over predicted and true values", "quantile-6", False, False, False),
    Rung("matched", "mean ablation of the same latents", "quantile-6", False, True, False),
    Rung("paired", "intervals of paired differences", "quantile-6"),
    Rung("conditional mean", "the conditional mean (hurdle)", "hurdle@expected"),
    Rung("all digits", "all that the digits say, not their mean", "all digits"),
    Rung("centred", "less the mean over latents of each context", "centred"),
    Rung("gate", "only on tokens that the latent's gate names", "gate"),
    Rung("output gain", "one gain, fitted to what the latents write", "gain"),
)


@dataclass(frozen=True)
class Simulator:
    """A simulator on both splits; on the calibrate split without failures, for those would be left out of a fit."""

    name: str
    on_calibrate: Oracle | Spoken
    on_report: Oracle | Spoken
    loose: "Heard | None" = None
    """Its expected digits on the report split before they are renormalised."""
    auc: float | None = None
    inside: tuple[Spoken, Spoken] | None = None
    """What the rules say inside the gates, on both splits."""


@dataclass(frozen=True)
class Gates:
    """What the gates let pass, as simulations of level 0 and 1."""

    on_calibrate: Said
    on_report: Said


def build(spec: LadderSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    up = upstream.read(inputs, running)
    chosen = upstream.chosen(up.calibrate, upstream.CONTEXTS, spec.seed)
    gates = _gates(inputs, up, chosen)
    simulators = [rules_of(inputs, up, chosen), *(oracle_of(up, chosen, auc, spec.seed) for auc in spec.aucs)]
    table: list[dict[str, Any]] = []
    with running.progress.stage("ladder", len(simulators)) as advance:
        for simulator in simulators:
            table += rows(spec, up, chosen, simulator, gates, running)
            advance(1, simulator.name)
    summary = {
        "contexts": len(chosen.rows),
        "rate": float(up.known.rate.mean()),
        "oracles": {"mood": MOOD, "mass": MANNER.mass, "failed": MANNER.failed, "threshold": MANNER.threshold},
        "gates": gates is not None,
        "rungs": [rung.change for rung in RUNGS if gates is not None or rung.name != "gate"],
        "losers": _harmful(table),
    }
    panel.write(out, table, summary)


def rules_of(inputs: dict[str, Folder], up: Upstream, chosen: Chosen) -> Simulator:
    said = _spoken(inputs, up, chosen, "on-calibrate", "simulation")
    gated = "simulation-gated" in inputs
    return Simulator(
        "rules", *said, inside=_spoken(inputs, up, chosen, "on-calibrate-gated", "simulation-gated") if gated else None
    )


def _spoken(
    inputs: dict[str, Folder], up: Upstream, chosen: Chosen, on_calibrate: str, on_report: str
) -> tuple[Spoken, Spoken]:
    """Simulations by rules or gates, on the chosen contexts of the calibrate split and on the report split."""
    whole = Spoken(rules.read(inputs[on_calibrate]), up.calibrate.count)
    part = restricted(whole, chosen.rows)
    assert isinstance(part, Spoken)
    return part, Spoken(rules.read(inputs[on_report]), up.report.count)


def oracle_of(up: Upstream, chosen: Chosen, auc: float, seed: int) -> Simulator:
    seed = derive(seed, "ladder", f"{auc:g}") >> 31
    knows, magnitude = Scored.of_auc(auc, tau=MOOD), up.known.magnitude
    complete = replace(MANNER, failed=0.0, renormalised=True)
    on_calibrate = oracle(chosen.truth_SL, magnitude, knows, complete, seed=seed, split="calibrate")
    on_report = oracle(up.report.truth_PL, magnitude, knows, MANNER, seed=seed, split="report")
    renormalised = replace(on_report, manner=replace(MANNER, renormalised=True))
    return Simulator(f"oracle {auc:g}", on_calibrate, renormalised, Heard(on_report, "expected"), auc)


def _gates(inputs: dict[str, Folder], up: Upstream, chosen: Chosen) -> Gates | None:
    if "simulation-gate" not in inputs:
        return None
    return Gates(*_spoken(inputs, up, chosen, "on-calibrate-gate", "simulation-gate"))


def rows(
    spec: LadderSpec, up: Upstream, chosen: Chosen, simulator: Simulator, gates: Gates | None, running: "Running"
) -> list[dict[str, Any]]:
    """The ladder of one simulator at every fraction."""
    subsets = {
        fraction: tuple(
            drawn(len(up.report.windows), up.latents, fraction, spec.seed, arm) for arm in ("same", "other")
        )
        for fraction in spec.fractions
    }
    rungs = [rung for rung in RUNGS if gates is not None or rung.name != "gate"]
    measured = Panel(up, running.progress)
    measured.add("original", None)
    measured.add("coder", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE, np.zeros(up.latents, dtype=bool)))
    mean_PL = np.broadcast_to(up.mean_L.astype(np.float32), (up.report.count, up.latents))
    for fraction, (same, other) in subsets.items():
        for name, subset in (("mean", same), ("mean of others", other)):
            measured.add(f"{fraction:g} {name}", mixed(mean_PL, up, subset).written)
    evicted: dict[tuple[float, str, bool], float] = {}
    for values, predicted in _all_values(up, chosen, simulator, gates):
        values_PL = panel.dense(predicted, up.report.count, up.latents)
        for fraction, (same, _) in subsets.items():
            for with_topk in sorted({rung.mixed for rung in rungs if rung.values == values}):
                found = mixed(values_PL, up, same, up.coder.k if with_topk else None)
                evicted[fraction, values, with_topk] = found.evicted
                measured.add(f"{fraction:g} {values}{' mixed' if with_topk else ''}", found.written)
        del values_PL
    figures = measured.measured(spec.resamples, spec.seed)
    table = []
    for fraction in spec.fractions:
        before: tuple[str, str] | None = None
        for place, rung in enumerate(rungs):
            arm = f"{fraction:g} {rung.values}{' mixed' if rung.mixed else ''}"
            floor = f"{fraction:g} {'mean' if rung.matched else 'mean of others'}"
            above = figures.added(arm, floor) if rung.paired else figures.unpaired(arm, floor)
            same = before == (arm, floor)
            effect = figures.change(arm, floor, *before) if before is not None and not same else None
            table.append(
                {
                    "simulator": simulator.name,
                    "auc": simulator.auc,
                    "fraction": fraction,
                    "rung": place,
                    "name": rung.name,
                    "change": rung.change,
                    **panel.columns("delta_ce", figures.added(arm, "original")),
                    **panel.columns("kl", figures.divergence(arm)),
                    **panel.columns("gap_closed", figures.gap(arm, floor, "coder")),
                    **panel.columns("above_mean", above),
                    "above_mean_error": (above.high - above.low) / 2,
                    **(panel.columns("effect", effect) if effect else NO_EFFECT),
                    "evicted": evicted.get((fraction, rung.values, rung.mixed), 0.0),
                    "note": why_nothing(rung, simulator, fraction),
                }
            )
            before = (arm, floor)
    return table


def _all_values(
    up: Upstream, chosen: Chosen, simulator: Simulator, gates: Gates | None
) -> Iterator[tuple[str, Predictions]]:
    """All predictions that the rungs need, one after the other."""
    digits = Heard(simulator.on_report, "expected")
    largest_L, mean_L = up.known.largest, up.mean_L
    loose = simulator.loose or digits
    yield "published", raw(loose, largest_L, mean_L, failed="largest", nine=False)
    yield "missing", raw(loose, largest_L, mean_L, nine=False)
    yield "nine", raw(loose, largest_L, mean_L)
    yield "renormalised", raw(digits, largest_L, mean_L)

    on_digits = Heard(simulator.on_calibrate, "expected")

    for name in ("quantile-7", "quantile-6"):
        yield name, apply.predictions(up.fit(name, on_digits, chosen), digits)
    yield "hurdle@expected", apply.predictions(up.fit("hurdle", on_digits, chosen), digits)
    if simulator.name == "rules":
        yield from _rules_values(up, chosen, simulator)
    else:
        yield from _oracle_values(up, chosen, simulator, gates)


def _rules_values(up: Upstream, chosen: Chosen, simulator: Simulator) -> Iterator[tuple[str, Predictions]]:
    """Of a few levels, each of which has a value of its own; inside a gate the sentence says them anew."""
    on_calibrate, on_report = simulator.on_calibrate, simulator.on_report
    fitted = up.fit("levels", on_calibrate, chosen)
    for name in ("all digits", "centred"):  # a reader of rules has no moods: there is nothing to take off
        yield name, apply.predictions(fitted, on_report)
    if simulator.inside is not None:
        on_calibrate, on_report = simulator.inside
        fitted = up.fit("levels", on_calibrate, chosen)
        yield "gate", apply.predictions(fitted, on_report)
    gain = output_gain(apply.predictions(fitted, on_calibrate), up.mean_L, chosen.truth_SL, up.dec_LE)
    yield "gain", drawn_in(apply.predictions(fitted, on_report), up.mean_L, gain)


def _oracle_values(
    up: Upstream, chosen: Chosen, simulator: Simulator, gates: Gates | None
) -> Iterator[tuple[str, Predictions]]:
    """Of the log-odds that the digit is not 0, which is where an oracle's digits know what it knows."""
    on_odds, odds = Heard(simulator.on_calibrate, "log-odds"), Heard(simulator.on_report, "log-odds")
    yield "all digits", apply.predictions(up.fit("hurdle", on_odds, chosen), odds)
    last = up.fit("hurdle@centred", on_odds, chosen)
    yield "centred", apply.predictions(last, odds)
    behind = behind_gate(last, on_odds, gates.on_calibrate, chosen.truth_SL) if gates else None

    def final(said: Said, passing: Said | None) -> Predictions:
        return gated(behind, said, passing) if passing and behind else apply.predictions(last, said)

    if gates is not None:
        yield "gate", final(odds, gates.on_report)
    gain = output_gain(final(on_odds, gates and gates.on_calibrate), up.mean_L, chosen.truth_SL, up.dec_LE)
    yield "gain", drawn_in(final(odds, gates and gates.on_report), up.mean_L, gain)


def why_nothing(rung: Rung, simulator: Simulator, fraction: float) -> str:
    """Why a change cannot matter here; empty if it can."""
    if rung.name == "paired":
        return "the interval alone changes"
    if rung.name == "matched" and fraction == 1:
        return "all latents are replaced, so that there are no others"
    if simulator.name == "rules" and rung.name in ("missing", "renormalised"):
        return "a reader of rules always answers, and its digits add up to one"
    if simulator.name == "rules" and rung.name == "centred":
        return "a reader of rules has no moods: what it says of a latent does not depend on others"
    if rung.name == "nine":
        return "it takes certainty: no distribution over digits has an expected 9 otherwise"
    return ""


# -- mixing -----------------------------------------------------------------------------------------------------------


def drawn(windows: int, latents: int, fraction: float, seed: int, arm: str) -> np.ndarray:
    """For every window a random subset of the latents: masks [W, L]."""
    count = max(1, round(fraction * latents))
    masks = np.zeros((windows, latents), dtype=bool)
    if count == latents:
        return ~masks
    draws = generator(seed, "ladder", "subset", arm, f"{fraction:g}")
    for window in range(windows):
        masks[window, draws.permutation(latents)[:count]] = True
    return masks


@dataclass(frozen=True)
class Mixed:
    written: np.ndarray
    evicted: float
    """Share of the true activations outside the subset that a TopK over all drove out."""


def mixed(values_PL: np.ndarray, up: Upstream, masks_WL: np.ndarray, k: int | None = None) -> Mixed:
    """Predictions for the latents of each window's mask, true values for the others; then, with `k`, a TopK of all."""
    truth, window, count = up.report.truth_PL, up.report.where.window, up.report.count
    written = np.empty((count, up.dec_LE.shape[1]), dtype=np.float32)
    kept, there = 0, 0
    rows = max(1, upstream.PREDICTED_AT_ONCE // up.latents)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        mask, true = masks_WL[window[part]], truth[part].toarray()
        values = np.where(mask, values_PL[part], true)
        if k is not None and k < up.latents:
            stays, outside = largest(values, k), ~mask & (true > 0)
            there += int(outside.sum())
            kept += int((outside & stays).sum())
            values = np.where(stays, values, 0)
        written[part] = values @ up.dec_LE
    return Mixed(written, 1 - kept / there if there else 0.0)


def _harmful(table: list[dict[str, Any]]) -> list[str]:
    """Rungs that made a result worse, with certainty: told, not hidden."""
    return [
        f"{row['simulator']}, fraction {row['fraction']:g}: {row['change']}"
        for row in table
        if row["effect_low"] is not None and row["effect_low"] > 0
    ]
