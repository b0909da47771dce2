"""What an endpoint can do, found out by a few tiny requests.

In: an endpoint, a model, the tokenizer that prompts were cut with. Out: a `Way` of asking. Invariants: a way that was
demanded is tried alone; token ids are sent unasked only to a server whose tokenizer was seen to be ours, since ids of
another one would be read as another text; an endpoint that cannot answer is an error with the next step.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.llm.engine import Sampling
from nlrewrite.llm.labels import Entries
from nlrewrite.llm.requests import Declined, Garbled, Lost, Requests, Unaffordable
from nlrewrite.llm.wire import (
    Mode,
    Prompt,
    Way,
    complete_body,
    digits_body,
    entries,
    is_named,
    told,
    written,
)

log = logging.getLogger(__name__)

TOPS = (20, 5)
"""Likeliest tokens that endpoints list: most servers 20, the oldest ones 5."""
MOST = 1 << 20


class Probe:
    """Tries ways of asking, the best first."""

    def __init__(self, requests: Requests, model: str, tokenizer: Any) -> None:
        self._requests, self._model, self._tokenizer = requests, model, tokenizer
        self._said: list[str] = []

    async def listed(self) -> dict[str, object]:
        """What the endpoint says of the model. Many endpoints list none, which is no fault."""

        def read(data: bytes) -> tuple[_Models | None, float]:
            try:
                return _Models.model_validate_json(data), 0.0
            except ValidationError:
                return None, 0.0

        got = await self._requests.ask("models", None, read, most=8 * MOST, strange=True)
        if isinstance(got, Lost):
            raise self._silent(got)
        if not isinstance(got, _Models):
            return {}
        clean = self._requests.key.clean
        for each in got.data:
            if each.id == self._model:
                said = {"max_model_len": each.max_model_len, "root": each.root and clean(each.root)}
                return {name: value for name, value in said.items() if value}
        names = ", ".join(clean(each.id, 60) for each in got.data[:8])
        log.warning("%s does not list the model %s; it lists %s", self._requests.url, self._model, names or "none")
        return {}

    async def digits(self, modes: Sequence[Mode], labels: Sequence[int], only: bool) -> Way:
        """A way to ask for log-probabilities. `only`: the caller demands this mode."""
        for mode in modes:
            way = await self._first(mode, labels)
            if way is not None and self._allowed(way, only):
                return way
        raise SettingError(
            f"{self._requests.url} tells no log-probabilities for {self._model} ({self._told()}). Use an engine or "
            f"endpoint that does, or ask for answers as text"
        )

    async def complete(self, modes: Sequence[Mode], sample: Sequence[int], only: bool) -> Way:
        """A way to ask for text. `sample` are token ids by which the tokenizers are compared."""
        for mode in modes:
            if mode == "ids" and not only:
                way = await self._first(mode, sample)
                if way is not None and self._allowed(way, only):
                    return way
                continue
            for way in (Way(mode, many=False), Way(mode, many=False, most="max_completion_tokens")):
                body = complete_body(way, self._model, self._prompts(way, sample)[0], Sampling(most=1), None)
                if await self._ask(way, body, lambda data: written(told(data, 1).choices[0])) is not None:
                    return way
        raise SettingError(
            f"{self._requests.url} completes nothing for {self._model} ({self._told()}). Correct --endpoint, the model "
            f"or the mode"
        )

    def _allowed(self, way: Way, only: bool) -> bool:
        if way.mode != "ids" or way.same_tokenizer:
            return True
        if way.same_tokenizer is None and only:
            log.warning("%s does not show that its tokenizer is ours; ids are sent all the same", self._requests.url)
            return True
        if only:
            raise SettingError(
                f"{self._requests.url} cuts texts differently: token ids have other texts there than in the tokenizer "
                f"given. Give the tokenizer of {self._model}, or mode=text"
            )
        self._add("its tokenizer is another one, or it does not tell")
        return False

    async def _first(self, mode: Mode, labels: Sequence[int]) -> Way | None:
        """The first way of this mode that works."""
        for way in _ways(mode):
            prompts = self._prompts(way, labels)[: 2 if way.many and mode != "chat" else 1]
            found = await self._look(way, prompts, labels)
            if found is None:
                continue
            return await self._compared(way, prompts, labels, found) if way.named else way
        return None

    async def _look(self, way: Way, prompts: Sequence[Prompt], labels: Sequence[int]) -> Entries | None:
        """The tokens of the first prompt's next position, if the endpoint tells them."""

        def read(data: bytes) -> Entries | str:
            choice = told(data, len(prompts)).choices[0]
            try:
                return entries(way, choice, ())
            except Garbled as fault:
                return f"{way.path}: {fault}"

        found = await self._ask(way, digits_body(way, self._model, prompts, labels), read)
        if isinstance(found, str):
            self._add(found)
            return None
        return found

    async def _compared(self, way: Way, prompts: Sequence[Prompt], labels: Sequence[int], found: Entries) -> Way:
        """`way` without what the endpoint ignored, and whether its tokenizer is ours."""
        names = {name for name, _ in found}
        wanted = {f"token_id:{label}" for label in labels}
        unnamed = replace(way, named=False, by_id=False)
        if not all(is_named(name) for name in names):
            return unnamed
        by_id = wanted <= names and len(names) <= len(wanted) + 1
        again = await self._look(replace(way, named=False), prompts, labels)
        same = None if again is None else self._same(names, {name.strip() for name, _ in again})
        if way.mode == "text" and not same:
            return replace(unnamed, same_tokenizer=same)
        return replace(way, by_id=by_id, same_tokenizer=same)

    def _same(self, names: set[str], texts: set[str]) -> bool | None:
        """Whether tokens that were told by id read alike in our tokenizer."""
        numbers = {int(name.partition(":")[2]) for name in names} - set(self._tokenizer.all_special_ids)
        numbers = {number for number in numbers if number < len(self._tokenizer)}  # heads may have more rows than that
        ours = {self._tokenizer.decode([number]).strip() for number in numbers}
        readable = {text for text in ours if text and "\ufffd" not in text}
        return readable <= texts if readable else None

    def _prompts(self, way: Way, labels: Sequence[int]) -> list[Prompt]:
        ids = [int(label) for label in labels][:2]
        pair = [ids, ids[::-1]]
        return list(pair) if way.mode == "ids" else [self._tokenizer.decode(each) or "0" for each in pair]

    async def _ask(self, way: Way, body: dict[str, Any], read: Any) -> Any:
        """What `read` makes of the reply; None if this endpoint does not do it so."""
        cost = self._requests.purse.cost(256, 8)
        got = await self._requests.ask(
            way.path, body, lambda data: (read(data), cost), most=MOST, cost=cost, strange=True
        )
        if isinstance(got, Lost) and not got.perhaps_one:
            raise self._silent(got)
        if isinstance(got, Unaffordable):
            raise SettingError(f"the spending limit is reached before the first question: {got.why}. Raise it")
        if isinstance(got, Declined | Lost):
            self._add(got.why)
            return None
        return got

    def _add(self, why: str) -> None:
        if why not in self._said:
            self._said.append(why)

    def _silent(self, lost: Lost) -> Unreachable:
        where = self._requests.url
        return Unreachable(f"{where} does not answer: {lost.why}. Start the server, or correct --endpoint")

    def _told(self) -> str:
        return self._requests.key.clean("; ".join(self._said[-3:]), most=400) or "it gave no reason"


def _ways(mode: Mode) -> Iterator[Way]:
    """Ways of one mode, the one that tells most first."""
    if mode == "chat":
        for top in TOPS:
            yield Way(mode, top, many=False)
            yield Way(mode, top, many=False, most="max_completion_tokens")
        return
    for many in (True, False):
        yield Way(mode, TOPS[0], by_id=True, named=True, many=many)
        for top in TOPS:
            yield Way(mode, top, many=many)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    max_model_len: int | None = None
    root: str | None = None


class _Models(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    data: list[_Model] = Field(default=[])
