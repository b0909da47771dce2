"""The key of an endpoint is sent, and is nowhere else."""

import base64
import json
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator

import numpy as np
import pytest

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.llm.engine import Sampling
from nlrewrite.llm.key import VARIABLE, Discreet, Key
from nlrewrite.llm.server import Server
from tests.llm.asking import TOKENIZER, engine, questions
from tests.llm.small_server import Small, serving

SECRET = "sk-very/secret+0123456789"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """A key in the environment; whatever the test appends, and all that was logged, must not hold it."""
    monkeypatch.setenv(VARIABLE, SECRET)
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection", "asyncio", "nlrewrite"):
        caplog.set_level(logging.DEBUG, logger=name)
    texts: list[str] = []
    yield texts
    records = caplog.get_records("call")
    assert any(record.name == "httpcore.http11" for record in records), "the most talkative logs are looked at"
    texts += [record.getMessage() for record in records] + [str(vars(record)) for record in records]
    everything = "\n".join(texts)
    for form in (SECRET, json.dumps(SECRET)[1:-1], SECRET[3:], base64.b64encode(SECRET.encode()).decode()):
        assert form not in everything
    assert "<key>" in everything, "the server did send it back"


def scanned(server: Server, error: BaseException | None = None) -> list[str]:
    texts = [repr(server), str(vars(server)), json.dumps(server.about()), repr(server.usage)]
    while error is not None:
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        texts += [str(error), repr(error), "".join(frames.format())]
        error = error.__cause__ or error.__context__
    return texts


def ready(small: Small) -> Server:
    server = engine(small, concurrency=1)
    server.digits(questions(1))
    assert small.seen[-1].headers["Authorization"] == f"Bearer {SECRET}"
    return server


def test_a_refusal_that_repeats_the_key(told: list[str]) -> None:
    with serving(TOKENIZER, key=SECRET) as small:
        server = ready(small)
        small.script = ["echo"]
        scores = server.digits(questions(1))
        told += [repr(scores), *scanned(server)]
        server.close()


@pytest.mark.parametrize("mischief", ["echo-401", "elsewhere-with-key"])
def test_an_error_that_repeats_the_key(told: list[str], mischief: str) -> None:
    with serving(TOKENIZER, key=SECRET) as small:
        server = ready(small)
        small.script = [mischief]
        with pytest.raises(Unreachable) as caught:
            server.digits(questions(1))
        told += scanned(server, caught.value)
        server.close()


def test_a_reply_that_repeats_the_key(told: list[str]) -> None:
    with serving(TOKENIZER, text=f"your key is {SECRET}, thanks") as small:
        server = ready(small)
        (got,) = server.complete([np.array([2, 3])], Sampling(most=1))
        assert got.text == "your key is <key>, thanks"
        small.script = ["echo"]
        (refused,) = server.complete([np.array([2, 3])], Sampling(most=1))
        assert "<key>" in refused.why
        told += [repr(got), repr(refused), *scanned(server)]
        server.close()


def test_a_redirect_does_not_get_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    with serving(TOKENIZER) as elsewhere, serving(TOKENIZER) as small:
        server = ready(small)
        small.refuse = lambda prompts: (308, {"Location": f"{elsewhere.endpoint}/v1/completions"})
        with pytest.raises(Unreachable, match="which is not followed"):
            server.digits(questions(1))
        assert elsewhere.seen == []
        server.close()


@pytest.mark.parametrize("endpoint", ["http://me:hunter22@localhost:8000/v1", "https://hunter22@host/v1"])
def test_an_endpoint_with_a_password_is_refused_without_repeating_it(endpoint: str) -> None:
    with pytest.raises(SettingError, match="no user or password") as caught:
        Server(endpoint, "small", TOKENIZER)
    shown = traceback.format_exception(caught.value)
    assert "hunter22" not in "".join(line for line in shown if "Error:" in line)


@pytest.mark.parametrize("value", ["with blank", "line\n", "schlüssel", "nul\0", "tab\t"])
def test_a_key_that_is_no_header_is_refused_without_repeating_it(value: str) -> None:
    with pytest.raises(SettingError, match="printable ASCII without blanks") as caught:
        Key(value)
    assert repr(value)[1:-1] not in str(caught.value) and caught.value.__context__ is None


def test_no_key_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with serving(TOKENIZER) as small:
        server = engine(small)
        server.digits(questions(1))
        assert all("Authorization" not in each.headers for each in small.seen)
        server.close()


def test_a_key_has_no_readable_form() -> None:
    key = Key(SECRET)
    assert SECRET not in repr(key) + str(key) + f"{key}" and not hasattr(key, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(key, protocol)


def test_messages_are_one_bounded_line_without_the_key() -> None:
    key = Key(SECRET)
    shown = key.clean(f"\x1b[31mred\x1b[0m\n{SECRET * 50}\r\x00{'x' * 500}", most=60)
    assert len(shown) <= 63 and shown.isprintable() and SECRET[:6] not in shown
    assert key.clean("a" * 195 + SECRET) == "a" * 195 + "<key>", "what is cut off is cut behind the hiding"
    assert Key("").hidden("nothing to hide") == "nothing to hide"


def test_a_word_that_serves_as_key_may_occur_in_a_reply() -> None:
    """Local servers take any key, and some are used with a plain word."""
    assert Key("EMPTY").kept("the set is EMPTY") == "the set is EMPTY"
    assert Key("EMPTY").clean("the set is EMPTY") == "the set is <key>"


def test_talkative_loggers_are_as_before_when_the_engine_is_closed() -> None:
    before = list(logging.getLogger("httpcore.http11").filters)
    server = engine("http://127.0.0.1:9")
    assert any(isinstance(each, Discreet) for each in logging.getLogger("httpcore.http11").filters)
    server.close()
    server.close()
    assert logging.getLogger("httpcore.http11").filters == before


def test_an_engine_that_nobody_closes_leaves_nothing_behind() -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from nlrewrite.llm.requests import Requests\n"
        "from nlrewrite.llm.patience import Patience\n"
        "from nlrewrite.llm.purse import Purse\n"
        "one = Requests('http://127.0.0.1:9', Patience(), Purse()); del one\n"
        "two = Requests('http://127.0.0.1:9', Patience(), Purse())\n"
    )
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
