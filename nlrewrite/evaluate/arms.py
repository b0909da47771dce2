"""The arms of an evaluation: what each one writes at the site, and the key by which its row is found.

In: values of all latents from the different sources, subsets of latents, and how to patch. Out: a list of arms.
Invariant: a predicted subset is mixed with the true values of the others and nothing else; a TopK only ever chooses
among predicted values, so that it cannot evict a true one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlrewrite.activations.codes import Codes, Kept, Values
from nlrewrite.calibrate.fit import Calibrated
from nlrewrite.coders.topk import TopKCoder
from nlrewrite.evaluate.losses import Where, Write
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec

LOOKED_UP = "tokens and activations"
ORACLE: dict[str, Any] = {
    "arm": "oracle",
    "simulator": "oracle mask",
    "calibrator": "mean magnitude",
    "information": "test activity",
}


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


@dataclass(frozen=True)
class Sources:
    """Where an arm's values can come from. All of them at the same positions."""

    truth: Codes
    mean: Codes
    zero: Codes
    oracle: Codes
    token_lookup: Values
    bigram_lookup: Values
    rewritten: dict[str, tuple[Calibrated, Codes]]
    shuffled: tuple[Calibrated, Codes]
    lengths: dict[int, tuple[Calibrated, Codes]]
    """By the most tokens that a sentence may quote, where that differs from the main ones."""
    chosen: str
    silent: dict[str, np.ndarray] = field(default_factory=dict)
    """[L] by explanation: the latents of which its simulator could say nothing, which keep their mean."""


@dataclass(frozen=True)
class Subset:
    """The latents that are replaced."""

    selection: str
    fraction: float
    seed: int
    mask_L: np.ndarray

    @property
    def compared(self) -> tuple[str, float, int]:
        return self.selection, self.fraction, self.seed


class Writer:
    """Turns values into what is written at the site."""

    def __init__(self, coder: TopKCoder, truth: Codes) -> None:
        self._coder, self._truth = coder, truth
        self._dec_LE = coder.dec_LE.numpy()

    def latents(self, values: Values, mask_L: np.ndarray | None = None) -> Write:
        """The coder's output with `values` for the latents of the mask (all, if none) and true values for the rest."""
        if mask_L is None or mask_L.all():
            pieces = [(values, self._dec_LE)]
        else:
            pieces = [(values, self._dec_LE * mask_L[:, None]), (self._truth, self._dec_LE * ~mask_L[:, None])]

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


def subsets(spec: EvaluateSpec, score_L: np.ndarray) -> Iterator[Subset]:
    """Nested subsets below fraction 1: the best by score, and seeded random ones."""
    latents = len(score_L)
    orders: list[tuple[str, int, np.ndarray]] = []
    if "top" in spec.selections:
        best = np.lexsort((np.arange(latents), -np.nan_to_num(score_L, nan=-1.0)))
        orders.append(("top", 0, best))
    if "sampled" in spec.selections:
        for seed in range(spec.subsets):
            orders.append(("sampled", seed, generator(spec.seed, "evaluate", "subset", seed).permutation(latents)))
    for selection, seed, order in orders:
        for fraction in sorted(fraction for fraction in spec.fractions if fraction < 1):
            mask = np.zeros(latents, dtype=bool)
            mask[order[: max(1, round(fraction * latents))]] = True
            yield Subset(selection, fraction, seed, mask)


def arms(
    spec: EvaluateSpec,
    sources: Sources,
    coder: TopKCoder,
    site: str,
    score_L: np.ndarray,
    x_mean_D: Tensor,
    y_mean_E: Tensor,
) -> list[Arm]:
    writer = Writer(coder, sources.truth)
    out: list[Arm] = []
    for position in spec.positions:
        out += _reference_arms(Key("", site, position=position), sources, coder, writer, x_mean_D, y_mean_E)
        out += _rewritten_arms(Key("", site, position=position), spec, sources, coder, writer)
        out += _partial_arms(Key("", site, position=position), spec, sources, writer, score_L)
    return out


