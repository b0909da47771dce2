"""The cost table of a plan, and budgets on the command line: nothing is asked, nothing is built."""

import json
from pathlib import Path

import pytest

from nlrewrite import cli, costs, printing
from nlrewrite.costs import Questions
from nlrewrite.execution import Execution
from nlrewrite.llm.rates import Lengths, Measured, Prices
from nlrewrite.llm.shape import LLAMA_3_8B
from nlrewrite.profiles import PROFILES, Overrides, resolve
from nlrewrite.questions import PromptSpec

PUBLISHED = PROFILES["pythia-160m-transcoder"].published
EVERYTHING = [Questions(327_680_000, 32_768, 10_000)]


def by_row(found: tuple[costs.Cost, ...]) -> dict[tuple[str, str], costs.Cost]:
    return {(each.engine, each.way): each for each in found}


def test_the_published_protocol_costs_what_is_known() -> None:
    orders = ("context", "explanation")
    found = by_row(costs.rows(EVERYTHING, LLAMA_3_8B, Lengths(), orders, Prices(), (), PUBLISHED))
    known = {
        ("packed", "context first"): (522, 251, 79),
        ("packed", "explanation first"): (713, 342, 108),
        ("vllm", "context first"): (661, 317, 100),
        ("vllm", "explanation first"): (852, 409, 129),
        ("published program", "explanation first"): (1568, 752, 237),
    }
    for row, hours in known.items():
        assert [round(found[row].hours[name]) for name in ("A40", "A100", "H100")] == pytest.approx(hours, abs=1)
        assert found[row].basis == "computed" and found[row].money is None
    quoted = found["published program", "as its authors report it"]
    assert (quoted.hours, quoted.basis, quoted.tokens) == ({"A40": 5376}, "quoted", None)
    assert {each.what for each in found.values()} == {"the published protocol"}


def test_what_was_measured_is_a_row_of_its_own() -> None:
    record = Measured(
        engine="packed", model="m", device="cpu", queries=1000, prompt_tokens=30_000, seconds=10.0, money=0.5
    )
    found = costs.rows([Questions(36_000, 10, 100)], None, Lengths(), ("context",), Prices(), (record,))
    measured = found[0]
    assert (measured.basis, measured.hours, measured.tokens) == ("measured", {"cpu": 0.1}, 30 * 36_000)
    assert measured.money == pytest.approx(18) and "100 questions/s on cpu" in measured.way
    assert all(not each.hours for each in found if each.basis == "computed")  # a shape that is not known has no hours


def test_money_needs_a_price() -> None:
    prices = Prices.parse(["prompt=1", "cached=0.1", "A100=2", "H100=90"])
    found = by_row(costs.rows(EVERYTHING, LLAMA_3_8B, Lengths(), ("context",), prices))
    packed, server = found["packed", "context first"], found["server", "context first"]
    assert packed.money == pytest.approx(2 * packed.hours["A100"])
    assert server.money == pytest.approx(327.68 * (Lengths().whole - 599 + 1 + 59.9))
    assert server.tokens == 327_680_000 * Lengths().whole
    shown = printing.costs_table(tuple(found.values()))
    assert "money" in shown.splitlines()[0] and "money" not in printing.costs_table(
        costs.rows(EVERYTHING, LLAMA_3_8B, Lengths(), ("context",), Prices())
    )


def test_nothing_asked_costs_nothing() -> None:
    assert costs.rows([], LLAMA_3_8B, Lengths(), ("context",), Prices(), (), PUBLISHED) == ()


def test_few_questions_of_a_prefix_pay_for_it() -> None:
    many, few = Questions(1e6, 1000, 1000), Questions(1e6, 1000, 1e5)
    assert (many.shared_by("context"), few.shared_by("context")) == (1000, 10)
    one, other = (costs.rows([each], LLAMA_3_8B, Lengths(), ("context",), Prices())[0] for each in (many, few))
    assert other.hours["A40"] > 1.1 * one.hours["A40"]


