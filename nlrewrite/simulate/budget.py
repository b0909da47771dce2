"""A budget of questions, tokens, hours or money, and the best that can be had for it.

In: a budget, what is known of the rewriting (`Terms`) and what questions cost in the budget's unit. Out: an `Offer`:
contexts of each latent for calibration, latents, gate, report prompts, with what that buys and the settings that ask
for it. Invariants: no offer costs more than the budget; more budget never buys a worse offer; a budget that buys
nothing says what would.

The objective: the least expected error of the gap closed that is reported, against that of asking everything:

    error^2 = standard error^2 + (lost to calibration + lost with latents + lost to the gate or to a screen)^2

The standard error is spread / sqrt(prompts). Calibration loses what `LOSS` says, measured with the hurdle on cases
drawn by activity. Latents that are left out keep their mean: their share of the energy times the gap is lost.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from nlrewrite.costs import Questions
from nlrewrite.errors import SettingError
from nlrewrite.evaluate import power

CASES = ((10, 40), (20, 80), (50, 200), (100, 400), (200, 800))
"""Active and inactive contexts of a latent that a plan may ask for."""
LEAST_PROMPTS = 100
"""Fewer prompts give no interval that can be trusted."""
LOSS = ((50, 0.025), (100, 0.018), (250, 0.011), (500, 0.006))
"""Questions of a latent, drawn by activity, and the gap closed that is lost against 10,000 random contexts: the
hurdle on what the rules say, profile tiny (docs/science.md). Oracles lose less."""
SPREAD, GAP = 1.55, 0.35
"""Where no results are: the gap closed varies so much over prompts' last positions (profile tiny: half a width of .087
with 1,210), and so much of it a simulator of AUC .95 closes. Assumptions for any other subject."""
ARMS = 2
"""The sentences, and the same sentences shuffled, which are asked as often; more where other lengths are measured."""

Unit = Literal["queries", "tokens", "hours", "money"]
_MANY = {None: 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_WRITTEN = re.compile(r"([0-9][0-9_,]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*(?:([kmgbt])(?=\s|$))?\s*([a-z0-9 -]*)")
HOURS = {"gpu": "A100", "cpu": "CPU core"}
"""Devices that hours stand for if none is named."""


@dataclass(frozen=True)
class Budget:
    amount: float
    unit: Unit
    device: str = ""
    """Of hours."""

    @property
    def words(self) -> str:
        return self.of(self.amount)

    def of(self, amount: float) -> str:
        """An amount in this budget's unit."""
        match self.unit:
            case "hours":
                return f"{amount:,.4g} {self.device}-hours"
            case "money":
                return f"{amount:,.2f} (money)"
            case _:
                return f"{math.ceil(amount):,} {self.unit}"


def parse(text: str, devices: Sequence[str]) -> Budget:
    """`2M queries`, `5e9 tokens`, `40 gpu-hours`, `12 h100-hours`, `$200`."""
    plain = text.strip().lower()
    sign = plain[:1] in ("$", "€", "£")
    found = _WRITTEN.fullmatch(plain[1:].strip() if sign else plain)
    amount = float(found[1].replace(",", "").replace("_", "")) * _MANY[found[2]] if found else 0.0
    name = "money" if sign and found and not found[3] else (found[3].strip() if found else "")
    if amount > 0 and math.isfinite(amount) and not (sign and name != "money"):
        if name in ("queries", "questions", "tokens", "money"):
            return Budget(amount, "queries" if name == "questions" else name)  # type: ignore[arg-type]
        which, dash, hours = name.rpartition("-")
        named = HOURS.get(which) or next((each for each in devices if each.lower() == which), None)
        if dash and hours in ("hours", "hour") and named is not None:
            return Budget(amount, "hours", named)
    raise SettingError(
        f"a budget is an amount above 0 of queries, tokens, hours of a device or money: {text!r}. For instance "
        f"--budget '2M queries', '5e9 tokens', '40 gpu-hours', '12 h100-hours' or '$200'"
    )


