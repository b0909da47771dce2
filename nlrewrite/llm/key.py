"""The key of an endpoint: from the environment alone, into one header alone.

In: NLREWRITE_API_KEY. Out: a header, and texts in which the key cannot be read. Invariant: whatever a server sends back
goes through `clean` or `hidden` before it is logged, raised or kept, so that an echoed key stays where it was.
"""

import base64
import json
import logging
import os
from urllib.parse import quote

from nlrewrite.errors import SettingError

VARIABLE = "NLREWRITE_API_KEY"
CHATTY = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy")
"""Loggers of the transport, which tell the headers of a reply at their most talkative."""
DISTINCT = 12
"""A shorter key (some local servers want any word) may occur in a reply by chance, and is left in it."""


class Key:
    """A secret, or none. It has no readable form and cannot be copied by pickle."""

    __slots__ = ("_forms", "_value")

    def __init__(self, value: str) -> None:
        if any(not "!" <= letter <= "~" for letter in value):
            raise SettingError(
                f"{VARIABLE} must be printable ASCII without blanks; a character of it is not. Set it again, without "
                f"quotes or a line's end"
            )
        self._value = value
        plain = value.encode()
        forms = {value, quote(value, safe=""), json.dumps(value)[1:-1], value.replace("/", "\\/")}
        forms |= {base64.b64encode(plain).decode(), base64.urlsafe_b64encode(plain).decode(), plain.hex()}
        self._forms = sorted(forms, key=len, reverse=True) if value else []

    @classmethod
    def from_environment(cls) -> "Key":
        return cls(os.environ.get(VARIABLE, ""))

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Key(set)" if self else "Key(none)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not copied: it is read from the environment where it is needed")

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self else {}

    def hidden(self, text: str) -> str:
        """`text` without the key."""
        for form in self._forms:
            text = text.replace(form, "<key>")
        return text

    def kept(self, reply: str) -> str:
        """The text of a reply, which is data and changed only if it holds a key that none holds by chance."""
        return self.hidden(reply) if len(self._value) >= DISTINCT else reply

    def clean(self, text: str, most: int = 200) -> str:
        """One bounded line for a message, from text that a server chose."""
        shown = "".join(letter if letter.isprintable() else " " for letter in self.hidden(text))
        shown = " ".join(shown.split())
        return shown if len(shown) <= most else f"{shown[:most]}..."


class Discreet(logging.Filter):
    """Drops records in which the key can be read."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.getMessage()
        return self._key.hidden(told) == told

    def attach(self) -> None:
        for name in CHATTY:
            logging.getLogger(name).addFilter(self)

    def detach(self) -> None:
        for name in CHATTY:
            logging.getLogger(name).removeFilter(self)
