"""Digit values: what each of the ten digits is worth, weighed by the whole distribution over them.

In: evidence with digits. Out: ten values per latent, a = scale * sum_d p_d value_d. Invariant: as probabilities add up
to one, the ten values of a latent contain every constant; within its cases no latent does worse than its mean.

What digits are worth is learned from all latents together, in multiples of a latent's known magnitude: digit 0 is worth
0, and the others what non-negative least squares gives them, drawn a little towards a straight line. Only differences
within a latent count there, for how often a latent is active its mean says. Each latent then has its own mean, and its
own slope on that curve: by least squares, drawn towards the shared slope of 1 as if that had been seen besides in
`strength` units of the latent's noise, and never beyond twice its own, where the mean would do better. A latent that
says little can so be worth a little less than nothing at digit 0.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.calibrate.fitted import Part
from nlrewrite.calibrate.isotonic import two_folds_at_least
from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS

if TYPE_CHECKING:
    from nlrewrite.calibrate.evidence import Evidence, Known

Shared = dict[str, np.ndarray]
RIDGE = 1e-3
"""Share of a digit's mean variance that draws the curve towards a line."""
STRENGTHS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def share(evidence: "Evidence", known: "Known") -> Shared:
    """The curve of digit values, and how strongly the slopes of latents are drawn to it."""
    digits, size = _digits(evidence.checked()), _size(known)
    _worth(digits, np.ones(DIGITS))  # or a curve would be fitted to what is missing
    value_Z = _curve(digits, evidence, size)
    worth = _worth(digits, value_Z)
    fold_S = two_folds_at_least(evidence.fold)
    parts = [Line.of(worth, evidence, size, fold_S == fold) for fold in np.unique(fold_S)]
    rest = [sum(parts[:held] + parts[held + 1 :], Line.nothing()) for held in range(len(parts))]

    def error(strength: float) -> float:
        pairs = zip(parts, rest, strict=True)
        return sum(float((size**2 * part.error(others, strength)).sum()) for part, others in pairs)

    strength = min(STRENGTHS, key=error)
    return {"value": value_Z, "strength": np.array(strength)}


def fit(evidence: "Evidence", known: "Known", shared: Shared) -> Part:
    """Ten values for each latent: its mean, and its slope on the shared curve."""
    digits, size, value_Z = _digits(evidence.checked()), _size(known), shared["value"]
    line = Line.of(_worth(digits, value_Z), evidence, size)
    slope = line.slope(float(shared["strength"]))
    value = line.level[:, None] + slope[:, None] * (value_Z - line.said[:, None])
    return Part("digits", {"value": value, "scale": size})


@dataclass(frozen=True)
class Line:
    """Sums over the cases of B latents of what was said, by the curve, and what was true, in multiples of the size."""

    weight: np.ndarray
    worth: np.ndarray
    square: np.ndarray
    total: np.ndarray
    product: np.ndarray

    @staticmethod
    def of(worth_BS: np.ndarray, evidence: "Evidence", size: np.ndarray, cases: np.ndarray | None = None) -> "Line":
        """Of the cases of a mask, or of all."""
        chosen = np.ones(len(evidence.fold), dtype=bool) if cases is None else cases
        worth = worth_BS[:, chosen]
        weight, total = (
            np.broadcast_to(evidence.weight[:, chosen], (len(size), worth.shape[1])),
            evidence.total[:, chosen],
        )
        weighted = weight * worth
        return Line(
            weight.sum(1, dtype=np.float64),
            weighted.sum(1),
            (weighted * worth).sum(1),
            total.sum(1, dtype=np.float64) / size,
            (total * worth).sum(1) / size,
        )

    @staticmethod
    def nothing() -> "Line":
        return Line(*np.zeros((5, 1)))

    def __add__(self, other: "Line") -> "Line":
        return Line(
            self.weight + other.weight,
            self.worth + other.worth,
            self.square + other.square,
            self.total + other.total,
            self.product + other.product,
        )

    @property
    def level(self) -> np.ndarray:
        """Mean of what was true."""
        return _ratio(self.total, self.weight)

    @property
    def said(self) -> np.ndarray:
        """Mean of what was said."""
        return _ratio(self.worth, self.weight)

    def slope(self, strength: float) -> np.ndarray:
        """Slope of truth on what was said: least squares, drawn towards 1."""
        square = np.maximum(self.square - self.said * self.worth, 0)
        square = np.where(square > 1e-9 * self.square, square, 0)  # nothing but rounding
        product = self.product - self.said * self.total
        pull = strength * self.level
        return np.clip(_ratio(product + pull, square + pull), 0, 2 * np.maximum(_ratio(product, square), 0))

    def error(self, rest: "Line", strength: float) -> np.ndarray:
        """Squared error here of the line fitted to other cases, less that of predicting 0."""
        slope = rest.slope(strength)
        foot = rest.level - slope * rest.said
        square = foot**2 * self.weight + 2 * foot * slope * self.worth + slope**2 * self.square
        return square - 2 * (foot * self.total + slope * self.product)


def _curve(digits: np.ndarray, evidence: "Evidence", size: np.ndarray) -> np.ndarray:
    """Non-negative values of digits that best say how latents differ from their means, in multiples of their sizes."""
    from scipy.optimize import nnls

    square, product = np.zeros((DIGITS, DIGITS)), np.zeros(DIGITS)
    for row in range(len(size)):
        weight = evidence.weight[row if len(evidence.weight) > 1 else 0].astype(np.float64)
        said = digits[row if len(digits) > 1 else 0]
        away = said - weight @ said / weight.sum()
        weighted = away * weight[:, None]
        square += weighted.T @ away
        product += evidence.total[row] @ away / size[row]
    straight = np.arange(DIGITS) / (DIGITS - 1)
    slope = max(float(_ratio(straight @ product, straight @ square @ straight)), 0.0)
    pull = RIDGE * np.trace(square) / DIGITS
    if pull <= 0:
        return np.zeros(DIGITS)
    root = np.linalg.cholesky(square[1:, 1:] + pull * np.eye(DIGITS - 1))
    wanted = np.linalg.solve(root, product[1:] + pull * slope * straight[1:])
    return np.concatenate([[0.0], nnls(root.T, wanted)[0]])


def _worth(digits: np.ndarray, value_Z: np.ndarray) -> np.ndarray:
    """What was said, by the curve: [B or 1, S]."""
    worth = digits @ value_Z
    if not np.isfinite(worth).all():
        row, column = np.argwhere(~np.isfinite(worth))[0]
        raise SettingError(
            f"digits must have finite probabilities: latent {row} of the block has {digits[row, column].tolist()} in "
            f"case {column}. Leave failed answers out: they are missing, not a value"
        )
    return worth


def _digits(evidence: "Evidence") -> np.ndarray:
    digits = evidence.answers.digits_BSZ
    if digits is None:
        raise SettingError(
            "this simulator gives no digits, and digit-values is made of their distribution. "
            "Leave it out of --set calibrate.calibrators"
        )
    return digits


def _size(known: "Known") -> np.ndarray:
    """Magnitude of each latent; one of which none is known counts as it is."""
    return np.where(known.magnitude > 0, known.magnitude, 1.0)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)
