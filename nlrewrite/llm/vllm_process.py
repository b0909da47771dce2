"""The process that vLLM moves into: what must be there before it is imported, and what it would change for good.

In: whether it runs on the CPU. Out: the vllm package. Invariant: environment variables that are set stay as they are,
and so do the process's random generators and its number of threads.
"""

import ctypes
import importlib
import logging
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nlrewrite.errors import SettingError

INSTALL = (
    "For a GPU: pip install 'vllm>=0.30' (constraints/gpu.txt has a set that fits). Without one: make test-vllm sets "
    "up .venv-vllm. Or take another engine: packed"
)


def imported(on_cpu: bool) -> Any:
    """The vllm package, imported in the environment that it needs."""
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core in this process: a third of the start-up time
        "VLLM_CONFIGURE_LOGGING": "0",  # its loggers hand on to those of whoever runs us
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if on_cpu:
        wanted["TORCHDYNAMO_DISABLE"] = "1"  # or the first request compiles for half a minute, and needs g++
        _check_system()
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    loggers = logging.getLogger("vllm")
    if loggers.level == logging.NOTSET:  # on a CPU it warns of how every CPU is
        loggers.setLevel(logging.ERROR if on_cpu else logging.WARNING)
    try:
        with _its_own_affairs():
            vllm = importlib.import_module("vllm")
            vllm.LLM  # noqa: B018  (imported when it is first looked up)
    except ImportError as error:
        raise SettingError(f"vLLM cannot be imported ({error}). {INSTALL}") from error
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise SettingError(
            f"the torchvision beside vLLM is built for another torch ({error}), and text models need none. "
            f"Run: pip uninstall torchvision torchaudio torchcodec"
        ) from error
    is_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    if is_cpu != on_cpu:
        built, asked = ("a CPU", "cuda") if is_cpu else ("GPUs", "cpu")
        raise SettingError(f"the vLLM that is installed runs on {built}: device={asked}. Change --device. {INSTALL}")
    return vllm


def _check_system() -> None:
    """What vLLM's kernels for CPUs take for granted, said before they fail in words of their own."""
    if not shutil.which("lscpu"):
        raise SettingError("vLLM asks lscpu for the processor's cores, and there is none. Run: apt install util-linux")
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise SettingError(f"vLLM's kernels for CPUs need libnuma ({error}). Run: apt install libnuma1") from error


@contextmanager
def kept() -> Iterator[None]:
    """vLLM seeds every global generator and, on a CPU, replaces torch.set_num_threads; both are put back."""
    import torch

    python, legacy, threads = random.getstate(), np.random.get_state(), torch.set_num_threads  # noqa: NPY002
    with torch.random.fork_rng(devices=[]), _its_own_affairs():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            torch.set_num_threads = threads


def _its_own_affairs() -> "warnings.catch_warnings[None]":
    """Deprecations inside vLLM are nothing that whoever runs us can act on, nor errors where warnings are."""
    return warnings.catch_warnings(action="ignore")


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def refuse_borrowed(vllm: Any, architecture: str) -> None:
    """SettingError for a model that vLLM only runs by changing transformers' class of it, for the whole process."""
    known = vllm.ModelRegistry.models.get(architecture)
    if known is None or str(getattr(known, "module_name", "")).rpartition(".")[2] == "transformers":
        raise SettingError(
            f"vLLM has no {architecture} of its own; it would change transformers' class, which other parts of this "
            f"process use. Use --engine packed, or vLLM's server and --engine server"
        )


def refuse_heads(width: int | None) -> None:
    """SettingError for heads that vLLM's attention on a CPU has no code for."""
    backend = importlib.import_module("vllm.v1.attention.backends.cpu_attn").CPUAttentionBackend
    widths: list[int] = backend.get_supported_head_sizes()
    if width is not None and width not in widths:
        raise SettingError(
            f"on a CPU vLLM takes heads of width {', '.join(map(str, widths))}: the model's are {width} wide. "
            f"Use --engine packed"
        )
