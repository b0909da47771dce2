"""Fit every calibrator on the calibrate split, by blocks of latents, and choose one by documents it was not fitted on.

In: what was said and the true activations of the calibrate split, the coder's decoder, and the explain split's
activations as the corpus that quantile maps carry predictions onto. Out: `Fitted` calibrators and their cross-fitted
errors; as files, those of `stored.py`. Invariant: memory follows the block, not the latents; a latent that is not
explained has its mean from every calibrator; nothing that is held out is seen by a fit, nor by what is known; and the
choice sees no report document, and is not offered what peeks there or changes the coder's decoder (`+refit`:
"retuned"). Lookups by token are baselines, no calibrators of what was said, and never chosen either.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import At, true_codes
from nlrewrite.activations.pairs import read
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate import apply, gain, methods, refit
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.fitted import SHARED, Fitted, Part
from nlrewrite.calibrate.known import KnownOf, Statistics
from nlrewrite.calibrate.methods import Method, Name, Shared
from nlrewrite.calibrate.pairing import Cases, Pairing, paired
from nlrewrite.calibrate.stored import read_calibrated, read_fitted, save
from nlrewrite.coders import form
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.heard import heard
from nlrewrite.simulate.said import Reading, Said, blocks
from nlrewrite.specs import CalibrateSpec
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

SAMPLE = 1024
"""Latents on which is fitted what all share, at most."""
FITTED_ON_PAIRS = ("paired", "outputs")
SAMPLED_CASES = 4_000_000
"""Cases of all those latents together, about, so that the sample fits into memory like a block."""

__all__ = ["build", "cross_fitted_error", "fit", "fit_on", "folds", "read_calibrated", "read_fitted", "save"]


def build(spec: CalibrateSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    names = [methods.parse(name) for name in spec.calibrators]
    coder = form.read(inputs["coder"])
    where = positions(read_windows(inputs["tokens"], "calibrate"))
    folds_P, dec_LE = folds(where, spec), coder.dec_LE.numpy()
    truth_PL = true_codes(read(inputs["activations"]), coder.latents).extra_PL
    pairing = paired(heard(inputs["simulation"], len(where)), truth_PL, folds_P)
    known = Statistics(read(inputs["explain"]), truth_PL, folds_P, coder.latents, spec.seed)
    fitted: dict[str, Fitted] = {}
    errors: dict[str, float] = {}
    with running.progress.stage("calibrate", len(names)) as advance:
        for name in names:
            target = methods.method(name).target
            fitted[name.full] = fit_on(name.full, pairing, known.known_of(target), dec_LE)
            if target != "on-prompt":  # its target is the split that it is applied to: nothing here can try it
                errors[name.full] = cross_fitted_error(name.full, pairing, partial(known.known_of, target), dec_LE)
            advance(1, name.full)
    allowed = [name.full for name in names if methods.may_be_chosen(name)]
    if isinstance(pairing.said, Answered):  # errors of single latents do not show what raw answers do together
        allowed = [name for name in allowed if fitted[name].information in FITTED_ON_PAIRS] or allowed
    save(
        fitted,
        out,
        {name: {"cross_fitted_error": errors.get(name)} for name in fitted},
        chosen=min(allowed, key=lambda name: errors[name]),
        mean_ablation_error=cross_fitted_error("mean", pairing, partial(known.known_of, None), dec_LE),
        unexplained=int((~pairing.said.explained).sum()),
    )


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


def fit(
    name: str,
    said: Said,
    truth_PL: sparse.csr_matrix,
    known_of: KnownOf,
    folds_P: np.ndarray,
    *,
    cases: Cases | None = None,
    dec_LE: np.ndarray | None = None,
    centre: Mapping[str, np.ndarray] | None = None,
) -> Fitted:
    """The calibrator called `name`. `centre`: what to take off each context, by number, where it is known already."""
    return fit_on(name, Pairing(said, truth_PL, folds_P, cases=cases, centres=centre), known_of, dec_LE)


def fit_on(
    name: str,
    pairing: Pairing,
    known_of: KnownOf,
    dec_LE: np.ndarray | None = None,
    without: tuple[int, ...] = (),
) -> Fitted:
    """The calibrator called `name`, fitted on all folds but those `without` which."""
    parsed = methods.parse(name)
    method = methods.method(parsed)
    reading = _reading(parsed, method, pairing)
    explained = pairing.said.explained

    shared: Shared = {}
    if method.share is not None and explained.any():
        chosen = _sample(explained, len(pairing.folds_P))
        known = _stacked([known_of(slice(latent, latent + 1)) for latent in chosen.tolist()])
        sampled = pairing.without(pairing.sample(chosen, reading, method.digits), without)
        shared = method.share(sampled.with_a_case(), known)
    parts: list[Part] = []
    means: list[np.ndarray] = []
    heard: list[np.ndarray] = []
    for block in blocks(pairing.latents if explained.any() else 0, pairing.block(reading)):
        known = known_of(block)
        evidence = pairing.without(pairing.evidence(block, reading, method.digits), without)
        own = partial(gain.per_latent, method.fit) if parsed.gain else method.fit
        parts.append(own(evidence.with_a_case(), known, shared))
        means.append(known.mean)
        heard.append(~evidence.silent())
    if not parts:  # nothing could be said of any latent
        parts, means = [Part("mean", {})], [known_of(slice(0, pairing.latents)).mean]
    told = explained & np.concatenate(heard) if heard else explained
    fitted = _joined(parsed, reading, parts, np.concatenate(means), told)
    if isinstance(pairing.said, Answered) and (parsed.output_gain or parsed.refit):
        raise SettingError(
            f"{name} is fitted to what all latents write together, and each was asked about contexts of its own. "
            f"Leave it out of --set calibrate.calibrators, or use --set ask.contexts=last"
        )
    if parsed.output_gain:
        share = _output_gain(parsed, pairing, known_of, _given(name, dec_LE), without)
        fitted = fitted.with_gain(share, notes={**fitted.notes, "output_gain": share})
    if parsed.refit:
        fitted = _refitted(fitted, pairing, _given(name, dec_LE), without)
    return fitted


def cross_fitted_error(
    name: str, pairing: Pairing, known_without: Callable[[int], KnownOf], dec_LE: np.ndarray
) -> float:
    """Mean squared error of what the latents write, each fold predicted by a calibrator fitted on the others."""
    folds = pairing.folds.tolist()
    if len(folds) < 2:
        raise SettingError(f"an error is cross-fitted over at least 2 folds: there is {len(folds)}. Give more groups")
    if isinstance(pairing.said, Answered):
        return _separate_error(name, pairing, known_without, dec_LE)
    total = 0.0
    for fold in folds:
        fitted = fit_on(name, pairing, known_without(fold), dec_LE, without=(fold,))
        rows = np.flatnonzero(pairing.folds_P == fold)
        wrong = apply.written(fitted, pairing.said, dec_LE, rows) - pairing.truth_PL[rows] @ dec_LE
        total += float(np.square(wrong, dtype=np.float64).sum())
    return total / len(pairing.folds_P)


def _separate_error(name: str, pairing: Pairing, known_without: Callable[[int], KnownOf], dec_LE: np.ndarray) -> float:
    """The same where each latent has contexts of its own: errors of latents add up as if they were independent."""
    error_L, weight_L = np.zeros(pairing.latents), np.zeros(pairing.latents)
    for fold in pairing.folds.tolist():
        fitted = fit_on(name, pairing, known_without(fold), dec_LE, without=(fold,))
        for block in blocks(pairing.latents):
            evidence = pairing.evidence(block, fitted.reading)
            evidence = evidence.where(evidence.fold == fold)
            weight = np.broadcast_to(evidence.weight, evidence.total.shape)
            truth = evidence.total / np.where(weight > 0, weight, 1)
            error_L[block] += (weight * np.square(fitted.predict(evidence.answers, block) - truth)).sum(1)
            weight_L[block] += weight.sum(1)
    return float((error_L / np.maximum(weight_L, 1) * np.square(dec_LE).sum(1)).sum())


def _output_gain(
    name: Name, pairing: Pairing, known_of: KnownOf, dec_LE: np.ndarray, without: tuple[int, ...]
) -> float:
    """One share of the way from the means for all latents, by folds that the map was not fitted on if there are two."""
    folds = [fold for fold in pairing.folds.tolist() if fold not in without]
    residual, towards = [], []
    for fold in folds:
        left_out = (*without, fold) if len(folds) > 1 else without
        tried = fit_on(name.plain.full, pairing, known_of, without=left_out)
        rows = np.flatnonzero(pairing.folds_P == fold)
        mean = tried.mean @ dec_LE
        residual.append(pairing.truth_PL[rows] @ dec_LE - mean)
        towards.append(apply.written(tried, pairing.said, dec_LE, rows) - mean)
    return gain.of_outputs(np.concatenate(residual), np.concatenate(towards))


def _refitted(fitted: Fitted, pairing: Pairing, dec_LE: np.ndarray, without: tuple[int, ...]) -> Fitted:
    """`fitted` with a decoder of its own, fitted on the same contexts."""
    rows = np.flatnonzero(~np.isin(pairing.folds_P, without))
    predicted = At(apply.values(fitted, pairing.said), rows)
    found = refit.fit(predicted, fitted.mean, pairing.truth_PL[rows], dec_LE, pairing.folds_P[rows])
    notes = {**fitted.notes, "refit": {"gamma": found.gamma, "strength": found.strength}}
    return replace(fitted, decoder_LE=found.decoder_LE, notes=notes)


def _given(name: str, dec_LE: np.ndarray | None) -> np.ndarray:
    assert dec_LE is not None, f"{name} is fitted to what the latents write: give the decoder"
    return dec_LE


def _reading(name: Name, method: Method, pairing: Pairing) -> Reading:
    """What the name asks for, or what the method reads by itself; a simulator without digits has its own number."""
    if (asked := methods.reading(name)) is not None:
        return asked
    return Reading(method.number if method.number == "own" or pairing.has_digits() else "own")


def _sample(explained: np.ndarray, contexts: int) -> np.ndarray:
    """Latents to fit on what all share, ascending: always the same ones of the same latents."""
    there = np.flatnonzero(explained)
    most = min(SAMPLE, max(SAMPLED_CASES // max(contexts, 1), 64))
    return np.sort(generator(0, "calibrate", "shared", len(explained)).permutation(there)[:most])


def _stacked(known: list[Known]) -> Known:
    largest, rate, magnitude = (
        np.concatenate([getattr(each, name) for each in known]) for name in ("largest", "rate", "magnitude")
    )
    return Known(largest, rate, magnitude, tuple(target for each in known for target in each.targets))


def _joined(name: Name, reading: Reading, parts: list[Part], mean: np.ndarray, told: np.ndarray) -> Fitted:
    """One calibrator from the parts of all blocks; a latent that nothing was `told` of has its mean."""
    first = parts[0]
    arrays: dict[str, np.ndarray] = {}
    for label, array in first.arrays.items():
        every = [part.arrays[label] for part in parts]
        if label.startswith(SHARED):
            joined = array
        elif label == "start":  # each block counts its knots from 0
            ends = np.cumsum([0, *(each[-1] for each in every)])
            joined = np.concatenate([[0], *(each[1:] + end for each, end in zip(every, ends, strict=False))])
        else:
            joined = np.concatenate(every)
        arrays[label] = joined.astype(np.float32) if joined.dtype.kind == "f" else joined
    shares = [np.ones(0) if part.gain is None else part.gain for part in parts]
    gains = np.ones(len(mean)) if first.gain is None else np.concatenate(shares)
    return Fitted(
        name=name.full,
        information=methods.information(name),
        map=first.map,
        arrays=arrays,
        mean=mean.astype(np.float32),
        gain=np.where(told, gains, 0).astype(np.float32),
        reading=reading,
    )
