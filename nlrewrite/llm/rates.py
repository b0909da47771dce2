"""What asking costs: arithmetic of one question by layout, hours on known devices, money, and rates that were measured.

In: the shape of a model, lengths of a prompt's parts, how much of a device's peak is reached; or `usage.json` files of
answers that are in a store. Out: FLOP, hours, money. Invariants: what is computed and what was measured are never
mixed in one number, and every number says which it is; nothing here loads a model or asks the network.

    hours = questions x FLOP of one (`shape.py`) / (utilisation x peak)
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrewrite.errors import SettingError
from nlrewrite.llm.shape import Shape

if TYPE_CHECKING:
    from nlrewrite.artifacts import Store
    from nlrewrite.questions import Order, ReaderSpec

UTILISATION = 0.5
"""Of a device's peak: an assumption wherever nothing was measured."""
USAGE = "usage.json"
ANSWERS = "answers"
"""The kind of artifact that leaves a record of its engine behind."""


# -- devices -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """What a device can do at most."""

    name: str
    peak: float
    """FLOP per second, dense bf16 on a GPU, fp32 on a CPU core."""
    bandwidth: float | None = None
    """Bytes per second of its memory."""


DEVICES: dict[str, Device] = {
    each.name: each
    for each in (
        Device("A40", 149.7e12, 0.696e12),
        Device("A100", 312e12, 2.0e12),
        Device("H100", 989e12, 3.35e12),
        Device("H200", 989e12, 4.8e12),
        Device("CPU core", 0.25e12),
    )
}
"""Published peaks; a CPU core's is the fp32 matrix product measured on one core with AVX-512."""
PLANNED = ("A40", "A100", "H100", "CPU core")
"""Devices that a plan counts hours of."""


def hours(flop: float, device: Device, utilisation: float = UTILISATION) -> float:
    """Of one device."""
    if not 0 < utilisation <= 1:
        raise SettingError(f"utilisation must lie above 0 and be at most 1: {utilisation:g}. Change it")
    return flop / (utilisation * device.peak) / 3600


# -- how a question is laid out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt's parts, as the simulator's tokenizer counts them."""

    instruction: int = 556
    context: int = 35
    """32 tokens of the subject and the marks around the last."""
    explanation: int = 20

    @property
    def whole(self) -> int:
        return self.instruction + 24 + self.explanation + self.context


@dataclass(frozen=True)
class Layout:
    """What is run for one question, in tokens: `new` behind `cached` ones, and `decoded` more."""

    new: float
    cached: float
    decoded: int = 0
    prefix: float = 0.0
    """Tokens run once for all questions that share them."""
    start: float = 0.0
    """Of the prefix, the part that all prefixes share: run once for all, if the engine keeps it."""

    def flop(self, shape: Shape, shared_by: float | None = None, levels: int = 2) -> float:
        """Of one question; with its part of the prefix if `shared_by` questions have the same.

        Three levels: the instruction is run once for all, and a prefix only adds to it.
        """
        own = shape.flop(self.new, self.cached, self.decoded)
        if shared_by is None:
            return own
        kept = self.start if levels == 3 else 0.0
        return own + shape.flop(self.prefix - kept, kept, answers=0) / max(shared_by, 1.0)

    def tokens(self, shared_by: float | None = None, levels: int = 2) -> float:
        """Tokens that one question takes through the model."""
        kept = self.start if levels == 3 else 0.0
        return self.new + self.decoded + ((self.prefix - kept) / max(shared_by, 1.0) if shared_by else 0.0)


def packed(lengths: Lengths, order: "Order") -> Layout:
    """The prefix run once, suffixes alone after it."""
    if order == "context":
        prefix = lengths.instruction + 8 + lengths.context
        return Layout(lengths.explanation + 10, prefix, prefix=prefix, start=lengths.instruction)
    prefix = lengths.instruction + 18 + lengths.explanation
    return Layout(lengths.context + 6, prefix, prefix=prefix, start=lengths.instruction)


def blockwise(lengths: Lengths, order: "Order", block: int = 16) -> Layout:
    """The same with a prefix cache of whole blocks: half a block is run again, on average."""
    exact, again = packed(lengths, order), block / 2
    return Layout(exact.new + again, exact.cached - again, prefix=exact.prefix, start=exact.start)


def one_by_one(lengths: Lengths) -> Layout:
    """The whole prompt for every question."""
    return Layout(lengths.whole, 0)


def published(lengths: Lengths, decoded: int = 4) -> Layout:
    """The published program: explanation first, contexts outer, so that the instruction alone is reused; it decodes."""
    stub = 5 if decoded else 6
    new = 7 + lengths.explanation + 11 + lengths.context + stub + 8
    return Layout(new, lengths.instruction - 8, decoded, prefix=lengths.instruction, start=lengths.instruction)


def many_at_once(shape: Shape, lengths: Lengths, count: int = 10) -> float:
    """FLOP per question with `count` latents in one prompt and a list for an answer: not exact, for comparison."""
    new = count * (lengths.explanation + 6) + 10
    return shape.flop(new, lengths.instruction + 8 + lengths.context) / count


# -- money -------------------------------------------------------------------------------------------------------------


