"""Many arms of a probe measured together, with figures of them.

In: a subject with its coder (`upstream.py`), and what each arm writes. Out: losses of named arms as sums per document
group, and figures of them with intervals. Invariant: an arm is what it writes at the site, [P, E], and nothing of the
size of positions x latents outlives the arm it is needed for.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from nlrewrite.activations.statistics import write_table
from nlrewrite.evaluate import bootstrap
from nlrewrite.evaluate.bootstrap import Interval, Resampled
from nlrewrite.evaluate.losses import Where, Write, losses
from nlrewrite.probes.upstream import Upstream
from nlrewrite.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from nlrewrite.progress import Progress

Place = Literal["all", "last", "prompts"]
PROMPTS = " | prompts"
AT_ONCE = 12
"""Arms measured in one pass over the windows: as many arrays [P, E] are held."""
DENSE_IN_MEMORY = 1 << 28


# -- from a simulator and a calibrator to what is written -------------------------------------------------------------


def dense(predicted: Iterator[tuple[slice, np.ndarray]], contexts: int, latents: int) -> np.ndarray:
    """All predictions [P, L]; on disk where they are large."""
    if contexts * latents <= DENSE_IN_MEMORY:
        values = np.empty((contexts, latents), dtype=np.float32)
    else:
        with tempfile.TemporaryFile() as file:
            values = np.memmap(file, dtype=np.float32, shape=(contexts, latents), mode="w+")
    for block, each in predicted:
        values[:, block] = each.T
    return values


@dataclass(frozen=True)
class Output:
    """What predictions write with some latents replaced, and how far each latent's were off."""

    written: dict[str, np.ndarray]
    """By the name of the latents that are replaced: [P, E], with true values for all others."""
    error_L: np.ndarray


def output(
    predicted: Iterator[tuple[slice, np.ndarray]],
    truth_PL: sparse.csr_matrix,
    dec_LE: np.ndarray,
    replaced: Mapping[str, np.ndarray],
) -> Output:
    """Go through the predictions once and write every subset: `replaced` are masks [L] by name."""
    truth = sparse.csc_matrix(truth_PL)
    written = {
        name: np.asarray(truth_PL @ (dec_LE * ~mask[:, None]), dtype=np.float32) for name, mask in replaced.items()
    }
    errors = []
    for block, values_BP in predicted:
        for name, mask in replaced.items():
            rows = mask[block]
            if rows.any():
                written[name] += values_BP[rows].T @ dec_LE[block][rows]
        errors.append(np.square(values_BP - truth[:, block].toarray().T).mean(1, dtype=np.float64))
    return Output(written, np.concatenate(errors))


def constant(
    mean_L: np.ndarray, truth_PL: sparse.csr_matrix, dec_LE: np.ndarray, mask_L: np.ndarray | None = None
) -> np.ndarray:
    """Mean ablation of the latents of a mask (all, if none): [P, E]."""
    mask_L = np.ones(len(mean_L), dtype=bool) if mask_L is None else mask_L
    kept = np.asarray(truth_PL @ (dec_LE * ~mask_L[:, None]), dtype=np.float32)
    return kept + ((mean_L * mask_L) @ dec_LE).astype(np.float32)


# -- measuring --------------------------------------------------------------------------------------------------------


class Panel:
    """Arms over the same windows, measured a few at a time; only their sums per document group are kept.

    `ends_P`: positions at which prompts end. With a site in the last layer no later position reads what is written, so
    that an arm written everywhere is at each position what it would be if written there alone: every prefix of a window
    is a prompt whose last token can be read off. Such an arm is also measured there, under its name and `PROMPTS`.
    """

    def __init__(
        self, upstream: Upstream, progress: "Progress", at_once: int = AT_ONCE, ends_P: np.ndarray | None = None
    ) -> None:
        assert ends_P is None or upstream.in_last_layer
        self._up, self._progress, self._at_once, self._ends_P = upstream, progress, at_once, ends_P
        self._waiting: dict[str, tuple[Where, Write | None]] = {}
        self._sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        windows = upstream.report.windows
        self._groups, of_window = np.unique(windows.group, return_inverse=True)
        of_position = np.repeat(of_window, windows.lengths)
        self._of: dict[Place, np.ndarray] = {"all": of_position, "last": of_window}
        if ends_P is not None:
            self._of["prompts"] = of_position[ends_P]
        self._where: dict[str, Place] = {}

    def add(self, name: str, written_PE: np.ndarray | None, where: Where = "all") -> None:
        """An arm that writes this; none: the subject as it is."""
        assert name not in {*self._where, *self._waiting}, f"two arms are called {name}"
        self._waiting[name] = (where, None if written_PE is None else self._write(written_PE))
        if len(self._waiting) >= self._at_once:
            self._measure()

    def measured(self, resamples: int, seed: int) -> "Measured":
        """All arms added so far, resampled with the same documents."""
        if self._waiting:
            self._measure()
        return Measured(
            self._where,
            self._sums,
            {where: np.bincount(of, minlength=len(self._groups)) for where, of in self._of.items()},
            resamples,
            seed,
        )

    def _write(self, written_PE: np.ndarray) -> Write:
        coder = self._up.coder

        def write(rows: np.ndarray, x_ND: "Tensor", y_NE: "Tensor") -> "Tensor":
            import torch

            return coder.beside(x_ND) + torch.from_numpy(np.ascontiguousarray(written_PE[rows]))

        return write

    def _measure(self) -> None:
        up = self._up
        found = losses(up.model, up.located, up.report.windows, self._waiting, up.batch_tokens, self._progress)
        for name, each in found.items():
            self._keep(name, self._waiting[name][0], each.ce, each.kl)
            if self._ends_P is not None and self._waiting[name][0] == "all":
                self._keep(name + PROMPTS, "prompts", each.ce[self._ends_P], each.kl[self._ends_P])
        self._waiting = {}

    def _keep(self, name: str, place: Place, ce: np.ndarray, kl: np.ndarray) -> None:
        self._where[name] = place
        of, groups = self._of[place], len(self._groups)
        self._sums[name] = np.bincount(of, ce, minlength=groups), np.bincount(of, kl, minlength=groups)


