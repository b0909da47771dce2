"""From the artifact of a reader and the execution to an engine that answers.

In: a reader (trained here, or a reference to a model elsewhere) and where to compute. Out: an engine of the kind that
the execution names, and the tokenizer that cuts its prompts. Invariant: which engine it is changes no artifact's name,
and every engine is handed the same token ids.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.llm.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REFERENCE = "reader.json"


@dataclass(frozen=True)
class Wanted:
    """What an engine is opened for."""

    labels: tuple[int, ...] = ()
    """Of digits; none where text is wanted."""
    mass: bool = True
    top: bool = False


def tokenizer(folder: Folder) -> "PreTrainedTokenizerFast":
    """What cuts the prompts of a reader."""
    from nlrewrite.llm import loading

    return loading.tokenizer(folder.root())


def opened(folder: Folder, execution: Execution, wanted: Wanted = Wanted()) -> "tuple[Engine, PreTrainedTokenizerFast]":
    """The engine and its tokenizer; whoever opens it closes it."""
    about: dict[str, Any] = json.loads(folder.path(REFERENCE).read_text(encoding="utf-8"))
    name = execution.engine if execution.engine != "auto" else _best(about, execution, wanted)
    if about["kind"] == "served" and name != "server":
        raise SettingError(f"a served reader is asked through its server: engine={name}. Use --engine server")
    cuts = tokenizer(folder)
    if name == "server":
        return _server(about, execution, cuts, wanted), cuts
    root = weights(folder, about, execution)
    if name == "vllm":
        from nlrewrite.llm.vllm import Vllm

        mode = "generate" if wanted.mass or wanted.top or not wanted.labels else "pooling"
        dtype, quantisation = about.get("dtype", "float32"), about.get("quantisation", "")
        made = Vllm(
            root,
            mode=mode,
            labels=wanted.labels,
            dtype=dtype,
            quantisation=quantisation,
            device=execution.device,
            top=wanted.top,
        )
        return made, cuts
    from nlrewrite.llm import loading

    if about.get("quantisation"):
        raise SettingError(
            f"quantised weights are run by vLLM: quantisation={about['quantisation']}. Use --engine vllm"
        )
    dtype = "float32" if name == "reference" else about.get("dtype", "float32")
    model, _ = loading.load(root, execution, dtype, attention="sdpa")
    if name == "reference":
        from nlrewrite.llm.reference import Reference

        return Reference(model, cuts, top=wanted.top), cuts
    from nlrewrite.llm.linear import prepack
    from nlrewrite.llm.packed import Packed

    prepack(model)
    return Packed(model, cuts, tokens=execution.engine_tokens, mass=wanted.mass, top=wanted.top), cuts


def _best(about: dict[str, Any], execution: Execution, wanted: Wanted) -> str:
    if about["kind"] == "served":
        return "server"
    if about.get("quantisation"):
        return "vllm"
    if not wanted.labels and execution.device != "cpu" and importlib.util.find_spec("vllm") is not None:
        return "vllm"
    return "packed"


def _server(about: dict[str, Any], execution: Execution, cuts: "PreTrainedTokenizerFast", wanted: Wanted) -> Engine:
    from nlrewrite.llm.rates import Prices
    from nlrewrite.llm.server import Server

    if execution.endpoint is None:
        raise SettingError("engine=server asks an endpoint, and none is given. Name one with --endpoint")
    return Server(
        execution.endpoint,
        execution.endpoint_model or about.get("model") or "reader",
        cuts,
        concurrency=execution.concurrency,
        timeout=execution.request_timeout,
        tries=execution.request_tries,
        mass=wanted.mass,
        top=wanted.top,
        prices=Prices.parse(execution.prices) if execution.prices else None,
        limit=execution.spend,
    )


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
