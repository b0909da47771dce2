"""How many contexts calibration takes: the gap closed against the number of contexts, or of questions.

In: a subject, its coder, what the rules said, and an oracle of `SampleSizeSpec.auc`. Out: `rows.parquet`, a row for
each simulator, way of drawing, size and calibrator, with the questions asked of each latent and the activations that
they find; `summary.json`. Invariant: a larger draw holds the smaller one, what is said of a context is the same in all
of them, and what is known without a simulator (base rates, magnitudes) is known in full, for it costs no question.

Drawn at random, a latent of base rate .001 needs a thousand contexts for a single activation; drawn by whether the
latent is active, which is known, ten questions find as many.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply, methods
from nlrewrite.calibrate.cases import case_control, restricted
from nlrewrite.calibrate.pairing import Cases
from nlrewrite.errors import SettingError
from nlrewrite.probes import panel, upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.requirement import variances
from nlrewrite.probes.upstream import Chosen, Upstream
from nlrewrite.seeds import derive
from nlrewrite.simulate import rules
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.simulate.said import Said, Spoken
from nlrewrite.specs import SampleSizeSpec

if TYPE_CHECKING:
    from nlrewrite.steps import Running


@dataclass(frozen=True)
class Draw:
    """Contexts that a simulator is asked about."""

    drawn: str
    contexts: int
    """How many of them there are to draw from, or are drawn."""
    active: int | None
    inactive: int | None
    questions: float
    """Of one latent, on average."""
    positives: float
    """Of those, the ones in which it is active."""
    said: Said
    on: Chosen
    cases: Cases | None = None


def build(spec: SampleSizeSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    for name in spec.calibrators:
        if methods.method(methods.parse(name)).target == "on-prompt":
            raise SettingError(
                f"{name} is fitted to the contexts it is measured on, whatever the number of others: leave it out of "
                f"--set sample_size.calibrators"
            )
    up = upstream.read(inputs, running)
    everywhere = upstream.chosen(up.calibrate, up.calibrate.count, spec.seed)
    table = rows(spec, up, everywhere, simulators(spec, inputs, up, everywhere), running)
    panel.write(
        out,
        table,
        {
            "contexts": up.calibrate.count,
            "rate": float(up.known.rate.mean()),
            "latents": up.latents,
            "auc": spec.auc,
            "enough": {name: enough(table, name) for name in spec.calibrators},
        },
    )


def simulators(
    spec: SampleSizeSpec, inputs: dict[str, Folder], up: Upstream, everywhere: Chosen
) -> dict[str, tuple[Said, Said]]:
    """The rules and an oracle, on the calibrate and on the report split."""
    seed = derive(spec.seed, "sample-size") >> 31
    knows, magnitude = Scored.of_auc(spec.auc), up.known.magnitude
    spoken = Spoken(rules.read(inputs["on-calibrate"]), up.calibrate.count)
    return {
        "rules": (spoken, Spoken(rules.read(inputs["simulation"]), up.report.count)),
        f"oracle {spec.auc:g}": (
            Heard(oracle(everywhere.truth_SL, magnitude, knows, Manner(), seed=seed, split="calibrate"), "own"),
            Heard(oracle(up.report.truth_PL, magnitude, knows, Manner(), seed=seed, split="report"), "own"),
        ),
    }


def draws(spec: SampleSizeSpec, up: Upstream, said: Said, everywhere: Chosen) -> Iterator[Draw]:
    rate = float(up.known.rate.mean())
    for count in sorted({min(count, len(everywhere.rows)) for count in spec.contexts}):
        kept, on = everywhere.some(count, spec.seed)
        yield Draw("random", count, None, None, count, count * rate, restricted(said, kept), on)
    for active, inactive in spec.cases:
        drawn = case_control(everywhere.truth_SL, everywhere.fold_S, active, inactive, seed=spec.seed)
        asked = drawn.queries() / up.latents
        found = float(drawn.active_LS.sum()) / up.latents
        cases = drawn.evidence(said, everywhere.truth_SL)
        yield Draw("by activity", len(everywhere.rows), active, inactive, asked, found, said, everywhere, cases)


def rows(
    spec: SampleSizeSpec, up: Upstream, everywhere: Chosen, asked: dict[str, tuple[Said, Said]], running: "Running"
) -> list[dict[str, Any]]:
    everything = {"all": np.ones(up.latents, dtype=bool)}
    energy_L = np.square(up.dec_LE).sum(1)
    variance = float(variances(up.report.truth_PL) @ energy_L)
    measured = Panel(up, running.progress)
    measured.add("original", None)
    measured.add("coder", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE, ~everything["all"]))
    measured.add("mean", panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE))
    found: list[dict[str, Any]] = []
    sizes = len(spec.contexts) + len(spec.cases)
    with running.progress.stage("sample size", sizes * len(asked)) as advance:
        for simulator, (on_calibrate, on_report) in asked.items():
            for draw in draws(spec, up, on_calibrate, everywhere):
                for name in spec.calibrators:
                    fitted = up.fit(name, draw.said, draw.on, draw.cases)
                    output = panel.output(
                        apply.predictions(fitted, on_report), up.report.truth_PL, up.dec_LE, everything
                    )
                    arm = f"{len(found)}"
                    measured.add(arm, output.written["all"])
                    found.append(
                        {
                            "simulator": simulator,
                            "drawn": draw.drawn,
                            "contexts": draw.contexts,
                            "active": draw.active,
                            "inactive": draw.inactive,
                            "questions": draw.questions,
                            "positives": draw.positives,
                            "rate": float(up.known.rate.mean()),
                            "calibrator": name,
                            "information": fitted.information,
                            "error_ratio": float(output.error_L @ energy_L) / variance,
                        }
                    )
                advance(1, draw.drawn)
    figures = measured.measured(spec.resamples, spec.seed)
    return [
        {
            **row,
            **panel.columns("delta_ce", figures.added(f"{arm}", "original")),
            **panel.columns("kl", figures.divergence(f"{arm}")),
            **panel.columns("above_mean", figures.added(f"{arm}", "mean")),
            **panel.columns("gap_closed", figures.gap(f"{arm}", "mean", "coder")),
        }
        for arm, row in enumerate(found)
    ]


def enough(table: list[dict[str, Any]], calibrator: str) -> dict[str, float | None]:
    """Questions of a latent after which more random contexts gain less than a hundredth of the gap, by simulator."""
    result: dict[str, float | None] = {}
    for simulator in dict.fromkeys(row["simulator"] for row in table):
        mine = [
            row
            for row in table
            if (row["simulator"], row["calibrator"], row["drawn"]) == (simulator, calibrator, "random")
        ]
        best = mine[-1]["gap_closed"] if mine else None
        near = [row["questions"] for row in mine if best is not None and abs(row["gap_closed"] - best) < 0.01]
        result[simulator] = min(near) if near else None
    return result
