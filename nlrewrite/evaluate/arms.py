"""The arms of an evaluation: what each one writes at the site, and the key by which its row is found.

In: values of all latents from the different sources, subsets of latents, and how to patch. Out: a list of arms.
Invariant: a predicted subset is mixed with the true values of the others and nothing else; but for the policy "mixed",
a TopK only ever chooses among predicted values, so that it cannot evict a true one.

What happens to a prediction, in this order:

| step | what                  | settled by                                                                           |
|------|-----------------------|--------------------------------------------------------------------------------------|
| 1    | answer to activation  | the calibrator, which takes the context's mean off first where its name says centred |
| 2    | no readable sentence  | `unexplained`: the latent is given its mean, truth, zero or largest activation       |
| 3    | harmless              | in that arm alone: a latent that is not sure to help is given its mean               |
| 4    | TopK of predictions   | `values`: the k largest of all latents, else 0; `deviations`: the k farthest from    |
|      |                       | their mean, else the mean; `none`: all of them                                       |
| 5    | mixing                | predicted inside the subset, true outside                                            |
| 6    | TopK of the mixture   | `mixed`: the k largest by signed value, else 0; it evicts true values                |
| 7    | decoder               | its rows, or the calibrator's own where it was refitted ("retuned"); bias, skip term |
| 8    | patch                 | at all positions or at each context's last one; every other keeps the model's output |

All policies are measured with all latents. With parts of them the first one is, and "mixed" wherever it is asked for:
with the chosen calibrator, and under a published protocol with every one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrewrite.activations.codes import Codes, Values, kept
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.coders.form import Coder
from nlrewrite.evaluate.losses import Where, Write
from nlrewrite.evaluate.mixing import Contested, Inside, Mixture, instead
from nlrewrite.evaluate.selection import Gain, Subset, always, fresh, subsets
from nlrewrite.specs import EvaluateSpec

LOOKED_UP = "tokens and activations"
ORACLE: dict[str, Any] = {
    "arm": "oracle",
    "simulator": "oracle mask",
    "calibrator": "mean magnitude",
    "information": "test activity",
}
ORACLE_DIGITS: dict[str, Any] = {
    "arm": "oracle_digits",
    "simulator": "oracle digits",
    "calibrator": "none",
    "information": "test activity",
}
ORACLE_FLAGS: dict[str, Any] = {
    "arm": "oracle_flags",
    "simulator": "oracle flags",
    "calibrator": "mean given the flag",
    "information": "test activity",
}
SIMULATORS = {"gate": "gate", "gated": "gate + rules", "by-rules": "rules"}
"""By the explanation; every other one is read by the simulator that is measured."""

Rewritten = tuple[Fitted, Values]


@dataclass(frozen=True)
class Key:
    """What tells one row of the results from another."""

    arm: str
    site: str
    simulator: str = ""
    explanation: str = ""
    calibrator: str = ""
    information: str = ""
    topk: str = "none"
    selection: str = "all"
    fraction: float = 1.0
    position: Where = "all"
    subset_seed: int = 0


@dataclass(frozen=True)
class Arm:
    key: Key
    write: Write | None
    n_latents: int
    n_unexplained: int = 0
    compared: tuple[str, float, int] = field(default=("all", 1.0, 0))
    """Selection, fraction and subset seed of the mean ablation that this arm is measured against."""
    eviction_rate: float = 0.0
    """Share of the true activations of latents that nobody replaces that lose their place."""


@dataclass(frozen=True)
class Sources:
    """Where an arm's values can come from. All of them at the same positions."""

    truth: Codes
    mean: Codes
    mean_firing: Codes
    """The mean over the tokens on which the latent is active."""
    zero: Codes
    oracle: Codes
    oracle_digits: Codes
    oracle_flags: Codes
    token_lookup: Values
    bigram_lookup: Values
    rewritten: dict[str, Rewritten]
    shuffled: Rewritten
    lengths: dict[int, Rewritten]
    """By the most tokens that a sentence may quote, where that differs from the main ones."""
    chosen: str
    rungs: dict[str, Rewritten] = field(default_factory=dict)
    """Behind lexical gates: `gate` alone, `gated` sentences."""
    silent: dict[str, np.ndarray] = field(default_factory=dict)
    """[L] by explanation: the latents of which its simulator could say nothing."""
    gain: Gain | None = None
    """Of the chosen calibrator, on the calibrate split."""
    window_P: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    simulator: str = "rules"
    """Who reads the sentences."""
    main: str = "rules"
    """What the sentences that are measured are called: written by rules, or `sentences` of a language model."""
    rows: np.ndarray | None = None
    """The positions that a language model was asked about; None: it is rules, which speak of all."""
    """Window of each position, for subsets that are drawn anew in each."""