def test_lengths_follow_the_prompt_and_the_window(tmp_path: Path) -> None:
    execution = Execution(store=str(tmp_path / "store"))
    settings = ("reader.kind=served", "reader.model=m", 'evaluate.positions=["last"]', "ask.window=100")
    spec = resolve("smoke", Overrides(settings=settings), execution)
    found = costs.lengths(spec.ask.prompt, spec.ask.window)
    assert found.context == 103 and 300 < found.instruction < 900
    assert costs.lengths(PromptSpec(), 32, words=10) == Lengths(context=35, explanation=14)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_of_the_rules_costs_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--profile", "smoke"]) == 0
    assert "questions to a language model: none, the rules cost nothing" in capsys.readouterr().out
    assert cli.main(["plan", "--profile", "smoke", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"] == []


def test_a_published_plan_shows_hours_money_and_its_own_quote(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--profile", "pythia-160m-transcoder", "--price", "H100=2"]) == 0
    shown = capsys.readouterr().out
    quoted = next(line for line in shown.splitlines() if "as its authors report it" in line)
    assert "5,376" in quoted and "327,680,000" in quoted
    packed = next(line for line in shown.splitlines() if "| packed" in line and "context first" in line)
    assert "522" in packed and " 79 " in packed and "158." in packed
    assert cli.main(["plan", "--profile", "pythia-160m-transcoder", "--json", "--set", "coder.width=1024"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not [each for each in planned["costs"] if each["basis"] == "quoted"]


def test_a_budget_becomes_settings(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--profile", "smoke-reader", "--budget", "20k queries", "--set", "tokens.limits.report=5000"]
    assert cli.main([*arguments, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    best = planned["spent"]["offers"][0]
    assert best["queries"] <= 20_000 and best["cost"] <= 20_000 and best["prompts"] < 5000
    run = [each for each in planned["costs"] if each["what"] == "this run"]
    assert run and all(each["queries"] <= 20_000 for each in run)
    assert run[0]["queries"] == pytest.approx(best["queries"], abs=1)
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "for 20,000 queries, the best first:" in shown and "taken: --set ask.contexts=cases" in shown
    assert "assumed: no gate is offered" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "10 queries"], "the least that does is"),
        (["--budget", "ten"], "a budget is an amount above 0"),
        (["--budget", "$5"], "needs prices"),
        (["--budget", "20k queries", "--set", "ask.active=5"], "--budget decides ask.active"),
        (["--budget", "20k queries", "--set", "reader.kind=rules"], "the rules answer for nothing"),
        (["--price", "lunch=12"], "a price is written as NAME=VALUE"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    store: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--profile", "smoke-reader", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_run_with_too_little_stops_before_anything_is_built(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--local", "--profile", "smoke-reader", "--budget", "10 queries"]) == 2
    assert "the least that does is" in capsys.readouterr().err
    assert not (store / "store" / "manifests").exists()


def test_a_screens_pilot_is_paid_for(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """24 questions more of each of 64 latents, in both arms; never for calibration."""
    counts: list[int] = []
    for more in ([], ["--set", "ask.screen=exit", "--set", "ask.screen_contexts=24"]):
        assert cli.main(["plan", "--profile", "smoke-reader", "--json", *more]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert planned["questions"] == planned["costs"][0]["queries"]
        counts.append(planned["questions"])
    assert counts[1] - counts[0] == 2 * 64 * 24
    arguments = ["plan", "--profile", "smoke-reader", "--budget", "30k queries", "--json"]
    prompts: list[int] = []
    for more in ([], ["--set", "ask.screen=exit", "--set", "ask.screen_contexts=24"]):
        assert cli.main([*arguments, "--set", "tokens.limits.report=5000", *more]) == 0
        found = json.loads(capsys.readouterr().out)["spent"]["offers"]
        prompts.append(next(each["prompts"] for each in found if each["settings"][1] == "ask.active=10"))
    assert prompts[0] - prompts[1] == 24
