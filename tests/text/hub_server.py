"""A hub of datasets on this machine: one dataset at one revision, answering as the real one does."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DATASET = "someone/words"
REVISION = "0123456789abcdef0123456789abcdef01234567"
CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: data/train-*
---
# Words
"""


def parquet_of(texts: list[str | None]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    data = io.BytesIO()
    parquet.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), data, row_group_size=10)
    return data.getvalue()


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        tree, files = f"/api/datasets/{DATASET}/tree/{REVISION}", f"/datasets/{DATASET}/resolve/{REVISION}/"
        if path == f"/api/datasets/{DATASET}/revision/{REVISION}":
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json({"_id": "1", "id": DATASET, "sha": REVISION, "private": False, "siblings": siblings})
        elif path.startswith(tree) and (entries := self.entries(path.removeprefix(tree).strip("/"))):
            self.answer_json(entries)
        elif path.startswith(files) and (data := self.files.get(path.removeprefix(files))) is not None:
            self.answer_file(data)
        elif path.startswith(files):
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(404, {"X-Error-Code": "RevisionNotFound" if DATASET in path else "RepoNotFound"})

    def entries(self, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        inside = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        folders = sorted({name.partition("/")[0] for name in inside if "/" in name})
        return [
            {"type": "file", "path": prefix + name, "size": len(self.files[prefix + name]), "oid": "a" * 40}
            for name in inside
            if "/" not in name
        ] + [{"type": "directory", "path": prefix + name, "oid": "c" * 40} for name in folders]

    def answer_json(self, content: Any) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{"b" * 40}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(200, headers, data)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        return self.answer(206, headers, data[begin : end + 1])

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def hub(texts: list[str | None]) -> Iterator[tuple[str, list[str]]]:
    """The address of a running hub, and the paths it was asked for so far."""
    asked: list[str] = []
    files = {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet_of(texts)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Answers,), {"files": files, "asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
