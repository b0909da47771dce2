"""From `--budget` to settings: what is known of a rewriting, what questions cost, and the offer that is taken.

In: a profile with its overrides, the execution, a budget, prices. Out: `Spent`: offers, the best first, what was
assumed, and the overrides with the best one's settings. Invariant: what decides is what the plan shows: numbers of the
store and of the last results where there are some, assumptions that are named where there are none.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nlrewrite import profiles
from nlrewrite.costs import THREE, Questions
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.llm import rates
from nlrewrite.llm.rates import DEVICES, Measured, Prices
from nlrewrite.planning import Asking, planned
from nlrewrite.profiles import Overrides
from nlrewrite.simulate import budget
from nlrewrite.simulate.budget import Budget, Latents, Offer, Price, Terms
from nlrewrite.specs import RewriteSpec

log = logging.getLogger(__name__)

SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Of the latents that have a sentence, the most frequent first: what a plan may ask about."""
DECIDED = ("ask.contexts", "ask.active", "ask.inactive", "ask.gate")
"""What a budget decides. Of report prompts and of latents it only takes fewer than the settings allow."""
CONTEXTS = 10_000
"""Contexts there are to draw from, where the text is not cut yet."""
SHOWN = 6


@dataclass(frozen=True)
class Spent:
    """What a budget is spent on."""

    budget: Budget
    offers: tuple[Offer, ...]
    """The best first; that one is taken."""
    terms: Terms
    overrides: Overrides
    """With the settings of the best."""

    @property
    def offer(self) -> Offer:
        return self.offers[0]

    def printable(self) -> dict[str, Any]:
        """The best offers as JSON."""
        shown = [
            {
                "settings": list(each.settings),
                "queries": each.queries,
                "cost": each.cost,
                "latents": each.latents.count,
                "prompts": each.prompts,
                "gate": each.gate,
                "half_width": each.half_width,
                "detectable": each.detectable,
                "calibration_loss": each.calibration_loss,
                "latents_loss": each.latents_loss,
                "gate_loss": each.gate_loss,
                "error": each.error,
            }
            for each in self.offers[:SHOWN]
        ]
        return {"budget": self.budget.words, "assumed": list(self.terms.assumed), "offers": shown}


def spend(profile: str, overrides: Overrides, execution: Execution, text: str, prices: Prices) -> Spent:
    """The best use of the budget that `text` names; a SettingError if it buys nothing, or nothing is asked."""
    given = budget.parse(text, list(DEVICES))
    set_twice = [each for each in overrides.settings if each.partition("=")[0].strip() in DECIDED]
    if set_twice:
        raise SettingError(f"--budget decides {set_twice[0].partition('=')[0]}: leave out --set {set_twice[0]}")
    spec = profiles.resolve(profile, overrides, execution)
    asking = Asking(spec, execution, planned(spec, (), execution), profiles.chosen(profile).published)
    if not asking.asks:
        raise SettingError(
            "a budget is for questions to a language model, and the rules answer for nothing. "
            "Name a model with --set reader.kind=..., or leave out --budget"
        )
    known = terms(spec, asking, _results(execution, profile))
    price = priced(given, spec, asking, execution, prices)
    best = budget.best(given, known, price)
    found = budget.offers(given.amount, known, price)
    assert found[0] == best
    for setting in best.settings:
        log.info("for %s: --set %s", given.words, setting)
    settled = overrides.model_copy(update={"settings": (*overrides.settings, *best.settings)})
    return Spent(given, tuple(found), known, settled)


# -- what is known -----------------------------------------------------------------------------------------------------


def terms(spec: RewriteSpec, asking: Asking, results: dict[str, Any] | None) -> Terms:
    prompts = asking.windows("report")
    if prompts is None:
        raise SettingError(
            "how many report prompts there are is not known before the text is cut, as a pilot cuts it: give a bound "
            "with --set tokens.limits.report=N"
        )
    assumed: list[str] = []
    seen = budget.observed(results) if results is not None else None
    if seen is None:
        assumed.append(
            f"the gap closed varies by {budget.SPREAD:g} over prompts and is {budget.GAP:g}, as on the tiny rewriting"
        )
    spread, gap = seen or (budget.SPREAD, budget.GAP)
    loss = curve(results) if results is not None else None
    if loss is None:
        assumed.append("calibration loses what it loses on the tiny rewriting, hurdle, by the rules")
    latents, windows = by_frequency(spec, asking), asking.windows("calibrate")
    if latents is None:
        assumed.append("latents are not told apart: their activations are not collected yet")
    passed = asking.passed
    if passed is None:
        assumed.append("no gate is offered: gates are not built yet")
    else:
        assumed.append("a gate loses as much of the gap as of the activations")
    return Terms(
        prompts=prompts,
        latents=latents or (Latents(asking.latents, 1.0),),
        contexts=CONTEXTS if windows is None else windows * (1 if asking.published else spec.tokens.window),
        passed=None if passed is None else passed[0],
        gate_loss=0.0 if passed is None else (1 - passed[1]) * gap,
        spread=spread,
        gap=gap,
        loss=loss or budget.LOSS,
        arms=asking.arms,
        pilot=0 if spec.ask.screen == "none" else spec.ask.screen_contexts,
        assumed=tuple(assumed),
    )


