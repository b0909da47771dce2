"""What the method is claimed to show, measured again: the ladder, the coverage, a full-size pass and the margin.

    python -m benchmarks.science ladder coverage pass margin --store store --out science.jsonl

Every figure is one line of JSON, printed and appended to `--out` as it comes. A line that is there already is not
measured again, so that an interrupted run goes on where it stopped; `--again` measures anew. Where there is a peer
(the published program, quantile normalisation) a line has `what`, `ours`, `peer`, `unit`, `ratio` and `machine`.

    python -m benchmarks.science figures --store store --figures docs/figures

builds all probes, prints their summaries, and draws their figures.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from nlrewrite import pipeline, profiles, steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import PROBES, RewriteSpec, Spec
from nlrewrite.steps import Running

PARTS = ("ladder", "coverage", "pass", "margin")
SIZES = ((4096, 10_000), (32_768, 1_250), (32_768, 10_000))
WIDTH, ACTIVE = 768, 32
"""Of the full-size pass: width of what is written, latents active on a token."""
DOCUMENTS = 500

Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, "figures", []], help="all but the figures, if none is named"
    )
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", default="science.jsonl")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of the margin, on the first subject")
    parser.add_argument("--subjects", type=int, nargs="+", default=[0, 1, 2], help="seeds of whole rewritings")
    parser.add_argument("--repetitions", type=int, default=1000, help="of the coverage")
    parser.add_argument("--figures", default="figures", help="folder of the figures")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--one-pass", type=int, nargs=2, metavar=("LATENTS", "CONTEXTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_pass:
        print(json.dumps(one_pass(*given.one_pass)))
        return
    lines = Lines(Path(given.out), given.again)
    for part in given.parts or PARTS:
        MEASURED[part](given, lines)


@dataclass
class Lines:
    """Lines of JSON on disk; each is measured once."""

    path: Path
    again: bool

    def __post_init__(self) -> None:
        text = self.path.read_text() if self.path.exists() else ""
        self.there = {} if self.again else {line["what"]: line for line in map(json.loads, text.splitlines())}

    def add(self, what: str, measure: Callable[[], Line]) -> Line:
        if what not in self.there:
            self.there[what] = finite({"what": what, **measure(), "machine": machine()})
            with self.path.open("a") as file:
                file.write(json.dumps(self.there[what], allow_nan=False) + "\n")
        print(json.dumps(self.there[what], allow_nan=False), flush=True)
        return self.there[what]


def finite(value: Any) -> Any:
    """What JSON can hold: null for a number that there is not."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def machine() -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} shared cores, {threads} compute threads"


def compared(ours: float, peer: float, unit: str, **more: Any) -> Line:
    """Losses: less is better, and so the ratio is above 1 where ours is."""
    return {"ours": ours, "peer": peer, "unit": unit, "ratio": peer / ours, **more}


# -- what has to be there ---------------------------------------------------------------------------------------------


class Needed(pipeline.Builder):
    """Builds the steps that a measurement reads, and names the others. `inputs` are those of every step."""

    def __init__(self, store: Store, execution: Execution, needed: Callable[[str], bool]) -> None:
        super().__init__(store, execution, Progress(), "benchmark")
        self._needed = needed
        self.inputs: dict[str, dict[str, Artifact]] = {}
        self.made: dict[str, Artifact] = {}

    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        self.inputs[label] = inputs
        build = self._needed(label)
        self.made[label] = super().__call__(label, kind, spec, **inputs) if build else steps.name(kind, spec, inputs)
        return self.made[label]


ACTIVATIONS = ("activations-explain", "activations-calibrate", "activations-report")
MODELLED = ("corpus", "subject", "tokens", "coder", *ACTIVATIONS)
SAID = ("explanations", "simulation-calibrate", "simulation-report")
GATED = ("gates", *(f"simulation-{split}-{rung}" for rung in ("gate", "gated") for split in ("calibrate", "report")))


def settled(given: argparse.Namespace, seed: int) -> tuple[RewriteSpec, Store, Execution]:
    execution = Execution(store=given.store)
    overrides = profiles.probing(Overrides(seed=seed) if seed else Overrides(), PROBES)
    return profiles.resolve(given.profile, overrides, execution), Store(given.store, execution.scratch), execution


