"""What calibrators are fitted on: what was said in each case, how much the case weighs, and what was then true.

In: answers of a simulator and true activations of the calibrate split. Out: `Evidence` of a block of latents.
Invariant: a case is a context or any number of contexts with the same answer, and a fit cannot tell the two apart; a
weight of n means n contexts of the population, however they were drawn.

A latent's cases may be drawn by whether it is active (case-control). Weights then undo the drawing, and `drawn` says
how often each kind was drawn, for fits that are sharper with the drawing undone in the intercept alone.
"""

from dataclasses import dataclass, replace

import numpy as np

from nlrewrite.calibrate.quantile import Sample
from nlrewrite.errors import SettingError
from nlrewrite.simulate.said import Answers


@dataclass(frozen=True)
class Evidence:
    """S cases of B latents. Arrays of cases are [B, S] or, where all latents share them, [1, S]."""

    answers: Answers
    weight: np.ndarray
    active: np.ndarray
    """Of the weight, the part where the latent is truly active."""
    total: np.ndarray
    """Weighted sum of true activations."""
    fold: np.ndarray
    """[S]: fold of the document group, for what is chosen by cross-fitting."""
    drawn: np.ndarray | None = None
    """[B, 2]: share of the inactive and of the active contexts that became cases; None: all of them."""

    @property
    def latents(self) -> int:
        return len(self.active)

    @property
    def weights(self) -> np.ndarray:
        """[B]: what all cases of each latent weigh together."""
        return np.broadcast_to(self.weight.sum(1, dtype=np.float64), (self.latents,))

    def where(self, cases: np.ndarray) -> "Evidence":
        """The cases chosen by a mask [S]."""
        return replace(
            self,
            answers=self.answers.at(cases),
            weight=self.weight[:, cases],
            active=self.active[:, cases],
            total=self.total[:, cases],
            fold=self.fold[cases],
        )

    def mean(self) -> np.ndarray:
        """Weighted mean activation of each latent: [B]."""
        return self.total.sum(1) / _positive(self.weights)

    def silent(self) -> np.ndarray:
        """[B]: the latents of which nothing was heard: no case weighs anything."""
        return ~(self.weights > 0)

    def with_a_case(self) -> "Evidence":
        """The same, but with one inactive case for every silent latent: a fit is possible, and says nothing of it."""
        silent = self.silent()
        if not silent.any():
            return self
        if not len(self.fold):
            raise SettingError("no case is left for any latent when a fold is held out: draw more, or hold out less")
        weight = np.broadcast_to(self.weight, self.total.shape).copy()
        weight[silent, 0] = 1
        return replace(self, weight=weight)

    def checked(self) -> "Evidence":
        """Itself, if a fit can be made of it; a SettingError that says what is wrong with it, if not."""
        weights = self.finite().weights
        if not (weights > 0).all():
            raise SettingError(
                f"a latent's weights must add up to more than 0: latent {int(np.argmin(weights))} of the block "
                f"has none. Give it a context, or leave it unexplained"
            )
        return self

    def finite(self) -> "Evidence":
        """Itself, if its numbers are numbers and no weight is negative; a SettingError if not."""
        for name, values in (("score", self.answers.score_BS), ("weight", self.weight), ("activation", self.total)):
            bad = ~np.isfinite(values)
            if bad.any():
                row, column = np.argwhere(bad)[0]
                raise SettingError(
                    f"a {name} must be a finite number: latent {row} of the block has {values[row, column]} in case "
                    f"{column}, and {int(bad.sum())} in all. Leave failed answers out: they are missing, not a value"
                )
        if (self.weight < 0).any():
            raise SettingError(
                f"a weight must not be negative: the least is {self.weight.min():g}. Correct the weights"
            )
        return self


@dataclass(frozen=True)
class Known:
    """What is known of B latents without any simulator: statistics of the coder's activations, which are free."""

    largest: np.ndarray
    """[B]: largest activation of the explain split."""
    rate: np.ndarray
    """[B]: share of the tokens on which the latent is active, over the splits that may be fitted on."""
    magnitude: np.ndarray
    """[B]: its mean activation where it is active; 0 for one that never is."""
    targets: tuple[Sample, ...] = ()
    """For quantile maps: the activations that predictions are carried onto."""

    @property
    def mean(self) -> np.ndarray:
        return self.rate * self.magnitude


def dense(answers: Answers, truth_BS: np.ndarray, fold_S: np.ndarray, weight: np.ndarray | None = None) -> Evidence:
    """Every context a case of its own. `weight` [B, S] or [S]: how many contexts each stands for; none: one."""
    weight = np.ones((1, len(fold_S))) if weight is None else np.atleast_2d(weight)
    return Evidence(answers, weight, weight * (truth_BS > 0), weight * truth_BS, fold_S)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, 1.0)
