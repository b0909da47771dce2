"""Reading a language model that is asked: its weights and its tokenizer, from a folder in Hugging Face's format.

In: the folder. Out: a frozen causal language model in eval mode on the execution's device, and a fast tokenizer.
Invariant: as for a subject, only safetensors and JSON are read and no code but transformers' own is run; a weight that
is missing is an error.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.subject import load as subject

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")


def load(
    folder: Path, execution: Execution, dtype: str, *, attention: str = "sdpa"
) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """The model, attending as transformers' `attention` says ("sdpa", "eager"), and its tokenizer."""
    import torch

    if dtype not in DTYPES:
        raise SettingError(f"dtype must be one of {', '.join(DTYPES)}: dtype={dtype}. Change the reader's dtype")
    if execution.device != "cpu" and not torch.cuda.is_available():
        raise SettingError(f"torch finds no GPU here: device={execution.device}. Use --device cpu")
    subject.model_files(folder, "--reader-folder")
    return subject.frozen(folder, dtype, execution.device, attention), tokenizer(folder)


def tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer that the folder's tokenizer.json describes, whatever class its config names."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise SettingError(
            f"{folder} has no tokenizer.json. Save the model's fast tokenizer there with save_pretrained"
        )
    found: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return cast("PreTrainedTokenizerFast", found)
