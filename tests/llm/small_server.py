"""A real server with an OpenAI-compatible face over sockets, which misbehaves on demand.

What it says comes from `predict`, a function from token ids to the log-probabilities of all tokens: a model, or for
tests about manners a cheap function of the ids. `habits` are what it can and cannot do; `script` holds what it does to
the next requests, one entry each, before it is well again.
"""

import contextlib
import hashlib
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Predict = Callable[[list[int]], list[float]]
VOCABULARY = 64


def cheap(ids: Sequence[int]) -> list[float]:
    """Log-probabilities of VOCABULARY tokens that depend on all ids and on their order."""
    seed = hashlib.sha256(json.dumps([int(each) for each in ids]).encode()).digest() * 2
    raw = [byte / 32 for byte in seed]
    total = math.log(sum(math.exp(value) for value in raw))
    return [value - total for value in raw]


@dataclass
class Habits:
    ids: bool = True
    """Takes prompts that are lists of token ids."""
    lists: bool = True
    """Takes many prompts in one request."""
    labels: bool = True
    """Honours logprob_token_ids and return_tokens_as_token_ids."""
    strict: bool = False
    """Refuses fields it does not know, these two among them if it does not honour them."""
    most_top: int = 20
    completions: bool = True
    chat: bool = True
    logprobs: bool = True
    most_tokens: str = "max_tokens"
    opening: str = ""
    """A token that its chats begin with before they answer."""
    key: str = ""
    """The key it wants, if any."""
    model: str = "small"
    longest: int = 4096
    slow: float = 0.0
    """Seconds it takes to answer."""
    text: str | None = None
    """What completions say, if it is fixed."""
    finish: str = "stop"
    usage: bool = True


@dataclass
class Seen:
    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompts(self) -> list[Any]:
        if "prompt" not in self.body:
            return [each["content"] for each in self.body.get("messages", [])]
        prompt = self.body["prompt"]
        return prompt if isinstance(prompt, list) and isinstance(prompt[0], list | str) else [prompt]


