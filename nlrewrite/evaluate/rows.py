"""The figures of one arm: its row in the results.

In: the tally of one position and the draws that all arms share. Out: a row per arm, and one per fraction that speaks
for all random subsets of latents together. Invariant: a difference, a share or a count of contexts always pairs an arm
with the mean ablation of the same latents in the same documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import sparse

from nlrewrite.evaluate import paired, power
from nlrewrite.evaluate.arms import Arm
from nlrewrite.evaluate.bootstrap import Draws, Interval, Resampled
from nlrewrite.evaluate.tally import Tally

Row = dict[str, object]
THIRDS = 3


@dataclass(frozen=True)
class Measured:
    """All arms of one position, resampled; behind the planned ones those that pool random subsets."""

    planned: Sequence[Arm]
    tally: Tally
    draws: Draws
    groups: np.ndarray
    """The ids of the groups, in the order in which `draws` draws them."""
    ce: Resampled
    kl: Resampled
    kl_coder: Resampled
    agrees: Resampled
    every_ce: Resampled
    """With the positions that are left out elsewhere."""
    every_kl: Resampled
    thirds: list[Resampled]
    """By the unpatched loss of the window: the easiest third of the windows first."""
    bounds: tuple[float, ...]
    """Unpatched loss, in nats, between the thirds."""
    pooled: tuple[tuple[int, ...], ...]
    """For each arm that pools subsets its members."""

    @property
    def count(self) -> int:
        """Arms that were planned; the pooled ones stand behind them."""
        return len(self.tally.arms) - len(self.pooled)

    def arm(self, at: int) -> Arm:
        return self.planned[self.tally.arms[at]]

    def members(self, at: int) -> tuple[int, ...]:
        return (at,) if at < self.count else self.pooled[at - self.count]

    def find(self, name: str, like: int | None = None) -> int | None:
        """The first arm called `name`: of all latents, or of the same latents as the arm `like`."""
        if like is not None and like >= self.count:
            members = tuple(self.find(name, member) for member in self.members(like))
            wanted = tuple(member for member in members if member is not None)
            return self.count + self.pooled.index(wanted) if wanted in self.pooled else None
        compared = ("all", 1.0, 0) if like is None else self.arm(like).compared
        for at in range(self.count):
            key = self.arm(at).key
            same = self.arm(at).compared == compared and (like is not None or key.selection == "all")
            if key.arm == name and same:
                return at
        return None

    def found(self, name: str, like: int | None = None) -> int:
        at = self.find(name, like)
        assert at is not None, f"an evaluation needs the arm {name}"
        return at


def measured(
    planned: Sequence[Arm], tally: Tally, draws: Draws, groups: np.ndarray, weights_RS: Mapping[int, np.ndarray]
) -> Measured:
    """Every figure of every arm resampled by `draws`, and subsets by `weights_RS`, for each number of subsets."""
    pooled = pools(planned, tally)
    extended = tally.with_means(pooled)
    column = np.searchsorted(groups, tally.group_W)
    gather = sparse.csr_matrix(
        (np.ones(len(column)), (column, np.arange(len(column)))), shape=(len(groups), len(column))
    )

    def means(sums_AW: np.ndarray, counts_W: np.ndarray) -> Resampled:
        drawn = draws.means(np.asarray(gather @ sums_AW.T), np.asarray(gather @ counts_W))
        for size in dict.fromkeys(len(each) for each in pooled):
            drawn = drawn.with_means([each for each in pooled if len(each) == size], weights_RS[size])
        return drawn

    counts, every = tally.positions_W, tally.positions_W + tally.left_out_W
    ce, kl = means(tally.ce, counts), means(tally.kl, counts)
    anything = tally.n_left_out > 0
    thirds, bounds = _thirds(planned, tally)
    return Measured(
        planned,
        extended,
        draws,
        groups,
        ce,
        kl,
        means(tally.kl_coder, counts),
        means(tally.agrees, counts),
        means(tally.ce + tally.ce_left_out, every) if anything else ce,
        means(tally.kl + tally.kl_left_out, every) if anything else kl,
        [means(tally.ce * third, counts * third) for third in thirds],
        bounds,
        pooled,
    )


def pools(planned: Sequence[Arm], tally: Tally) -> tuple[tuple[int, ...], ...]:
    """Arms that differ in nothing but the random subset of latents, where there are several; the fewest first."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for at, index in enumerate(tally.arms):
        arm = planned[index]
        if arm.key.selection == "sampled":
            told = asdict(arm.key) | {"subset_seed": None}
            alike.setdefault(tuple(told.values()), []).append(at)
    return tuple(sorted((tuple(each) for each in alike.values() if len(each) > 1), key=len))


