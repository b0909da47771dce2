"""Fit every calibrator on the calibrate split, and choose one by predicting documents it was not fitted on.

In: simulated levels and true activations of the calibrate split, the coder's decoder, and the explain split's
activations as the corpus that quantile normalisation maps onto. Out: `calibrators.safetensors` (name: values [L, 10]),
`calibration.json` (what each one used, its cross-fitted error, the chosen one).
Invariant: a latent without a readable sentence gets its mean from every calibrator, and the choice never sees a report
document.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Codes, true_codes
from nlrewrite.activations.pairs import ByLatent, read
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import hurdle, quantile
from nlrewrite.calibrate.cells import Cells, cells
from nlrewrite.coders import topk
from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.seeds import generator
from nlrewrite.simulate import rules as simulation
from nlrewrite.simulate.rules import Simulated
from nlrewrite.specs import CalibrateSpec
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

CALIBRATORS = "calibrators.safetensors"
ON_PROMPT = "-on-prompt"


@dataclass(frozen=True)
class Calibrated:
    """A fitted calibrator: the value of each latent at each level."""

    name: str
    information: str
    values_LZ: np.ndarray

    def codes(self, simulated: Simulated, count: int) -> Codes:
        """The calibrated activations at `count` positions."""
        silent = self.values_LZ[:, 0]
        values = self.values_LZ[simulated.latent, simulated.level] - silent[simulated.latent]
        shape = (count, len(silent))
        extra = sparse.csr_matrix((values.astype(np.float32), (simulated.position, simulated.latent)), shape=shape)
        return Codes(silent.astype(np.float32), extra)


@dataclass(frozen=True)
class Fitting:
    """What calibrators may look at: pairs of a split, a corpus of true activations, the largest one of each latent."""

    simulated: Simulated
    truth_PL: sparse.csr_matrix
    corpus: ByLatent
    corpus_positions: int
    largest_L: np.ndarray


def build(spec: CalibrateSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from safetensors.numpy import save_file

    coder = topk.read(inputs["coder"])
    where = positions(read_windows(inputs["tokens"], "calibrate"))
    fitting = fitting_on(inputs["simulation"], inputs["activations"], inputs["explain"], coder.latents)
    folds_P = folds(where, spec)
    dec_LE = coder.dec_LE.numpy()
    if all(name.endswith(ON_PROMPT) for name in spec.calibrators):
        raise SettingError(
            f"calibrate.calibrators needs one that does not look at the report split, for one is chosen before: there "
            f"is {', '.join(spec.calibrators)}. Add hurdle to --set calibrate.calibrators"
        )
    rows, tables, errors = [], {}, []
    with running.progress.stage("calibrate", len(spec.calibrators)) as advance:
        for name in spec.calibrators:
            fitted = fit(name, fitting, folds_P)
            error = None if name.endswith(ON_PROMPT) else cross_fitted_error(name, fitting, folds_P, dec_LE)
            errors.append(error)
            tables[name] = fitted.values_LZ.astype(np.float32)
            rows.append({"calibrator": name, "information": fitted.information, "cross_fitted_error": error})
            advance(1)
    chosen = min((error, at) for at, error in enumerate(errors) if error is not None)[1]
    save_file(tables, out / CALIBRATORS)
    summary = {
        "calibrators": rows,
        "chosen": spec.calibrators[chosen],
        "mean_ablation_error": mean_ablation_error(fitting, folds_P, dec_LE),
        "unexplained": int((~fitting.simulated.explained).sum()),
    }
    (out / "calibration.json").write_text(json.dumps(summary, indent=1))


def read_calibrated(folder: Folder) -> tuple[dict[str, Calibrated], str]:
    """The calibrators by name, and the chosen one's name."""
    from safetensors.numpy import load_file

    tables = load_file(folder.path(CALIBRATORS))
    summary = json.loads(folder.path("calibration.json").read_text())
    rows = {row["calibrator"]: row["information"] for row in summary["calibrators"]}
    return {name: Calibrated(name, rows[name], tables[name]) for name in rows}, summary["chosen"]


def fitting_on(simulated: Folder, activations: Folder, corpus: Folder, latents: int) -> Fitting:
    truth, target = read(activations), read(corpus)
    by_latent = target.by_latent(latents)
    largest = np.zeros(latents)
    np.maximum.at(largest, target.latents.ravel(), target.values.ravel())
    return Fitting(
        simulation.read(simulated), true_codes(truth, latents).extra_PL, by_latent, len(target.values), largest
    )


