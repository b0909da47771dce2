"""The pilot: what the whole rewriting will come to, asked of some latents in some contexts, before it is paid for.

In: a subject and its coder, sentences, a simulator, and activations of the explain and the calibrate split. Out:
`pilot.json`: the predicted share of the gap closed with its interval, what it is made of, how many questions were asked
and how long they took. Invariants: nothing of the report split is read; the simulator is asked about the pairs of
`pilot_pairs.py` and no others; a prediction is the same for every simulator that gives the same answers.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import read as read_pairs
from nlrewrite.artifacts import Folder
from nlrewrite.coders import form
from nlrewrite.probes import pilot_asking, pilot_errors, pilot_gain, pilot_loss, pilot_pairs, upstream
from nlrewrite.probes.pilot_gain import Composed, Figure
from nlrewrite.probes.pilot_loss import Translation
from nlrewrite.probes.pilot_pairs import Pairs, in_columns
from nlrewrite.probes.upstream import Part, Upstream
from nlrewrite.seeds import derive, generator
from nlrewrite.simulate.heard import heard
from nlrewrite.simulate.rules import read_sentences
from nlrewrite.simulate.said import Said
from nlrewrite.specs import PilotedSpec, PilotSpec
from nlrewrite.subject import load, sites
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.progress import Progress
    from nlrewrite.steps import Running

FOLDS = 4
READ = 4000
"""Contexts at which gradients are taken, at most, beside those that all latents share."""


@dataclass(frozen=True)
class Ground:
    """Where a pilot is made: everything that costs no question."""

    up: Upstream
    rows: np.ndarray
    """Positions that may be asked about."""
    off_PE: np.ndarray
    """What mean ablation of all latents gets wrong, at every position."""

    @property
    def part(self) -> Part:
        return self.up.calibrate


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """Of the share of the gap that the whole rewriting will close."""

    gap_closed: Interval | None
    """None where mean ablation costs nothing to speak of: there is no gap."""
    in_output: Interval
    """The share of mean ablation's squared error that it will take away."""
    alone: Interval
    """The same from each latent alone, by its explained variance: blind to errors that latents make together."""
    louder: float
    """How much louder the loss reads what is left wrong."""
    added_loss: Interval | None
    """Above the coder's loss, in nats."""


def ground(up: Upstream, position: str = "all") -> Ground:
    where = up.calibrate.where
    rows = np.arange(len(where)) if position == "all" else np.flatnonzero(np.diff(where.window, append=-1))
    off_PE = np.asarray(-(up.calibrate.truth_PL @ up.dec_LE), dtype=np.float32)
    return Ground(up, rows, off_PE + (up.mean_L @ up.dec_LE).astype(np.float32))