def inputs_of(probe: str, given: argparse.Namespace, seed: int) -> tuple[dict[str, Folder], Execution]:
    """What a probe reads, built where it is missing."""
    spec, store, execution = settled(given, seed)
    needed = Needed(store, execution, lambda label: label in (*MODELLED, *SAID))
    rewrite(spec, needed)
    found = {label: each for label, each in needed.inputs[probe].items() if not label.endswith(("-gate", "-gated"))}
    return {label: store.folder(each) for label, each in found.items()}, execution


# -- the four measurements --------------------------------------------------------------------------------------------


def measure_ladder(given: argparse.Namespace, lines: Lines) -> None:
    """The ladder's ends: ours against the published program's added loss."""
    import pandas as pd

    spec, store, execution = settled(given, given.subjects[0])
    needed = Needed(store, execution, lambda label: label in (*MODELLED, *SAID, *GATED, "ladder"))
    rewrite(spec, needed)
    table = pd.read_parquet(store.folder(needed.made["ladder"]).path("rows.parquet"))
    for (simulator, fraction), rows in table.groupby(["simulator", "fraction"], sort=False):  # pyright: ignore
        ordered = rows.sort_values("rung")
        first, last = ordered.iloc[0], ordered.iloc[-1]
        lines.add(
            f"ladder-end/published-program, {simulator}, fraction {fraction:g}",
            lambda first=first, last=last: compared(
                float(last["delta_ce"]),
                float(first["delta_ce"]),
                "added nats",
                gap_closed=[float(last["gap_closed"]), float(first["gap_closed"])],
                error_of_comparison=[float(last["above_mean_error"]), float(first["above_mean_error"])],
            ),
        )


def measure_coverage(given: argparse.Namespace, lines: Lines) -> None:
    from nlrewrite.evaluate.coverage import coverage

    what = f"coverage of 95% intervals, {given.repetitions} repetitions"
    line = lines.add(what, lambda: {"figures": [asdict(each) for each in coverage(given.repetitions)]})
    assert line["figures"]


def measure_pass(given: argparse.Namespace, lines: Lines) -> None:
    """Each size in a process of its own, for its peak memory."""
    for latents, contexts in SIZES:
        command = [sys.executable, "-m", "benchmarks.science", "--one-pass", str(latents), str(contexts)]

        def measured(command: list[str] = command) -> Line:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found: Line = json.loads(done.stdout)
            return found

        lines.add(f"calibrate and evaluate {latents} latents x {contexts} contexts of random digits", measured)


def measure_margin(given: argparse.Namespace, lines: Lines) -> None:
    from nlrewrite.activations.pairs import read as read_pairs
    from nlrewrite.probes import margin, upstream
    from nlrewrite.simulate import rules

    first, *others = given.subjects
    asked = {first: range(given.seeds), **{subject: range(1) for subject in others}}
    for subject, seeds in asked.items():
        ready: list[margin.Subject] = []

        def measured(seed: int, subject: int = subject, ready: list[margin.Subject] = ready) -> Line:
            if not ready:
                inputs, execution = inputs_of("ladder", given, subject)
                up = upstream.read(inputs, Running(execution, Progress()))
                said = (rules.read(inputs[label]) for label in ("on-calibrate", "simulation"))
                ready.append(margin.subject(up, read_pairs(inputs["explain"]), *said))
            started = time.process_time()
            found = margin.measure(ready[0], seed, Progress())
            lower = f"oracle {min(margin.AUCS):g}"
            above, best = found.loser_above_mean["all"].mean, found.estimates[f"{lower}, 1, all"]
            compared_with = compared(found.gaps["all"] + best, found.gaps["all"] + above, "nats above the coder")
            return {
                **compared_with,
                **found.printable(),
                "subject": subject,
                "cpu_seconds": time.process_time() - started,
            }

        for seed in seeds:
            lines.add(
                f"hurdle/{margin.LOSER}, oracle 0.84, subject {subject}, seed {seed}", lambda seed=seed: measured(seed)
            )
    told = [line for what, line in lines.there.items() if what.startswith("hurdle/")]
    print(json.dumps(margin_summary(told)))


def margin_summary(told: list[Line]) -> Line:
    """How often the margin held, and the worst of what was seen."""
    found = [each for line in told for name, each in line["gap_closed"].items() if name.startswith("oracle 0.95")]
    lost = [line["loser_above_mean"]["all"]["low"] for line in told]
    return {
        "what": "margin, all seeds",
        "held": sum(line["holds"] for line in told),
        "of": len(told),
        "largest bound": max((line["share"] for line in told if line["share"] is not None), default=None),
        "least gap closed at AUC 0.95, lower ends": min((each["low"] for each in found if each), default=None),
        "without a gap to close": sum(each is None for each in found),
        "quantile matching at AUC 0.84 loses, lower ends in nats": min(lost),
    }