def fit(name: str, fitting: Fitting, folds_P: np.ndarray, rows_P: np.ndarray | None = None) -> Calibrated:
    """The calibrator called `name`, fitted on the positions of `rows_P`, or on all."""
    everywhere = cells(fitting.simulated, fitting.truth_PL, rows_P)
    if name == "none":
        values, information = _promised(fitting), "maximum"
    elif name == "hurdle":
        wanted = np.unique(folds_P if rows_P is None else folds_P[rows_P])
        inside = [folds_P == fold if rows_P is None else (folds_P == fold) & rows_P for fold in wanted]
        if len(inside) == 1:  # a single fold is halved by position, so that a strength can be chosen
            half = np.arange(len(folds_P)) < np.median(np.flatnonzero(inside[0]))
            inside = [inside[0] & half, inside[0] & ~half]
        parts = [cells(fitting.simulated, fitting.truth_PL, rows) for rows in inside]
        values, information = hurdle.fit(everywhere, hurdle.best_strength(parts)), "paired"
    elif found := re.fullmatch(rf"quantile-([1-9])({ON_PROMPT})?", name):
        targets = _samples(fitting)
        values = np.stack(
            [quantile.fit(said, target, int(found[1])) for said, target in zip(everywhere.said, targets, strict=True)]
        )
        information = "test marginals" if found[2] else "marginals"
    else:
        raise SettingError(
            f"no calibrator is called {name!r}: there are none, hurdle, quantile-1 to quantile-9, and each of those "
            f"with {ON_PROMPT}. Change --set calibrate.calibrators"
        )
    unexplained = ~fitting.simulated.explained
    values = np.array(values, dtype=np.float64)
    values[unexplained] = (everywhere.total.sum(1) / max(everywhere.positions, 1))[unexplained, None]
    return Calibrated(name, information, values)


def cross_fitted_error(name: str, fitting: Fitting, folds_P: np.ndarray, dec_LE: np.ndarray) -> float:
    """Mean squared error of what the latents write, each fold predicted by a calibrator fitted on the others."""
    return _error(
        lambda held: fit(name, fitting, folds_P, ~held).codes(fitting.simulated, len(held)), fitting, folds_P, dec_LE
    )


def mean_ablation_error(fitting: Fitting, folds_P: np.ndarray, dec_LE: np.ndarray) -> float:
    """The same for the mean of each latent: what any calibrator has to beat."""

    def mean(held: np.ndarray) -> Codes:
        rest: Cells = cells(fitting.simulated, fitting.truth_PL, ~held)
        constant = (rest.total.sum(1) / rest.positions).astype(np.float32)
        return Codes(constant, sparse.csr_matrix((len(held), len(constant)), dtype=np.float32))

    return _error(mean, fitting, folds_P, dec_LE)


def folds(where: Positions, spec: CalibrateSpec) -> np.ndarray:
    """A fold for every position; a document group is never in two."""
    groups = np.unique(where.group)
    if len(groups) < spec.folds:
        raise SettingError(
            f"calibrate.folds must be at most the document groups of the calibrate split: folds={spec.folds}, "
            f"groups={len(groups)}. Lower --set calibrate.folds or give more text"
        )
    order = generator(spec.seed, "calibrate", "folds").permutation(len(groups))
    fold_of_group = np.empty(len(groups), dtype=np.int64)
    fold_of_group[order] = np.arange(len(groups)) % spec.folds
    return fold_of_group[np.searchsorted(groups, where.group)]


def _error(predict: Callable[[np.ndarray], Codes], fitting: Fitting, folds_P: np.ndarray, dec_LE: np.ndarray) -> float:
    """Mean squared error of what `predict` makes of each fold, which it is given as a mask."""
    total = 0.0
    for fold in np.unique(folds_P):
        held = folds_P == fold
        rows = np.flatnonzero(held)
        written = predict(held).output(rows, dec_LE) - fitting.truth_PL[rows] @ dec_LE
        total += float(np.square(written).sum())
    return total / len(folds_P)


def _promised(fitting: Fitting) -> np.ndarray:
    """The sources' uncalibrated prediction: the expected digit, in ninths of the latent's largest activation."""
    return fitting.largest_L[:, None] * fitting.simulated.expected / (DIGITS - 1)


def _samples(fitting: Fitting) -> list[quantile.Sample]:
    return [
        quantile.Sample(np.sort(fitting.corpus.of(latent)[1]), fitting.corpus_positions)
        for latent in range(len(fitting.largest_L))
    ]
