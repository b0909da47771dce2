"""Float32 matrix products on a CPU by the faster of torch's two libraries, where that costs no precision.

torch's own choice may be slow on other makers' processors (measured on an AMD one: 100 against 240 GFLOP/s). The other
library is reached by asking torch for less precision; where a processor has no units for less, it multiplies in float32
all the same. In: whether fast products are wanted. Out: whether they are on, while open. Invariant: they are on only if
a product of this processor was seen to be as exact as torch's own, and torch's setting is as before behind it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from nlrewrite.seeds import torch_generator

log = logging.getLogger(__name__)

ROWS, INNER, COLUMNS = 64, 512, 256
EXACT = 1e-5
"""Largest error of an entry over the length of its row times that of its column; bfloat16 comes to some 3e-4."""


@contextmanager
def fast_products(wanted: bool = True, device: str = "cpu") -> Iterator[bool]:
    """While open, float32 products on the CPU are fast ones, if that is `wanted` and they are exact here."""
    if not wanted or device != "cpu" or not exact():
        yield False
        return
    with _precision("medium"):
        yield True


@cache
def exact() -> bool:
    """Whether the other library multiplies in float32 on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    draws = torch_generator(0, "products")
    a, b = torch.randn(ROWS, INNER, generator=draws), torch.randn(INNER, COLUMNS, generator=draws)
    with _precision("medium"):
        found = a @ b
    wrong = (found.double() - a.double() @ b.double()).abs()
    error = float((wrong / (a.norm(dim=1)[:, None] * b.norm(dim=0))).max())
    if error > EXACT:
        log.info("fast products are off: this processor rounds them, by up to %.1e", error)
    return error <= EXACT


@contextmanager
def _precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
