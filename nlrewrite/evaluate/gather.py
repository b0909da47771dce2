"""What the arms of an evaluation write, each fitted on the splits that it may see.

In: everything upstream. Out: `Sources`, all at the positions of the report split. Invariant: means, lookups,
calibrators and the selection of latents see the explain and the calibrate split alone; of the report split there are
the truth, the oracle's mask and what peeks by its name (`-on-prompt`).

A latent of which a simulator can say nothing is given what `unexplained` says: its mean, its true value, zero, or its
largest activation of the explain split, as the published program gives to answers that it cannot read.
"""

import re
from dataclasses import dataclass
from functools import partial

import numpy as np

from nlrewrite.activations.codes import Codes, constant_codes, oracle_codes, placed, true_codes
from nlrewrite.activations.pairs import Active, read
from nlrewrite.activations.statistics import read_latents
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply, lookup, methods
from nlrewrite.calibrate.fit import fit, folds, read_calibrated
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.known import Statistics, aimed_at
from nlrewrite.calibrate.pairing import paired
from nlrewrite.evaluate import controls
from nlrewrite.evaluate.arms import SIMULATORS, Rewritten, Sources
from nlrewrite.evaluate.mixing import instead
from nlrewrite.evaluate.selection import Gain, held_out
from nlrewrite.protocols import PROTOCOLS
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.heard import heard
from nlrewrite.simulate.said import Spoken
from nlrewrite.specs import CalibrateSpec, EvaluateSpec
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import read_windows

ON_PROMPT_CALIBRATOR = f"quantile-6{methods.ON_PROMPT}"
FITTED_ON = ("explain", "calibrate")
_TINY = np.finfo(np.float32).tiny


def gather(
    inputs: dict[str, Folder],
    where: Positions,
    dec_LE: np.ndarray,
    vocabulary: int,
    spec: EvaluateSpec = EvaluateSpec(),  # noqa: B008 (frozen)
) -> Sources:
    """The values that arms write."""
    latents, count = len(dec_LE), len(where)
    seen = {
        split: lookup.Seen(positions(read_windows(inputs["tokens"], split)), true_codes(read(inputs[split]), latents))
        for split in FITTED_ON
    }
    fitted_on = list(seen.values())
    mean_L, firing_L = lookup.mean_over_tokens(fitted_on), lookup.mean_over_firing_tokens(fitted_on)
    token, bigram = lookup.best_strengths(seen["explain"], seen["calibrate"], vocabulary, dec_LE)

    active = read(inputs["report"])
    truth, zero = true_codes(active, latents), constant_codes(np.zeros(latents), count)
    other = {"true": truth, "zero": zero, "largest": constant_codes(_largest(inputs), count), "mean": None}
    readings = _Readings(inputs, count, other[spec.unexplained])

    calibrators, chosen = read_calibrated(inputs["calibration"])
    chosen = _settled(chosen, calibrators, spec)
    said = readings.said("")
    earlier = seen["calibrate"].truth.extra_PL
    said_earlier = heard(inputs["on-calibrate"], len(seen["calibrate"].where))
    known = Statistics(read(inputs["explain"]), earlier, np.zeros(len(seen["calibrate"].where)), latents, seed=0)
    rows = said.rows if isinstance(said, Answered) else np.arange(count)
    prompts = Active(active.latents[rows], active.values[rows])
    peeking = aimed_at(known.known_of(None), prompts, latents)
    ours = [ON_PROMPT_CALIBRATOR] if spec.protocol == "ours" else []  # a published protocol has its own
    for name in [*ours, *calibrators]:
        if methods.method(methods.parse(name)).target == "on-prompt":
            together, there = np.zeros(len(rows), dtype=np.int64), truth.extra_PL[rows]
            asked = said.at_rows() if isinstance(said, Answered) else said
            calibrators[name] = fit(name, asked, there, peeking, together, dec_LE=dec_LE)
    main = "sentences" if inputs["explanations"].manifest.artifact.kind == "sentences" else "rules"
    lengths = sorted(int(name.rpartition("-")[2]) for name in inputs if re.fullmatch(r"simulation-\d+", name))
    rungs = [name for name in SIMULATORS if f"simulation-{name}" in inputs]
    return Sources(
        truth=truth,
        mean=constant_codes(mean_L, count),
        mean_firing=constant_codes(firing_L, count),
        zero=zero,
        oracle=oracle_codes(active, firing_L),
        oracle_digits=controls.digits(truth, _largest(inputs)),
        oracle_flags=controls.flags(
            truth, said_earlier, earlier, mean_L / np.maximum(firing_L, _TINY), firing_L, spec.seed
        ),
        token_lookup=lookup.token_lookup(fitted_on, where, vocabulary, token),
        bigram_lookup=lookup.bigram_lookup(fitted_on, where, vocabulary, bigram, token),
        rewritten={name: readings.by(each, "") for name, each in calibrators.items()},
        shuffled=readings.by_its_own("shuffled", spec),  # so that no control is weak for the want of a fit
        lengths={
            most: readings.by(read_calibrated(inputs[f"calibration-{most}"])[0][chosen], most) for most in lengths
        },
        rungs={name: readings.by_its_own(name, spec) for name in rungs},
        chosen=chosen,
        silent={
            main: ~said.explained,
            **{name: ~readings.said(name).explained for name in ("shuffled", *rungs)},
            **{f"{main}-{most}": ~readings.said(most).explained for most in lengths},
        },
        simulator="reader" if isinstance(said, Answered) else "rules",
        main=main,
        rows=rows if isinstance(said, Answered) else None,
        gain=gain(inputs, seen["calibrate"], chosen, dec_LE) if spec.harmless or "gain" in spec.selections else None,
        window_P=where.window,
    )


