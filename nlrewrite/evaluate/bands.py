"""Statements about many contrasts at once: bands that hold for all of them together, and one figure for a whole curve.

In: contrasts as measured [K] and over the resamples [R, K], all from the same draws. Out: simultaneous bands or bounds,
the area between a curve and zero. Invariant: a band for one contrast alone is its percentile interval's own end (one
side) and never narrower for being one of many.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from nlrewrite.evaluate.bootstrap import LEVEL, widened

Side = Literal["two-sided", "upper", "lower"]
MOST = float(-special.ndtri(1e-12))
"""The largest critical value that is widened: beyond, tails are nothing that resamples could tell."""


@dataclass(frozen=True)
class Bands:
    """Ends of K contrasts; an open side is infinite. `critical` standard errors lie between a contrast and its end."""

    low_K: np.ndarray
    high_K: np.ndarray
    critical: float


def max_t(
    estimates_K: np.ndarray,
    resampled_RK: np.ndarray,
    level: float = LEVEL,
    side: Side = "two-sided",
    groups: float | None = None,
    freedom: float | None = None,
) -> Bands:
    """Ends that hold for all K contrasts at once with probability `level`.

    The largest of the K standardised deviations is resampled. `groups`, how many equal groups were resampled, widens
    the band as it widens an interval, and `freedom` too. A contrast that no resample moves is its own end.
    """
    resampled_RK = resampled_RK[np.isfinite(resampled_RK).all(axis=1)]
    assert len(resampled_RK), "no resample holds every contrast"
    spread_K = resampled_RK.std(axis=0)
    scale = np.maximum(np.abs(estimates_K), np.abs(resampled_RK).max(axis=0))
    moved = spread_K > 1e-12 * scale
    spread_K = np.where(moved, spread_K, 0.0)
    deviation_RK = (resampled_RK - estimates_K)[:, moved] / spread_K[moved]
    if side == "two-sided":
        deviation_RK = np.abs(deviation_RK)
    elif side == "lower":
        deviation_RK = -deviation_RK
    critical = float(np.quantile(deviation_RK.max(axis=1), level)) if moved.any() else 0.0
    if groups is not None and critical > 0:
        critical = widened(min(critical, MOST), groups, freedom)
    reach = critical * spread_K
    low = estimates_K - reach if side != "upper" else np.full(len(estimates_K), -np.inf)
    high = estimates_K + reach if side != "lower" else np.full(len(estimates_K), np.inf)
    return Bands(low, high, critical)


def area(fractions_K: np.ndarray, curve_XK: np.ndarray) -> np.ndarray:
    """Area under curves over the fraction of latents replaced: trapezoids, from 0 at the fraction 0. [..., K] -> [...].

    Where nothing is replaced an arm and its mean ablation are the same coder, so that the curve starts at 0.
    """
    assert (np.diff(fractions_K) > 0).all(), "fractions must rise"
    steps_K = np.diff(fractions_K, prepend=0.0)
    before_XK = np.concatenate([np.zeros_like(curve_XK[..., :1]), curve_XK[..., :-1]], axis=-1)
    return ((before_XK + curve_XK) / 2) @ steps_K
