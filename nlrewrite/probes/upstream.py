"""What a probe starts from: a subject with its coder, the truth of two splits, contexts that calibrators are fitted on.

In: the artifacts before an evaluation, or the same with other documents in the calibrate and the report split. Out:
`Upstream`, and `Chosen` contexts. Invariant: a fit sees the chosen contexts of the calibrate split and, for what is
known of latents, the explain split.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import Active
from nlrewrite.activations.pairs import read as read_pairs
from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.cases import at_random
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.fit import fit
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.known import KnownOf, Statistics
from nlrewrite.calibrate.methods import method, parse
from nlrewrite.calibrate.pairing import Cases
from nlrewrite.coders import form
from nlrewrite.coders.form import Coder
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Reading, Said, blocks, centre
from nlrewrite.subject import load, sites
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import Windows, read_windows

if TYPE_CHECKING:
    from torch import nn

    from nlrewrite.steps import Running

PREDICTED_AT_ONCE = 1 << 22
"""Predictions (latents x contexts) held while an arm is made."""
FOLDS = 4
CONTEXTS = 10_000
"""Random contexts that calibrators are fitted on, as many as the published experiments had; fewer where there are."""


@dataclass(frozen=True)
class Part:
    """The positions of one split, with what is true at them."""

    windows: Windows
    truth_PL: sparse.csr_matrix

    @property
    def count(self) -> int:
        return int(self.windows.lengths.sum())

    @property
    def where(self) -> Positions:
        return positions(self.windows)

    def at(self, windows: np.ndarray) -> "Part":
        """The windows chosen by indices."""
        starts = np.cumsum(self.windows.lengths) - self.windows.lengths
        lengths = self.windows.lengths[windows]
        before = np.cumsum(lengths) - lengths
        rows = np.arange(int(lengths.sum())) + np.repeat(starts[windows] - before, lengths)
        return Part(self.windows[windows], sparse.csr_matrix(self.truth_PL[rows]))


@dataclass(frozen=True)
class Upstream:
    """A subject with a coder at its site, and the three splits."""

    model: "nn.Module"
    located: sites.Located
    coder: Coder
    calibrate: Part
    report: Part
    batch_tokens: int
    statistics: Statistics = field(repr=False)

    @cached_property
    def known(self) -> Known:
        """Of all latents, from the explain and the calibrate split."""
        return self.statistics.known_of(None)(slice(0, self.latents))

    @property
    def latents(self) -> int:
        return self.coder.latents

    @property
    def dec_LE(self) -> np.ndarray:
        return self.coder.dec_LE.numpy()

    @property
    def in_last_layer(self) -> bool:
        """Whether what is written at a position can only be read there."""
        return self.located.site.layer == self.model.config.num_hidden_layers - 1  # type: ignore[union-attr]

    @property
    def mean_L(self) -> np.ndarray:
        return self.known.mean

    def known_of(self, name: str) -> KnownOf:
        """What a fit of the calibrator called `name` may know."""
        target = method(parse(name)).target
        assert target != "on-prompt", f"{name} looks at the contexts it is measured on: no probe asks for it"
        return self.statistics.known_of(target)

    def fit(self, name: str, said: Said, on: "Chosen", cases: Cases | None = None) -> Fitted:
        """The calibrator called `name`, fitted on some contexts of the calibrate split."""
        return fit(name, said, on.truth_SL, self.known_of(name), on.fold_S, cases=cases, dec_LE=self.dec_LE)


def read(inputs: Mapping[str, Folder], running: "Running") -> Upstream:
    coder = form.read(inputs["coder"])
    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, form.site_of(inputs["coder"]))
    active = {split: read_pairs(inputs[split]) for split in ("explain", "calibrate", "report")}
    calibrate, report = (
        Part(read_windows(inputs["tokens"], split), true_codes(active[split], coder.latents).extra_PL)
        for split in ("calibrate", "report")
    )
    return upstream(model, located, coder, active["explain"], calibrate, report, running.execution.batch_tokens)


def upstream(
    model: "nn.Module",
    located: sites.Located,
    coder: Coder,
    explain: Active,
    calibrate: Part,
    report: Part,
    batch_tokens: int,
) -> Upstream:
    one_fold = np.zeros(calibrate.count, dtype=np.int64)
    statistics = Statistics(explain, calibrate.truth_PL, one_fold, coder.latents, 0)
    return Upstream(model, located, coder, calibrate, report, batch_tokens, statistics)


# -- the contexts that calibrators see --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """Contexts of the calibrate split: rows [S], the truth there and the fold of each one's document group."""

    rows: np.ndarray
    truth_SL: sparse.csr_matrix
    fold_S: np.ndarray

    def some(self, count: int, seed: int) -> tuple[np.ndarray, "Chosen"]:
        """`count` of them at random, or all: which ones, and these alone. More of them hold the fewer."""
        kept = at_random(len(self.rows), count, seed=seed)
        return kept, Chosen(self.rows[kept], sparse.csr_matrix(self.truth_SL[kept]), self.fold_S[kept])


def chosen(part: Part, count: int, seed: int) -> Chosen:
    """`count` random contexts of a split, or all; a document group is in one fold alone."""
    where = part.where
    rows = at_random(len(where), count, seed=seed)
    groups, of_row = np.unique(where.group[rows], return_inverse=True)
    fold_of = np.empty(len(groups), dtype=np.int64)
    fold_of[generator(seed, "probe", "folds").permutation(len(groups))] = np.arange(len(groups)) % FOLDS
    return Chosen(rows, sparse.csr_matrix(part.truth_PL[rows]), fold_of[of_row])


def centre_of(said: Said, reading: Reading) -> np.ndarray | None:
    return centre(said, reading) if reading.centred else None


def in_blocks(latents: int, contexts: int) -> Iterator[slice]:
    return blocks(latents, max(1, PREDICTED_AT_ONCE // max(contexts, 1)))
