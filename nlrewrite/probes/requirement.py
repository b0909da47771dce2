"""How good a simulator must be: the gap closed by simulators of known quality, and what theory says of the same.

In: a subject and its coder, and oracles that flag or score with the qualities of `RequirementSpec`. Out:
`rows.parquet`, a row for each quality and calibrator, with the error of the predictions against that of mean ablation,
measured and in closed form; `summary.json`, with the specificity from which flags at face value are no worse than the
mean: for this run's base rate, and for that of the published experiments, whose "99.9%" it derives. Invariant: all
latents are replaced, and all oracles err independently for every latent and context.

An error in closed form is that of a latent with the base rate, averaged over the latents with weights of their energy:
the variance of what a latent writes. Flags are taken at face value as the latent's mean magnitude; a score's raw value
is the expected digit in ninths of the latent's largest activation, which no closed form covers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.special import logit

from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply, methods
from nlrewrite.probes import panel, theory, upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.predictions import raw
from nlrewrite.probes.upstream import Chosen, Upstream
from nlrewrite.seeds import derive
from nlrewrite.simulate.oracle import Flagged, Manner, Oracle, Scored, oracle
from nlrewrite.simulate.said import Said
from nlrewrite.specs import RequirementSpec

if TYPE_CHECKING:
    from nlrewrite.steps import Running

Predictions = Iterator[tuple[slice, np.ndarray]]

PUBLISHED_RATE = 32 / 32_768
"""Base rate of the published experiments: latents active on a token, of all latents."""
PUBLISHED_CV = 0.6
RATES = 12
"""Base rates for which a closed form is worked out; between them it is interpolated."""
CALIBRATORS = ("raw", "quantile-6", "hurdle")


@dataclass(frozen=True)
class Latents:
    """What closed forms take of each latent, and how much it counts."""

    rate_L: np.ndarray
    cv_L: np.ndarray
    energy_L: np.ndarray
    """Share of the variance that all latents write, as if they were independent."""

    @property
    def rate(self) -> float:
        return float(self.rate_L @ self.energy_L)

    @property
    def cv(self) -> float:
        return float(np.sqrt(np.square(self.cv_L) @ self.energy_L))


@dataclass(frozen=True)
class Point:
    """One quality."""

    knows: Flagged | Scored
    keys: dict[str, float | None]


def build(spec: RequirementSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    up = upstream.read(inputs, running)
    chosen = upstream.chosen(up.calibrate, upstream.CONTEXTS, spec.seed)
    told = latents(up.report.truth_PL, up.dec_LE)
    table = rows(spec, up, chosen, told, running)
    panel.write(out, table, summary(spec, table, up, told, len(chosen.rows)))


def points(spec: RequirementSpec) -> list[Point]:
    flags = [
        Point(
            Flagged(spec.sensitivity, each),
            {"sensitivity": spec.sensitivity, "specificity": each, "auc": None, "d_prime": None},
        )
        for each in spec.specificities
    ]
    scores = [
        Point(
            Scored.of_auc(each),
            {"sensitivity": None, "specificity": None, "auc": each, "d_prime": theory.d_prime(each)},
        )
        for each in spec.aucs
    ]
    return [*flags, *scores]


def rows(
    spec: RequirementSpec, up: Upstream, chosen: Chosen, told: Latents, running: "Running"
) -> list[dict[str, Any]]:
    everything = {"all": np.ones(up.latents, dtype=bool)}
    variance = float(variances(up.report.truth_PL) @ np.square(up.dec_LE).sum(1))
    measured = Panel(up, running.progress)
    measured.add("original", None)
    measured.add("coder", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE, ~everything["all"]))
    measured.add("mean", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE))
    found: list[dict[str, Any]] = []
    asked = points(spec)
    with running.progress.stage("requirement", len(asked)) as advance:
        for place, point in enumerate(asked):
            for calibrator, predicted in predictions(up, chosen, point, derive(spec.seed, "requirement", place) >> 31):
                output = panel.output(predicted, up.report.truth_PL, up.dec_LE, everything)
                name = f"{place} {calibrator}"
                measured.add(name, output.written["all"])
                wrong = float(output.error_L @ np.square(up.dec_LE).sum(1))
                found.append(
                    {
                        "kind": "flags" if isinstance(point.knows, Flagged) else "score",
                        **point.keys,
                        "calibrator": calibrator,
                        "information": "maximum" if calibrator == "raw" else information(calibrator),
                        "name": name,
                        "error_ratio": wrong / variance,
                        "error_ratio_in_theory": in_theory(point, calibrator, told),
                        "rate": told.rate,
                    }
                )
            advance(1)
    figures = measured.measured(spec.resamples, spec.seed)
    return [
        {
            **{key: value for key, value in row.items() if key != "name"},
            **panel.columns("delta_ce", figures.added(row["name"], "original")),
            **panel.columns("kl", figures.divergence(row["name"])),
            **panel.columns("above_mean", figures.added(row["name"], "mean")),
            **panel.columns("gap_closed", figures.gap(row["name"], "mean", "coder")),
        }
        for row in found
    ]


def information(calibrator: str) -> str:
    return methods.information(methods.parse(calibrator))


def predictions(up: Upstream, chosen: Chosen, point: Point, seed: int) -> Iterator[tuple[str, Predictions]]:
    """What each calibrator makes of one oracle."""
    magnitude = up.known.magnitude

    def said(truth_PL: sparse.csr_matrix, split: str) -> Oracle:
        return oracle(truth_PL, magnitude, point.knows, Manner(), seed=seed, split=split)

    on_calibrate, on_report = said(chosen.truth_SL, "calibrate"), said(up.report.truth_PL, "report")
    if isinstance(point.knows, Flagged):
        yield "raw", at_face_value(on_report, magnitude)
    else:
        yield "raw", raw(Heard(on_report, "expected"), up.known.largest, up.mean_L)
    alone, heard = Heard(on_calibrate, "own"), Heard(on_report, "own")
    for calibrator in CALIBRATORS[1:]:
        yield calibrator, apply.predictions(up.fit(calibrator, alone, chosen), heard)


def at_face_value(said: Said, magnitude_L: np.ndarray) -> Predictions:
    """Every flag as the latent's mean magnitude, no flag as 0."""
    for block in upstream.in_blocks(len(magnitude_L), said.contexts):
        yield block, (said.scores(block) * magnitude_L[block, None]).astype(np.float32)


