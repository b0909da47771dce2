"""Run the subject up to the coder's site over a split's windows and keep the active latents of every position.

In: the subject, the windows, the coder. Out: `pairs.safetensors` (latents [P, k] int32 and values [P, k] float32 of the
P positions, k the most that any has; a value of zero is no activation), `latents.parquet`, `examples.parquet`.
Invariant: the examples' values are the stored values of their positions.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations import statistics
from nlrewrite.activations.pairs import PAIRS, Active
from nlrewrite.artifacts import Folder
from nlrewrite.coders import form
from nlrewrite.specs import ActivationsSpec
from nlrewrite.subject import load, sites
from nlrewrite.subject.batches import batches, inside, padded
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running


def build(spec: ActivationsSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from safetensors.numpy import save_file

    windows = read_windows(inputs["tokens"], spec.split)
    coder = form.read(inputs["coder"])
    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, form.site_of(inputs["coder"]))
    latents, values = [], []
    with running.progress.stage(f"activations on {spec.split}", len(windows)) as advance:
        for rows in batches(windows, running.execution.batch_tokens):
            part = windows[rows]
            record = sites.activations_upto(model, located, padded(part))
            found = coder.encode(record.x[inside(part)]).padded()
            values.append(found[0].numpy())
            latents.append(found[1].numpy().astype(np.int32))
            advance(len(part))
    active = Active(_stacked(latents), _stacked(values))
    save_file({"latents": active.latents, "values": active.values}, out / PAIRS)
    grouped = active.by_latent(coder.latents)
    where = positions(windows)
    statistics.write_latents(grouped, len(where), coder.latents, out)
    statistics.write_examples(grouped, where, spec, coder.latents, out)


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """All rows, as wide as the widest part; shorter rows end in zeros."""
    widest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in parts])
