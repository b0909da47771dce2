"""Fewer questions: a gate or a cheap simulator says which pairs of latent and context are worth a dear one's time.

In: lexical gates and tokens; or a cheap simulator's scores, and a pilot of pairs that both have answered. Out: which
pairs to ask about, the share of questions saved, the recall of what matters, and an engine that asks in two stages.
Invariants: a pair that is asked about has the dear engine's own answer, to the bit; one that is not has no answer, its
outcome is SKIPPED, and the cheap score is kept beside it; a threshold is fitted on a pilot and never on what it
decides about; a pair whose cheap score is missing is asked about.

What matters of a latent that is active in a share f of the contexts are its top f by the dear simulator: after quantile
normalisation all others are 0, so that nothing changes as long as the top f are among what was asked. Estimates of the
conditional mean instead give a dropped pair E[activation | cheap score] (`Dropped`), and lose at most its variance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from nlrewrite.errors import SettingError
from nlrewrite.explain.gate import Gates
from nlrewrite.llm.engine import Completion, Engine, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.llm.purse import check_asked

# -- a gate first ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """The pairs that gates let through; of all others the digit is 0, for certain and for nothing."""

    open_LP: sparse.csr_matrix
    """bool [L, P], only pairs to ask about."""
    explained_L: np.ndarray

    @property
    def kept(self) -> float:
        """Share of the explained latents' questions that are left."""
        there = self.explained_L.sum() * self.open_LP.shape[1]  # type: ignore[index]
        return float(self.open_LP.nnz / there) if there else 0.0

    def recall(self, truth_PL: sparse.csr_matrix) -> np.ndarray:
        """[L]: share of each latent's true activations that are asked about; NaN where it has none."""
        active_LP = sparse.csr_matrix(truth_PL.T > 0)
        return _share(_count(active_LP.multiply(self.open_LP)), _count(active_LP))

    def energy_recall(self, truth_PL: sparse.csr_matrix) -> float:
        """The same in squared activation, over all explained latents."""
        square_LP = sparse.csr_matrix(truth_PL.T).power(2)
        asked, there = square_LP.multiply(self.open_LP).sum(), square_LP[np.flatnonzero(self.explained_L)].sum()
        return float(asked / there) if there else float("nan")


def behind(gates: Gates, token_P: np.ndarray, explained_L: np.ndarray) -> Behind:
    """Which pairs need asking: the explained latents at tokens of their gate; everywhere, where a latent has none."""
    size = 1 + max(int(token_P.max(initial=0)), int(gates.token.max(initial=0)))
    said = explained_L[gates.latent]
    member_LV = _pairs(gates.latent[said], gates.token[said], (gates.latents, size))
    open_LP = sparse.csr_matrix(member_LV @ _pairs(token_P, np.arange(len(token_P)), (size, len(token_P))))
    ungated = np.flatnonzero(explained_L & ~gates.there)
    if len(ungated):
        everywhere = np.tile(np.arange(len(token_P)), len(ungated))
        open_LP = open_LP + _pairs(np.repeat(ungated, len(token_P)), everywhere, open_LP.shape)  # type: ignore[operator]
    return Behind(sparse.csr_matrix(open_LP), explained_L)


def _pairs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=shape)


