"""What simulation and calibration did to each latent on the report split.

In: simulated levels, calibrators, true activations. Out: `latents.parquet` (sensitivity and specificity as read and
after calibration) and `spread.json` (histograms of predicted against true activations). Invariant: nothing here is used
to choose anything.
"""

import json
import re
from pathlib import Path

import numpy as np

from nlrewrite.activations.statistics import read_latents, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.cells import cells
from nlrewrite.calibrate.fit import Calibrated
from nlrewrite.evaluate.arms import Sources
from nlrewrite.score import measures
from nlrewrite.simulate import rules as simulation


def write_latents(inputs: dict[str, Folder], sources: Sources, dec_LE: np.ndarray, out: Path) -> None:
    """Per latent: what the reader and the calibrators made of it on the report split."""
    simulated = simulation.read(inputs["simulation"])
    counted = cells(simulated, sources.truth.extra_PL)
    known = read_latents(inputs["explain"])
    energy = known["mean_square"].to_numpy() * np.square(dec_LE).sum(1)
    chosen, _ = sources.rewritten[sources.chosen]
    by_quantiles = [each for name, (each, _) in sources.rewritten.items() if re.fullmatch(r"quantile-\d", name)]
    normalised = by_quantiles[0] if by_quantiles else None
    audible = np.zeros(counted.said.shape, dtype=bool) if normalised is None else normalised.values_LZ > 0
    found = np.where(audible, counted.active, 0).sum(1) if normalised else np.full(len(dec_LE), np.nan)
    silent = counted.said - counted.active
    refused = np.where(audible, 0, silent).sum(1) if normalised else np.full(len(dec_LE), np.nan)
    columns = {
        "latent": np.arange(len(dec_LE), dtype=np.int32),
        "explained": simulated.explained,
        "energy": energy,
        "sensitivity_raw": measures.sensitivity(counted.active),
        "specificity_raw": measures.specificity(counted.said, counted.active),
        "sensitivity_quantile": np.where(
            counted.active.sum(1) > 0, found / np.maximum(counted.active.sum(1), 1), np.nan
        ),
        "specificity_quantile": refused / np.maximum(silent.sum(1), 1),
    }
    write_table(columns, out / "latents.parquet")
    drawn: dict[str, Calibrated] = {name: each for name, (each, _) in sources.rewritten.items()}
    (out / "spread.json").write_text(
        json.dumps(_spread(drawn, chosen.name, counted.said, sources, known["max"].to_numpy()))
    )


def _spread(
    drawn: dict[str, Calibrated], chosen: str, said_LZ: np.ndarray, sources: Sources, largest_L: np.ndarray
) -> dict[str, object]:
    """Histograms over all pairs (latent, position) of activations as shares of the latent's largest one."""
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 2.0, 44)])  # what lies above counts in the last bin
    unit = np.maximum(largest_L, 1e-9)
    truth = sources.truth.extra_PL
    true_counts = np.histogram(np.minimum(truth.data / unit[truth.indices], edges[-1]), edges)[0]
    shares = {"true": true_counts.tolist()}
    for name, each in drawn.items():
        shares[name] = np.histogram(
            np.clip(each.values_LZ / unit[:, None], 0, edges[-1]).ravel(), edges, weights=said_LZ.ravel()
        )[0].tolist()
    shares["true"][0] = float(np.prod(truth.get_shape()) - sum(shares["true"][1:]))
    return {"edges": edges.tolist(), "chosen": chosen, "counts": shares}
