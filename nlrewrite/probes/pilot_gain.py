"""From some latents to all: what the error of a rewriting comes to when every latent is replaced at once.

In: errors of piloted latents at the contexts asked about, and what mean ablation of *all* latents gets wrong there,
which is free. Out: the squared error of the whole rewriting as a share of mean ablation's, and the same with errors
weighed by how the loss reads them; both with resamples over documents and latents. Invariant: it is linear in sums over
latents and over pairs of latents, so that a random sample of latents gives it without bias; all of them, exactly.

With t_l the error of latent l's mean, d_l that of its prediction less t_l, each times its decoder row, M = sum of t_l
over all latents and beta the share of t_l that predictions take away on average, u_l = d_l + beta t_l is small, and

    |sum_l (t_l + d_l)|^2 = (1 - beta)^2 |M|^2 + 2 (1 - beta) <M, sum u_l> + sum_l |u_l|^2 + sum_(l != m) <u_l, u_m>.

The first term is known, the second and the third are sums over latents, scaled by N/n; the last, the cross terms that
no latent shows by itself, is seen where all piloted latents are replaced at once, and scaled by N (N - 1) / n (n - 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from nlrewrite.probes.pilot_errors import Errors
from nlrewrite.probes.pilot_pairs import Pairs
from nlrewrite.seeds import generator

DD, DT, TT, DM, TM, READ_WRONG, READ_OFF = range(7)
CHUNK = 1 << 24


@dataclass(frozen=True)
class Splice:
    """What n latents do at the contexts asked about, as numbers whose sums make the whole."""

    value_KLS: np.ndarray
    """For each case the squares and products of d, t and M, and the squares of both errors as the loss reads them."""
    read_LS: np.ndarray
    """Cases in which the loss's reading is known."""
    active_LS: np.ndarray
    asked_LS: np.ndarray
    rate_L: np.ndarray
    """Share of contexts in which a latent is active."""
    group_LS: np.ndarray
    """Number of the document group of each case."""
    moved_LC: np.ndarray
    """d and t at the contexts shared by all, before the decoder."""
    off_LC: np.ndarray
    dec_LE: np.ndarray
    group_C: np.ndarray
    square_C: np.ndarray
    """|M|^2 at the shared contexts."""
    square_G: np.ndarray
    """|M|^2 summed over all contexts of each group, and how many these are."""
    count_G: np.ndarray
    population: int

    @property
    def latents(self) -> int:
        return len(self.dec_LE)


@dataclass(frozen=True)
class Composed:
    """Shares of mean ablation's squared error: of the whole rewriting, and what they are made of."""

    alone: float
    """Of each latent by itself, as if errors of different latents had nothing to do with each other."""
    together: float
    """Of all latents replaced at once."""
    read: float
    """How much louder the loss reads what predictions leave wrong than what means leave wrong."""

    @property
    def share(self) -> float:
        return max(self.together, 0.0) * self.read


@dataclass(frozen=True)
class Resampled:
    measured: Composed
    drawn: tuple[Composed, ...] = field(repr=False)


def splice(
    pairs: Pairs,
    errors: Errors,
    dec_LE: np.ndarray,
    mean_off_UE: np.ndarray,
    context_U: np.ndarray,
    group_P: np.ndarray,
    square_P: np.ndarray,
    rows: np.ndarray,
    reads_VRE: np.ndarray | None = None,
    context_V: np.ndarray | None = None,
) -> Splice:
    """`mean_off_UE` is M at the contexts U that were asked about, `square_P` its square at all positions, of which
    `rows` may be asked about. `reads_VRE` are gradients of log-probabilities at contexts V; none: output alone counts.
    """
    d, t = errors.wrong_LS - errors.off_LS, errors.off_LS
    dec = dec_LE[pairs.latent_L].astype(np.float32)
    square_L = np.square(dec).sum(1)[:, None]
    asked = pairs.asked_LS
    value = np.zeros((7, *d.shape))
    value[DD], value[DT], value[TT] = d * d * square_L, d * t * square_L, t * t * square_L
    towards = np.zeros(d.shape, dtype=np.float32)
    at = np.searchsorted(context_U, np.maximum(pairs.context_LS, 0))
    for number, (row, mask) in enumerate(zip(at, asked, strict=True)):
        towards[number, mask] = mean_off_UE[row[mask]] @ dec[number]
    value[DM], value[TM] = d * towards, t * towards
    read = asked.copy()
    if reads_VRE is not None and context_V is not None:
        place = np.minimum(np.searchsorted(context_V, np.maximum(pairs.context_LS, 0)), len(context_V) - 1)
        read = asked & (context_V[place] == pairs.context_LS)
        loud = np.zeros(d.shape, dtype=np.float32)
        for number, (row, mask) in enumerate(zip(place, read, strict=True)):
            loud[number, mask] = np.square(reads_VRE[row[mask]] @ dec[number]).mean(1)
        value[READ_WRONG], value[READ_OFF] = loud * errors.wrong_LS**2, loud * t * t
    else:
        value[READ_WRONG], value[READ_OFF] = errors.wrong_LS**2 * square_L, value[TT]
    groups, of_row = np.unique(group_P[rows], return_inverse=True)
    shared = pairs.shared_C
    return Splice(
        value,
        read,
        pairs.active_LS,
        asked,
        pairs.there_L2[:, 1] / pairs.there_L2.sum(1),
        np.searchsorted(groups, group_P[np.maximum(pairs.context_LS, 0)]),
        d[:, : pairs.shared],
        t[:, : pairs.shared],
        dec,
        np.searchsorted(groups, group_P[shared]),
        square_P[shared],
        np.bincount(of_row, square_P[rows], minlength=len(groups)),
        np.bincount(of_row, minlength=len(groups)).astype(np.float64),
        pairs.population,
    )


