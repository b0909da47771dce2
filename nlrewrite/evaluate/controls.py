"""Controls that know the truth and tell only a part of it.

In: true activations of the report split, and what was said on the calibrate split. Out: values of all latents.
Invariant: what a control tells is worth what it was worth on earlier splits; of the report split it sees activity, or
digits, and nothing else.

- the digits: on every active token how strong the latent is, in ninths of its largest activation, as a simulator would
  say that never errs. What is missing to the coder is what ten digits cannot say.
- flags as good as the sentences': active or not, as often right as the sentence is on the calibrate split, with every
  error by itself. What they do better than the sentences is what the structure of their errors costs; what they do
  worse is what strengths and kindred errors are worth.
"""

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Codes
from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.answers import Answered
from nlrewrite.simulate.ask import NOTHING
from nlrewrite.simulate.oracle import Flagged, confusion, oracle
from nlrewrite.simulate.said import Said, blocks


def digits(truth: Codes, largest_L: np.ndarray) -> Codes:
    """True activations to the nearest ninth of the largest one, never below the first."""
    extra = truth.extra_PL.copy()
    unit = np.maximum(largest_L[extra.indices], np.finfo(np.float32).tiny) / (DIGITS - 1)
    with np.errstate(over="ignore"):  # a latent that was never active before is above any largest
        ninths = np.rint(extra.data / unit)
    extra.data = (np.clip(ninths, 1, DIGITS - 1) * unit).astype(np.float32)
    return Codes(truth.constant_L, extra)


def flags(
    truth: Codes, said: Said, earlier_PL: sparse.csr_matrix, rate_L: np.ndarray, magnitude_L: np.ndarray, seed: int
) -> Codes:
    """Flags with each latent's sensitivity and specificity of `said` on earlier contexts, at E[activation | flag]."""
    knows = _confused(said, earlier_PL) if isinstance(said, Answered) else confusion(said, earlier_PL)
    told = oracle(truth.extra_PL, magnitude_L, knows, seed=seed, split="report")
    with_flag, without = expected(knows, rate_L, magnitude_L)
    latent, position = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for block in blocks(len(rate_L)):
        rows, columns = np.nonzero(told.scores(block))
        latent.append(rows + block.start)
        position.append(columns)
    at = np.concatenate(position), np.concatenate(latent)
    value = (with_flag - without)[at[1]].astype(np.float32)
    return Codes(without.astype(np.float32), sparse.csr_matrix((value, at), shape=truth.extra_PL.get_shape()))


def _confused(said: Answered, truth_PL: sparse.csr_matrix) -> Flagged:
    """Of a language model: a flag where it holds digit 0 for less likely than the others together.

    Cases are drawn within each kind at random, so that shares within a kind need no weights.
    """
    truth_LP = sparse.csr_matrix(truth_PL.T)
    hit_L, right_L = np.zeros(len(said.explained)), np.ones(len(said.explained))
    for block in blocks(len(said.explained)):
        digits_BSZ = said.columned.digits(block)
        there = np.broadcast_to(
            said.position_LS if len(said.position_LS) == 1 else said.position_LS[block], digits_BSZ.shape[:2]
        )
        active = np.take_along_axis(truth_LP[block].toarray(), np.maximum(there, 0), axis=1) > 0
        answered = (there != NOTHING) & ~np.isnan(digits_BSZ[..., 0])
        flagged = 2 * digits_BSZ[..., 0] < digits_BSZ.sum(-1)
        of = {True: answered & active, False: answered & ~active}
        hit_L[block] = (flagged & of[True]).sum(1) / np.maximum(of[True].sum(1), 1)
        right_L[block] = np.where(of[False].any(1), (~flagged & of[False]).sum(1) / np.maximum(of[False].sum(1), 1), 1)
    return Flagged(hit_L, right_L)


def expected(knows: Flagged, rate_L: np.ndarray, magnitude_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean activation with a flag and without one: their mean over contexts is the latent's."""
    hit, missed = knows.sensitivity * rate_L, (1 - knows.sensitivity) * rate_L
    flagged = hit + (1 - knows.specificity) * (1 - rate_L)
    silent = 1 - flagged
    mean_L = rate_L * magnitude_L
    return (
        np.where(flagged > 0, magnitude_L * hit / np.where(flagged > 0, flagged, 1), mean_L),
        np.where(silent > 0, magnitude_L * missed / np.where(silent > 0, silent, 1), mean_L),
    )