class Measured:
    """Sums of all arms per document group, and figures of them."""

    def __init__(
        self,
        where_of: Mapping[str, Place],
        sums: dict[str, tuple[np.ndarray, np.ndarray]],
        counts: dict[Place, np.ndarray],
        resamples: int,
        seed: int,
    ) -> None:
        names: dict[Place, list[str]] = {}
        for name, where in where_of.items():
            names.setdefault(where, []).append(name)
        self._place: dict[str, tuple[Place, int]] = {
            name: (where, names[where].index(name)) for name, where in where_of.items()
        }

        def drawn(figure: int, *path: str) -> dict[Place, Resampled]:
            return {
                where: bootstrap.resample(
                    np.stack([sums[name][figure] for name in each], axis=1),
                    counts[where],
                    resamples,
                    generator(seed, "probe", "bootstrap", *path),
                )
                for where, each in names.items()
            }

        self.ce, self.kl, self._apart = drawn(0), drawn(1), drawn(0, "apart")

    def added(self, arm: str, base: str) -> Interval:
        """Loss above another arm's, over the same documents."""
        where, at = self._place[arm]
        return self.ce[where].difference(at, self._place[base][1])

    def divergence(self, arm: str) -> Interval:
        """KL from the original, over the same documents."""
        where, at = self._place[arm]
        return self.kl[where].figure(lambda means: means[..., at])

    def unpaired(self, arm: str, base: str) -> Interval:
        """The same difference, with the interval it has if the two arms are taken for independent."""
        where, at = self._place[arm]
        other = self._place[base][1]
        first, second = self.ce[where], self._apart[where]
        return bootstrap.interval(
            float(first.measured_A[at] - first.measured_A[other]),
            first.resampled_RA[:, at] - second.resampled_RA[:, other],
            first.left_out_GA[:, at] - first.left_out_GA[:, other],
            first.groups,
        )

    def change(self, arm: str, base: str, before: str, base_before: str) -> Interval:
        """How much (arm - base) differs from (before - base_before)."""
        where, at = self._place[arm]
        others = [self._place[each][1] for each in (base, before, base_before)]
        return self.ce[where].figure(
            lambda means: (means[..., at] - means[..., others[0]]) - (means[..., others[1]] - means[..., others[2]])
        )

    def gap(self, arm: str, floor: str, ceiling: str) -> Interval | None:
        """Share of the way from `floor` to `ceiling`; None where there is no way to speak of."""
        where, at = self._place[arm]
        return self.ce[where].share(self._place[floor][1], self._place[ceiling][1], at)

    def resampled(self, arm: str, base: str) -> tuple[float, np.ndarray]:
        """A difference as measured, and over the resamples [R], for figures of several arms."""
        where, at = self._place[arm]
        other, ce = self._place[base][1], self.ce[where]
        return float(ce.measured_A[at] - ce.measured_A[other]), ce.resampled_RA[:, at] - ce.resampled_RA[:, other]


def columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    """An interval as three columns."""
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


# -- what a probe leaves behind ---------------------------------------------------------------------------------------


def write(out: Path, rows: list[dict[str, Any]], summary: Mapping[str, Any]) -> None:
    """`rows.parquet`, a row for each point, and `summary.json`. A number that is not there is NaN."""
    table = {name: _column([row[name] for row in rows]) for name in rows[0]}
    write_table(table, out / "rows.parquet")
    (out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False))


def _column(values: list[Any]) -> np.ndarray:
    if any(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    whole = all(isinstance(value, int) for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float64)