@dataclass(frozen=True)
class Latents:
    """Some of the latents: those that are active on so many tokens of the explain split."""

    count: int
    energy: float
    """Their share of the energy of all."""
    min_active: int | None = None
    """None: all that have a sentence."""


@dataclass(frozen=True)
class Screening:
    """A cheap simulator, or an early exit, before the dear one."""

    name: str
    cost: float
    """Of asking it everything, relative to asking the dear one."""
    kept: float
    recall: float


@dataclass(frozen=True)
class Terms:
    """What is known, or assumed, before anything is asked."""

    prompts: int
    """Report prompts there are."""
    latents: tuple[Latents, ...]
    """From all of them to the fewest that may be asked about."""
    contexts: int = 10_000
    """Calibration contexts there are: what they cost nothing, drawing from them is free."""
    passed: float | None = None
    """Share of the questions whose gate is open; none: not known, and no gate is offered."""
    gate_loss: float = 0.0
    """Of the gap closed."""
    spread: float = SPREAD
    gap: float = GAP
    loss: tuple[tuple[float, float], ...] = LOSS
    screenings: tuple[Screening, ...] = ()
    arms: int = ARMS
    pilot: int = 0
    """Contexts of each latent that a screen's own pilot asks about, in every arm; what it saves is not known."""
    assumed: tuple[str, ...] = field(default=(), compare=False)
    """What of this is not measured on this subject."""

    def __post_init__(self) -> None:
        assert self.latents and self.prompts > 0 and self.spread > 0


Price = Callable[[Questions], float]
"""What questions cost in the budget's unit; more of them never cost less."""


@dataclass(frozen=True)
class Offer:
    """A plan, what it costs and what it buys."""

    active: int
    inactive: int
    latents: Latents
    gate: bool
    screening: Screening | None
    prompts: int
    queries: int
    cost: float
    half_width: float
    """Of the 95% interval of the gap closed."""
    detectable: float
    """The smallest difference in gap closed that is found in 80% of such studies."""
    calibration_loss: float
    latents_loss: float
    gate_loss: float
    screening_loss: float
    error: float
    """The objective."""
    all_prompts: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """Assignments that ask for it. A screening has no setting: it is for those who call the library."""
        few = self.latents.min_active
        fewer = () if few is None else (f"explain.min_active={few}", f"write.min_active={few}")
        prompts = () if self.all_prompts else (f"tokens.limits.report={self.prompts}",)
        return (
            "ask.contexts=cases",
            f"ask.active={self.active}",
            f"ask.inactive={self.inactive}",
            f"ask.gate={str(self.gate).lower()}",
            *fewer,
            *prompts,
        )


def best(budget: Budget, terms: Terms, price: Price) -> Offer:
    """The offer with the least error; a SettingError that says what the least would cost, if there is none."""
    found = offers(budget.amount, terms, price)
    if found:
        return found[0]
    least, latents = min((_least(plan, terms, price), plan.latents.count) for plan in _plans(terms))
    raise SettingError(
        f"a budget of {budget.words} buys no rewriting with an interval: the least that does is {budget.of(least)}, "
        f"for {min(LEAST_PROMPTS, terms.prompts)} report prompts and at most {sum(CASES[0])} calibration contexts of "
        f"each of {latents} latents. "
        f"Raise --budget, or ask about fewer latents with --set explain.min_active"
    )


def offers(amount: float, terms: Terms, price: Price) -> list[Offer]:
    """Every way to use the budget with as many report prompts as it buys, the best first."""
    found = [offer for plan in _plans(terms) if (offer := _offer(amount, plan, terms, price)) is not None]
    return sorted(found, key=lambda each: (each.error, each.cost))


