"""The active latents of positions, as a coder gives them and grouped by latent.

In: `pairs.safetensors` (latents [P, k] int32 and values [P, k] float32 of the P positions; a value of zero is no
activation). Out: the pairs in either order. Invariant: grouping loses and adds no activation.
"""

from dataclasses import dataclass

import numpy as np

from nlrewrite.artifacts import Folder

PAIRS = "pairs.safetensors"


@dataclass(frozen=True)
class Active:
    """The active latents of P positions: `latents` and `values`, both [P, k]."""

    latents: np.ndarray
    values: np.ndarray

    def by_latent(self, count: int) -> "ByLatent":
        """The same pairs grouped by latent, positions ascending; zeros left out."""
        rows, columns = np.nonzero(self.values > 0)
        latents = self.latents[rows, columns]
        order = np.argsort(latents, kind="stable")
        bounds = np.searchsorted(latents[order], np.arange(count + 1))
        return ByLatent(rows[order].astype(np.int32), self.values[rows, columns][order], bounds)


@dataclass(frozen=True)
class ByLatent:
    """Pairs grouped by latent: those of latent i are `bounds[i]:bounds[i + 1]`."""

    position: np.ndarray
    value: np.ndarray
    bounds: np.ndarray

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = slice(self.bounds[latent], self.bounds[latent + 1])
        return self.position[pairs], self.value[pairs]


def read(folder: Folder) -> Active:
    from safetensors.numpy import load_file

    arrays = load_file(folder.path(PAIRS))
    return Active(arrays["latents"], arrays["values"])