def composed(given: Splice, weight_L: np.ndarray | None = None, weight_G: np.ndarray | None = None) -> Composed:
    """The whole, with latents and documents counted by weights (all once, if none)."""
    w = np.ones(given.latents) if weight_L is None else weight_L
    g = np.ones(len(given.count_G)) if weight_G is None else weight_G
    sums = w @ _per_latent(given, g)
    known = float(g @ given.square_G) / float(g @ given.count_G)
    beta = float(np.clip(-sums[DT] / sums[TT], 0, 1)) if sums[TT] > 0 else 0.0
    scale, pairs = given.population / w.sum(), w.sum() ** 2 - np.square(w).sum()
    by_one = scale * (
        2 * (1 - beta) * (sums[DM] + beta * sums[TM]) + sums[DD] + 2 * beta * sums[DT] + beta**2 * sums[TT]
    )
    if given.population > 1 and pairs > 0:
        every = given.population * (given.population - 1) / pairs
        by_two = every * _cross(given, beta, w, g) / _mean(given.square_C, g[given.group_C])
    else:
        by_two = 0.0
    return Composed(
        float((sums[DD] + 2 * sums[DT] + sums[TT]) / sums[TT]) if sums[TT] > 0 else 1.0,
        float((1 - beta) ** 2 + by_one / known + by_two),
        _louder(given, w, g),
    )


def resampled(given: Splice, resamples: int, seed: int) -> Resampled:
    """Documents are drawn with replacement; latents too, as a sample without replacement from finitely many."""
    measured = composed(given)
    latents, groups = given.latents, len(given.count_G)
    spread = sqrt(max(0.0, 1 - latents / given.population) * latents / max(latents - 1, 1))
    widen = sqrt(groups / (groups - 1))
    draws = generator(seed, "pilot", "bootstrap")

    def each() -> Iterator[Composed]:
        for _ in range(resamples):
            latent = draws.multinomial(latents, np.full(latents, 1 / latents)) - 1.0
            group = draws.multinomial(groups, np.full(groups, 1 / groups)) - 1.0
            yield composed(given, 1 + spread * latent, np.maximum(1 + widen * group, 0))

    return Resampled(measured, tuple(each()))


def _per_latent(given: Splice, weight_G: np.ndarray) -> np.ndarray:
    """Mean over all contexts of each latent's numbers: [L, 5], active and inactive cases each at their share."""
    total = np.zeros((given.latents, 5))
    case_LS = weight_G[given.group_LS] * given.asked_LS
    for mask, share_L in ((given.active_LS, given.rate_L), (~given.active_LS, 1 - given.rate_L)):
        weight = _shares(case_LS * mask, (given.asked_LS & mask).astype(np.float64))
        total += share_L[:, None] * np.einsum("kls,ls->lk", given.value_KLS[:5], weight)
    return total


def _louder(given: Splice, weight_L: np.ndarray, weight_G: np.ndarray) -> float:
    """The ratio of both errors as the loss reads them, over their ratio in the output, in the same cases."""
    case_LS = weight_G[given.group_LS] * given.read_LS
    named = (READ_WRONG, READ_OFF)
    sums = np.zeros(4)
    value = given.value_KLS
    wrong = value[DD] + 2 * value[DT] + value[TT]
    for mask, share_L in ((given.active_LS, given.rate_L), (~given.active_LS, 1 - given.rate_L)):
        weight = _shares(case_LS * mask, (given.read_LS & mask).astype(np.float64))
        weight *= (weight_L * share_L)[:, None]
        sums += [
            *(float((value[name] * weight).sum()) for name in named),
            (wrong * weight).sum(),
            (value[TT] * weight).sum(),
        ]
    loud, quiet = sums[0] * sums[3], sums[1] * sums[2]
    return float(loud / quiet) if quiet > 0 else 1.0


def _shares(weight_LS: np.ndarray, plain_LS: np.ndarray) -> np.ndarray:
    """Rows that add up to one; by the plain weights where a resample holds no case, 0 where there is none at all."""
    total = weight_LS.sum(1, keepdims=True)
    used = np.where(total > 0, weight_LS, plain_LS)
    return used / np.maximum(used.sum(1, keepdims=True), 1e-300)


def _cross(given: Splice, beta: float, weight_L: np.ndarray, weight_G: np.ndarray) -> float:
    """Mean over the shared contexts of the products of different latents' u."""
    u_LC = (given.moved_LC + np.float32(beta) * given.off_LC) * weight_L[:, None].astype(np.float32)
    together_CE = u_LC.T @ given.dec_LE
    alone_C = np.square(given.dec_LE).sum(1) @ np.square(u_LC)
    return _mean(np.square(together_CE).sum(1) - alone_C, weight_G[given.group_C])


def _mean(value_C: np.ndarray, weight_C: np.ndarray) -> float:
    total = weight_C.sum()
    return float((value_C * weight_C).sum() / total) if total > 0 else float(value_C.mean())
