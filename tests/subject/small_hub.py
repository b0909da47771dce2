"""A hub of our own: serves folders as models, by the protocol that huggingface_hub speaks, on a local port."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest


@contextmanager
def serving(
    models: Mapping[tuple[str, str], Path], names: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve `models`, (id, revision) -> folder; gives the address and the paths asked for so far.

    `names`: what revisions are called, step1000 and so on.
    """
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            return None

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            asked.append(f"{self.command} {path}")
            for (model, revision), folder in models.items():
                for name in (name for name, commit in (names or {}).items() if commit == revision):
                    if path == f"api/models/{model}/revision/{name}":
                        return self._send(json.dumps({"id": model, "sha": revision}).encode(), body)
                if path == f"api/models/{model}/tree/{revision}":
                    return self._send(
                        json.dumps([_described(file) for file in sorted(folder.iterdir())]).encode(), body
                    )
                file = folder / path.rpartition("/")[2]
                if path == f"{model}/resolve/{revision}/{file.name}" and file.is_file():
                    return self._send(file.read_bytes(), body, revision)
            known = any(f"/{model}/" in f"/{path}/" for model, _ in models)
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, data: bytes, body: bool, commit: str = "") -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            if commit:
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            else:
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path, offline: bool = False) -> None:
    """Have huggingface_hub speak to `address` and keep what it fetches in `cache`, as its environment variables do."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def _described(file: Path) -> dict[str, object]:
    data = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
