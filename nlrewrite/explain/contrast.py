"""Which latents a latent is confused with: those whose examples tell its sentence what it must not say.

In: decoder rows, simulated levels with true activations, or sentences. Out: for each latent others, the most easily
confused first. Invariant: pure functions; a latent is never its own rival, and -1 stands where there is none left.

| by         | a rival of a latent is                                                                      |
|------------|---------------------------------------------------------------------------------------------|
| directions | one whose decoder row points nearly the same way: taking one for the other is likeliest |
| errors     | one that is active where this latent was simulated and is silent                            |
| sentences  | one with the same sentence, which no reader can tell from it                                |
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

BLOCK = 512
NONE = -1


def by_directions(dec_LE: np.ndarray, count: int) -> np.ndarray:
    """Latents with the largest cosine of decoder rows: [L, count] int64; a row of zeros has and is no rival."""
    latents = len(dec_LE)
    lengths = np.linalg.norm(dec_LE, axis=1)
    unit = dec_LE / np.where(lengths > 0, lengths, 1)[:, None]
    found = np.full((latents, count), NONE, dtype=np.int64)
    for start in range(0, latents, BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine[:, lengths == 0] = -np.inf
        cosine[lengths[start : start + BLOCK] == 0] = -np.inf
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        found[start : start + BLOCK] = _largest(cosine, count)
    return found


def by_errors(said_PL: sparse.csr_matrix, active_PL: sparse.csr_matrix, count: int) -> np.ndarray:
    """Latents that are active in most of the contexts where this one was said to be active and is not: [L, count].

    Both are [contexts, latents], and what is not 0 counts; many contexts speak for a rival, not its frequency.
    """
    said, active = (
        sparse.csr_matrix(said_PL != 0, dtype=np.float32),
        sparse.csr_matrix(active_PL != 0, dtype=np.float32),
    )
    wrong_LP = sparse.csr_matrix((said - said.multiply(active)).T)
    latents = said.shape[1]  # type: ignore[index]
    found = np.full((latents, count), NONE, dtype=np.int64)
    for start in range(0, latents, BLOCK):
        together = np.asarray((wrong_LP[start : start + BLOCK] @ active).todense(), dtype=np.float64)
        together[together <= 0] = -np.inf
        together[np.arange(len(together)), np.arange(start, start + len(together))] = -np.inf
        found[start : start + BLOCK] = _largest(together, count)
    return found


def by_sentences(sentences: Sequence[str]) -> list[list[int]]:
    """For each latent the others with the same words in the same order; none for one without a sentence."""
    alike: dict[str, list[int]] = {}
    folded = [" ".join(sentence.casefold().split()) for sentence in sentences]
    for latent, key in enumerate(folded):
        alike.setdefault(key, []).append(latent)
    return [[other for other in alike[key] if other != latent] if key else [] for latent, key in enumerate(folded)]


def rivals(count: int, *ranked: Sequence[Sequence[int]] | np.ndarray) -> list[list[int]]:
    """Up to `count` for each latent, from the lists in turn, each rival once."""
    merged: list[list[int]] = []
    for lists in zip(*ranked, strict=True):
        found: dict[int, None] = {}
        longest = max((len(each) for each in lists), default=0)
        for place in range(longest):
            for each in lists:
                if place < len(each) and each[place] != NONE and len(found) < count:
                    found.setdefault(int(each[place]))
        merged.append(list(found))
    return merged


def _largest(value_BL: np.ndarray, count: int) -> np.ndarray:
    """Columns of the largest finite values of each row, the largest first, ties by number."""
    found = np.full((len(value_BL), count), NONE, dtype=np.int64)
    kept = min(count, value_BL.shape[1])
    order = np.argsort(-value_BL, axis=1, kind="stable")[:, :kept]
    found[:, :kept] = np.where(np.isfinite(np.take_along_axis(value_BL, order, axis=1)), order, NONE)
    return found
