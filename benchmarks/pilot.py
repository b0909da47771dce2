"""Does a pilot's interval hold what the whole run then closes? Many pilots of a tenth of the latents, one whole run.

    python -m benchmarks.pilot --store store --seeds 50 --share 0.1 --out pilot.jsonl

The rule reader is asked, which costs nothing. What does not depend on a pilot's seed (gradients, free rewritings) is
computed once. One line of JSON a pilot and one for all; a line that is there already is not measured again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.science import MODELLED, SAID, Line, Lines, Needed, settled
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply
from nlrewrite.calibrate.cases import restricted
from nlrewrite.composition import rewrite
from nlrewrite.probes import panel, pilot, upstream
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.pilot_pairs import in_columns
from nlrewrite.progress import Progress
from nlrewrite.simulate import rules
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.simulate.said import Said, Spoken
from nlrewrite.specs import PilotSpec
from nlrewrite.steps import Running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", default="pilot.jsonl")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--share", type=float, default=0.1, help="of the latents that are piloted")
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--inactive", type=int, default=200)
    parser.add_argument("--calibrator", default="hurdle")
    parser.add_argument("--auc", type=float, help="ask an oracle of this AUC instead of the rules")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    given = parser.parse_args()
    spec, store, execution = settled(given, 0)
    needed = Needed(store, execution, lambda label: label in (*MODELLED, *SAID))
    rewrite(spec, needed)
    inputs = {label: store.folder(each) for label, each in needed.inputs["requirement"].items()}
    said = {label: store.folder(needed.made[label]) for label in SAID}
    up = upstream.read(inputs, Running(execution, Progress()))
    lines = Lines(Path(given.out), given.again)
    heard = simulators(up, said, given.auc)
    who = "rules" if given.auc is None else f"oracle {given.auc:g}"
    whole = lines.add(f"whole run, {given.calibrator}, {who}", lambda: whole_run(up, heard, given.calibrator))
    pilots(given, up, heard[0], lines, whole, who)


def simulators(up: upstream.Upstream, said: dict[str, Folder], auc: float | None) -> tuple[Said, Said]:
    """On the calibrate and on the report split."""
    if auc is None:
        return (
            Spoken(rules.read(said["simulation-calibrate"]), up.calibrate.count),
            Spoken(rules.read(said["simulation-report"]), up.report.count),
        )
    knows, manner = Scored.of_auc(auc), Manner(digits=False)
    return (
        oracle(up.calibrate.truth_PL, up.known.magnitude, knows, manner, seed=0, split="calibrate"),
        oracle(up.report.truth_PL, up.known.magnitude, knows, manner, seed=0, split="report"),
    )


def whole_run(up: upstream.Upstream, heard: tuple[Said, Said], calibrator: str) -> Line:
    """The gap closed by all latents, calibrated on the whole calibrate split and measured on the report split."""
    on_calibrate, on_report = heard
    count = up.calibrate.count if isinstance(on_calibrate, Spoken) else upstream.CONTEXTS
    chosen = upstream.chosen(up.calibrate, count, 0)
    fitted = up.fit(calibrator, restricted(on_calibrate, chosen.rows), chosen)
    measured = Panel(up, Progress())
    truth_PL, dec_LE = up.report.truth_PL, up.dec_LE
    measured.add("coder", np.asarray(truth_PL @ dec_LE, dtype=np.float32))
    measured.add("mean", panel.constant(up.mean_L, truth_PL, dec_LE))
    measured.add("rewritten", apply.written(fitted, on_report, dec_LE))
    gap = measured.measured(2000, 0).gap("rewritten", "mean", "coder")
    assert gap is not None
    return {"gap_closed": gap.mean, "low": gap.low, "high": gap.high}


def pilots(given: argparse.Namespace, up: upstream.Upstream, said: Said, lines: Lines, whole: Line, who: str) -> None:
    spec = PilotSpec(
        latents=max(2, round(given.share * up.latents)),
        active=given.active,
        inactive=given.inactive,
        calibrator=given.calibrator,
    )
    on = pilot.ground(up)
    ready: list[tuple[np.ndarray, pilot.Translation]] = []
    names: list[str] = []

    def measured(seed: int) -> Line:
        if not ready:
            reads_PRE = pilot.gradients(spec, on, np.arange(up.calibrate.count), Progress())
            ready.append((reads_PRE, pilot.free(spec, on, Progress())))
        reads_PRE, translation = ready[0]
        started = time.process_time()
        mine = spec.model_copy(update={"seed": seed})
        pairs = pilot.chosen(mine, on, said.explained)
        read = pilot.readable(pairs, seed)
        composed = pilot.composed(mine, on, pairs, in_columns(said, pairs), reads_PRE[read], read)
        found = pilot.predicted(composed, translation, mine.level)
        return {
            **{
                name: [getattr(found, name).value, getattr(found, name).low, getattr(found, name).high] for name in READ
            },
            "louder": found.louder,
            "queries": pairs.queries(),
            "cpu_seconds": time.process_time() - started,
        }

    for seed in range(given.seeds):
        what = (
            f"pilot, {spec.latents} latents, {spec.active} + {spec.inactive} contexts, {spec.calibrator}, {who}, {seed}"
        )
        lines.add(what, lambda seed=seed: measured(seed))
        names.append(what)
    told = [lines.there[name] for name in names]
    print(json.dumps(summary(told, whole["gap_closed"], spec)))


READ = ("gap_closed", "in_output", "alone")


def summary(told: list[Line], true: float, spec: PilotSpec) -> Line:
    """How often the interval held the truth, and how wide it was."""
    found: Line = {"what": "all pilots", "of": len(told), "level": spec.level, "whole": true}
    for name in READ:
        value, low, high = np.array([each[name] for each in told]).T
        found[name] = {
            "covered": int(((low <= true) & (true <= high)).sum()),
            "mean": float(value.mean()),
            "bias": float(value.mean() - true),
            "spread": float(value.std()),
            "width": float((high - low).mean()),
        }
    return found


if __name__ == "__main__":
    main()