def chosen(spec: PilotSpec, on: Ground, explained: np.ndarray) -> Pairs:
    """What the simulator has to be asked."""
    return pilot_pairs.pairs(
        on.part.truth_PL,
        on.part.where,
        explained,
        spec.latents,
        spec.active,
        spec.inactive,
        folds=min(FOLDS, len(np.unique(on.part.windows.group)) // 2),
        seed=spec.seed,
        rows=on.rows,
    )


def readable(pairs: Pairs, seed: int) -> np.ndarray:
    """Contexts at which it is looked how the loss reads errors: those all latents share, and some of their own."""
    own = np.unique(pairs.context_LS[:, pairs.shared :])
    own = np.setdiff1d(own[own != pilot_pairs.NOTHING], pairs.shared_C)
    some = generator(seed, "pilot", "read").permutation(own)[:READ]
    return np.unique(np.concatenate([pairs.shared_C, some]))


def gradients(spec: PilotSpec, on: Ground, contexts: np.ndarray, progress: "Progress") -> np.ndarray:
    where, windows = on.part.where, on.part.windows
    true_CE = np.asarray(on.part.truth_PL[contexts] @ on.up.dec_LE, dtype=np.float32)
    asked = pilot_loss.prompts(on.up, windows, where, contexts)
    return pilot_loss.gradients(on.up, asked, true_CE + on.off_PE[contexts], spec.gradients, spec.seed, progress)


def free(spec: PilotSpec, on: Ground, progress: "Progress") -> Translation:
    """How the loss of rewritings that cost nothing compares with what their errors would predict."""
    rows = np.sort(generator(spec.seed, "pilot", "free").permutation(on.rows)[: spec.free])
    return pilot_loss.translation(on.up, rows, spec.gradients, derive(spec.seed, "pilot", "free") >> 31, progress)


def composed(
    spec: PilotSpec, on: Ground, pairs: Pairs, said: Said, reads_VRE: np.ndarray | None, context_V: np.ndarray | None
) -> Composed:
    """The error of the whole from what was said about the pairs, in their columns."""
    up, where = on.up, on.part.where
    found = pilot_errors.errors(pairs, said, on.part.truth_PL, up.known, spec.calibrator)
    context_U = np.unique(pairs.context_LS[pairs.asked_LS])
    square_P = np.square(on.off_PE, dtype=np.float64).sum(1)
    given = pilot_gain.splice(
        pairs,
        found,
        up.dec_LE,
        on.off_PE[context_U],
        context_U,
        where.group,
        square_P,
        on.rows,
        reads_VRE,
        context_V,
    )
    return pilot_gain.composed(given)


def predicted(whole: Composed, translation: Translation, level: float) -> Prediction:
    """Errors as losses. The interval holds documents, latents and how far free rewritings were off."""
    critical = float(ndtri((1 + level) / 2))
    factor = float(np.exp(translation.shift))
    share = Figure(
        factor * whole.share.value,
        factor * float(np.hypot(whole.share.error, whole.share.value * translation.spread / np.sqrt(3))),
    )
    nats = Figure(share.value * translation.mean_loss, share.error * translation.mean_loss)
    return Prediction(
        _less(share, critical) if translation.tells else None,
        _less(whole.together, critical),
        _less(whole.alone, critical),
        whole.read.value,
        _around(nats, critical) if translation.tells else None,
    )


def _around(nats: Figure, critical: float) -> Interval:
    reach = critical * nats.error
    return Interval(nats.value, max(0.0, nats.value - reach), nats.value + reach)


def _less(share: Figure, critical: float) -> Interval:
    """What is gained where this share is left."""
    reach = critical * share.error
    return Interval(1 - share.value, 1 - share.value - reach, min(1.0, 1 - share.value + reach))


def pilot(
    spec: PilotSpec, on: Ground, pairs: Pairs, said: Said, progress: "Progress"
) -> tuple[Prediction, Composed, Translation]:
    """`said` is about the pairs' latents, with their columns as contexts."""
    context_V = readable(pairs, spec.seed)
    whole = composed(spec, on, pairs, said, gradients(spec, on, context_V, progress), context_V)
    translation = free(spec, on, progress)
    return predicted(whole, translation, spec.level), whole, translation


# -- as a step ---------------------------------------------------------------------------------------------------------


def build(spec: PilotedSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    asked, on = spec.pilot, ground(read(inputs, running), spec.pilot.position)
    spent: dict[str, Any] = {}
    if spec.ask is None:
        whole = heard(inputs["on-calibrate"], on.part.count)
        pairs = chosen(asked, on, whole.explained)
        said: Said = in_columns(whole, pairs)
    else:
        pairs = chosen(asked, on, np.array([bool(each) for each in read_sentences(inputs["explanations"])]))
        said, spent["asked"] = pilot_asking.answered(spec.ask, pairs, on.part.where, inputs, running)
    found, measured, translation = pilot(asked, on, pairs, said, running.progress)
    result: dict[str, Any] = {
        "prediction": asdict(found),
        "composed": asdict(measured),
        "translation": asdict(translation),
        "latents": len(pairs.latent_L),
        "of_latents": on.up.latents,
        "contexts": {"shared": pairs.shared, "active": asked.active},
        "queries": pairs.queries() - spent.get("asked", {}).get("behind_gates", 0),
        "calibrator": asked.calibrator,
        "position": asked.position,
        "level": asked.level,
        **spent,
    }
    (out / "pilot.json").write_text(json.dumps(result, indent=1, allow_nan=False))


def read(inputs: dict[str, Folder], running: "Running") -> Upstream:
    """The calibrate split stands in the report split's place: a pilot sees nothing of that."""
    coder = form.read(inputs["coder"])
    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, form.site_of(inputs["coder"]))
    windows = read_windows(inputs["tokens"], "calibrate")
    calibrate = Part(windows, true_codes(read_pairs(inputs["calibrate"]), coder.latents).extra_PL)
    explain = read_pairs(inputs["explain"])
    return upstream.upstream(model, located, coder, explain, calibrate, calibrate, running.execution.batch_tokens)
