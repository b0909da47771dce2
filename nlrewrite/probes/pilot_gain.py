"""From some latents to all: what the error of a rewriting comes to when every latent is replaced at once.

In: errors of piloted latents at the contexts asked about, and what mean ablation of *all* latents gets wrong there,
which is free. Out: the squared error of the whole rewriting as a share of mean ablation's, and the same with errors
weighed by how the loss reads them, with standard errors over documents and latents. Invariant: it is linear in sums
over latents and over pairs of latents, so that a random sample of latents gives it without bias; all of them, exactly.

With t_l the error of latent l's mean, d_l that of its prediction less t_l, each times its decoder row, M = sum of t_l
over all latents and beta the share of t_l that predictions take away on average, u_l = d_l + beta t_l is small, and

    |sum_l (t_l + d_l)|^2 = (1 - beta)^2 |M|^2 + 2 (1 - beta) <M, sum u_l> + sum_l |u_l|^2 + sum_(l != m) <u_l, u_m>.

The first term is known, the second and the third are sums over latents, scaled by N/n; the last, the cross terms that
no latent shows by itself, is seen where all piloted latents are replaced at once, and scaled by N (N - 1) / n (n - 1).

A standard error is two-way: variance over documents, plus variance over latents (of finitely many), less the variance
of what each latent does in each document, which both hold. A bootstrap that draws both at once would count that three
times, and it is most of it.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from nlrewrite.probes.pilot_errors import Errors
from nlrewrite.probes.pilot_pairs import Pairs

DD, DT, TT, DM, TM, READ_WRONG, READ_OFF = range(7)


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
class Figure:
    """An estimate, and its standard error over documents and latents."""

    value: float
    error: float


@dataclass(frozen=True)
class Composed:
    """Shares of mean ablation's squared error: of the whole rewriting, and what they are made of."""

    alone: Figure
    """Of each latent by itself, as if errors of different latents had nothing to do with each other."""
    together: Figure
    """Of all latents replaced at once."""
    read: Figure
    """How much louder the loss reads what predictions leave wrong than what means leave wrong."""
    share: Figure
    """`together` as the loss reads it."""


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


def composed(given: Splice) -> Composed:
    n, all_ = given.latents, given.population
    case_LS, read_LS = _cases(given, given.asked_LS), _cases(given, given.read_LS)
    sums = np.einsum("kls,ls->k", given.value_KLS, case_LS)
    known, near = given.square_G.sum() / given.count_G.sum(), float(given.square_C.mean())
    beta = float(np.clip(-sums[DT] / sums[TT], 0, 1)) if sums[TT] > 0 else 0.0

    own_LS = _of_one(given.value_KLS, beta)
    one = _Influence.of_cases(given, own_LS, case_LS).times(all_ / n)
    u_LC = given.moved_LC + np.float32(beta) * given.off_LC
    two = _of_two(given, u_LC).times(all_ * (all_ - 1) / (n * max(n - 1, 1)))
    by_one, by_two = one.value / known, two.value / near
    of_known = _Influence.of_groups(given, given.square_G - known * given.count_G, given.count_G)
    of_near = _Influence.of_contexts(given, given.square_C - near)
    together = one.times(1 / known).plus(of_known, -by_one / known)
    together = together.plus(two.times(1 / near)).plus(of_near, -by_two / near)
    together = together.with_value((1 - beta) ** 2 + by_one + by_two)

    value = given.value_KLS
    wrong_LS = value[DD] + 2 * value[DT] + value[TT]
    alone = _ratio(given, [(wrong_LS, 1), (value[TT], -1)], case_LS)
    louder = [(value[READ_WRONG], 1), (value[READ_OFF], -1), (wrong_LS, -1), (value[TT], 1)]
    read = _ratio(given, louder, read_LS)
    share = together.times(read.value).plus(read, together.value).with_value(max(together.value, 0.0) * read.value)
    return Composed(*(each.figure(given) for each in (alone, together, read, share)))


