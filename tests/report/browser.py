"""A headless Chromium without a network, driven over a pipe.

In: pages on disk. Out: what scripts evaluate to there, pictures, and everything the page asked for or complained about.
Invariant: names resolve to nothing and the proxy is a closed port, so nothing outside this machine can be reached.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--remote-debugging-pipe"),
)


def executable() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found is not None, "chromium is not installed: apt-get install chromium"
    return found


class Page:
    """One tab. Commands are answered in order; what happens in between is kept in `events`."""

    def __init__(self, send: Any, receive: Any) -> None:
        self._send, self._receive = send, receive
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        read = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser went away"
            read += byte
        message = json.loads(read)
        if "method" in message:
            self.events.append(message)
        return message

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", media="screen", features=features)

    def open(self, file: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def value(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def requests(self) -> list[str]:
        found = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in found]

    def complaints(self) -> list[str]:
        """Errors, refusals of the page's policy, and dialogs."""
        loud = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in loud]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser of its own, with a fresh profile, and its first tab."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    shell = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
    command = ["bash", "-c", shell, executable(), *FLAGS, f"--user-data-dir={profile}"]
    with (
        os.fdopen(to_browser, "wb") as send,
        os.fdopen(from_browser, "rb") as receive,
        subprocess.Popen(
            command, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run,
    ):
        os.close(from_us)
        os.close(to_us)
        try:
            yield Page(send, receive)
        finally:
            run.terminate()
