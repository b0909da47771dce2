"""One tree of seeds: every random draw has a generator named by (seed, purpose, ids...).

Invariant: no global generator is touched, and adding a draw somewhere never moves the draws elsewhere.
"""

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the branch `path` of the tree rooted at `seed`."""
    text = json.dumps([seed, *path], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *path))


def torch_generator(seed: int, *path: str | int) -> "torch.Generator":
    import torch

    return torch.Generator().manual_seed(derive(seed, *path))
