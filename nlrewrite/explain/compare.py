"""Whether edited sentences are better than plain ones, on a split that neither was written from.

In: for each latent its cases on that split and the levels of both sentences. Out: both gains and their difference, with
intervals over document groups and over latents. Invariant: what is measured on a fold is predicted by a line that was
fitted on the other one, and both sentences are measured on the same cases.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from nlrewrite.explain.refine import Cases, gains

NORMAL = 1.96


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


@dataclass
class Compared:
    """Sums over the latents added so far; gains are per context, in squared units of the site's output."""

    groups: np.ndarray
    """Numbers of the document groups of the split."""
    plain_LG: list[np.ndarray] = field(default_factory=list)
    edited_LG: list[np.ndarray] = field(default_factory=list)
    contexts: float = 0.0
    changed: int = 0

    def add(self, cases: Cases, plain: np.ndarray, edited: np.ndarray, length: float, changed: bool) -> None:
        """One latent; `length` is the squared length of its decoder row."""
        place = np.searchsorted(self.groups, cases.group)
        for level, rows in ((plain, self.plain_LG), (edited, self.edited_LG)):
            gain = crossed(cases, level) * cases.weight * length
            rows.append(np.bincount(place, gain, minlength=len(self.groups)))
        self.contexts = float(cases.weight.sum())
        self.changed += changed

    def result(self) -> dict[str, object]:
        """Gains summed over latents, what the edits add in shares of the plain gain, and its intervals."""
        plain_LG, edited_LG = np.array(self.plain_LG), np.array(self.edited_LG)
        more_LG = edited_LG - plain_LG
        whole = plain_LG.sum()
        return {
            "latents": len(more_LG),
            "changed": self.changed,
            "plain": float(whole / self.contexts),
            "edited": float(edited_LG.sum() / self.contexts),
            "better": int((more_LG.sum(1) > 0).sum()),
            "worse": int((more_LG.sum(1) < 0).sum()),
            "rise_over_documents": _share(more_LG.sum(0), whole),
            "rise_over_latents": _share(more_LG.sum(1), whole),
        }


def crossed(cases: Cases, level: np.ndarray) -> np.ndarray:
    """Gain in each case, predicted from the half of the document groups that it is not in."""
    found = np.zeros(len(cases))
    for fitted in (cases.shown, ~cases.shown):
        found = np.where(fitted, found, gains(replace(cases, shown=fitted), level))
    return found


def differences(found: Compared) -> np.ndarray:
    """Of each latent, what the edit adds per context: [L]."""
    return (np.array(found.edited_LG) - np.array(found.plain_LG)).sum(1) / found.contexts


def _share(more: np.ndarray, whole: float) -> Interval | None:
    """A sum over independent units as a share of `whole`, with its 95% interval."""
    count = len(more)
    if count < 2 or whole <= 0:
        return None
    error = np.sqrt(count / (count - 1) * np.square(more - more.mean()).sum())
    total = more.sum()
    low, high = ((total + side * NORMAL * error) / whole for side in (-1, 1))
    return Interval(float(total / whole), float(low), float(high))
