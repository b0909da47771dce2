"""Held out, again and again: is the conditional mean ever worse than mean ablation, by more than a small margin?

In: a subject with its coder, and what the rules said of the calibrate and the report split. Out: per seed one
`Margin`: the largest of the simultaneous one-sided bounds of (rewriting - mean ablation), over fractions x simulators x
positions, as a share of the gap; the gap that a good oracle closes; and what quantile normalisation loses where theory
says it must. Invariant: a seed redraws everything that is drawn after the coder: which document groups calibrate and
which report, the contexts that are fitted on, the subsets of latents, the oracles' noise, the resamples.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate import apply
from nlrewrite.calibrate.cases import restricted
from nlrewrite.evaluate import bands
from nlrewrite.evaluate.bootstrap import Interval
from nlrewrite.probes import panel, upstream
from nlrewrite.probes.heard import Heard
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.upstream import Part, Upstream
from nlrewrite.seeds import derive, generator
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Said, Spoken
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from nlrewrite.progress import Progress

RECOMMENDED = "hurdle"
LOSER = "quantile-6"
AUCS = (0.84, 0.95)
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
POSITIONS = ("all", "last")
SHORTEST, PROMPTS_OF_WINDOW = 32, 16
"""Tokens of a prompt, at least, and prompts that are read in a window where the site is in the last layer."""
RESAMPLES = 2000
ALLOWED = 0.02
"""Of the gap between mean ablation and the coder: what a rewriting may be worse than mean ablation."""


@dataclass(frozen=True)
class Margin:
    """What one seed shows."""

    seed: int
    share: float
    """The largest simultaneous upper bound, over the gap of its position."""
    bound: float
    """The same bound in nats."""
    worst: str
    """Where that is: simulator, fraction, position."""
    gaps: dict[str, float]
    """Mean ablation's loss less the coder's, by position."""
    gap_closed: dict[str, Interval | None]
    """By simulator and position, all latents replaced; none where mean ablation is not worse than the coder."""
    loser_above_mean: dict[str, Interval]
    """What quantile normalisation loses against mean ablation at the lower AUC, in nats, by position."""
    estimates: dict[str, float]

    @property
    def holds(self) -> bool:
        return self.share < ALLOWED

    def printable(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True)
class Subject:
    """What stays as it is over the seeds: the calibrate and the report split as one, and what is known before them."""

    up: Upstream
    explain: Active
    whole: Part
    rules: Spoken


def subject(up: Upstream, explain: Active, on_calibrate: Simulated, on_report: Simulated) -> Subject:
    whole = joined(up.calibrate, up.report)
    said = together(on_calibrate, replace(on_report, position=on_report.position + up.calibrate.count))
    return Subject(up, explain, whole, Spoken(said, whole.count))


def measure(
    given: Subject,
    seed: int,
    progress: "Progress",
    fractions: tuple[float, ...] = FRACTIONS,
    resamples: int = RESAMPLES,
) -> Margin:
    """Everything for one seed."""
    windows_of, rows_of = split(given.whole, seed)
    calibrate, report = (given.whole.at(windows) for windows in windows_of)
    old = given.up
    up = upstream.upstream(old.model, old.located, old.coder, given.explain, calibrate, report, old.batch_tokens)
    chosen = upstream.chosen(calibrate, upstream.CONTEXTS, seed)
    subsets = nested(up.latents, fractions, seed)
    ends_P = prompts(report, seed) if up.in_last_layer else None
    measured = Panel(up, progress, ends_P=ends_P)
    last = panel.PROMPTS if up.in_last_layer else " | last"
    suffixes = {"all": "", "last": last}

    def add(name: str, written: dict[str, np.ndarray]) -> None:
        for subset, each in written.items():
            measured.add(f"{name} {subset}", each)
            if ends_P is None:
                measured.add(f"{name} {subset}{last}", each, "last")

    nothing = np.zeros(up.latents, dtype=bool)
    add("coder", {"0": panel.constant(up.mean_L, report.truth_PL, up.dec_LE, nothing)})
    for subset, mask in subsets.items():
        add("mean", {subset: panel.constant(up.mean_L, report.truth_PL, up.dec_LE, mask)})
    simulators = {"rules": (restricted(given.rules, rows_of[0][chosen.rows]), restricted(given.rules, rows_of[1]))}
    simulators |= {f"oracle {auc:g}": oracles(up, chosen, auc, seed) for auc in AUCS}
    lower = f"oracle {min(AUCS):g}"
    for name, (on_calibrate, on_report) in simulators.items():
        for calibrator in (RECOMMENDED, LOSER) if name == lower else (RECOMMENDED,):
            predicted = apply.predictions(up.fit(calibrator, on_calibrate, chosen), on_report)
            if calibrator == RECOMMENDED:
                add(name, written_in_rings(predicted, report.truth_PL, up.dec_LE, subsets))
            else:
                add(calibrator, panel.output(predicted, report.truth_PL, up.dec_LE, {"1": subsets["1"]}).written)
    figures = measured.measured(resamples, seed)
    contrasts = [(name, subset, position) for name in simulators for subset in subsets for position in POSITIONS]
    drawn = [
        figures.resampled(f"{name} {subset}{suffixes[position]}", f"mean {subset}{suffixes[position]}")
        for name, subset, position in contrasts
    ]
    estimates_K = np.array([each for each, _ in drawn])
    found = bands.max_t(
        estimates_K, np.stack([each for _, each in drawn], axis=1), side="upper", groups=figures.ce["all"].groups
    )
    gaps = {position: figures.added(f"mean 1{end}", f"coder 0{end}").mean for position, end in suffixes.items()}
    gaps_K = np.array([gaps[position] for _, _, position in contrasts])
    shares_K = np.where(gaps_K > 0, found.high_K / np.where(gaps_K > 0, gaps_K, 1), np.inf)
    worst = int(np.argmax(shares_K))
    return Margin(
        seed=seed,
        share=float(shares_K[worst]),
        bound=float(found.high_K[worst]),
        worst=", ".join(contrasts[worst]),
        gaps=gaps,
        gap_closed={
            f"{name}, {position}": figures.gap(f"{name} 1{end}", f"mean 1{end}", f"coder 0{end}")
            for name in simulators
            for position, end in suffixes.items()
        },
        loser_above_mean={
            position: figures.added(f"{LOSER} 1{end}", f"mean 1{end}") for position, end in suffixes.items()
        },
        estimates={", ".join(contrast): float(each) for contrast, each in zip(contrasts, estimates_K, strict=True)},
    )


def oracles(up: Upstream, chosen: upstream.Chosen, auc: float, seed: int) -> tuple[Said, Said]:
    knows, magnitude = Scored.of_auc(auc), up.known.magnitude
    seed = derive(seed, "margin", f"{auc:g}") >> 31
    return (
        Heard(oracle(chosen.truth_SL, magnitude, knows, Manner(), seed=seed, split="calibrate"), "own"),
        Heard(oracle(up.report.truth_PL, magnitude, knows, Manner(), seed=seed, split="report"), "own"),
    )


def written_in_rings(
    predicted: Iterator[tuple[slice, np.ndarray]],
    truth_PL: sparse.csr_matrix,
    dec_LE: np.ndarray,
    subsets: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What predictions write for each of some nested subsets; every prediction is decoded once."""
    rings, inner = {}, np.zeros(len(dec_LE), dtype=bool)
    for name, mask in subsets.items():
        rings[name] = mask & ~inner
        inner = mask
    alone = panel.output(predicted, truth_PL, dec_LE, rings).written
    true = panel.constant(np.zeros(len(dec_LE)), truth_PL, dec_LE, np.zeros(len(dec_LE), dtype=bool))
    written, total = {}, true
    for name, each in alone.items():
        total = total + (each - true)
        written[name] = total
    return written