def curve(results: dict[str, Any]) -> tuple[tuple[float, float], ...] | None:
    """Gap closed that calibration loses by the questions of a latent, as the sample-size probe measured it."""
    rows = [
        row
        for row in results.get("probes", {}).get("sample-size", {}).get("rows", ())
        if row["calibrator"] == "hurdle" and row["simulator"] == "rules" and row["gap_closed"] is not None
    ]
    cases = [row for row in rows if row["drawn"] == "by activity"]
    if len(cases) < 2:
        return None
    best = max(row["gap_closed"] for row in rows)
    return tuple(sorted((row["questions"], max(best - row["gap_closed"], 1e-3)) for row in cases))


def by_frequency(spec: RewriteSpec, asking: Asking) -> tuple[Latents, ...] | None:
    """The most frequent latents in several numbers, with their share of the energy that mean ablation loses."""
    table, decoder = asking.table("activations-explain", "latents.parquet"), asking.decoder
    if table is None or decoder is None:
        return None
    count_L = table["count"].to_numpy()
    energy_L = (table["mean_square"].to_numpy(np.float64) - table["mean"].to_numpy(np.float64) ** 2) * decoder
    said = asking.table("explanations", "explanations.parquet")
    there_L = count_L >= spec.explain.min_active if said is None else (said["sentence"].str.len() > 0).to_numpy()
    return frequent(count_L, energy_L, there_L, spec.explain.min_active)


def frequent(count_L: np.ndarray, energy_L: np.ndarray, there_L: np.ndarray, least: int) -> tuple[Latents, ...]:
    """From all latents that are there to a twentieth of them, by the tokens on which they are active."""
    counts, total = np.sort(count_L[there_L])[::-1], energy_L[there_L].sum()
    if not len(counts) or total <= 0:
        return (Latents(int(there_L.sum()), 1.0),)
    found: dict[int, Latents] = {}
    for share in SHARES:
        bar = max(int(counts[max(round(share * len(counts)), 1) - 1]), least)
        kept = there_L & (count_L >= bar)
        energy = float(energy_L[kept].sum() / total)
        found.setdefault(int(kept.sum()), Latents(int(kept.sum()), energy, bar if kept.sum() < len(counts) else None))
    return tuple(found.values())


def _results(execution: Execution, profile: str) -> dict[str, Any] | None:
    path = Path(execution.runs) / profile / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# -- what questions cost -----------------------------------------------------------------------------------------------


def priced(given: Budget, spec: RewriteSpec, asking: Asking, execution: Execution, prices: Prices) -> Price:
    """Questions in the unit of the budget: by what was measured where that is possible, else by arithmetic."""
    order, lengths = spec.ask.order, asking.lengths
    layout = (rates.blockwise if execution.engine == "vllm" else rates.packed)(lengths, order)
    model = asking.model

    def flop(each: Questions) -> float:
        assert model is not None
        return each.count * layout.flop(model, each.shared_by(order), THREE)

    def hours(device: str) -> Price:
        record = _timed(asking.measured, execution.engine, device)
        if record is not None:
            return lambda each: record.seconds_for(each.count) / 3600
        if model is None:
            raise SettingError(
                f"hours of {asking.name} are not known: its shape is not, and nothing was measured. "
                f"Give --budget in queries or tokens"
            )
        return lambda each: rates.hours(flop(each), DEVICES[device])

    match given.unit:
        case "queries":
            return lambda each: each.count
        case "tokens" if execution.engine == "server":
            return lambda each: each.count * lengths.whole
        case "tokens":
            return lambda each: each.count * layout.tokens(each.shared_by(order), THREE)
        case "hours":
            return hours(given.device)
        case "money":
            return _money(prices, lengths.whole, layout.cached, {name: hours(name) for name in prices.hour})


def _money(prices: Prices, whole: int, cached: float, hours: dict[str, Price]) -> Price:
    """By the tokens of prompts where they have a price, else by hours of the cheapest device that has one."""
    if prices.by_token:
        return lambda each: prices.of_tokens(each.count * (whole - cached), each.count * cached, each.count) or 0.0
    if not hours:
        raise SettingError(
            "a budget of money needs prices: of tokens, with --price prompt=0.15 (and cached=, new=) for a million, "
            "or of an hour, with --price A100=1.5"
        )
    return lambda each: min(prices.hour[name] * price(each) for name, price in hours.items())


def _timed(measured: Sequence[Measured], engine: str, device: str) -> Measured | None:
    """A record of the same engine on the same device; a CPU's, of however many threads, stands for its core."""
    names = ("cpu",) if device == "CPU core" else (device, device.lower())
    wanted = "packed" if engine == "auto" else engine
    return next((each for each in measured if each.engine == wanted and each.device in names), None)
