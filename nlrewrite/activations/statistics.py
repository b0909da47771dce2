"""What is known of each latent: how often, how strongly, and where to look.

In: a split's activations grouped by latent. Out: `latents.parquet` (one row per latent) and `examples.parquet` (windows
around positions drawn from each tenth of the latent's activations). Invariant: a latent that never fires has a row too,
with zeros.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.seeds import generator
from nlrewrite.specs import ActivationsSpec
from nlrewrite.text.positions import Positions

if TYPE_CHECKING:
    import pandas as pd

    from nlrewrite.activations.pairs import ByLatent

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
DECILES = 10


def write_latents(grouped: "ByLatent", total: int, latents: int, out: Path) -> None:
    """One row per latent: count, mean over tokens and over firing tokens, mean square, max and quantiles."""
    counts = np.diff(grouped.bounds)
    sums, squares = _sums(grouped, grouped.value), _sums(grouped, grouped.value.astype(np.float64) ** 2)
    largest = np.zeros(latents, dtype=np.float32)
    quantiles = np.zeros((latents, len(QUANTILES)), dtype=np.float32)
    for latent in np.flatnonzero(counts).tolist():
        values = grouped.of(latent)[1]
        largest[latent] = values.max()
        quantiles[latent] = np.quantile(values, QUANTILES)
    columns = {
        "latent": np.arange(latents, dtype=np.int32),
        "count": counts.astype(np.int64),
        "frequency": counts / total,
        "mean": (sums / total).astype(np.float32),
        "mean_active": (sums / np.maximum(counts, 1)).astype(np.float32),
        "mean_square": (squares / total).astype(np.float32),
        "max": largest,
        **{f"q{int(100 * q):02d}": quantiles[:, index] for index, q in enumerate(QUANTILES)},
    }
    write_table(columns, out / "latents.parquet")


def write_examples(grouped: "ByLatent", where: Positions, spec: ActivationsSpec, latents: int, out: Path) -> None:
    """Up to `spec.examples` positions from each tenth of every latent's activations, strongest tenth first."""
    chosen_latent, chosen_decile, chosen = [], [], []
    for latent in range(latents):
        position, value = grouped.of(latent)
        if not len(position):
            continue
        order = np.argsort(-value, kind="stable")
        draws = generator(spec.seed, "examples", spec.split, latent)
        for decile, part in enumerate(np.array_split(order, DECILES)):
            take = np.sort(draws.choice(part, min(spec.examples, len(part)), replace=False))
            chosen.append(grouped.bounds[latent] + take)
            chosen_latent.append(np.full(len(take), latent, dtype=np.int32))
            chosen_decile.append(np.full(len(take), DECILES - 1 - decile, dtype=np.int32))
    pairs = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
    position = grouped.position[pairs]
    columns = {
        "latent": np.concatenate(chosen_latent) if chosen else np.zeros(0, np.int32),
        "decile": np.concatenate(chosen_decile) if chosen else np.zeros(0, np.int32),
        "position": position,
        "window": where.window[position],
        "offset": where.offset[position],
        "value": grouped.value[pairs],
    }
    write_table(columns, out / "examples.parquet")


def read_latents(folder: Folder) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(folder.path("latents.parquet"))


def read_examples(folder: Folder) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(folder.path("examples.parquet"))


def latents_counted(folder: Folder) -> int:
    """Number of latents of the coder whose activations these are."""
    return len(read_latents(folder))


def write_table(columns: dict[str, np.ndarray], path: Path) -> None:
    """A parquet file whose bytes depend on the columns alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)


def _sums(grouped: "ByLatent", weights: np.ndarray) -> np.ndarray:
    totals = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])
    return totals[grouped.bounds[1:]] - totals[grouped.bounds[:-1]]
