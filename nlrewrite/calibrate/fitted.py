"""A fitted calibrator: what it makes of an answer, as arrays and nothing else.

In: arrays per latent (or shared by all) and the name of the map that they are parameters of. Out: an activation for
every answer. Invariant: a calibrator read back from its file gives the same bits, and the file holds arrays only; a
latent of which nothing is known (gain 0) has its mean everywhere.

| map      | value of an answer with score z and digits p                                                          |
|----------|--------------------------------------------------------------------------------------------------------|
| mean     | the latent's mean                                                                                      |
| digits   | sum over digits of p_d * value_d; `value` [B, 10] or [1, 10], times `scale` [B]                        |
| logistic | P * magnitude, P = 1 / (1 + exp(-(intercept + slope * z))), magnitude = max(0, size + growth * z)       |
| beta     | the same with intercept + rise * log s(z) - fall * log s(-z) in P, s the logistic function              |
| knots    | linear between the knots (`x`, `y`)[`start`[b]:`start`[b + 1]], level beyond them                       |
| levels   | `value` [B, Z] at the level z, a whole number, or at the highest level that was seen                   |
| published | the expected digit in ninths of `scale` [B], but 0 for an expectation of 9, as the published program has |

A missing answer (NaN) is worth the latent's mean; as published it is worth `scale`, the largest activation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.special import expit, log_expit

from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.said import Answers, Reading, expected

Arrays = Mapping[str, np.ndarray]
SHARED = "shared."
"""Names of arrays that all latents share start with it."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Part:
    """What a method makes of one block of latents."""

    map: str
    arrays: dict[str, np.ndarray]
    gain: np.ndarray | None = None
    """[B]: how far to go from the mean; None: all the way."""


@dataclass(frozen=True)
class Fitted:
    """What a method made of all latents."""

    name: str
    information: str
    map: str
    arrays: Arrays
    mean: np.ndarray
    """[L]: what every latent is drawn towards."""
    gain: np.ndarray
    """[L]: the share of the distance from the mean that the map goes; 1 is the map itself, 0 the mean."""
    reading: Reading = Reading()  # noqa: RUF009 (frozen)
    decoder_LE: np.ndarray | None = None
    """Decoder refitted to the predictions ("retuned"); None: the coder's own."""
    notes: dict[str, object] = field(default_factory=dict)
    """What the fit chose on the way, for people: strengths, gains."""

    @property
    def latents(self) -> int:
        return len(self.mean)

    def predict(self, answers: Answers, latents: slice = slice(None)) -> np.ndarray:
        """Activations [B, S] of a block of latents."""
        mean, gain = self.mean[latents, None], self.gain[latents, None]
        inside = _MAPS[self.map](self._of(latents), answers)
        if inside is None:
            return np.broadcast_to(mean, answers.score_BS.shape).astype(np.float32)
        values = np.where(gain == 1, inside, mean + gain * (inside - mean)).astype(np.float32)
        missing = np.isnan(values)
        return np.where(missing, mean, values).astype(np.float32) if missing.any() else values

    def active(self, answers: Answers, latents: slice = slice(None)) -> np.ndarray | None:
        """P(active | answer) [B, S], where the map has one."""
        chance = _CHANCES.get(self.map)
        return None if chance is None else chance(self._of(latents), answers)

    def with_gain(self, gain: np.ndarray | float, **changes: object) -> "Fitted":
        return replace(self, gain=(self.gain * gain).astype(np.float32), **changes)  # type: ignore[arg-type]

    def _of(self, latents: slice) -> Arrays:
        """The arrays of a block."""
        if latents == slice(None):
            return self.arrays
        start, stop, _ = latents.indices(self.latents)
        part = {
            name: array if name.startswith(SHARED) else array[start:stop]
            for name, array in self.arrays.items()
            if name not in ("x", "y", "start")
        }
        if "start" in self.arrays:
            bounds = self.arrays["start"][start : stop + 1]
            part |= {name: self.arrays[name][bounds[0] : bounds[-1]] for name in ("x", "y")}
            part["start"] = bounds - bounds[0]
        return part


def _digits(arrays: Arrays, answers: Answers) -> np.ndarray:
    if answers.digits_BSZ is None:
        raise SettingError(
            "this simulator gives no digits, and a calibrator of digit values needs their distribution. "
            "Leave it out of --set calibrate.calibrators"
        )
    value = arrays["shared.value"] if "shared.value" in arrays else arrays["value"]
    return np.einsum("bsz,bz->bs", answers.digits_BSZ, np.atleast_2d(value)) * arrays["scale"][:, None]


def _published(arrays: Arrays, answers: Answers) -> np.ndarray:
    if answers.digits_BSZ is None:
        raise SettingError(
            "this simulator gives no digits, and the published prediction is made of them. "
            "Leave it out of --set calibrate.calibrators"
        )
    ninths = expected(answers.digits_BSZ) / (DIGITS - 1)
    ninths = np.where(ninths >= 1 - ROUNDING, 0.0, np.where(np.isnan(ninths), 1.0, ninths))
    return ninths * arrays["scale"][:, None]


def _logistic_chance(arrays: Arrays, answers: Answers) -> np.ndarray:
    return expit(arrays["intercept"][:, None] + arrays["slope"][:, None] * answers.score_BS)


def _beta_chance(arrays: Arrays, answers: Answers) -> np.ndarray:
    score = answers.score_BS
    rise, fall = arrays["rise"][:, None] * log_expit(score), arrays["fall"][:, None] * log_expit(-score)
    return expit(arrays["intercept"][:, None] + rise - fall)


def _magnitude(arrays: Arrays, answers: Answers) -> np.ndarray:
    return np.maximum(arrays["size"][:, None] + arrays["growth"][:, None] * answers.score_BS, 0)


def _knots(arrays: Arrays, answers: Answers) -> np.ndarray:
    start, score = arrays["start"], answers.score_BS
    values = np.empty(score.shape)
    for row, (first, last) in enumerate(pairwise(start.tolist())):
        values[row] = np.interp(score[row], arrays["x"][first:last], arrays["y"][first:last])
    return values


def _levels(arrays: Arrays, answers: Answers) -> np.ndarray:
    missing = np.isnan(answers.score_BS)
    level = np.where(missing, 0, answers.score_BS).astype(np.int64)
    found = np.take_along_axis(arrays["value"], np.minimum(level, arrays["value"].shape[1] - 1), axis=1)
    return np.where(missing, np.nan, found)


_CHANCES: dict[str, Callable[[Arrays, Answers], np.ndarray]] = {"logistic": _logistic_chance, "beta": _beta_chance}
_MAPS: dict[str, Callable[[Arrays, Answers], np.ndarray | None]] = {
    "mean": lambda arrays, answers: None,
    "digits": _digits,
    "logistic": lambda arrays, answers: _logistic_chance(arrays, answers) * _magnitude(arrays, answers),
    "beta": lambda arrays, answers: _beta_chance(arrays, answers) * _magnitude(arrays, answers),
    "knots": _knots,
    "levels": _levels,
    "published": _published,
}
DIGIT_MAPS = ("digits", "published")
"""Maps that read the whole distribution over digits."""