def prompts(part: Part, seed: int) -> np.ndarray:
    """Positions at which prompts end: in every window some at random, none shorter than `SHORTEST`; a mask [P]."""
    where = part.where
    order = generator(seed, "margin", "prompts").permutation(len(where))
    order = order[where.offset[order] >= min(SHORTEST, int(part.windows.lengths.min())) - 1]
    by_window = order[np.argsort(where.window[order], kind="stable")]
    starts = np.searchsorted(where.window[by_window], where.window[by_window])
    mask = np.zeros(len(where), dtype=bool)
    mask[by_window[np.arange(len(by_window)) - starts < PROMPTS_OF_WINDOW]] = True
    return mask


def split(whole: Part, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Windows, and their positions, of two random halves of the document groups."""
    groups = np.unique(whole.windows.group)
    first = generator(seed, "margin", "split").permutation(groups)[: len(groups) // 2]
    chosen_W = np.isin(whole.windows.group, first)
    chosen_P = np.repeat(chosen_W, whole.windows.lengths)
    return (
        (np.flatnonzero(chosen_W), np.flatnonzero(~chosen_W)),
        (np.flatnonzero(chosen_P), np.flatnonzero(~chosen_P)),
    )


def nested(latents: int, fractions: tuple[float, ...], seed: int) -> dict[str, np.ndarray]:
    """One order of the latents; each fraction's subset holds the smaller ones."""
    order = generator(seed, "margin", "subset").permutation(latents)
    masks = {}
    for fraction in sorted(fractions):
        mask = np.zeros(latents, dtype=bool)
        mask[order[: max(1, round(fraction * latents))]] = True
        masks[f"{fraction:g}"] = mask
    assert "1" in masks, "the last fraction must be 1: the gap is that of all latents"
    return masks


def joined(first: Part, second: Part) -> Part:
    """Two splits with as wide windows, one behind the other; no document group may be in both."""
    one, other = first.windows, second.windows
    assert not np.isin(one.group, other.group).any()
    columns = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("tokens", "lengths", "document", "group", "start")
    }
    return Part(Windows(**columns), sparse.csr_matrix(sparse.vstack([first.truth_PL, second.truth_PL])))


def together(first: Simulated, second: Simulated) -> Simulated:
    """What was said in two sets of contexts, those of the second behind those of the first."""
    assert np.array_equal(first.digits_ZD, second.digits_ZD) and np.array_equal(first.explained, second.explained)
    latent = np.concatenate([first.latent, second.latent])
    order = np.argsort(latent, kind="stable")
    position = np.concatenate([first.position, second.position])[order]
    level = np.concatenate([first.level, second.level])[order]
    return Simulated(latent[order], position, level, first.digits_ZD, first.explained)
