"""Reading a subject: its weights as a frozen torch module, its tokenizer as a file, and what a model folder holds.

In: a subject artifact, or any folder in Hugging Face's format. Out: a causal language model in eval mode, without
gradients and without a cache. A subject from the hub keeps only a reference and its tokenizer in the store; its weights
come from the hub's own cache. Invariant: only safetensors are read and no code but transformers' own is run, so that
bytes from elsewhere cannot do anything; a weight that is missing is an error, never drawn at random.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

REFERENCE = "subject.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def tokenizer_path(folder: Folder | Path) -> Path:
    """The file that the `tokenizers` library reads."""
    return folder / "tokenizer.json" if isinstance(folder, Path) else folder.path("tokenizer.json")


def model(folder: Folder | Path, execution: Execution, dtype: str = "float32") -> "nn.Module":
    """The subject on the execution's device, frozen; its dtype is the spec's (`dtype` for a folder that says none)."""
    root = folder if isinstance(folder, Path) else _fetched(folder)
    about = json.loads((root / REFERENCE).read_text()) if (root / REFERENCE).exists() else {}
    if about.get("kind") == "hub":
        root = download(about["model"], about["revision"], ("config.json", INDEX, "model*.safetensors"))
        weights(root)
    # one formula on every device; Gemma 2's soft-capping has no other
    return frozen(root, about.get("dtype", dtype), execution.subject_device, "eager")


def frozen(root: Path, dtype: str, device: str, attention: str) -> "nn.Module":
    """The causal language model of a local folder, attending as transformers' `attention` says, frozen."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        result: Any = AutoModelForCausalLM.from_pretrained(
            root,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    loaded, info = result
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        raise SettingError(
            f"the weights in {root} lack {len(missing)} tensors that its config.json asks for, first {missing[0]}. "
            f"Save the model again with save_pretrained"
        )
    loaded.config.use_cache = False
    loaded.config.pad_token_id = None  # windows are padded on the right, where causal attention never looks
    return loaded.to(device).eval().requires_grad_(False)


# -- what a folder consists of ----------------------------------------------------------------------------------------


def weights(folder: Path) -> list[str]:
    """Names of the safetensors files that hold the folder's weights, the index of shards included."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        for shard in shards:
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise SettingError(f"{folder / INDEX} names a shard that is no safetensors file beside it: {shard!r}")
            if not (folder / shard).is_file():
                raise Unreachable(f"{folder} lacks the shard {shard} that its {INDEX} names. Fetch the folder again")
        return [INDEX, *shards]
    refuse_pickles(str(folder), (path.name for path in sorted(folder.iterdir())))
    raise SettingError(f"{folder} has no {WEIGHTS}. Save the model there with save_pretrained")


def refuse_pickles(where: str, names: Iterable[str]) -> None:
    """SettingError if `names` hold weights that only unpickling, which may run any code, would read."""
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise SettingError(
            f"only safetensors weights are read, for pickled ones may run code: {where} has {pickled[0]}. "
            f"Convert it with save_pretrained(..., safe_serialization=True)"
        )


def model_files(folder: Path, option: str = "--subject-folder") -> list[str]:
    """Names of the files that make the folder a model: its config, weights and tokenizer; nothing else is read.

    `option` is the one that named the folder.
    """
    if not folder.is_dir():
        raise Unreachable(f"there is no folder {folder}. Change {option}")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise SettingError(
                f"{folder} has no {name}. Save the model and its fast tokenizer there, each with save_pretrained"
            )
    return sorted(["config.json", *weights(folder), *(name for name in TOKENIZER if (folder / name).is_file())])


def fingerprint(folder: Path, option: str = "--subject-folder") -> str:
    """sha256 over the names and bytes of the folder's model files."""
    total = hashlib.sha256()
    for name in model_files(folder, option):
        with open(folder / name, "rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


# -- the hub ----------------------------------------------------------------------------------------------------------


def download(
    model: str,
    revision: str,
    patterns: tuple[str, ...],
    named_by: str = "subject.model",
    fixed_by: str = "subject.revision or evaluate.checkpoints",
) -> Path:
    """A local folder with the files of `model` at `revision` that match `patterns`, fetched unless cached.

    `named_by` and `fixed_by` are the settings that a message asks to change.
    """
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    log.info("reading %s at %s from the hub", model, revision[:12])
    with _reaching(model, revision, named_by, fixed_by):
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(patterns)))


def hub_files(model: str, revision: str, patterns: tuple[str, ...]) -> list[str]:
    """Names of the files of `model` at `revision` that match `patterns`, none of them fetched."""
    import huggingface_hub

    with _reaching(model, revision):
        found = huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(patterns), dry_run=True)
    return sorted(file.filename for file in found)


@contextmanager
def _reaching(
    model: str,
    revision: str,
    named_by: str = "subject.model",
    fixed_by: str = "subject.revision or evaluate.checkpoints",
) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise SettingError(f"{model!r} is no model id: {error}. Change --set {named_by}") from error
    except errors.RevisionNotFoundError as error:
        raise Unreachable(f"the hub has no revision {revision} of {model}. Change --set {fixed_by}") from error
    except errors.RepositoryNotFoundError as error:
        raise Unreachable(
            f"the hub shows no model {model}: it is not there, or needs a login. Check the id, or run: hf auth login"
        ) from error
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise Unreachable(
            f"the model {model} at {revision[:12]} is not cached here and the hub cannot be reached "
            f"({type(error).__name__}). Check the network, or fetch it first: hf download {model} --revision {revision}"
        ) from error


def _fetched(folder: Folder) -> Path:
    """A local folder with the artifact's files, but not those in folders of their own (checkpoints)."""
    paths = [folder.path(entry.path) for entry in folder.manifest.files if "/" not in entry.path]
    return paths[0].parent
