"""The baselines that need no language: a latent's mean, and its mean given the token or the last two tokens.

In: true activations of the splits that may be fitted on, and the tokens there. Out: means, and lookup tables for any
positions: the calibrators `mean`, `token-mean` and `bigram-mean`. They are no simulators: they read no sentence and use
tokens and activations alone, so they say what a simulator has to beat. Invariant: a key never seen falls back on the
coarser one, and how strongly a seen one does is chosen by predicting one split from the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Codes, Lookup
from nlrewrite.text.positions import Positions

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Seen:
    """Positions with their true activations."""

    where: Positions
    truth: Codes


def mean_over_tokens(fitted: Sequence[Seen]) -> np.ndarray:
    """Mean activation of each latent over all positions: what mean ablation writes. [L]"""
    return _total(fitted) / max(sum(len(seen.where) for seen in fitted), 1)


def mean_over_firing_tokens(fitted: Sequence[Seen]) -> np.ndarray:
    """Mean activation of each latent over the positions where it is active; 0 for one that never is. [L]"""
    often = np.sum([seen.truth.extra_PL.getnnz(axis=0) for seen in fitted], axis=0)  # it holds no zeros
    return _total(fitted) / np.maximum(often, 1)


def token_lookup(fitted: Sequence[Seen], where: Positions, vocabulary: int, strength: float) -> Lookup:
    """E[a | token], drawn towards the overall mean with the weight of `strength` observations."""
    return Lookup(_token_table(fitted, vocabulary, strength), where.token)


def bigram_lookup(
    fitted: Sequence[Seen], where: Positions, vocabulary: int, strength: float, token_strength: float
) -> Lookup:
    """E[a | token before, token], drawn towards E[a | token]."""
    table = _token_table(fitted, vocabulary, token_strength)
    keys = np.concatenate([_bigrams(seen.where, vocabulary) for seen in fitted])
    wanted = _bigrams(where, vocabulary)
    known = np.unique(np.concatenate([keys, wanted]))
    sums = sum_rows(fitted, np.searchsorted(known, keys), len(known))
    counts = np.bincount(np.searchsorted(known, keys), minlength=len(known))
    back = sparse.csr_matrix(
        (np.full(len(known), strength, np.float32), known % vocabulary, np.arange(len(known) + 1)),
        shape=(len(known), vocabulary),
    )
    weight = (counts + strength).astype(np.float32)
    return Lookup(table, np.searchsorted(known, wanted), sums, back, weight)


def best_strengths(first: Seen, second: Seen, vocabulary: int, dec_LE: np.ndarray) -> tuple[float, float]:
    """The two strengths with which `first` best predicts what the latents write on `second`."""

    def error(lookup: Lookup) -> float:
        everything = np.arange(len(second.where))
        return float(np.square(lookup.output(everything, dec_LE) - written).sum())

    written = second.truth.output(np.arange(len(second.where)), dec_LE)
    token = min(STRENGTHS, key=lambda s: error(token_lookup([first], second.where, vocabulary, s)))
    bigram = min(STRENGTHS, key=lambda s: error(bigram_lookup([first], second.where, vocabulary, s, token)))
    return token, bigram


def sum_rows(fitted: Sequence[Seen], key: np.ndarray, keys: int) -> sparse.csr_matrix:
    """True activations summed by key: [keys, L]."""
    truth = sparse.csr_matrix(sparse.vstack([seen.truth.extra_PL for seen in fitted]))
    ones = np.ones(len(key), dtype=np.float32)
    gather = sparse.csr_matrix((ones, (key, np.arange(len(key)))), shape=(keys, len(key)))
    return sparse.csr_matrix(gather @ truth)


def _total(fitted: Sequence[Seen]) -> np.ndarray:
    return np.sum([np.asarray(seen.truth.extra_PL.sum(0, dtype=np.float64)).ravel() for seen in fitted], axis=0)


def _token_table(fitted: Sequence[Seen], vocabulary: int, strength: float) -> np.ndarray:
    tokens = np.concatenate([seen.where.token for seen in fitted])
    sums = sum_rows(fitted, tokens, vocabulary).toarray()
    counts = np.bincount(tokens, minlength=vocabulary)[:, None]
    mean = sums.sum(0) / len(tokens)
    return ((sums + strength * mean) / (counts + strength)).astype(np.float32)


def _bigrams(where: Positions, vocabulary: int) -> np.ndarray:
    """A number for each pair (token before or nothing, token)."""
    return (where.back(1).astype(np.int64) + 1) * vocabulary + where.token
