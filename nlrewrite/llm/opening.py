"""From the artifact of a reader and the execution to an engine that answers.

In: a reader (trained here, or a reference to a model elsewhere) and where to compute. Out: an engine of the kind that
the execution names, and the tokenizer that cuts its prompts. Invariant: which engine it is changes no artifact's name,
and every engine is handed the same token ids.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.llm.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REFERENCE = "reader.json"


def opened(
    folder: Folder, execution: Execution, *, mass: bool = True, top: bool = False
) -> "tuple[Engine, PreTrainedTokenizerFast]":
    """The engine and its tokenizer; whoever opens it closes it."""
    about: dict[str, Any] = json.loads(folder.path(REFERENCE).read_text(encoding="utf-8"))
    if (about["kind"] == "served") != (execution.engine == "server") and about["kind"] == "served":
        raise SettingError(
            f"a served reader is asked through its server: engine={execution.engine}. Use --engine server"
        )
    return _engine(folder, about, execution, mass, top)


def _engine(
    folder: Folder, about: dict[str, Any], execution: Execution, mass: bool, top: bool
) -> "tuple[Engine, PreTrainedTokenizerFast]":
    from nlrewrite.llm import loading

    tokenizer = loading.tokenizer(folder.root())
    if execution.engine == "server":
        from nlrewrite.llm.server import Server

        if execution.endpoint is None:
            raise SettingError("engine=server asks an endpoint, and none is given. Name one with --endpoint")
        server = Server(
            execution.endpoint,
            about.get("model") or "reader",
            tokenizer,
            concurrency=execution.concurrency,
            timeout=execution.request_timeout,
            tries=execution.request_tries,
            mass=mass,
        )
        return server, tokenizer
    root = weights(folder, about, execution)
    if execution.engine == "vllm":
        from nlrewrite.llm.vllm import Vllm

        return Vllm(root, mode="generate" if mass else "pooling"), tokenizer
    dtype = "float32" if execution.engine == "reference" else about.get("dtype", "float32")
    attention = "sdpa"
    if execution.engine == "reference":
        from nlrewrite.llm.reference import Reference

        model, _ = loading.load(root, execution, dtype, attention=attention)
        return Reference(model, tokenizer), tokenizer
    from nlrewrite.llm.packed import Packed

    model, _ = loading.load(root, execution, dtype, attention=attention)
    return Packed(model, tokenizer, tokens=execution.engine_tokens, mass=mass, top=top), tokenizer


def weights(folder: Folder, about: dict[str, Any], execution: Execution) -> Path:
    """The local folder with the model's weights."""
    if about["kind"] == "trained":
        return folder.root()
    if about["kind"] == "folder":
        if execution.reader_folder is None:
            raise SettingError("reader.kind is folder and no folder is given. Name one with --reader-folder")
        return Path(execution.reader_folder)
    from nlrewrite.subject.load import INDEX, download

    return download(about["model"], about["revision"], ("*.json", INDEX, "model*.safetensors"))