@dataclass(frozen=True)
class _Influence:
    """A figure, and what it owes to each latent, to each document group, and to both together."""

    value: float
    of_L: np.ndarray
    of_G: np.ndarray
    of_LG: np.ndarray

    @classmethod
    def of_cases(cls, given: Splice, value_LS: np.ndarray, weight_LS: np.ndarray) -> "_Influence":
        """A sum over latents of means over their cases."""
        each_L = (value_LS * weight_LS).sum(1)
        apart_LS = np.zeros_like(value_LS)
        for mask in (given.active_LS, ~given.active_LS):
            inside = weight_LS * mask
            mean_L = (value_LS * inside).sum(1) / np.maximum(inside.sum(1), 1e-300)
            apart_LS += inside * (value_LS - mean_L[:, None])
        of_LG = np.zeros((given.latents, len(given.count_G)))
        rows = np.broadcast_to(np.arange(given.latents)[:, None], apart_LS.shape)
        np.add.at(of_LG, (rows, given.group_LS), apart_LS)
        return cls(float(each_L.sum()), each_L - each_L.mean(), of_LG.sum(0), of_LG)

    @classmethod
    def of_groups(cls, given: Splice, value_G: np.ndarray, count_G: np.ndarray) -> "_Influence":
        """A mean over all contexts, that of the groups' sums."""
        none = np.zeros((given.latents, len(given.count_G)))
        return cls(0.0, none[:, 0], value_G / count_G.sum(), none)

    @classmethod
    def of_contexts(cls, given: Splice, value_C: np.ndarray) -> "_Influence":
        """A mean over the shared contexts."""
        of_G = np.bincount(given.group_C, value_C, minlength=len(given.count_G))
        return cls.of_groups(given, of_G, np.array([len(value_C)]))

    def times(self, factor: float) -> "_Influence":
        return _Influence(self.value * factor, self.of_L * factor, self.of_G * factor, self.of_LG * factor)

    def plus(self, other: "_Influence", factor: float = 1.0) -> "_Influence":
        each = (getattr(self, name) + factor * getattr(other, name) for name in ("value", "of_L", "of_G", "of_LG"))
        return _Influence(*each)

    def with_value(self, value: float) -> "_Influence":
        return _Influence(value, self.of_L, self.of_G, self.of_LG)

    def figure(self, given: Splice) -> Figure:
        """Errors of documents and of latents, less what they count twice: what a latent does in a document."""
        n, groups = given.latents, len(given.count_G)
        finite = (1 - n / given.population) * n / max(n - 1, 1)
        by_latent, by_both = finite * float(np.square(self.of_L).sum()), float(np.square(self.of_LG).sum())
        by_group = groups / (groups - 1) * float(np.square(self.of_G).sum())
        return Figure(float(self.value), sqrt(by_group + max(0.0, by_latent - finite * by_both)))


def _cases(given: Splice, there_LS: np.ndarray) -> np.ndarray:
    """What each case weighs in the mean over all contexts: active and inactive ones each have their share."""
    weight = np.zeros(there_LS.shape)
    for mask, share_L in ((given.active_LS, given.rate_L), (~given.active_LS, 1 - given.rate_L)):
        inside = there_LS & mask
        weight += inside * (share_L / np.maximum(inside.sum(1), 1))[:, None]
    return weight


def _of_one(value_KLS: np.ndarray, beta: float) -> np.ndarray:
    """What a latent adds to the square by itself and with M, in each case."""
    with_rest = 2 * (1 - beta) * (value_KLS[DM] + beta * value_KLS[TM])
    return with_rest + value_KLS[DD] + 2 * beta * value_KLS[DT] + beta**2 * value_KLS[TT]


def _of_two(given: Splice, u_LC: np.ndarray) -> _Influence:
    """Products of different latents' u, added up over pairs, in the mean over the shared contexts."""
    n, contexts = u_LC.shape
    together_CE = u_LC.T @ given.dec_LE
    alone_LC = np.square(u_LC) * np.square(given.dec_LE).sum(1)[:, None]
    each_LC = (u_LC * (given.dec_LE @ together_CE.T) - alone_LC).astype(np.float64)
    of_C, mean_L = each_LC.sum(0), each_LC.mean(1)
    value = float(of_C.mean())
    groups = len(given.count_G)
    of_LG = np.zeros((n, groups))
    apart = each_LC - mean_L[:, None] - of_C / n + value / n
    np.add.at(of_LG.T, given.group_C, 2 * apart.T / contexts)
    of_G = np.bincount(given.group_C, (of_C - value) / contexts, minlength=groups)
    return _Influence(value, 2 * (mean_L - value / n), of_G, of_LG)


def _ratio(given: Splice, terms: list[tuple[np.ndarray, int]], weight_LS: np.ndarray) -> _Influence:
    """A product of sums over latents, each to the power 1 or -1."""
    parts = [(_Influence.of_cases(given, value_LS, weight_LS), power) for value_LS, power in terms]
    if not all(part.value > 0 for part, _ in parts):
        return parts[0][0].times(0).with_value(1.0)
    value = float(np.prod([part.value**power for part, power in parts]))
    total = parts[0][0].times(0)
    for part, power in parts:
        total = total.plus(part, power * value / part.value)
    return total.with_value(value)