def _reference_arms(
    key: Key, sources: Sources, coder: TopKCoder, writer: Writer, x_mean_D: Tensor, y_mean_E: Tensor
) -> list[Arm]:
    """What needs no sentence: the original, the coder, ablations, lookups and the oracle mask."""
    latents = coder.latents
    nothing, lookup = replace(key, fraction=0.0), replace(key, information=LOOKED_UP)
    out = [
        Arm(replace(nothing, arm="original"), None, 0),
        Arm(replace(nothing, arm="coder"), writer.latents(sources.truth), 0),
        Arm(replace(key, arm="mean"), writer.latents(sources.mean), latents),
        Arm(replace(key, arm="zero"), writer.latents(sources.zero), latents),
        Arm(replace(key, arm="mlp_mean"), lambda rows, x, y: y_mean_E.expand(len(rows), -1), latents),
        Arm(replace(key, arm="mlp_zero"), lambda rows, x, y: torch.zeros_like(y), latents),
    ]
    if coder.skip_ED is not None:
        out.append(Arm(replace(nothing, arm="no_skip"), writer.no_skip(x_mean_D), 0))
    return [
        *out,
        Arm(replace(lookup, arm="token_lookup"), writer.latents(sources.token_lookup), latents),
        Arm(replace(lookup, arm="bigram_lookup"), writer.latents(sources.bigram_lookup), latents),
        Arm(replace(key, **ORACLE), writer.latents(sources.oracle), latents),
    ]


def _rewritten_arms(key: Key, spec: EvaluateSpec, sources: Sources, coder: TopKCoder, writer: Writer) -> list[Arm]:
    """All latents by their sentences: every calibrator, the shuffled control, other lengths, other TopK policies."""
    chosen, chosen_codes = sources.rewritten[sources.chosen]
    planned: list[tuple[Key, Values]] = [
        (_by_rules(key, calibrated), codes) for calibrated, codes in sources.rewritten.values()
    ]
    planned.append((_shuffled(key, sources), sources.shuffled[1]))
    for most, (calibrated, codes) in sources.lengths.items():
        planned.append((replace(_by_rules(key, calibrated), explanation=f"rules-{most}"), codes))
    for policy in spec.topk:
        if policy != "none":
            rest = sources.mean.constant_L if policy == "deviations" else sources.zero.constant_L
            planned.append((replace(_by_rules(key, chosen), topk=policy), Kept(chosen_codes, coder.k, rest)))
    everything = np.ones(coder.latents, dtype=bool)
    return [
        Arm(named, writer.latents(values), coder.latents, _unexplained(named, sources, everything))
        for named, values in planned
    ]


def _partial_arms(key: Key, spec: EvaluateSpec, sources: Sources, writer: Writer, score_L: np.ndarray) -> Iterator[Arm]:
    """Some of the latents by their sentences, by the controls, at their mean or at zero; true values for the others."""
    chosen, chosen_codes = sources.rewritten[sources.chosen]
    for subset in subsets(spec, score_L):
        part = replace(key, selection=subset.selection, fraction=subset.fraction, subset_seed=subset.seed)
        for named, values in (
            (replace(part, arm="mean"), sources.mean),
            (replace(part, arm="zero"), sources.zero),
            (replace(part, arm="token_lookup", information=LOOKED_UP), sources.token_lookup),
            (replace(part, **ORACLE), sources.oracle),
            (_shuffled(part, sources), sources.shuffled[1]),
            (_by_rules(part, chosen), chosen_codes),
        ):
            write = writer.latents(values, subset.mask_L)
            unexplained = _unexplained(named, sources, subset.mask_L)
            yield Arm(named, write, int(subset.mask_L.sum()), unexplained, subset.compared)


def _unexplained(key: Key, sources: Sources, mask_L: np.ndarray) -> int:
    silent = sources.silent.get(key.explanation)
    return 0 if silent is None else int((silent & mask_L).sum())


def _shuffled(key: Key, sources: Sources) -> Key:
    return replace(_by_rules(key, sources.shuffled[0]), arm="shuffled", explanation="shuffled")


def _by_rules(key: Key, calibrated: Calibrated) -> Key:
    return replace(
        key,
        arm="rewritten",
        simulator="rules",
        explanation="rules",
        calibrator=calibrated.name,
        information=calibrated.information,
    )
