"""Budgets: how they are written, never over, monotone, honest when they are too small."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrewrite import spending
from nlrewrite.costs import Questions
from nlrewrite.errors import SettingError
from nlrewrite.evaluate import power
from nlrewrite.llm import rates
from nlrewrite.llm.rates import DEVICES
from nlrewrite.profiles import Overrides, settled
from nlrewrite.simulate import budget
from nlrewrite.simulate.budget import Budget, Latents, Screening, Terms

ALL = Latents(1000, 1.0)
HALF = Latents(500, 0.9, 40)
TERMS = Terms(prompts=5000, latents=(ALL, HALF), passed=0.05, gate_loss=0.01)


def each(questions: Questions) -> float:
    return questions.count


def with_prefixes(questions: Questions) -> float:
    """As tokens are counted: a part for every prefix."""
    return 30 * questions.count + 600 * min(questions.contexts, questions.count)


# -- how they are written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount", "unit", "device"),
    [
        ("2M queries", 2e6, "queries", ""),
        ("2,000,000 questions", 2e6, "queries", ""),
        ("5e9 tokens", 5e9, "tokens", ""),
        ("1.5 G tokens", 1.5e9, "tokens", ""),
        ("40 gpu-hours", 40, "hours", "A100"),
        ("12 h100-hours", 12, "hours", "H100"),
        ("3 CPU-hours", 3, "hours", "CPU core"),
        ("$200", 200, "money", ""),
        ("€1.5k", 1500, "money", ""),
        ("200 money", 200, "money", ""),
    ],
)
def test_budgets_are_read(text: str, amount: float, unit: str, device: str) -> None:
    assert budget.parse(text, list(DEVICES)) == Budget(amount, unit, device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "2M", "queries", "0 queries", "-3 queries", "40 tpu-hours", "$5 queries", "1e999 queries", "hours", "$"],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="a budget is an amount above 0"):
        budget.parse(text, list(DEVICES))


def test_amounts_are_told_in_the_budgets_unit() -> None:
    assert Budget(2e6, "queries").words == "2,000,000 queries"
    assert Budget(40, "hours", "A100").words == "40 A100-hours"
    assert Budget(200, "money").words == "200.00 (money)"


# -- what is offered ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.floats(1e3, 1e9),
    st.floats(1.0, 100.0),
    st.integers(10, 20_000),
    st.sampled_from([None, 0.01, 0.3]),
    st.sampled_from([each, with_prefixes]),
)
def test_never_over_and_more_never_buys_worse(
    amount: float, factor: float, prompts: int, passed: float | None, price: budget.Price
) -> None:
    terms = Terms(prompts=prompts, latents=(ALL, HALF), passed=passed, gate_loss=0.02)
    found = budget.offers(amount, terms, price)
    assert all(offer.cost <= amount for offer in found)
    assert all(offer.prompts <= prompts for offer in found)
    more = budget.offers(amount * factor, terms, price)
    assert len(more) >= len(found)
    if found:
        assert more[0].error <= found[0].error
        assert [offer.error for offer in found] == sorted(offer.error for offer in found)


@settings(deadline=None, max_examples=40)
@given(st.floats(1e3, 1e9), st.sampled_from([each, with_prefixes]))
def test_a_prompt_more_would_be_too_dear(amount: float, price: budget.Price) -> None:
    for offer in budget.offers(amount, TERMS, price):
        if offer.prompts < TERMS.prompts:
            passed = TERMS.passed if offer.gate and TERMS.passed else 1.0
            report = 2 * offer.latents.count * passed * (offer.prompts + 1)
            calibration = 2 * offer.latents.count * (offer.active + passed * offer.inactive)
            asked = Questions(calibration, 1, 2 * TERMS.contexts), Questions(report, 1, 2 * (offer.prompts + 1))
            assert sum(map(price, asked)) > amount * (1 - 1e-9)


def test_too_little_says_what_would_do() -> None:
    with pytest.raises(
        SettingError, match=r"a budget of 10 queries buys no .*: the least that does is ([0-9,]+) quer"
    ) as told:
        budget.best(Budget(10, "queries"), TERMS, each)
    least = float(str(told.value).split("the least that does is ")[1].split(" ")[0].replace(",", ""))
    assert budget.best(Budget(least, "queries"), TERMS, each).prompts >= budget.LEAST_PROMPTS
    with pytest.raises(SettingError, match="buys no"):
        budget.best(Budget(least - 1, "queries"), TERMS, each)


def test_an_offer_says_what_it_buys() -> None:
    best = budget.best(Budget(1e9, "queries"), TERMS, each)
    assert (best.prompts, best.latents, best.gate) == (5000, ALL, False)
    assert (best.active, best.inactive) == budget.CASES[-1]
    assert best.half_width == pytest.approx(1.96 * TERMS.spread / math.sqrt(5000), rel=1e-3)
    assert best.detectable == power.detectable(TERMS.spread, 5000)
    assert best.error == pytest.approx(math.hypot(TERMS.spread / math.sqrt(5000), best.calibration_loss))
    assert best.settings == ("ask.contexts=cases", "ask.active=200", "ask.inactive=800", "ask.gate=false")


def test_settings_ask_for_what_was_offered() -> None:
    (offer,) = (
        each for each in budget.offers(2e5, TERMS, each) if each.latents is HALF and each.gate and each.active == 20
    )
    spec = settled("tiny", Overrides(settings=("reader.kind=trained", 'evaluate.positions=["last"]', *offer.settings)))
    assert (spec.ask.contexts, spec.ask.active, spec.ask.inactive, spec.ask.gate) == ("cases", 20, 80, True)
    assert (spec.explain.min_active, spec.write.min_active) == (40, 40)
    assert spec.tokens.limits["report"] == offer.prompts < 5000


def test_a_gate_is_taken_when_questions_are_scarce_and_not_when_there_are_many() -> None:
    assert budget.best(Budget(5e5, "queries"), TERMS, each).gate
    assert not budget.best(Budget(5e8, "queries"), TERMS, each).gate
    blind = Terms(prompts=5000, latents=(ALL,))
    assert not any(offer.gate for offer in budget.offers(1e9, blind, each))


def test_latents_are_left_out_when_little_is_lost_by_it() -> None:
    few = Terms(prompts=5000, latents=(ALL, Latents(50, 0.999, 90)))
    assert budget.best(Budget(3e5, "queries"), few, each).latents.count == 50
    dear = Terms(prompts=5000, latents=(ALL, Latents(50, 0.1, 90)))
    assert budget.best(Budget(3e6, "queries"), dear, each).latents.count == 1000


def test_a_screening_pays_where_it_is_cheap_and_sure() -> None:
    good = Terms(prompts=50_000, latents=(ALL,), screenings=(Screening("one layer", 0.1, 0.05, 0.999),))
    best = budget.best(Budget(5e6, "queries"), good, each)
    assert best.screening is not None and best.prompts > 4 * 1e6 / 2000
    bad = Terms(prompts=50_000, latents=(ALL,), screenings=(Screening("blind", 0.9, 0.9, 0.5),))
    assert budget.best(Budget(5e6, "queries"), bad, each).screening is None


def test_calibration_loses_what_was_measured_and_less_the_more_is_asked() -> None:
    for questions, loss in budget.LOSS:
        assert budget.calibration_loss(questions) == pytest.approx(loss)
    asked = np.geomspace(1, 1e5, 60)
    losses = [budget.calibration_loss(questions) for questions in asked]
    assert losses == sorted(losses, reverse=True) and losses[0] < 1 and losses[-1] > 0
    assert budget.calibration_loss(0) == math.inf


# -- what is known -----------------------------------------------------------------------------------------------------


def test_spread_is_read_from_results() -> None:
    """A mean of 400 independent prompts with a spread of 2 has a half width of .196."""
    arm = {
        "arm": "rewritten", "fraction": 1, "explanation": "rules", "calibrator": "hurdle", "topk": "none",
        "position": "last", "gap_closed": 0.6, "gap_closed_low": 0.404, "gap_closed_high": 0.796, "n_contexts": 400,
    }  # fmt: skip
    everywhere = {**arm, "position": "all", "gap_closed": 0.7, "n_contexts": 20_000}
    head = {"explanation": "rules", "calibrator": "hurdle", "topk": "none"}
    assert budget.observed({"headline": head, "arms": [everywhere, arm]}) == pytest.approx((2.0, 0.6), rel=1e-4)
    other = {**arm, "calibrator": "none"}
    assert budget.observed({"headline": head, "arms": [other]}) is None
    assert budget.observed({"headline": head, "arms": [{**arm, "gap_closed": None}]}) is None


def test_the_curve_of_the_sample_size_probe_is_taken() -> None:
    def row(drawn: str, questions: float, gap: float, **other: str) -> dict[str, object]:
        named = {"calibrator": "hurdle", "simulator": "rules", **other}
        return {"drawn": drawn, "questions": questions, "gap_closed": gap, **named}

    rows = [
        row("random", 10_000, 0.73),
        row("by activity", 50, 0.70),
        row("by activity", 250, 0.72),
        row("by activity", 500, 0.10, calibrator="quantile-6"),
    ]
    found = spending.curve({"probes": {"sample-size": {"rows": rows}}})
    assert found is not None and [count for count, _ in found] == [50, 250]
    assert [loss for _, loss in found] == pytest.approx([0.03, 0.01])
    assert spending.curve({"probes": {}}) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 10), st.booleans()), min_size=1, max_size=60))
def test_fewer_latents_have_less_energy_and_are_those_active_most(drawn: list[tuple[int, float, bool]]) -> None:
    count, energy, there = (np.array(column) for column in zip(*drawn, strict=True))
    found = spending.frequent(count, energy, there, 1)
    assert found[0].count == there.sum() or found[0].min_active is not None
    counts, energies = [each.count for each in found], [each.energy for each in found]
    assert counts == sorted(counts, reverse=True) and energies == sorted(energies, reverse=True)
    for each_ in found:
        if each_.min_active is not None:
            assert each_.count == (there & (count >= each_.min_active)).sum()


# -- what questions cost -----------------------------------------------------------------------------------------------


def test_units_price_the_same_questions_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hours follow the tokens' arithmetic, money the hours, and a server counts whole prompts."""
    asking, spec, execution = study_of_questions(tmp_path_factory)
    some = Questions(1e6, 1000, 1000)
    prices = rates.Prices.parse(["A100=2", "H100=100"])

    def price(unit: str, device: str = "", engine: str = "packed", given: rates.Prices = prices) -> float:
        running = execution.model_copy(update={"engine": engine})
        return spending.priced(Budget(1, unit, device), spec, asking, running, given)(some)  # type: ignore[arg-type]

    assert price("queries") == 1e6
    assert price("tokens") < price("tokens", engine="vllm") < price("tokens", engine="server")
    assert price("hours", "A100") == pytest.approx(price("hours", "H100") * 989 / 312)
    assert price("money") == pytest.approx(2 * price("hours", "A100"))
    by_token = rates.Prices.parse(["prompt=3"])
    assert price("money", given=by_token) == pytest.approx(3 * (asking.lengths.whole + 1))
    with pytest.raises(SettingError, match="needs prices"):
        price("money", given=rates.Prices())


def test_measured_rates_count_before_arithmetic(tmp_path_factory: pytest.TempPathFactory) -> None:
    asking, spec, execution = study_of_questions(tmp_path_factory)
    asking.measured = (rates.Measured(engine="packed", model=asking.name, device="cpu", queries=100, seconds=50),)
    price = spending.priced(Budget(1, "hours", "CPU core"), spec, asking, execution, rates.Prices())
    assert price(Questions(7200, 1, 1)) == pytest.approx(1.0)


def study_of_questions(tmp_path_factory: pytest.TempPathFactory):
    from nlrewrite.execution import Execution
    from nlrewrite.planning import Asking, planned

    execution = Execution(store=str(tmp_path_factory.mktemp("budget") / "store"))
    spec = settled("smoke-reader", Overrides())
    return Asking(spec, execution, planned(spec, (), execution)), spec, execution
