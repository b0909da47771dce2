"""Score every explanation on the calibrate split: detection, fuzzing, and what holds at natural prevalence.

In: windows, true activations and simulated levels of the calibrate split. Out: `scores.parquet`, one row per latent.
Detection shows windows, half of them with an activation (drawn evenly from its ten deciles), and asks which activate
the latent; fuzzing shows a marked token in windows that do, half of them rightly marked. The reader answers yes where
its level is above 0. Invariant: the draws of a latent depend on the seed and the latent alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import ByLatent, read
from nlrewrite.activations.statistics import DECILES, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.cells import cells
from nlrewrite.score import measures
from nlrewrite.seeds import generator
from nlrewrite.simulate import rules as simulation
from nlrewrite.specs import ScoreSpec
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    import pandas as pd

    from nlrewrite.steps import Running


def build(spec: ScoreSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    windows = read_windows(inputs["tokens"], "calibrate")
    where = positions(windows)
    active = read(inputs["activations"])
    simulated = simulation.read(inputs["simulation"])
    latents = len(simulated.explained)
    truth = active.by_latent(latents)
    bounds = np.searchsorted(simulated.latent, np.arange(latents + 1))
    quizzes = np.zeros((latents, 2, 3))
    with running.progress.stage("score", latents) as advance:
        for latent in range(latents):
            said = simulated.position[bounds[latent] : bounds[latent + 1]]
            draws = generator(spec.seed, "score", latent)
            quizzes[latent] = _quizzes(latent, truth, said, where, len(windows), spec, draws)
            advance(1)
    table = cells(simulated, true_codes(active, latents).extra_PL)
    columns = {
        "latent": np.arange(latents, dtype=np.int32),
        "explained": simulated.explained,
        "detection_f1": measures.f1(*quizzes[:, 0].T),
        "fuzzing_f1": measures.f1(*quizzes[:, 1].T),
        "sensitivity": measures.sensitivity(table.active),
        "specificity": measures.specificity(table.said, table.active),
        "mcc": measures.matthews(table.said, table.active),
        "auprc": measures.average_precision(table.said, table.active),
        "active": table.active.sum(1).astype(np.int64),
    }
    for name in ("detection_f1", "fuzzing_f1", "sensitivity", "specificity", "mcc", "auprc"):
        columns[name] = np.where(simulated.explained, columns[name], np.nan).astype(np.float32)
    write_table(columns, out / "scores.parquet")


def read_scores(folder: Folder) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(folder.path("scores.parquet"))


def _quizzes(
    latent: int,
    truth: ByLatent,
    said: np.ndarray,
    where: Positions,
    windows: int,
    spec: ScoreSpec,
    draws: np.random.Generator,
) -> np.ndarray:
    """Detection and fuzzing: hits, false alarms and misses of each."""
    position, value = truth.of(latent)
    if not len(position):
        return np.zeros((2, 3))
    asked = position[_by_decile(value, spec.examples, draws)]
    active_windows = np.unique(where.window[position])
    silent = np.setdiff1d(np.arange(windows), active_windows)
    others = draws.permutation(silent)[: len(asked)]
    shown = where.window[asked[: len(others)]]  # as many that activate it as there are that do not
    seen_windows = np.zeros(windows, dtype=bool)
    seen_windows[where.window[said]] = True
    hits = int(seen_windows[shown].sum())
    detection = [hits, int(seen_windows[others].sum()), len(shown) - hits]

    beside = np.flatnonzero(np.isin(where.window, where.window[asked]))
    beside = np.setdiff1d(beside, position)
    marked = draws.permutation(beside)[: len(asked)]
    hits = int(np.isin(asked, said).sum())
    fuzzing = [hits, int(np.isin(marked, said).sum()), len(asked) - hits]
    return np.array([detection, fuzzing], dtype=np.float64)


def _by_decile(value: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """Up to `count` indices, as evenly from the ten deciles of `value` as there are."""
    parts = np.array_split(np.argsort(value, kind="stable"), DECILES)
    drawn = np.concatenate([draws.permutation(part) for part in parts])
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    return drawn[np.argsort(turn, kind="stable")[:count]]
