"""Calibrated activations: what fitted calibrators make of what was said, in the forms in which arms use them.

In: a fitted calibrator and a simulation. Out: `Codes` where nearly everything said is level 0, else `Dense`; or what
all latents write. Invariant: every form holds the same numbers, and what is written is summed up by blocks of latents,
so that the values of all latents at all contexts are never held at once.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Codes, Dense, Retuned, Values
from nlrewrite.calibrate.fitted import DIGIT_MAPS, Fitted
from nlrewrite.calibrate.pairing import level_answers
from nlrewrite.simulate.said import Answers, Said, Spoken, answers, blocks, centre


def values(fitted: Fitted, said: Said) -> Values:
    """The form that costs less; with the calibrator's own decoder, if it has one."""
    found = codes(fitted, said) if isinstance(said, Spoken) and not fitted.reading.centred else dense(fitted, said)
    return found if fitted.decoder_LE is None else Retuned(found, fitted.mean, fitted.decoder_LE)


def table(fitted: Fitted, said: Spoken) -> np.ndarray:
    """The value of each latent at each level: [L, Z]. Not for a calibrator that takes anything off each context."""
    assert not fitted.reading.centred, f"{fitted.name} has no value of a level: it reads levels less those of others"
    level = level_answers(said, fitted.reading)
    assert level.digits_BSZ is not None
    found = np.empty((fitted.latents, level.score_BS.shape[1]), dtype=np.float32)
    for block in blocks(fitted.latents, 4096):
        every = np.broadcast_to(level.score_BS, (len(found[block]), found.shape[1]))
        found[block] = fitted.predict(Answers(every, level.digits_BSZ), block)
    return found


def codes(fitted: Fitted, said: Spoken) -> Codes:
    """Each latent's value where nothing is said of it, and what is added where something is."""
    value_LZ, simulated = table(fitted, said), said.simulated
    silent = value_LZ[:, 0].copy()
    extra = value_LZ[simulated.latent, simulated.level] - silent[simulated.latent]
    shape = (said.contexts, fitted.latents)
    return Codes(silent, sparse.csr_matrix((extra, (simulated.position, simulated.latent)), shape=shape))


def dense(fitted: Fitted, said: Said) -> Dense:
    """All values, in memory: 4 bytes for each latent and context."""
    found = np.empty((said.contexts, fitted.latents), dtype=np.float32)
    for block, predicted in predictions(fitted, said):
        found[:, block] = predicted.T
    return Dense(found)


def written(fitted: Fitted, said: Said, dec_LE: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """What all latents write at each context (or at `rows`): [P, E]; by the calibrator's own decoder, if it has one."""
    rows = np.arange(said.contexts) if rows is None else rows
    if isinstance(said, Spoken) and not fitted.reading.centred:
        return np.asarray(values(fitted, said).output(rows, dec_LE), dtype=np.float32)
    decoder = dec_LE if fitted.decoder_LE is None else fitted.decoder_LE
    total = np.zeros((len(rows), decoder.shape[1]), dtype=np.float32)
    for block, predicted in predictions(fitted, said, rows):
        total += predicted.T @ decoder[block]
    return total if fitted.decoder_LE is None else total + (fitted.mean @ (dec_LE - decoder)).astype(np.float32)


def predictions(fitted: Fitted, said: Said, rows: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Activations [B, P] of one block of latents after another, at all contexts or at `rows`."""
    middle = centre(said, fitted.reading) if fitted.reading.centred else None
    needs_digits = fitted.map in DIGIT_MAPS
    count = said.contexts if rows is None else len(rows)
    for block in blocks(fitted.latents):
        if fitted.map == "mean":  # nothing that is said matters
            yield block, np.repeat(fitted.mean[block, None].astype(np.float32), count, axis=1)
            continue
        said_there = answers(said, block, fitted.reading, middle, digits=needs_digits)
        yield block, fitted.predict(said_there if rows is None else said_there.at(rows), block)
