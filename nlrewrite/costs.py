"""What the questions to a language model cost, engine by engine, before any is asked.

In: how many questions share how many prefixes, the shape of the model, lengths, prices, and rates that were measured
(`llm/rates.py`). Out: a `Cost` for each engine and way of asking. Invariants: a row is computed, measured or quoted and
says which; what is not known is left empty, never guessed; the rules ask no language model, and cost nothing here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nlrewrite.llm import rates
from nlrewrite.llm.rates import DEVICES, PLANNED, Layout, Lengths, Measured, Prices
from nlrewrite.llm.shape import Shape
from nlrewrite.published import Published
from nlrewrite.questions import Order, PromptSpec

CHARACTERS = 4.0
"""Of a token of an instruction: an assumption."""
MARKS = 3
"""Tokens around the last token of a context."""
THREE = 3
"""Levels of a prefix that all engines keep: what all questions share, what a block shares, what is a question's own."""


class Cost(BaseModel):
    """What asking takes, one way."""

    model_config = ConfigDict(frozen=True)

    what: Literal["this run", "the published protocol"] = "this run"
    engine: str
    way: str = Field(description="What comes first in the prompt, or where it was measured.")
    queries: int
    tokens: float | None = Field(description="Through the model; of a server, those of the prompts.")
    hours: dict[str, float] = Field(description="By device; none where the model's arithmetic is not known.")
    money: float | None = Field(description="In the currency of the prices; none without a price.")
    basis: Literal["computed", "measured", "quoted"]


@dataclass(frozen=True)
class Questions:
    """Of one step: how many, about how many latents and contexts."""

    count: float
    latents: float
    contexts: float

    def shared_by(self, order: Order) -> float:
        """Questions behind one prefix."""
        return self.count / max(min(self.contexts if order == "context" else self.latents, self.count), 1.0)


def rows(
    questions: Sequence[Questions],
    model: Shape | None,
    lengths: Lengths,
    orders: Sequence[Order],
    prices: Prices,
    measured: Iterable[Measured] = (),
    published: Published | None = None,
) -> tuple[Cost, ...]:
    """Every engine in every order, what was measured, and the published program; nothing if nothing is asked."""
    count = round(sum(each.count for each in questions))
    if not count:
        return ()
    found = [_measured(each, count) for each in measured]
    for order in orders:
        found.append(_computed("packed", rates.packed(lengths, order), order, questions, model, prices))
        found.append(_computed("vllm", rates.blockwise(lengths, order), order, questions, model, prices))
        found.append(_served(order, questions, lengths, prices))
    layout = rates.published(lengths if published is None else replace(lengths, instruction=Lengths().instruction))
    found.append(_computed("published program", layout, "explanation", questions, model, prices))
    for device, hours in (published.hours if published is not None else {}).items():
        spent = {device: hours}
        way = "as its authors report it"
        cost = Cost(
            engine="published program", way=way, queries=count, tokens=None, hours=spent, money=None, basis="quoted"
        )
        found.append(cost.model_copy(update={"money": prices.of_hours(spent)}))
    what = "this run" if published is None else "the published protocol"
    return tuple(each.model_copy(update={"what": what}) for each in found)


def _computed(
    engine: str,
    layout: Layout,
    order: Order,
    questions: Sequence[Questions],
    model: Shape | None,
    prices: Prices,
) -> Cost:
    hours: dict[str, float] = {}
    if model is not None:
        flop = sum(each.count * layout.flop(model, each.shared_by(order), THREE) for each in questions)
        hours = {name: rates.hours(flop, DEVICES[name]) for name in PLANNED}
    return Cost(
        engine=engine,
        way=f"{order} first",
        queries=round(sum(each.count for each in questions)),
        tokens=sum(each.count * layout.tokens(each.shared_by(order), THREE) for each in questions),
        hours=hours,
        money=prices.of_hours(hours),
        basis="computed",
    )


def _served(order: Order, questions: Sequence[Questions], lengths: Lengths, prices: Prices) -> Cost:
    """A provider counts whole prompts, and one token of reply; what it has cached, it may count cheaper."""
    count = sum(each.count for each in questions)
    cached = count * rates.packed(lengths, order).cached
    money = prices.of_tokens(count * lengths.whole - cached, cached, count)
    return Cost(
        engine="server",
        way=f"{order} first",
        queries=round(count),
        tokens=count * lengths.whole,
        hours={},
        money=money,
        basis="computed",
    )


def _measured(record: Measured, count: int) -> Cost:
    return Cost(
        engine=record.engine,
        way=f"{record.per_second:,.4g} questions/s on {record.device}",
        queries=count,
        tokens=count * record.tokens_per_query,
        hours={record.device: record.seconds_for(count) / 3600},
        money=record.money_for(count),
        basis="measured",
    )


def lengths(prompt: PromptSpec, window: int, words: float | None = None) -> Lengths:
    """Tokens of a prompt's parts: what the template says before the question, the window, a sentence of so many words.

    Without a template's text the published program's instruction stands for it.
    """
    explanation = Lengths().explanation if words is None else round(1.4 * words)
    if not prompt.text:
        return Lengths(context=window + MARKS, explanation=explanation)
    from nlrewrite.language.template import read

    told = read(prompt.text, prompt.name)
    said = [told.system, *(each.text for each in told.before)]
    said += [piece.format_map(shot.given) for shot in told.shots for piece in _asked(told.turn, shot.given)]
    said += [f"{told.stub}{shot.answer}{told.close}" for shot in told.shots]
    return Lengths(round(sum(map(len, said)) / CHARACTERS), window + MARKS, explanation)


def _asked(turn: Sequence[str], given: dict[str, object]) -> list[str]:
    """The pieces of a turn that a shot has something for."""
    return [piece for piece in turn if all(name in given for name in _fields(piece))]


def _fields(piece: str) -> list[str]:
    from nlrewrite.language.template import field

    return [name for name in (field(piece),) if name]


def assumptions(model: Shape | None, given: Lengths, at_most: bool) -> str:
    """What the computed rows take for granted, in one sentence."""
    parts = f"prompts of {given.instruction} + {given.context} + {given.explanation} tokens"
    bound = "at most so many questions; " if at_most else ""
    if model is None:
        return f"{bound}{parts} (instruction, context, sentence); the model's shape is not known, and so no hours are"
    return (
        f"{bound}{parts} (instruction, context, sentence), {model.layers} layers of {model.width}, "
        f"{rates.UTILISATION:.0%} of each device's peak"
    )
