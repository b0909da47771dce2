"""What goes over the wire to an OpenAI-compatible endpoint and what comes back, checked.

In: prompts and the way an endpoint wants them; bytes of a reply. Out: JSON bodies; choices in the order of the prompts;
tokens of a position. Invariants: nothing a server sends is believed before it is checked (as many choices as
prompts, each index once, log-probabilities that are numbers from probabilities); labels are compared by token id where
ids come back and by the token's whole text elsewhere, never by a part of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrewrite.llm.engine import Sampling
from nlrewrite.llm.labels import Entries
from nlrewrite.llm.requests import Garbled

Mode = Literal["ids", "text", "chat"]
LOOK = 3
"""Tokens of a chat's reply among which the first label is looked for: it cannot be told to begin behind a bracket."""
_named = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True)
class Way:
    """How an endpoint is asked, as it was found to want it."""

    mode: Mode
    top: int = 0
    """Likeliest tokens it lists; 0: it lists none."""
    by_id: bool = False
    """It tells the log-probabilities of the token ids it is given (`logprob_token_ids`)."""
    named: bool = False
    """It writes tokens as `token_id:N`."""
    many: bool = True
    """It takes many prompts in one request."""
    most: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    same_tokenizer: bool | None = None
    """Whether its tokenizer was seen to be ours; None: it does not tell."""

    @property
    def path(self) -> str:
        return "chat/completions" if self.mode == "chat" else "completions"

    def keys(self, labels: Sequence[int], texts: Sequence[str]) -> tuple[str, ...]:
        """What the labels are called in a reply."""
        return tuple(f"token_id:{label}" for label in labels) if self.named else tuple(texts)


Prompt = list[int] | str


def digits_body(way: Way, model: str, prompts: Sequence[Prompt], labels: Sequence[int]) -> dict[str, Any]:
    """Ask for the next token's log-probabilities."""
    body = _body(way, model, prompts) | {way.most: LOOK if way.mode == "chat" else 1, "temperature": 0}
    if way.mode == "chat":
        return body | {"logprobs": True, "top_logprobs": way.top}
    body["logprobs"] = way.top
    if way.by_id:
        body["logprob_token_ids"] = [int(label) for label in labels]
    if way.named:
        body["return_tokens_as_token_ids"] = True
    return body


def complete_body(way: Way, model: str, prompt: Prompt, sampling: Sampling, seed: int | None) -> dict[str, Any]:
    body = _body(way, model, [prompt]) | {way.most: sampling.most, "temperature": sampling.temperature}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if seed is not None:
        body["seed"] = seed
    return body


def _body(way: Way, model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    if way.mode == "chat":
        (prompt,) = prompts
        return {"model": model, "messages": [{"role": "user", "content": prompt}]}
    if way.many:
        return {"model": model, "prompt": list(prompts)}
    (prompt,) = prompts
    return {"model": model, "prompt": prompt}


# -- what comes back ---------------------------------------------------------------------------------------------------


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Details(_Loose):
    cached_tokens: int | None = Field(default=None, ge=0, le=1 << 40)


class Tokens(_Loose):
    """What a reply says it has cost."""

    prompt_tokens: int = Field(ge=0, le=1 << 40)
    completion_tokens: int = Field(default=0, ge=0, le=1 << 40)
    prompt_tokens_details: _Details | None = None

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details
        return min(self.prompt_tokens, (details and details.cached_tokens) or 0)


class _Envelope(_Loose):
    choices: list[Any]
    usage: Any = None
    model: Any = None
    system_fingerprint: Any = None


class _Index(_Loose):
    index: int = 0


@dataclass(frozen=True)
class Told:
    """A reply that has a choice for every prompt."""

    choices: list[Any]
    """Unchecked, in the order of the prompts."""
    tokens: Tokens | None
    names: tuple[str, ...]
    """What the server says has answered."""


def told(data: bytes, prompts: int) -> Told:
    envelope = _checked(_Envelope, data)
    if len(envelope.choices) != prompts:
        raise Garbled(f"{len(envelope.choices)} choices for {prompts} prompts")
    order = [_checked(_Index, choice).index for choice in envelope.choices]
    if sorted(order) != list(range(prompts)):
        raise Garbled(f"the choices of {prompts} prompts are not numbered from 0 to {prompts - 1}")
    choices: list[Any] = [None] * prompts
    for index, choice in zip(order, envelope.choices, strict=True):
        choices[index] = choice
    try:
        tokens = Tokens.model_validate(envelope.usage)
    except ValidationError:
        tokens = None
    names = (envelope.model, envelope.system_fingerprint)
    return Told(choices, tokens, tuple(name for name in names if isinstance(name, str)))


def _checked(kind: Any, data: Any) -> Any:
    """`data` as `kind`; the message holds nothing of what the server sent."""
    try:
        return kind.model_validate_json(data) if isinstance(data, bytes) else kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"][:6]) or "the reply"
        fault = f"{place} is not as it must be ({first['type']})"
    raise Garbled(fault)


class _ListedLogprobs(_Loose):
    tokens: list[str] = Field(min_length=1)
    token_logprobs: list[float] = Field(min_length=1)
    top_logprobs: list[dict[str, float]] = Field(min_length=1)


class _Listed(_Loose):
    logprobs: _ListedLogprobs


class _Token(_Loose):
    token: str
    bytes: list[int] | None = None
    logprob: float

    @property
    def text(self) -> str:
        if self.bytes is None:
            return self.token
        try:
            return bytes(self.bytes).decode()
        except (ValueError, UnicodeDecodeError):
            return self.token


class _Position(_Token):
    top_logprobs: list[_Token] = Field(min_length=1)


class _Content(_Loose):
    content: list[_Position] = Field(min_length=1)


class _Said(_Loose):
    logprobs: _Content


def entries(way: Way, choice: Any, keys: Sequence[str]) -> Entries:
    """Of the position at which the answer stands."""
    if way.mode != "chat":
        listed = _checked(_Listed, choice).logprobs
        return [*listed.top_logprobs[0].items(), (listed.tokens[0], listed.token_logprobs[0])]
    positions = _checked(_Said, choice).logprobs.content[:LOOK]
    chosen = next((each for each in positions if each.text in keys), positions[0])
    return [(token.text, token.logprob) for token in (*chosen.top_logprobs, chosen)]


def is_named(name: str) -> bool:
    return _named.fullmatch(name) is not None


class _Message(_Loose):
    content: str | None = None
    refusal: str | None = None


class _Reply(_Loose):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Written:
    """One completion, as it was sent."""

    text: str | None
    reason: str
    refused: bool


def written(choice: Any) -> Written:
    reply = _checked(_Reply, choice)
    text = reply.text if reply.message is None else reply.message.content
    refusal = reply.message.refusal if reply.message is not None else None
    reason = reply.finish_reason or ""
    if reason in ("abort", "error"):
        raise Garbled("the reply was broken off by the server")
    return Written(text, reason, refused=bool(refusal) or reason == "content_filter")