class Writer:
    """Turns values into what is written at the site."""

    def __init__(self, coder: Coder, truth: Codes) -> None:
        self._coder, self._truth = coder, truth
        self._dec_LE = coder.dec_LE.numpy()

    def latents(self, values: Values, mask_L: np.ndarray | None = None) -> Write:
        """The coder's output with `values` for the latents of the mask (all, if none) and true values for the rest."""
        dec_LE = self._dec_LE
        if mask_L is None or mask_L.all():
            pieces = [(values, dec_LE)]
        else:
            pieces = [(values, dec_LE * mask_L[:, None]), (self._truth, dec_LE * ~mask_L[:, None])]

        def write(rows: np.ndarray, x_ND: Tensor, y_NE: Tensor) -> Tensor:
            written = sum(np.asarray(source.output(rows, dec), dtype=np.float32) for source, dec in pieces)
            return self._coder.beside(x_ND) + torch.from_numpy(np.asarray(written))

        return write

    def no_skip(self, x_mean_D: Tensor) -> Write:
        """True latents, the skip term at its mean."""

        def write(rows: np.ndarray, x_ND: Tensor, y_NE: Tensor) -> Tensor:
            beside = self._coder.beside(x_mean_D.expand(len(rows), -1))
            return beside + torch.from_numpy(np.asarray(self._truth.output(rows, self._dec_LE), dtype=np.float32))

        return write


@dataclass(frozen=True)
class Plan:
    """What all arms of one position share."""

    key: Key
    spec: EvaluateSpec
    sources: Sources
    coder: Coder
    writer: Writer
    rows: np.ndarray
    """The positions that are patched."""

    def arm(self, key: Key, values: Values, subset: Subset | None = None) -> Arm:
        """An arm with `values` for the latents of the subset, or for all."""
        size = subset.size if subset else self.coder.latents
        compared = subset.compared if subset else ("all", 1.0, 0)
        silent = self.sources.silent.get(key.explanation)
        if subset is None:
            unexplained = 0 if silent is None else int(silent.sum())
        elif subset.fresh:  # of drawn latents the expected number
            unexplained = 0 if silent is None else round(float(silent.mean()) * size)
        else:
            unexplained = 0 if silent is None else int((silent & subset.mask_L).sum())
        mixture = Mixture(values, self.sources.truth, self._inside(key, subset))
        if key.topk == "mixed":
            contested = Contested(mixture, self.coder.k)
            write, evicted = self.writer.latents(contested), contested.eviction_rate(self.rows)
            return Arm(key, write, size, unexplained, compared, evicted)
        if subset is not None and subset.fresh:
            return Arm(key, self.writer.latents(mixture), size, unexplained, compared)
        write = self.writer.latents(values, subset.mask_L if subset else None)
        return Arm(key, write, size, unexplained, compared)

    def rewritten(self, key: Key, given: Rewritten, policy: str, subset: Subset | None = None) -> Arm:
        """What a simulator says, by its calibrator and a TopK policy."""
        fitted, values = given
        if policy in ("values", "deviations"):
            rest = self.sources.mean if policy == "deviations" else self.sources.zero
            values = kept(values, self.coder.k, rest.constant_L)
        named = replace(key, calibrator=fitted.name, information=fitted.information, topk=policy)
        return self.arm(named, values, subset)

    def _inside(self, key: Key, subset: Subset | None) -> Inside:
        latents = self.coder.latents
        if subset is None or not subset.fresh:
            return always(np.ones(latents, dtype=bool) if subset is None else subset.mask_L)
        path = (key.arm, key.topk, key.position, f"{subset.fraction:g}", subset.seed)
        return fresh(subset.size, latents, self.sources.window_P, self.spec.seed, *path)


def arms(
    spec: EvaluateSpec,
    sources: Sources,
    coder: Coder,
    site: str,
    score_L: np.ndarray,
    x_mean_D: Tensor,
    y_mean_E: Tensor,
) -> list[Arm]:
    writer = Writer(coder, sources.truth)
    every = np.arange(sources.truth.extra_PL.get_shape()[0])
    last = np.flatnonzero(np.diff(sources.window_P, append=-1))
    out: list[Arm] = []
    for position in spec.positions:
        key = Key("", site, position=position)
        plan = Plan(key, spec, sources, coder, writer, every if position == "all" else last)
        out += _reference_arms(plan, x_mean_D, y_mean_E)
        out += _rewritten_arms(plan)
        out += _partial_arms(plan, score_L)
    return out