class Prices(BaseModel):
    """What a provider asks, in any one currency. Nothing is assumed of what is not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: float | None = Field(default=None, ge=0, description="For a million tokens of prompts.")
    cached: float | None = Field(default=None, ge=0, description="For a million that the provider has cached.")
    new: float | None = Field(default=None, ge=0, description="For a million tokens of replies.")
    hour: dict[str, Annotated[float, Field(ge=0)]] = Field(default={}, description="For an hour of a device, by name.")

    @classmethod
    def parse(cls, assignments: Iterable[str]) -> "Prices":
        """From `prompt=0.15`, `A40=0.4` and the like."""
        fields: dict[str, Any] = {"hour": {}}
        names = [name for name in cls.model_fields if name != "hour"]
        for each in assignments:
            name, equals, value = (part.strip() for part in each.partition("="))
            if not equals or name not in (*names, *DEVICES):
                raise SettingError(
                    f"a price is written as NAME=VALUE with one of {', '.join((*names, *DEVICES))}: {each!r}. "
                    f"For instance --price prompt=0.15"
                )
            (fields if name in names else fields["hour"])[name] = value
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingError(
                f"the price of {first['loc'][-1]} must be a number from 0 on: {first['input']!r}. Change --price"
            ) from error

    @property
    def by_token(self) -> bool:
        return self.prompt is not None

    def of_tokens(self, prompt: float, cached: float, new: float) -> float | None:
        """Money for so many tokens; none if no price by token is given. What has no price of its own has prompts'."""
        if self.prompt is None:
            return None
        cached_price = self.prompt if self.cached is None else self.cached
        new_price = self.prompt if self.new is None else self.new
        return (prompt * self.prompt + cached * cached_price + new * new_price) / 1e6

    def of_hours(self, spent: Mapping[str, float]) -> float | None:
        """Money for the hours of the device on which they are cheapest; none if no priced device is among them."""
        found = [hours * self.hour[name] for name, hours in spent.items() if name in self.hour]
        return min(found) if found else None


# -- what was measured -------------------------------------------------------------------------------------------------


class Measured(BaseModel):
    """Questions that an engine has answered, and how long that took."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    engine: str
    model: str
    device: str
    queries: int = Field(ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    cached_tokens: int = Field(default=0, ge=0)
    new_tokens: int = Field(default=0, ge=0)
    seconds: float = Field(ge=0)
    money: float = Field(default=0.0, ge=0)

    @property
    def per_second(self) -> float:
        """Questions."""
        return self.queries / self.seconds

    @property
    def tokens_per_query(self) -> float:
        return (self.prompt_tokens + self.new_tokens) / self.queries

    def seconds_for(self, queries: float) -> float:
        return queries * self.seconds / self.queries

    def money_for(self, queries: float) -> float | None:
        return queries * self.money / self.queries if self.money else None


def recorded(engine: str, model: str, device: str, usage: Mapping[str, Any]) -> Measured | None:
    """One record; none where nothing was asked or no time was taken."""
    names = set(Measured.model_fields) - {"engine", "model", "device"}
    found = Measured(
        engine=engine, model=model, device=device, **{name: usage[name] for name in names if name in usage}
    )
    return found if found.queries and found.seconds else None


def together(records: Iterable[Measured]) -> list[Measured]:
    """One record for each engine, model and device: sums."""
    sums: dict[tuple[str, str, str], Measured] = {}
    for each in records:
        key = (each.engine, each.model, each.device)
        before = sums.get(key)
        if before is not None:
            names = ("queries", "prompt_tokens", "cached_tokens", "new_tokens", "seconds", "money")
            each = each.model_copy(update={name: getattr(before, name) + getattr(each, name) for name in names})
        sums[key] = each
    return [sums[key] for key in sorted(sums)]


def read(store: "Store") -> list[Measured]:
    """What the answers in a store took, a record for each engine, model and device."""
    found: list[Measured] = []
    for artifact in store.listed(ANSWERS):
        manifest = store.manifest(artifact)
        if manifest is None or USAGE not in {entry.path for entry in manifest.files}:
            continue
        told = json.loads(store.folder(artifact).path(USAGE).read_text(encoding="utf-8"))
        reader = manifest.inputs.get("reader")
        known = store.manifest(reader.artifact) if reader is not None else None
        if known is not None and "reader" in known.inputs:  # one that was taught further has the shape of that one
            known = store.manifest(known.inputs["reader"].artifact)
        model = named(known.spec) if known is not None else str(told.get("model", ""))
        device = str(told.get("device") or manifest.made.execution.get("device", "cpu"))
        record = recorded(str(told.get("engine", "")), model, device, told.get("usage", told))
        if record is not None:
            found.append(record)
    return together(found)


def named(reader: "Mapping[str, Any] | ReaderSpec") -> str:
    """A short name of the model that reads; equal names mean equal arithmetic."""
    fields = dict(reader) if isinstance(reader, Mapping) else reader.model_dump()
    match fields.get("kind"):
        case "trained":
            return f"trained here, {fields.get('layers', 4)} layers of {fields.get('width', 128)}"
        case "hub":
            kind = fields.get("quantisation") or fields.get("dtype") or "bfloat16"
            return f"{fields['model']} {kind}"
        case "folder":
            return f"folder {str(fields.get('content', ''))[:12]} {fields.get('dtype', 'float32')}"
        case "served":
            return f"{fields['model']} served"
        case _:
            return "rules"
