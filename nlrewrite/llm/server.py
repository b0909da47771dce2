"""The engine that asks an OpenAI-compatible endpoint: vLLM's own server, or a provider's.

In: token ids, an address, a model's name, the tokenizer the prompts were cut with. Out: `Scores` and `Completion`s.
Invariants: an endpoint may die, hang, lie or be busy, and every question still ends with an answer or a typed outcome,
those that were answered before included; the key comes from the environment and goes into one header.

Three ways of asking, the best that works unless one is demanded: `ids` sends lists of token-id prompts, `text` their
texts, `chat` one user message each. Where the endpoint tells the labels' own log-probabilities they are exact. Where it
lists the likeliest tokens alone, labels that are not listed have logp -inf, `missing` bounds their probability, and
`logmass` is of those that were listed: the true one lies between it and log(exp(logmass) + missing).
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import TOP, Completion, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.llm.labels import Answers, Heard, heard
from nlrewrite.llm.patience import Patience
from nlrewrite.llm.probe import Probe
from nlrewrite.llm.purse import Purse
from nlrewrite.llm.rates import Prices
from nlrewrite.llm.requests import Declined, Garbled, Lost, Requests, Unaffordable
from nlrewrite.llm.wire import (
    Mode,
    Prompt,
    Told,
    Way,
    complete_body,
    digits_body,
    entries,
    told,
    written,
)
from nlrewrite.seeds import derive

log = logging.getLogger(__name__)

MODES: tuple[Mode, ...] = ("ids", "text", "chat")
FEWEST, MANY = 16, 64
"""Prompts of a request: no fewer where there are as many, so that requests are few; no more, so that little is lost."""
LONGEST_REQUEST = 1 << 16
"""Tokens of one request, which is about half a megabyte: what web servers take by default."""
LONGEST_REPLY, LONGEST_CHOICE = 1 << 20, 1 << 16
"""Bytes."""
REASONS = 8


class Server:
    """Asks an endpoint."""

    name = "server"

    def __init__(
        self,
        endpoint: str,
        model: str,
        tokenizer: Any,
        *,
        mode: Literal["auto", "ids", "text", "chat"] = "auto",
        concurrency: int = 8,
        timeout: float = 120.0,
        tries: int = 5,
        mass: bool = True,
        top: bool = False,
        batch: int = MANY,
        prices: Prices | None = None,
        limit: float | None = None,
        patience: Patience | None = None,
        seed: int = 0,
    ) -> None:
        """`top`: ranks are wanted, which only lists of the likeliest tokens tell. `batch`: most prompts of a request.
        `limit`: in the currency of `prices`. Nothing is sent before the first question.
        """
        if mode not in (*MODES, "auto"):
            raise SettingError(f"mode must be one of auto, {', '.join(MODES)}: mode={mode}. Choose one")
        if not 1 <= batch <= 4096:
            raise SettingError(f"batch must be from 1 to 4096 prompts in a request: batch={batch}. Change it")
        if not model:
            raise SettingError("an endpoint needs the name of a model. Give the one it lists under /v1/models")
        bounds = {"concurrency": concurrency, "timeout": timeout, "tries": tries, "seed": seed}
        self._requests = Requests(endpoint, replace(patience or Patience(), **bounds), Purse(prices, limit))
        self._model, self._tokenizer, self._top, self._batch = model, tokenizer, top, batch
        self._modes: tuple[Mode, ...] = MODES if mode == "auto" else (mode,)
        self._only = mode != "auto"
        self._ways: dict[str, Way] = {}
        self._probing = asyncio.Lock()
        self._served: dict[str, object] = {}
        self._names: Counter[str] = Counter()
        self._whys: Counter[str] = Counter()
        self._respelled = 0
        self.exact_mass = mass
        self.usage = Usage()

    def about(self) -> dict[str, object]:
        requests = self._requests
        about: dict[str, object] = {
            "engine": self.name,
            "endpoint": str(requests.url),
            "model": self._model,
            "served": dict(self._served),
            "answered_as": sorted(self._names)[:REASONS],
            "requests": requests.sent,
            "failed_requests": requests.failed,
            "pauses": requests.paused,
            "concurrency": requests.patience.concurrency,
            "failures": dict(self._whys.most_common(REASONS)),
        }
        for task, way in self._ways.items():
            about[task] = {
                "mode": way.mode,
                "labels": "by id" if way.named else "by text",
                "log_probabilities": "of the labels" if way.by_id else f"of the {way.top} likeliest tokens",
                "prompts_in_a_request": self._batch if way.many and way.mode != "chat" else 1,
                "tokenizer": {True: "the same", False: "another", None: "not told"}[way.same_tokenizer],
            }
        if self._respelled:
            about["prompts_cut_differently_as_text"] = self._respelled
        return about

    def digits(self, block: PrefixBlock) -> Scores:
        answers = Answers(len(block), len(block.labels))
        if len(block):
            self._timed(self._digits(block, answers))
        way = self._ways.get("digits")
        listed = way.top if way is not None and not way.by_id else 0
        scores = answers.scores(mass=self.exact_mass, listed=listed)
        self._count(scores.outcome)
        return scores

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        replies = [Completion("", Outcome.TRANSPORT, complete=False, why="not asked")] * len(prompts)
        if prompts:
            self._timed(self._complete(prompts, sampling, replies))
        self._count(np.array([reply.outcome for reply in replies], dtype=np.int8))
        return replies

    def close(self) -> None:
        self._requests.close()

    # -- labels --------------------------------------------------------------------------------------------------------

    async def _digits(self, block: PrefixBlock, answers: Answers) -> None:
        if not await self._awake():
            self._lost(answers, range(len(block)), self._requests.circuit.why)
            return
        way = await self._way("digits", block.labels)
        keys = way.keys(block.labels, [self._tokenizer.decode([label]) for label in block.labels])
        size = self._size(way, block)
        jobs = deque(list(range(start, min(start + size, len(block)))) for start in range(0, len(block), size))
        await self._side_by_side(
            [
                self._work(jobs, way, block, keys, answers)
                for _ in range(min(len(jobs), self._requests.patience.concurrency))
            ]
        )

    def _size(self, way: Way, block: PrefixBlock) -> int:
        """Questions of one request: enough for all lanes to have some, and few enough that none is too long."""
        if not way.many or way.mode == "chat":
            return 1
        share = max(FEWEST, -(-len(block) // self._requests.patience.concurrency))
        fitting = LONGEST_REQUEST // (len(block.prefix) + int(block.lengths.max()))
        return max(1, min(self._batch, share, fitting))

    async def _work(
        self, jobs: "deque[list[int]]", way: Way, block: PrefixBlock, keys: tuple[str, ...], answers: Answers
    ) -> None:
        while jobs:
            await self._some(jobs.popleft(), way, block, keys, answers)

    async def _some(
        self,
        which: list[int],
        way: Way,
        block: PrefixBlock,
        keys: tuple[str, ...],
        answers: Answers,
        tries: int | None = None,
        again: int = 1,
    ) -> None:
        """Questions of one request, which is cut in two where one of them may spoil it for the others."""
        prefix = block.prefix.tolist()
        prompts = [self._prompt(way, prefix + block.suffix(index).tolist()) for index in which]

        def read(data: bytes) -> tuple[list[Heard | str], float]:
            reply = told(data, len(which))
            return [_heard(way, choice, keys) for choice in reply.choices], self._paid(reply, tokens, len(which))

        tokens = sum(len(prefix) + int(block.lengths[index]) for index in which)
        got = await self._requests.ask(
            way.path,
            digits_body(way, self._model, prompts, block.labels),
            read,
            most=LONGEST_REPLY + LONGEST_CHOICE * len(which),
            cost=self._most_cost(way, tokens, len(which), 3 if way.mode == "chat" else 1),
            tries=tries,
        )
        if isinstance(got, Unaffordable):
            self._failed(answers, which, Outcome.SKIPPED, f"the spending limit: {got.why}")
        elif isinstance(got, Declined | Lost):
            divisible = isinstance(got, Declined) or got.perhaps_one
            if len(which) > 1 and divisible:
                half = len(which) // 2
                parts = (which[:half], which[half:])
                fewer = tries if isinstance(got, Declined) else 2
                await self._side_by_side([self._some(part, way, block, keys, answers, fewer, again) for part in parts])
            elif isinstance(got, Declined):
                self._failed(answers, which, Outcome.REFUSED, got.why)
            else:
                self._lost(answers, which, got.why)
        else:
            unusable = self._put(answers, which, got)
            if unusable and again < self._requests.patience.tries:
                chosen = [index for index, _ in unusable]
                await self._some(chosen, way, block, keys, answers, tries, again + 1)
            else:
                for index, why in unusable:
                    self._failed(answers, [index], Outcome.UNPARSEABLE, why)

    def _put(self, answers: Answers, which: list[int], got: list[Heard | str]) -> list[tuple[int, str]]:
        """Keep what was heard; the rest is told back."""
        unusable: list[tuple[int, str]] = []
        for index, each in zip(which, got, strict=True):
            if isinstance(each, str):
                unusable.append((index, each))
                continue
            answers.put(index, each)
            if not each.answered:
                self._failed(answers, [index], Outcome.UNPARSEABLE, "no label is among the tokens that were told")
        return unusable

    def _lost(self, answers: Answers, which: Sequence[int], why: str) -> None:
        self._requests.circuit.failed(why)
        self._failed(answers, which, Outcome.TRANSPORT, why)

    def _failed(self, answers: Answers, which: Sequence[int], outcome: Outcome, why: str) -> None:
        answers.outcome[list(which)] = outcome
        self._because(outcome, why, len(which))

    # -- texts ---------------------------------------------------------------------------------------------------------

    async def _complete(self, prompts: Sequence[np.ndarray], sampling: Sampling, replies: list[Completion]) -> None:
        if not await self._awake():
            why = self._requests.circuit.why
            replies[:] = [Completion("", Outcome.TRANSPORT, complete=False, why=why)] * len(prompts)
            self._because(Outcome.TRANSPORT, why, len(prompts))
            return
        special = set(self._tokenizer.all_special_ids)
        sample = [token for token in dict.fromkeys(int(each) for each in prompts[0]) if token not in special][:10]
        way = await self._way("complete", sample or [int(token) for token in prompts[0]])
        way = replace(way, many=False)
        jobs = deque(range(len(prompts)))

        async def work() -> None:
            while jobs:
                index = jobs.popleft()
                replies[index] = await self._one(way, prompts[index].tolist(), sampling)

        await self._side_by_side([work() for _ in range(min(len(jobs), self._requests.patience.concurrency))])

    async def _one(self, way: Way, ids: list[int], sampling: Sampling) -> Completion:
        name = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()
        seed = derive(sampling.seed, "complete", name) >> 32 if sampling.temperature > 0 else None

        def read(data: bytes) -> tuple[Completion, float]:
            reply = told(data, 1)
            result = self._completion(reply.choices[0])
            return result, self._paid(reply, len(ids), sampling.most)

        got = await self._requests.ask(
            way.path,
            complete_body(way, self._model, self._prompt(way, ids), sampling, seed),
            read,
            most=LONGEST_REPLY + 64 * sampling.most,
            cost=self._most_cost(way, len(ids), 1, sampling.most),
        )
        if isinstance(got, Completion):
            if got.outcome != Outcome.OK:
                self._because(got.outcome, got.why, 1)
            return got
        outcome = Outcome.REFUSED if isinstance(got, Declined) else Outcome.SKIPPED
        if isinstance(got, Lost):
            outcome = Outcome.TRANSPORT
            self._requests.circuit.failed(got.why)
        self._because(outcome, got.why, 1)
        return Completion("", outcome, complete=False, why=got.why)

    def _completion(self, choice: Any) -> Completion:
        reply = written(choice)
        text = self._requests.key.kept(reply.text or "")
        if reply.refused:
            return Completion(text, Outcome.REFUSED, complete=False, why="the provider's filter stopped it")
        if reply.text is None:
            return Completion("", Outcome.UNPARSEABLE, complete=False, why="the reply has no text")
        return Completion(text, Outcome.OK, complete=reply.reason != "length")

    # -- the endpoint --------------------------------------------------------------------------------------------------

    async def _awake(self) -> bool:
        """Whether asking makes sense; a server that counted as dead is looked at from time to time."""
        circuit = self._requests.circuit
        return not circuit.open or (circuit.due and await self._requests.alive())

    async def _way(self, task: Literal["digits", "complete"], sample: Sequence[int]) -> Way:
        async with self._probing:
            if task not in self._ways:
                probe = Probe(self._requests, self._model, self._tokenizer)
                if not self._ways:
                    self._served = await probe.listed()
                find = probe.digits if task == "digits" else probe.complete
                way = await find(self._modes, sample, self._only)
                self._ways[task] = self._ranked(way) if self._top and task == "digits" else way
                log.info("%s: %s is asked by %s", self._requests.url, self._model, self._ways[task])
            return self._ways[task]

    def _ranked(self, way: Way) -> Way:
        """`way`, asking for the likeliest tokens so that the labels' ranks are known."""
        if way.top < TOP:
            raise SettingError(f"{self._requests.url} lists the {way.top} likeliest tokens; ranks need {TOP}. Drop top")
        return replace(way, by_id=False)

    async def _side_by_side(self, works: Sequence[Coroutine[Any, Any, None]]) -> None:
        """All of them; the first that raises ends the others."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _prompt(self, way: Way, ids: list[int]) -> Prompt:
        if way.mode == "ids":
            return ids
        if way.mode == "chat":
            return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        start = self._tokenizer("")["input_ids"]
        kept = ids[len(start) :] if start and ids[: len(start)] == start else ids
        text = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self._tokenizer(text)["input_ids"] != ids:
            if not self._respelled:
                log.warning("a prompt sent as text is cut differently than it was; ask by mode=ids where that matters")
            self._respelled += 1
        return text

    # -- accounts ------------------------------------------------------------------------------------------------------

    def _timed(self, work: Coroutine[Any, Any, None]) -> None:
        started = time.perf_counter()
        try:
            self._requests.run(work)
        finally:
            self.usage.seconds += time.perf_counter() - started
            self.usage.money = self._requests.purse.spent

    def _most_cost(self, way: Way, tokens: int, prompts: int, new: int) -> float:
        """Of a request, at most; texts may be cut into more tokens there, and chats have a frame."""
        expected = tokens if way.mode == "ids" else 1.5 * tokens + 256 * prompts
        return self._requests.purse.cost(expected, new * prompts)

    def _paid(self, reply: Told, tokens: int, new: int) -> float:
        """Count what a reply has cost: as it says, else what was sent and might have come."""
        for name in reply.names:
            if len(self._names) < REASONS:
                self._names[self._requests.key.clean(name, 80)] += 1
        said = reply.tokens
        cached = said.cached if said else 0
        prompt = (said.prompt_tokens if said else tokens) - cached
        fresh = said.completion_tokens if said else new
        self.usage.prompt_tokens += prompt
        self.usage.cached_tokens += cached
        self.usage.new_tokens += fresh
        return self._requests.purse.cost(prompt, fresh, cached)

    def _because(self, outcome: Outcome, why: str, times: int) -> None:
        reason = f"{outcome.name}: {why}"
        if reason in self._whys or len(self._whys) < 16 * REASONS:
            self._whys[reason] += times

    def _count(self, outcome: np.ndarray) -> None:
        self.usage.queries += int((outcome != Outcome.SKIPPED).sum())
        for kind in outcome[outcome != Outcome.OK]:
            name = Outcome(int(kind)).name
            self.usage.failed[name] = self.usage.failed.get(name, 0) + 1


def _heard(way: Way, choice: Any, keys: tuple[str, ...]) -> Heard | str:
    try:
        return heard(entries(way, choice, keys), keys, way.top, way.by_id)
    except Garbled as fault:
        return str(fault)