def _reference_arms(plan: Plan, x_mean_D: Tensor, y_mean_E: Tensor) -> list[Arm]:
    """What needs no sentence: the original, the coder, ablations, lookups and the oracles."""
    key, sources, coder = plan.key, plan.sources, plan.coder
    nothing, lookup = replace(key, fraction=0.0), replace(key, information=LOOKED_UP)
    out = [
        Arm(replace(nothing, arm="original"), None, 0),
        Arm(replace(nothing, arm="coder"), plan.writer.latents(sources.truth), 0),
        plan.arm(replace(key, arm="mean"), sources.mean),
        plan.arm(replace(key, arm="mean_firing"), sources.mean_firing),
        plan.arm(replace(key, arm="zero"), sources.zero),
        Arm(replace(key, arm="mlp_mean"), lambda rows, x, y: y_mean_E.expand(len(rows), -1), coder.latents),
        Arm(replace(key, arm="mlp_zero"), lambda rows, x, y: torch.zeros_like(y), coder.latents),
    ]
    if coder.skip_ED is not None:
        out.append(Arm(replace(nothing, arm="no_skip"), plan.writer.no_skip(x_mean_D), 0))
    return [
        *out,
        plan.arm(replace(lookup, arm="token_lookup"), sources.token_lookup),
        plan.arm(replace(lookup, arm="bigram_lookup"), sources.bigram_lookup),
        plan.arm(replace(key, **ORACLE), sources.oracle),
        plan.arm(replace(key, **ORACLE_DIGITS), sources.oracle_digits),
        plan.arm(replace(key, **ORACLE_FLAGS), sources.oracle_flags),
    ]


def _rewritten_arms(plan: Plan) -> Iterator[Arm]:
    """All latents by their sentences: calibrators, control, lengths, rungs, TopK policies, and only where it helps."""
    sources, policies = plan.sources, plan.spec.topk
    chosen = sources.rewritten[sources.chosen]
    main = _read_by(plan, plan.key, sources.main)
    for given in sources.rewritten.values():
        yield plan.rewritten(main, given, "none")
    yield plan.rewritten(_shuffled(plan, plan.key), sources.shuffled, policies[0])
    for most, given in sources.lengths.items():
        yield plan.rewritten(_read_by(plan, plan.key, f"{sources.main}-{most}"), given, "none")
    for explanation, given in sources.rungs.items():
        yield plan.rewritten(_read_by(plan, plan.key, explanation), given, "none")
    for policy in policies:
        if policy != "none":
            for given in _quoted(plan):
                yield plan.rewritten(main, given, policy)
    if plan.spec.harmless and sources.gain is not None:
        used = sources.gain.harmless
        fitted, values = chosen
        kept = fitted, instead(values, sources.mean, ~used)
        arm = plan.rewritten(replace(main, selection="harmless"), kept, "none")
        yield replace(arm, n_latents=int(used.sum()), n_unexplained=0)


def _partial_arms(plan: Plan, score_L: np.ndarray) -> Iterator[Arm]:
    """Some of the latents by their sentences, by the controls, at their mean or at zero; true values for the others."""
    sources, spec = plan.sources, plan.spec
    ranked = {"top": score_L} | ({"gain": sources.gain.mean} if sources.gain is not None else {})
    policies = [spec.topk[0], *(["mixed"] if "mixed" in spec.topk[1:] else [])]
    for subset in subsets(spec, ranked):
        part = replace(plan.key, selection=subset.selection, fraction=subset.fraction, subset_seed=subset.seed)
        unmatched = spec.draw == "fresh" and not subset.fresh and "sampled" in spec.selections
        if unmatched:  # as published: what is ablated beside the best latents are random ones
            subset = replace(subset, floor=("sampled", subset.fraction, 0))
        else:
            for named, values in (
                (replace(part, arm="mean"), sources.mean),
                (replace(part, arm="zero"), sources.zero),
                (replace(part, arm="token_lookup", information=LOOKED_UP), sources.token_lookup),
                (replace(part, **ORACLE), sources.oracle),
            ):
                yield plan.arm(named, values, subset=subset)
        yield plan.rewritten(_shuffled(plan, part), sources.shuffled, spec.topk[0], subset)
        for policy in policies:
            for given in _quoted(plan):
                yield plan.rewritten(_read_by(plan, part, sources.main), given, policy, subset)


def _quoted(plan: Plan) -> list[Rewritten]:
    """Whose predictions are measured with every TopK and at every share: the chosen's; under other protocols all."""
    rewritten = plan.sources.rewritten
    return [rewritten[plan.sources.chosen]] if plan.spec.protocol == "ours" else list(rewritten.values())


def _shuffled(plan: Plan, key: Key) -> Key:
    return replace(key, arm="shuffled", simulator=plan.sources.simulator, explanation="shuffled")


def _read_by(plan: Plan, key: Key, explanation: str) -> Key:
    simulator = SIMULATORS.get(explanation, plan.sources.simulator)
    return replace(key, arm="rewritten", simulator=simulator, explanation=explanation)