def draw_figures(given: argparse.Namespace, lines: Lines) -> None:
    """The probes' figures from their rows."""
    from nlrewrite.report import figure, probes

    spec, store, execution = settled(given, given.subjects[0])
    needed = Needed(store, execution, lambda label: label in (*MODELLED, *SAID, *GATED, *PROBES))
    rewrite(spec, needed)
    asked = probes.gather({probe: store.folder(needed.made[probe]) for probe in PROBES})
    for each in asked:
        print(json.dumps({"what": each.name, **each.summary}), flush=True)
    figure.write(probes.figures(asked).values(), Path(given.figures))


MEASURED: dict[str, Callable[[argparse.Namespace, Lines], None]] = {
    "ladder": measure_ladder,
    "coverage": measure_coverage,
    "pass": measure_pass,
    "margin": measure_margin,
    "figures": draw_figures,
}


# -- a full-size pass -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomDigits:
    """A simulator that answers with one digit, drawn for each latent and context, mostly 0, and knows nothing."""

    latents: int
    contexts: int

    @property
    def explained(self) -> np.ndarray:
        return np.ones(self.latents, dtype=bool)

    def scores(self, latents: slice) -> np.ndarray:
        start, stop, _ = latents.indices(self.latents)
        drawn = np.empty((stop - start, self.contexts), dtype=np.float32)
        for row, latent in enumerate(range(start, stop)):
            drawn[row] = np.minimum(generator(0, "digits", latent).geometric(0.6, self.contexts) - 1, 9)
        return drawn

    def digits(self, latents: slice) -> None:
        return None


def one_pass(latents: int, contexts: int) -> Line:
    """Fit the hurdle and quantile normalisation, predict everything, write it, and put an interval on the error."""
    from nlrewrite.activations.pairs import Active
    from nlrewrite.calibrate import apply
    from nlrewrite.calibrate.fit import fit
    from nlrewrite.calibrate.known import Statistics
    from nlrewrite.evaluate import bootstrap

    started = time.perf_counter()
    draws = generator(0, "pass")
    active = Active(
        draws.integers(0, latents, (contexts, ACTIVE)).astype(np.int32),
        draws.gamma(2.0, 0.5, (contexts, ACTIVE)).astype(np.float32),
    )
    starts = np.arange(0, contexts * ACTIVE + 1, ACTIVE)
    truth_PL = sparse.csr_matrix((active.values.ravel(), active.latents.ravel(), starts), shape=(contexts, latents))
    truth_PL.sum_duplicates()
    dec_LE = draws.normal(size=(latents, WIDTH)).astype(np.float32) / np.sqrt(WIDTH).astype(np.float32)
    fold_P = np.arange(contexts) % 4
    said, statistics = RandomDigits(latents, contexts), Statistics(active, truth_PL, fold_P, latents, 0)
    true_PE = np.asarray(truth_PL @ dec_LE)
    document = np.arange(contexts) % DOCUMENTS
    mean = statistics.known_of(None)(slice(0, latents)).mean
    errors, seconds = [_squared(mean @ dec_LE, true_PE)], {}
    for name in ("hurdle", "quantile-6"):
        at = time.perf_counter()
        fitted = fit(name, said, truth_PL, statistics.known_of("corpus"), fold_P)
        fitted_at = time.perf_counter()
        errors.append(_squared(apply.written(fitted, said, dec_LE), true_PE))
        seconds[name] = {"fit": fitted_at - at, "write": time.perf_counter() - fitted_at}
    sums_GA = np.stack([np.bincount(document, error, minlength=DOCUMENTS) for error in errors], axis=1)
    counts_G = np.bincount(document, minlength=DOCUMENTS).astype(np.float64)
    drawn = bootstrap.resample(sums_GA, counts_G, 2000, generator(0, "pass", "bootstrap"))
    return {
        "predictions": latents * contexts,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "parts": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "error above mean ablation": {
            name: asdict(drawn.difference(at, 0)) for at, name in enumerate(("hurdle", "quantile-6"), 1)
        },
    }


def _squared(written: np.ndarray, true_PE: np.ndarray) -> np.ndarray:
    return np.square(written - true_PE).sum(1, dtype=np.float64)


if __name__ == "__main__":
    main()