def calibration_loss(questions: float, curve: Sequence[tuple[float, float]] = LOSS) -> float:
    """Gap closed that is lost with so many questions of a latent: a line in logarithms, between points and beyond."""
    if questions <= 0:
        return math.inf
    points = [(math.log(count), math.log(loss)) for count, loss in sorted(curve)]
    at = math.log(questions)
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1 or (x1, y1) == points[-1]:
            return math.exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    raise AssertionError("a curve has two points")


def observed(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """Spread over prompts and gap closed of a rewriting that was measured: at its last positions, where it has them."""
    head = results.get("headline") or {}
    same = ("explanation", "calibrator", "topk")
    rows = [
        row
        for row in results.get("arms", ())
        if row["arm"] == "rewritten"
        and row["fraction"] == 1
        and row["gap_closed"] is not None
        and row.get("gap_closed_low") is not None
        and all(row.get(name) == head.get(name) for name in same)
    ]
    rows.sort(key=lambda row: row["position"] != "last")
    if not rows:
        return None
    half = (rows[0]["gap_closed_high"] - rows[0]["gap_closed_low"]) / 2
    spread = half / power.TEST * math.sqrt(rows[0]["n_contexts"])
    return (spread, rows[0]["gap_closed"]) if spread > 0 else None


# -- the plans ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    cases: tuple[int, int]
    latents: Latents
    gate: bool
    screening: Screening | None


def _plans(terms: Terms) -> Iterator[_Plan]:
    for cases in CASES:
        for latents in terms.latents:
            for gate in (False,) if terms.passed is None else (False, True):
                for screening in (None, *terms.screenings):
                    yield _Plan(cases, latents, gate, screening)


def _questions(plan: _Plan, terms: Terms, prompts: int) -> tuple[Questions, Questions]:
    """For calibration and for the report, of all arms."""
    passed = terms.passed if plan.gate and terms.passed is not None else 1.0
    active, inactive = (min(count, terms.contexts) for count in plan.cases)
    count = plan.latents.count
    return (
        Questions(terms.arms * count * (active + passed * inactive), terms.arms * count, terms.arms * terms.contexts),
        Questions(terms.arms * count * (prompts * passed + terms.pilot), terms.arms * count, terms.arms * prompts),
    )


def _cost(plan: _Plan, terms: Terms, price: Price, prompts: int) -> float:
    factor = 1.0 if plan.screening is None else plan.screening.cost + plan.screening.kept
    return factor * sum(price(each) for each in _questions(plan, terms, prompts))


def _least(plan: _Plan, terms: Terms, price: Price) -> float:
    return _cost(plan, terms, price, min(LEAST_PROMPTS, terms.prompts))


def _offer(amount: float, plan: _Plan, terms: Terms, price: Price) -> Offer | None:
    low, high = min(LEAST_PROMPTS, terms.prompts), terms.prompts
    if _cost(plan, terms, price, low) > amount:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(plan, terms, price, middle) <= amount:
            low = middle
        else:
            high = middle - 1
    asked = sum(plan.cases)
    calibration = calibration_loss(asked, terms.loss)
    latents = (1 - plan.latents.energy) * terms.gap
    gate = terms.gate_loss if plan.gate else 0.0
    screening = 0.0 if plan.screening is None else (1 - plan.screening.recall) * terms.gap
    standard_error = terms.spread / math.sqrt(low)
    return Offer(
        active=plan.cases[0],
        inactive=plan.cases[1],
        latents=plan.latents,
        gate=plan.gate,
        screening=plan.screening,
        prompts=low,
        queries=math.ceil(sum(each.count for each in _questions(plan, terms, low))),
        cost=_cost(plan, terms, price, low),
        half_width=power.TEST * standard_error,
        detectable=power.detectable(terms.spread, low),
        calibration_loss=calibration,
        latents_loss=latents,
        gate_loss=gate,
        screening_loss=screening,
        error=math.hypot(standard_error, calibration + latents + gate + screening),
        all_prompts=low == terms.prompts,
    )