def row(of: Measured, at: int, absolute: bool) -> Row:
    """Every figure of one arm. `absolute`: with the median absolute difference, the first publication's figure."""
    arm, tally = of.arm(at), of.tally
    original, coder, floor = of.found("original"), of.found("coder"), of.found("mean", at)
    used_W = tally.positions_W > 0
    everything = arm.compared == ("all", 1.0, 0)
    alone = at < of.count

    def over(name: str) -> dict[str, object] | None:
        other = of.find(name, None if everything else at)
        found = None if other is None else of.ce.share_difference(floor, coder, at, other)
        return found and asdict(found)

    site = of.find("mlp_mean")
    share_of_site = site is not None and of.ce.ratio(
        lambda means: means[..., floor] - means[..., at], lambda means: means[..., site] - means[..., original]
    )
    over_mean, over_mean_kl = of.ce.difference(at, floor), of.kl.difference(at, floor)
    return {
        **asdict(arm.key),
        "subset_seed": arm.key.subset_seed if alone else None,
        "n_subsets": len(of.members(at)),
        "n_latents": arm.n_latents,
        "n_unexplained": arm.n_unexplained,
        "n_contexts": int(tally.positions_W.sum()),
        "n_windows": int(used_W.sum()),
        "n_documents": len(np.unique(tally.document_W[used_W])),
        "n_groups": len(np.unique(tally.group_W[used_W])),
        "n_left_out": tally.n_left_out,
        "ce": float(of.ce.measured_A[at]),
        **_told("delta_ce", of.ce.difference(at, original)),
        **_told("kl", of.kl.difference(at, original)),
        **_told("kl_coder", _of(of.kl_coder, at)),
        **_told("agreement", _within_one(_of(of.agrees, at))),
        **_told("gap_closed", of.ce.share(floor, coder, at)),
        **_told("gap_closed_kl", of.kl.share(floor, coder, at)),
        **_told("over_mean", over_mean),
        **_told("over_mean_kl", over_mean_kl),
        "over_token_lookup": over("token_lookup") if everything else None,
        "over_bigram_lookup": over("bigram_lookup") if everything else None,
        "over_shuffled": over("shuffled"),
        **_told("site_share", share_of_site or None),
        **_without_exclusion(of, at, original, floor, coder),
        **_by_context(of, at, original, floor, absolute),
        **_power(of, at, floor, over_mean, over_mean_kl),
        "delta_ce_by_base_loss": [
            None if np.isnan(third.measured_A[at]) else asdict(third.difference(at, original)) for third in of.thirds
        ],
        "eviction_rate": arm.eviction_rate,
    }


def _of(values: Resampled, at: int) -> Interval | None:
    """The mean of one arm, if it was measured."""
    return None if np.isnan(values.measured_A[at]) else values.figure(lambda means: means[..., at])


def _within_one(share: Interval | None) -> Interval | None:
    """A share whose interval, with few subsets, may reach beyond what shares can be."""
    return share and Interval(share.mean, max(0.0, share.low), min(1.0, share.high))


def _told(name: str, found: Interval | None) -> Row:
    return {
        name: found and found.mean,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
    }


