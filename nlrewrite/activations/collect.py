"""Run the subject up to the coder's site over a split's windows and keep the active latents of every position.

In: the subject, the windows, the coder. Out: `pairs.safetensors` (latents [P, k] int32 and values [P, k] float32 of the
P positions; a value of zero is no activation), `latents.parquet`, `examples.parquet`.
Invariant: the examples' values are the stored values of their positions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations import statistics
from nlrewrite.artifacts import Folder
from nlrewrite.coders import topk
from nlrewrite.specs import ActivationsSpec, CoderSpec
from nlrewrite.subject import load, sites
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import Windows, read_windows

if TYPE_CHECKING:
    import torch

    from nlrewrite.steps import Running

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


def build(spec: ActivationsSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from safetensors.numpy import save_file

    windows = read_windows(inputs["tokens"], spec.split)
    coder = read_coder(inputs["coder"])
    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, site_of(inputs["coder"]))
    latents, values = [], []
    with running.progress.stage(f"activations on {spec.split}", len(windows)) as advance:
        for rows in batches(windows, running.execution.batch_tokens):
            part = windows[rows]
            record = sites.activations_upto(model, located, padded(part))
            found = coder.encode(record.x[inside(part)])
            values.append(found[0].numpy())
            latents.append(found[1].numpy().astype(np.int32))
            advance(len(part))
    active = Active(np.concatenate(latents), np.concatenate(values))
    save_file({"latents": active.latents, "values": active.values}, out / PAIRS)
    grouped = active.by_latent(coder.latents)
    where = positions(windows)
    statistics.write_latents(grouped, len(where), coder.latents, out)
    statistics.write_examples(grouped, where, spec, coder.latents, out)


def read(folder: Folder) -> Active:
    from safetensors.numpy import load_file

    arrays = load_file(folder.path(PAIRS))
    return Active(arrays["latents"], arrays["values"])


def read_coder_width(folder: Folder) -> int:
    """Number of latents of the coder whose activations these are."""
    return len(statistics.read_latents(folder))


def read_coder(folder: Folder) -> topk.TopKCoder:
    return topk.load(folder.path(topk.WEIGHTS), folder.path(topk.CONFIG))


def site_of(coder: Folder) -> sites.Site:
    """The site a coder was trained at, as its manifest says."""
    return CoderSpec.model_validate(coder.manifest.spec).site


def batches(windows: Windows, batch_tokens: int) -> list[slice]:
    """Consecutive windows, at most `batch_tokens` padded tokens at a time."""
    rows = max(1, batch_tokens // (windows.tokens.shape[1] - 1))
    return [slice(start, min(start + rows, len(windows))) for start in range(0, len(windows), rows)]


def padded(windows: Windows) -> "torch.Tensor":
    """Input ids [windows, longest]; what stands behind a window's end cannot be seen from within it."""
    import torch

    return torch.from_numpy(windows.tokens[:, : int(windows.lengths.max())].astype(np.int64))


def inside(windows: Windows) -> "torch.Tensor":
    """Which of the padded positions are positions."""
    import torch

    return torch.from_numpy(np.arange(int(windows.lengths.max()))[None, :] < windows.lengths[:, None])