# -- theory -----------------------------------------------------------------------------------------------------------


def variances(truth_PL: sparse.csr_matrix) -> np.ndarray:
    """Of each latent's activation: [L]."""
    mean_L = np.asarray(truth_PL.mean(0)).ravel()
    return np.asarray(truth_PL.multiply(truth_PL).mean(0)).ravel() - np.square(mean_L)


def latents(truth_PL: sparse.csr_matrix, dec_LE: np.ndarray) -> Latents:
    contexts = len(truth_PL.indptr) - 1
    often_L = truth_PL.getnnz(axis=0)
    there = np.maximum(often_L, 1)
    first_L = np.asarray(truth_PL.sum(0)).ravel() / there
    second_L = np.asarray(truth_PL.multiply(truth_PL).sum(0)).ravel() / there
    cv_L = np.sqrt(np.maximum(second_L / np.where(often_L > 0, np.square(first_L), 1) - 1, 0)) * (often_L > 0)
    energy_L = variances(truth_PL) * np.square(dec_LE).sum(1)
    return Latents(often_L / contexts, cv_L, energy_L / energy_L.sum())


def in_theory(point: Point, calibrator: str, told: Latents) -> float | None:
    """Error against mean ablation, of unlimited calibration data; None where there is no closed form."""
    there = (told.rate_L > 0) & (told.rate_L < 1)
    energy_L, cv_L = told.energy_L[there], told.cv_L[there]
    rates = np.geomspace(told.rate_L[there].min(), told.rate_L[there].max(), RATES)

    def averaged(of_rate: list[float]) -> np.ndarray:
        return np.interp(np.log(told.rate_L[there]), np.log(rates), of_rate)

    def of_activity(explained_L: np.ndarray) -> float:
        return 1 - float(energy_L @ (explained_L / (1 + np.square(cv_L) / (1 - told.rate_L[there]))))

    if isinstance(point.knows, Flagged):
        hit, right = float(point.knows.sensitivity), float(point.knows.specificity)
        if calibrator == "raw":
            each = [
                theory.flags_at_face_value(rate, hit, right, cv)
                for rate, cv in zip(told.rate_L[there], cv_L, strict=True)
            ]
            return float(energy_L @ np.array(each))
        if calibrator == "hurdle":
            return of_activity(averaged([theory.phi(rate, hit, right) ** 2 for rate in rates]))
        return None
    distance = point.knows.d_prime
    if calibrator == "hurdle":
        return of_activity(averaged([theory.explained_by_score(rate, distance, 0.0) for rate in rates]))
    if calibrator == "quantile-6":
        return float(energy_L @ averaged([theory.matched(rate, distance, told.cv).error for rate in rates]))
    return None


def summary(
    spec: RequirementSpec, table: list[dict[str, Any]], up: Upstream, told: Latents, contexts: int
) -> dict[str, Any]:
    return {
        "contexts": contexts,
        "rate": told.rate,
        "rate_of_latents": float(up.known.rate.mean()),
        "cv": told.cv,
        "sensitivity": spec.sensitivity,
        "break_even_specificity": {
            "measured": break_even(table),
            "this base rate": theory.break_even_specificity(told.rate, spec.sensitivity),
            "published base rate": theory.break_even_specificity(PUBLISHED_RATE, spec.sensitivity),
        },
        "published_rate": PUBLISHED_RATE,
        "quantile_break_even_auc": {
            "this base rate": theory.matched_break_even_auc(told.rate, told.cv),
            "published base rate": theory.matched_break_even_auc(PUBLISHED_RATE, PUBLISHED_CV),
        },
    }


def break_even(table: list[dict[str, Any]]) -> float | None:
    """Specificity at which raw flags cost as much loss as the mean, between the two measured ones around it."""
    flags = sorted(
        (row["specificity"], row["above_mean"]) for row in table if (row["kind"], row["calibrator"]) == ("flags", "raw")
    )
    for (low, above), (high, below) in pairwise(flags):
        if above > 0 >= below and high < 1:
            share = above / (above - below)
            return float(1 / (1 + np.exp(-(logit(low) + share * (logit(high) - logit(low))))))
    return None