def _count(pairs_LP: sparse.spmatrix) -> np.ndarray:
    return np.asarray(sparse.csr_matrix(pairs_LP).getnnz(axis=1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


# -- thresholds from a pilot -------------------------------------------------------------------------------------------


def top(full_LS: np.ndarray, frequency_L: np.ndarray) -> np.ndarray:
    """bool [L, S]: the share f of each latent's answered contexts with the largest scores, ties with the last one too.

    At least one, where there is an answer at all.
    """
    there = ~np.isnan(full_LS)
    count = np.clip(np.ceil(frequency_L * there.sum(1) - 1e-9).astype(int), 1, full_LS.shape[1])
    descending = -np.sort(-np.where(there, full_LS, -np.inf), axis=1)
    least = np.take_along_axis(descending, count[:, None] - 1, axis=1)
    return there & (full_LS >= least)


def thresholds(
    screen_LS: np.ndarray, full_LS: np.ndarray, frequency_L: np.ndarray, recall: float, *, pooled: bool = False
) -> np.ndarray:
    """[L]: the cheap score from which on a pair is asked about, such that the top f are with this chance.

    A latent's own: the k-th smallest cheap score of its n top pairs, k = floor((n + 1) (1 - recall)), so that the next
    top pair is kept with at least that chance, whatever the scores are like. With n too small for any k, or `pooled`,
    all latents' top pairs together say how far down a latent's own cheap scores must be kept.
    """
    if not 0 < recall < 1:
        raise SettingError(f"the recall of a cascade must lie between 0 and 1: {recall:g}. Change it")
    both = ~np.isnan(screen_LS) & ~np.isnan(full_LS)
    screen, matters = np.where(both, screen_LS, -np.inf), top(np.where(both, full_LS, np.nan), frequency_L)
    n_L = matters.sum(1)
    place_L = np.floor((n_L + 1) * (1 - recall) + 1e-9).astype(int)
    own = np.take_along_axis(
        np.sort(np.where(matters, screen, np.inf), axis=1),
        np.clip(place_L, 1, screen.shape[1])[:, None] - 1,
        axis=1,
    )[:, 0]
    few = (place_L < 1) | pooled
    return np.where(few, _pooled(screen, both, matters, recall), own)


def _pooled(screen: np.ndarray, both: np.ndarray, matters: np.ndarray, recall: float) -> np.ndarray:
    """Thresholds that keep the same share of every latent's contexts."""
    if not matters.any():
        return np.full(len(screen), -np.inf)
    descending = -np.sort(-screen, axis=1)
    there_L = np.maximum(both.sum(1), 1)
    rows, columns = np.nonzero(matters)
    bar = np.empty(len(rows))
    bounds = np.searchsorted(rows, np.arange(len(screen) + 1))
    for row in np.flatnonzero(np.diff(bounds)):
        mine = slice(bounds[row], bounds[row + 1])
        below = np.searchsorted(descending[row, ::-1], screen[row, columns[mine]], side="left")
        bar[mine] = (screen.shape[1] - below) / there_L[row]
    place = min(int(np.ceil((len(bar) + 1) * recall - 1e-9)), len(bar)) - 1
    share = np.sort(bar)[place]
    count = np.clip(np.ceil(share * there_L - 1e-9).astype(int), 1, screen.shape[1])
    return np.take_along_axis(descending, count[:, None] - 1, axis=1)[:, 0]


def keep(screen_LS: np.ndarray, threshold_L: np.ndarray) -> np.ndarray:
    """bool [L, S]: which pairs to ask about; all whose cheap score is missing."""
    return ~(screen_LS < threshold_L[:, None])


def recalled(kept_LS: np.ndarray, full_LS: np.ndarray, frequency_L: np.ndarray) -> float:
    """Share of all latents' top pairs that are asked about."""
    matters = top(full_LS, frequency_L)
    return float(kept_LS[matters].mean()) if matters.any() else float("nan")


def curve(
    screen_LS: np.ndarray, full_LS: np.ndarray, frequency_L: np.ndarray, shares: Sequence[float]
) -> list[tuple[float, float]]:
    """(share kept, recall) where each latent keeps its contexts with the largest cheap scores, ties with the last."""
    kept = [top(screen_LS, np.full(len(screen_LS), share)) for share in shares]
    return [(float(each.mean()), recalled(each, full_LS, frequency_L)) for each in kept]


def share_to_keep(correlation: float, share: float, recall: float) -> float:
    """Share of the contexts to keep for a recall of the top `share`, if the scores are jointly normal (a copula)."""
    if not 0 < correlation < 1:
        raise SettingError(f"a correlation of two simulators must lie between 0 and 1: {correlation:g}. Change it")
    level, rest = ndtri(1 - share), np.sqrt(1 - correlation**2)
    z, weight = np.polynomial.legendre.leggauss(400)
    z = level + (z + 1) * 6
    density = 6 * weight * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    found = brentq(lambda bar: density @ ndtr((correlation * z - bar) / rest) / share - recall, -12, 12)
    return float(ndtr(-found))  # type: ignore[operator]


def cost(screen: float, kept: float) -> float:
    """Of a cascade, relative to asking the dear simulator everything; `screen` is the cheap one's, relative to it."""
    return screen + kept


# -- what a dropped pair is given --------------------------------------------------------------------------------------


def lowest(full_LS: np.ndarray, kept_LS: np.ndarray) -> np.ndarray:
    """Scores for maps that use ranks alone: dropped pairs all tie below the lowest score that was asked for."""
    asked = np.where(kept_LS, full_LS, np.inf)
    least = np.nanmin(asked, axis=1, keepdims=True, initial=np.inf)
    return np.where(kept_LS, full_LS, np.where(np.isfinite(least), least, 0) - 1)


@dataclass(frozen=True)
class Dropped:
    """The mean activation of dropped pairs by cheap score: steps of equal weight, shrunk to the mean of all dropped."""

    edge_LB: np.ndarray
    """Upper ends of all steps but the last."""
    value_LB: np.ndarray

    @classmethod
    def fit(
        cls,
        screen_LS: np.ndarray,
        truth_LS: np.ndarray,
        kept_LS: np.ndarray,
        weight_LS: np.ndarray | None = None,
        steps: int = 4,
        prior: float = 50.0,
    ) -> "Dropped":
        """`weight_LS`: how many contexts each pair stands for; `prior`: contexts that the latent's mean counts for."""
        weight = np.ones(screen_LS.shape) if weight_LS is None else weight_LS
        weight = np.where(kept_LS | np.isnan(screen_LS), 0.0, weight)
        order = np.argsort(np.where(weight > 0, screen_LS, np.inf), axis=1, kind="stable")
        score, mass, truth = (np.take_along_axis(each, order, axis=1) for each in (screen_LS, weight, truth_LS))
        upto = np.cumsum(mass, axis=1)
        total = upto[:, -1:]
        mean = np.divide((mass * truth).sum(1, keepdims=True), total, out=np.zeros_like(total), where=total > 0)
        edges, values = [], []
        first = np.zeros(screen_LS.shape, dtype=int)
        for step in range(1, steps):
            at = np.minimum((upto < total * step / steps - 1e-12).sum(1, keepdims=True), screen_LS.shape[1] - 1)
            edges.append(np.take_along_axis(score, at, axis=1)[:, 0])
            first += score > edges[-1][:, None]
        for step in range(steps):
            inside = mass * (first == step)
            sums, there = (inside * truth).sum(1), inside.sum(1)
            values.append((sums + prior * mean[:, 0]) / (there + prior))
        return cls(np.stack(edges, axis=1), np.stack(values, axis=1))

    def __call__(self, screen_LS: np.ndarray) -> np.ndarray:
        step = sum((screen_LS > edge[:, None]).astype(int) for edge in self.edge_LB.T)
        return np.take_along_axis(self.value_LB, np.asarray(step).reshape(screen_LS.shape), axis=1)


# -- as an engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Screened:
    """Answers in two stages."""

    scores: Scores
    """The dear engine's; NaN and SKIPPED where it was not asked."""
    screen: np.ndarray
    """float32 [N]: the cheap engine's expected digit."""


def expected_digit(scores: Scores) -> np.ndarray:
    """[N]: NaN where there is no answer."""
    chance = np.exp(scores.logp.astype(np.float32))
    return chance @ np.arange(chance.shape[1], dtype=np.float32)


def spread(scores: Scores, chosen: np.ndarray, count: int) -> Scores:
    """Answers to the `chosen` of `count` questions, as answers to all: the others were skipped."""

    def wide(values: np.ndarray | None, empty: float | bool) -> np.ndarray | None:
        if values is None:
            return None
        out = np.full((count, *values.shape[1:]), empty, dtype=values.dtype)
        out[chosen] = values
        return out

    outcome = np.full(count, Outcome.SKIPPED, dtype=np.int8)
    outcome[chosen] = scores.outcome
    logp = wide(scores.logp, np.nan)
    assert logp is not None
    return Scores(logp, wide(scores.logmass, np.nan), outcome, wide(scores.missing, np.nan), wide(scores.top, False))


class Cascade:
    """An engine that asks a dear one only what a cheap one finds worth it. Both read the same token ids.

    `thresholds` are by the tokens that are a latent's own: its suffix, or its prefix where explanations come first
    (`own`). A latent that has none is asked about everywhere.
    """

    def __init__(
        self, cheap: Engine, dear: Engine, thresholds: Mapping[bytes, float], *, by_prefix: bool = False
    ) -> None:
        self.name = f"{dear.name} behind {cheap.name}"
        self.exact_mass = dear.exact_mass
        self.cheap, self.dear = cheap, dear
        self._thresholds, self._by_prefix = thresholds, by_prefix
        self.skipped = 0

    @property
    def usage(self) -> Usage:
        """Of both engines together; what the cheap one was asked is no question of its own."""
        cheap, dear = self.cheap.usage, self.dear.usage
        failed = {**dear.failed, Outcome.SKIPPED.name: self.skipped} if self.skipped else dict(dear.failed)
        return replace(
            dear,
            prompt_tokens=cheap.prompt_tokens + dear.prompt_tokens,
            cached_tokens=cheap.cached_tokens + dear.cached_tokens,
            new_tokens=cheap.new_tokens + dear.new_tokens,
            seconds=cheap.seconds + dear.seconds,
            money=cheap.money + dear.money,
            failed=failed,
        )

    def about(self) -> dict[str, object]:
        return {**self.dear.about(), "behind": self.cheap.about(), "cheap": self.cheap.name}

    def screened(self, block: PrefixBlock) -> Screened:
        screen = expected_digit(self.cheap.digits(block))
        chosen = np.flatnonzero(~(screen < bars(block, self._thresholds, by_prefix=self._by_prefix)))
        self.skipped += len(block) - len(chosen)
        if not len(chosen):
            logmass = np.full(len(block), np.nan, dtype=np.float32) if self.exact_mass else None
            empty = Scores(
                np.full((len(block), len(block.labels)), np.nan, dtype=np.float32),
                logmass,
                np.full(len(block), Outcome.SKIPPED, dtype=np.int8),
            )
            return Screened(empty, screen)
        told = self.dear.digits(block.at(chosen))
        check_asked(told.outcome)  # what a limit leaves out must not be taken for what the screen did
        return Screened(spread(told, chosen, len(block)), screen)

    def digits(self, block: PrefixBlock) -> Scores:
        return self.screened(block).scores

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        return self.dear.complete(prompts, sampling)

    def close(self) -> None:
        self.cheap.close()
        self.dear.close()


def own(tokens: np.ndarray) -> bytes:
    """What a latent's threshold is filed under: the token ids that are its own."""
    return np.ascontiguousarray(tokens, dtype=np.int32).tobytes()


def bars(block: PrefixBlock, thresholds: Mapping[bytes, float], *, by_prefix: bool = False) -> np.ndarray:
    """[N]: the threshold of each question's latent; -inf for a latent that has none."""
    if by_prefix:
        return np.full(len(block), thresholds.get(own(block.prefix), -np.inf))
    each = (thresholds.get(own(block.suffix(index)), -np.inf) for index in range(len(block)))
    return np.fromiter(each, np.float64, len(block))


def filed(tokens: Sequence[np.ndarray], threshold_L: np.ndarray) -> dict[bytes, float]:
    """Thresholds by the tokens of each latent; latents with the same tokens share the lowest."""
    found: dict[bytes, float] = {}
    for each, threshold in zip(tokens, threshold_L.tolist(), strict=True):
        found[own(each)] = min(threshold, found.get(own(each), np.inf))
    return found