@dataclass(repr=False)
class Small:
    """The server, as tests see it."""

    tokenizer: Any
    predict: Predict = cheap
    habits: Habits = field(default_factory=Habits)
    script: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    spoil: Callable[[list[Any], dict[str, Any]], dict[str, Any] | None] | None = None
    """Changes a good reply, given the prompts; None: the server breaks down over them."""
    refuse: Callable[[list[Any]], Any] | None = None
    """A status, or a status and headers, instead of a reply to these prompts."""
    flying: int = 0
    most_flying: int = 0
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    endpoint: str = ""
    server: ThreadingHTTPServer | None = None

    def start(self, port: int = 0) -> "Small":
        handler = type("Handler", (_Handler,), {"small": self})
        self.server = _Server(("127.0.0.1", port), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        """At once: what is in flight is cut off."""
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()
        self.server.cut()

    def posted(self) -> list[Seen]:
        return [each for each in self.seen if each.path.endswith("completions")]

    def gathered(self, requests: int) -> None:
        """Return once so many are in flight, which those that ask for less never are."""
        last = time.monotonic() + 10
        while self.flying < requests and self.most_flying < requests and time.monotonic() < last:
            time.sleep(0.001)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self.sockets: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.sockets.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    small: Small

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        small = self.small
        with small.lock:
            small.flying += 1
            small.most_flying = max(small.most_flying, small.flying)
            small.seen.append(Seen(self.path, body, dict(self.headers)))
            action = small.script.pop(0) if small.script and self.command == "POST" else None
        if action is None and small.refuse is not None and self.command == "POST":
            action = small.refuse(Seen(self.path, body, {}).prompts)
        try:
            time.sleep(small.habits.slow)
            if action is None:
                self._well(body)
            else:
                self._ill(action, body)
        except _Refused as refused:
            self._send(refused.status, {"error": {"message": str(refused)}})
        finally:
            with small.lock:
                small.flying -= 1

    def _well(self, body: dict[str, Any]) -> None:
        reply = self._reply(body)
        if self.small.spoil is not None and self.command == "POST":
            changed = self.small.spoil(Seen(self.path, body, {}).prompts, reply)
            if changed is None:
                raise _Refused(500, "this prompt breaks it")
            reply = changed
        self._send(200, reply)

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        habits = self.small.habits
        if habits.key and self.headers.get("Authorization") != f"Bearer {habits.key}":
            raise _Refused(401, f"the key in {self.headers.get('Authorization')} is wrong")
        if self.path == "/v1/models":
            return {"data": [{"id": habits.model, "max_model_len": habits.longest}]}
        if self.path == "/v1/completions" and habits.completions:
            return _completions(self.small, body)
        if self.path == "/v1/chat/completions" and habits.chat:
            return _chat(self.small, body)
        raise _Refused(404, f"nothing at {self.path}")

    def _ill(self, action: Any, body: dict[str, Any]) -> None:
        """`action`: a status, or (status, headers), or the name of a mischief."""
        if isinstance(action, int | tuple):
            status, headers = action if isinstance(action, tuple) else (action, {})
            return self._send(status, {"error": {"message": f"status {status}"}}, headers)
        full = json.dumps(self._reply(body)).encode()
        match action:
            case "hang":
                time.sleep(30)
            case "drip":
                self._head(200, 1000)
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.3)
            case "cut":  # dies in the middle of a reply
                self._head(200, len(full))
                self.wfile.write(full[: len(full) // 2])
            case "drop":  # dies before it
                pass
            case "truncated":  # says so little as if it were all
                self._raw(200, full[: len(full) // 2])
            case "garbage":
                self._raw(200, b"\x00\xff<html>not json")
            case "deep":
                self._raw(200, b'{"choices": ' + b"[" * 100_000)
            case "huge":
                self._raw(200, b" " * (1 << 25))
            case "compressed":
                self._raw(200, full, {"Content-Encoding": "gzip"})
            case "page":
                self._raw(502, b"<html><h1>Bad gateway</h1>" * 100)
            case "echo":
                self._raw(400, json.dumps({"error": dict(self.headers)}).encode(), {"X-Echo": str(self.headers)})
            case "echo-401":
                self._raw(401, str(self.headers).encode(), {"X-Echo": str(self.headers)})
            case "elsewhere-with-key":
                self._raw(302, b"", {"Location": f"http://elsewhere/?key={self.headers['Authorization'][7:]}"})
            case "elsewhere":
                self._raw(307, b"", {"Location": "http://127.0.0.1:9/v1/completions"})
            case "date":
                self._raw(503, b"", {"Retry-After": formatdate(time.time() + 1, usegmt=True)})
            case _:
                raise AssertionError(action)
        self.close_connection = True
        return None

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value.replace("\n", " "))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _raw(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(data), headers)
        self.wfile.write(data)

    def _send(self, status: int, reply: Any, headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(reply).encode(), headers)


def _ids(small: Small, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return small.tokenizer(prompt)["input_ids"]
    if not small.habits.ids:
        raise _Refused(400, "a prompt is a string here")
    return [int(each) for each in prompt]


def _checked(small: Small, body: dict[str, Any], ids: list[int]) -> None:
    habits = small.habits
    if body.get("model") != habits.model:
        raise _Refused(404, f"the model {body.get('model')} does not exist")
    if habits.strict and not habits.labels and {"logprob_token_ids", "return_tokens_as_token_ids"} & set(body):
        raise _Refused(400, "an unknown field")
    if habits.most_tokens not in body:
        raise _Refused(400, f"say it with {habits.most_tokens}")
    if len(ids) > habits.longest:
        raise _Refused(400, f"{len(ids)} tokens are more than {habits.longest}")


def _listed(small: Small, body: dict[str, Any], ids: list[int], top: int) -> tuple[int, dict[int, float]]:
    """The likeliest next token, and the tokens whose log-probabilities the request wants."""
    if top > small.habits.most_top:
        raise _Refused(400, f"top is at most {small.habits.most_top}")
    logp = small.predict(ids)
    ranked = sorted(range(len(logp)), key=lambda token: -logp[token])
    wanted = body.get("logprob_token_ids") if small.habits.labels else None
    chosen = dict.fromkeys([ranked[0], *(wanted or ranked[:top])])
    return ranked[0], {token: max(logp[token], -9999.0) for token in chosen}


def _drawn(small: Small, ids: list[int], most: int) -> list[int]:
    new: list[int] = []
    for _ in range(most):
        logp = small.predict(ids + new)
        new.append(max(range(len(logp)), key=lambda token: logp[token]))
    return new


def _usage(small: Small, prompts: int, new: int) -> dict[str, Any]:
    if not small.habits.usage:
        return {}
    details = {"cached_tokens": prompts // 2}
    return {"usage": {"prompt_tokens": prompts, "completion_tokens": new, "prompt_tokens_details": details}}


def _completions(small: Small, body: dict[str, Any]) -> dict[str, Any]:
    prompt = body["prompt"]
    many = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], list | str)
    if many and not small.habits.lists:
        raise _Refused(400, "one prompt at a time")
    prompts = [_ids(small, each) for each in (prompt if many else [prompt])]
    choices, new = [], 0
    for index, ids in enumerate(prompts):
        _checked(small, body, ids)
        most = body["max_tokens"]
        tokens = _drawn(small, ids, most) if small.habits.text is None else []
        new += most
        text = small.tokenizer.decode(tokens) if small.habits.text is None else small.habits.text
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": small.habits.finish}
        if "logprobs" in body and small.habits.logprobs:
            first, listed = _listed(small, body, ids, body["logprobs"])
            named = body.get("return_tokens_as_token_ids") and small.habits.labels
            name = (lambda token: f"token_id:{token}") if named else (lambda token: small.tokenizer.decode([token]))
            choice["logprobs"] = {
                "tokens": [name(first)],
                "token_logprobs": [listed[first]],
                "top_logprobs": [{name(token): value for token, value in listed.items()}],
            }
        choices.append(choice)
    return {"model": "small-1", "choices": choices} | _usage(small, sum(map(len, prompts)), new)


def _chat(small: Small, body: dict[str, Any]) -> dict[str, Any]:
    habits = small.habits
    ((_, text),) = [(each["role"], each["content"]) for each in body["messages"]]
    ids = small.tokenizer(text)["input_ids"]
    _checked(small, body, ids)
    positions = []
    if habits.opening:
        token = {"token": habits.opening, "bytes": list(habits.opening.encode()), "logprob": -0.01}
        positions.append(token | {"top_logprobs": [token]})
    if body.get("logprobs") and habits.logprobs:
        first, listed = _listed(small, {}, ids, body["top_logprobs"])
        tokens = [
            {"token": text, "bytes": list(text.encode()), "logprob": value}
            for text, value in ((small.tokenizer.decode([token]), value) for token, value in listed.items())
        ]
        chosen = next(each for each in tokens if each["token"] == small.tokenizer.decode([first]))
        positions.append(chosen | {"top_logprobs": tokens})
    said = small.tokenizer.decode(_drawn(small, ids, body[habits.most_tokens])) if habits.text is None else habits.text
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": habits.finish}
    logprobs = {"logprobs": {"content": positions}} if positions else {}
    return {"model": "small-1", "choices": [choice | logprobs]} | _usage(small, len(ids), 1)


@contextmanager
def serving(tokenizer: Any, predict: Predict = cheap, port: int = 0, **habits: Any) -> Iterator[Small]:
    small = Small(tokenizer, predict, Habits(**habits)).start(port)
    try:
        yield small
    finally:
        small.stop()


class _Words:
    """Enough of a tokenizer for a process that knows no library: token N is written as the word wN."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in ids)


if __name__ == "__main__":
    process = Small(_Words(), cheap, Habits(slow=float(sys.argv[2]))).start(int(sys.argv[1]))
    sys.stdout.write(f"{process.endpoint}\n")
    sys.stdout.flush()
    threading.Event().wait()
