"""Which contexts a simulator is asked about, when asking about all of them is too dear.

In: true activations, which are free, and how many contexts to ask about. Out: for each latent contexts where it is not
active and contexts where it is (case-control), or the same random contexts for all. Invariants: what is drawn for a
latent depends on (seed, latent) and its own activations alone, and a larger draw holds the smaller one.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator


def by_activity(
    truth_PL: sparse.csr_matrix, active: int, inactive: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each latent at most so many contexts where it is inactive and where it is active, at random, all if fewer."""
    for name, count in (("active", active), ("inactive", inactive)):
        if count < 1:
            raise SettingError(f"at least one {name} context of each latent must be drawn: {count}. Raise it")
    for latent, positive in enumerate(positives(truth_PL)):
        mask = np.zeros(truth_PL.get_shape()[0], dtype=bool)
        mask[positive] = True
        order = generator(seed, "cases", latent).permutation(len(mask))
        yield order[~mask[order]][:inactive], order[mask[order]][:active]


def positives(truth_PL: sparse.csr_matrix) -> list[np.ndarray]:
    """The contexts where each latent is active, ascending."""
    truth_LP = sparse.csr_matrix(truth_PL.T)
    truth_LP.eliminate_zeros()
    truth_LP.sort_indices()
    return np.split(truth_LP.indices, truth_LP.indptr[1:-1])


def at_random(contexts: int, count: int, *, seed: int) -> np.ndarray:
    """So many of the contexts, ascending; all if there are fewer. More of them hold the fewer."""
    if count < 1:
        raise SettingError(f"at least one context must be drawn: {count}. Raise it")
    return np.sort(generator(seed, "contexts").permutation(contexts)[:count])