def _without_exclusion(of: Measured, at: int, original: int, floor: int, coder: int) -> Row:
    """The figures with the prompts that the setting leaves out, beside those without them."""
    return {
        "ce_unfiltered": float(of.every_ce.measured_A[at]),
        **_told("delta_ce_unfiltered", of.every_ce.difference(at, original)),
        **_told("gap_closed_unfiltered", of.every_ce.share(floor, coder, at)),
        "kl_unfiltered": float(of.every_kl.measured_A[at] - of.every_kl.measured_A[original]),
    }


def _by_context(of: Measured, at: int, original: int, floor: int, absolute: bool) -> Row:
    """What single contexts say, each by the mean over its measured positions."""
    tally = of.tally
    used_W = tally.positions_W > 0
    counts_W, group_W = tally.positions_W[used_W], tally.group_W[used_W]

    def against(other: int) -> np.ndarray:
        return (tally.ce[at] - tally.ce[other])[used_W] / counts_W

    delta_W, over_W = against(original), against(floor)
    ordered = np.sort(delta_W)
    error = paired.spread(delta_W * counts_W, counts_W, group_W)
    members = of.ce.measured_A[list(of.members(at))]
    between = float(members.std(ddof=1) / np.sqrt(len(members))) if len(members) > 1 else 0.0
    median = paired.median_interval(np.abs(delta_W), group_W, of.draws, of.groups) if absolute else None
    return {
        "delta_ce_se": float(np.hypot(error.clustered, between)),
        "delta_ce_se_contexts": error.independent,
        "median_delta_ce": float(np.median(ordered)),
        "trimmed_delta_ce": paired.trimmed_mean(ordered),
        "hodges_lehmann_delta_ce": paired.hodges_lehmann(ordered),
        "q95_delta_ce": float(np.quantile(ordered, 0.95)),
        **_told("median_abs_delta", median),
        "median_over_mean": float(np.median(over_W)),
        **_told("win_rate", paired.share_of_contexts((over_W < 0) + 0.5 * (over_W == 0), group_W)),
        **_told("win_rate_original", paired.share_of_contexts((delta_W < 0) + 0.5 * (delta_W == 0), group_W)),
    }


def _power(of: Measured, at: int, floor: int, over_mean: Interval, over_mean_kl: Interval) -> Row:
    """Windows that it takes to tell the arm from mean ablation, and the smallest difference that these windows show."""
    tally = of.tally
    used_W = tally.positions_W > 0
    counts_W, group_W, windows = tally.positions_W[used_W], tally.group_W[used_W], int(used_W.sum())

    def errors(sums: np.ndarray) -> paired.Spread:
        return paired.spread((sums[at] - sums[floor])[used_W], counts_W, group_W)

    loss, divergence = errors(tally.ce), errors(tally.kl)
    if at >= of.count or at == floor:
        return {"design_effect": None, "contexts_to_detect": None, "contexts_to_detect_kl": None, "detectable": None}
    root = np.sqrt(windows)
    return {
        "design_effect": loss.design_effect,
        "contexts_to_detect": power.contexts_needed(loss.clustered * root, over_mean.mean),
        "contexts_to_detect_kl": power.contexts_needed(divergence.clustered * root, over_mean_kl.mean),
        "detectable": power.detectable(loss.clustered * root, windows),
    }


def _thirds(planned: Sequence[Arm], tally: Tally) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Which windows lie in which third by their unpatched loss, and where the thirds end."""
    base = next(at for at, index in enumerate(tally.arms) if planned[index].key.arm == "original")
    loss_W = np.divide(
        tally.ce[base], tally.positions_W, out=np.full(len(tally.group_W), np.nan), where=tally.positions_W > 0
    )
    ends = np.nanquantile(loss_W, [1 / THIRDS, 2 / THIRDS])
    place = np.searchsorted(ends, loss_W, side="right")
    thirds = [(place == third) & (tally.positions_W > 0) for third in range(THIRDS)]
    return thirds, tuple(float(end) for end in ends)
