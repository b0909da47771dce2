"""Score every explanation on the calibrate split: detection, fuzzing, and what holds at natural prevalence.

In: windows, true activations and simulated levels of the calibrate split. Out: `scores.parquet`, one row per latent.
Detection shows windows, half of them with an activation (drawn evenly from its ten deciles), and asks which activate
the latent; fuzzing shows a marked token in windows that do, half of them rightly marked. The reader answers yes where
its level is above 0. Precision is carried from the quiz to the text: the base rate is that of windows with an
activation for detection, that of tokens for fuzzing. Invariant: the draws of a latent depend on the seed and the
latent alone.
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
    quizzes = np.zeros((latents, 2, 4))
    windows_active = np.zeros(latents)
    with running.progress.stage("score", latents) as advance:
        for latent in range(latents):
            said = simulated.position[bounds[latent] : bounds[latent + 1]]
            draws = generator(spec.seed, "score", latent)
            quizzes[latent] = _quizzes(latent, truth, said, where, len(windows), spec, draws)
            windows_active[latent] = len(np.unique(where.window[truth.of(latent)[0]]))
            advance(1)
    table = cells(simulated, true_codes(active, latents).extra_PL)
    rate = table.active.sum(1) / max(table.positions, 1)
    mcc = measures.matthews(table.said, table.active)
    detection, fuzzing = quizzes[:, 0].T, quizzes[:, 1].T
    scores = {
        "detection_f1": measures.f1(*detection[:3]),
        "fuzzing_f1": measures.f1(*fuzzing[:3]),
        "detection_balanced_accuracy": measures.balanced_accuracy(*detection),
        "fuzzing_balanced_accuracy": measures.balanced_accuracy(*fuzzing),
        "detection_precision": measures.precision_at(windows_active / len(windows), *detection),
        "fuzzing_precision": measures.precision_at(rate, *fuzzing),
        "sensitivity": measures.sensitivity(table.active),
        "specificity": measures.specificity(table.said, table.active),
        "mcc": mcc,
        "mcc2": mcc**2,
        "explained_by_flags": measures.explained_by_flags(mcc, rate, _spread(truth, latents)),
        "auprc": measures.average_precision(table.said, table.active),
    }
    columns = {
        "latent": np.arange(latents, dtype=np.int32),
        "explained": simulated.explained,
        **{name: np.where(simulated.explained, score, np.nan).astype(np.float32) for name, score in scores.items()},
        "active": table.active.sum(1).astype(np.int64),
    }
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
    """Detection and fuzzing: hits, false alarms, misses and right rejections of each."""
    position, value = truth.of(latent)
    if not len(position):
        return np.zeros((2, 4))
    asked = position[_by_decile(value, spec.examples, draws)]
    active_windows = np.unique(where.window[position])
    silent = np.setdiff1d(np.arange(windows), active_windows)
    others = draws.permutation(silent)[: len(asked)]
    shown = where.window[asked[: len(others)]]  # as many that activate it as there are that do not
    seen_windows = np.zeros(windows, dtype=bool)
    seen_windows[where.window[said]] = True
    hits = int(seen_windows[shown].sum())
    alarms = int(seen_windows[others].sum())
    detection = [hits, alarms, len(shown) - hits, len(others) - alarms]

    beside = np.flatnonzero(np.isin(where.window, where.window[asked]))
    beside = np.setdiff1d(beside, position)
    marked = draws.permutation(beside)[: len(asked)]
    hits = int(np.isin(asked, said).sum())
    alarms = int(np.isin(marked, said).sum())
    fuzzing = [hits, alarms, len(asked) - hits, len(marked) - alarms]
    return np.array([detection, fuzzing], dtype=np.float64)


def _spread(truth: ByLatent, latents: int) -> np.ndarray:
    """Coefficient of variation of each latent's activations above 0; 0 for one that never is."""
    found = np.zeros(latents)
    for latent in range(latents):
        value = truth.of(latent)[1].astype(np.float64)
        if len(value):
            found[latent] = value.std() / value.mean()
    return found


def _by_decile(value: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """Up to `count` indices, as evenly from the ten deciles of `value` as there are."""
    parts = np.array_split(np.argsort(value, kind="stable"), DECILES)
    drawn = np.concatenate([draws.permutation(part) for part in parts])
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    return drawn[np.argsort(turn, kind="stable")[:count]]