def gain(inputs: dict[str, Folder], seen: lookup.Seen, chosen: str, dec_LE: np.ndarray) -> Gain | None:
    """What the chosen calibrator's prediction of each latent is worth, by the folds that calibration chose it on.

    None where each latent was asked about contexts of its own.
    """
    spec = CalibrateSpec.model_validate(inputs["calibration"].manifest.spec)
    folds_P, truth_PL = folds(seen.where, spec), seen.truth.extra_PL
    said = heard(inputs["on-calibrate"], len(folds_P))
    if isinstance(said, Answered) and said.by_cases:
        return None
    pairing = paired(said, truth_PL, folds_P)
    group_P = seen.where.group[said.rows] if isinstance(said, Answered) else seen.where.group
    known = Statistics(read(inputs["explain"]), truth_PL, folds_P, len(dec_LE), spec.seed)
    target = methods.method(methods.parse(chosen)).target
    return held_out(chosen, pairing, partial(known.known_of, target), group_P, dec_LE)


@dataclass(frozen=True)
class _Readings:
    """The simulations of the report split, by what follows their label, as values."""

    inputs: dict[str, Folder]
    count: int
    unexplained: Codes | None
    """What a latent of which nothing is said is given; None: what its calibrator gives, its mean."""

    def said(self, which: str | int) -> Spoken | Answered:
        label = f"simulation-{which}" if which != "" else "simulation"
        return heard(self.inputs[label], self.count)

    def by(self, fitted: Fitted, which: str | int) -> Rewritten:
        said = self.said(which)
        if isinstance(said, Answered):
            values = placed(apply.values(fitted, said.at_rows()), said.rows, self.count)
        else:
            values = apply.values(fitted, said)
        return fitted, values if self.unexplained is None else instead(values, self.unexplained, ~said.explained)

    def by_its_own(self, which: str, spec: EvaluateSpec) -> Rewritten:
        """By the calibrator that was chosen for it."""
        calibrators, chosen = read_calibrated(self.inputs[f"calibration-{which}"])
        return self.by(calibrators[_settled(chosen, calibrators, spec)], which)


def _settled(chosen: str, calibrators: dict[str, Fitted], spec: EvaluateSpec) -> str:
    """The calibrator that is quoted: the protocol's, where it has one and it was fitted, or the chosen one."""
    wanted = PROTOCOLS[spec.protocol].calibrator
    return wanted if wanted in calibrators else chosen


def _largest(inputs: dict[str, Folder]) -> np.ndarray:
    return read_latents(inputs["explain"])["max"].to_numpy()
