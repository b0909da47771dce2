"""The number that a simulator's ten probabilities amount to: flavours of the expected digit, from stored answers.

In: log-probabilities of the labels, which add up to one among themselves [..., K], the log of their total probability,
and which of them were among the likeliest tokens. Out: expected digits. Invariant: pure functions of what was stored,
so that another flavour costs no question; an answer that is missing (NaN) stays missing.

| flavour      | sum over digits d of                                                                                 |
|--------------|------------------------------------------------------------------------------------------------------|
| renormalised | d p(d), the probabilities divided by the digits' total                                               |
| full         | d p(d), as the model gave them: what is not on a digit counts as 0                                   |
| paper_top10  | the same over the digits among the ten likeliest tokens alone, as the published program did          |
"""

from typing import Literal

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS

Flavour = Literal["renormalised", "full", "paper_top10"]


def probabilities(
    flavour: Flavour, logp: np.ndarray, logmass: np.ndarray | None = None, top: np.ndarray | None = None
) -> np.ndarray:
    """What each of the ten digits counts for: [..., 10] float32. Answers of no and yes count as the digits 0 and 9."""
    found = np.exp(logp.astype(np.float32))
    if flavour != "renormalised":
        found = found * np.exp(_needed(logmass, flavour, "the digits' total probability", "ask.mass=true"))[..., None]
    if flavour == "paper_top10":
        found = np.where(_needed(top, flavour, "which digits were among the likeliest tokens", "ask again"), found, 0)
    if found.shape[-1] == DIGITS:
        return found
    if found.shape[-1] != 2:
        raise SettingError(
            f"answers are ten digits, or no and yes: there are {found.shape[-1]} labels. Change the template"
        )
    spread = np.zeros((*found.shape[:-1], DIGITS), dtype=np.float32)
    spread[..., 0], spread[..., -1] = found[..., 0], found[..., 1]
    return np.where(np.isnan(found[..., :1]), np.float32(np.nan), spread)


def expected(
    flavour: Flavour, logp: np.ndarray, logmass: np.ndarray | None = None, top: np.ndarray | None = None
) -> np.ndarray:
    """Expected digit: [...]."""
    return probabilities(flavour, logp, logmass, top) @ np.arange(DIGITS, dtype=np.float32)


def _needed(given: np.ndarray | None, flavour: str, what: str, remedy: str) -> np.ndarray:
    if given is None:
        raise SettingError(f"the flavour {flavour} needs {what}, which was not stored. Use --set {remedy}")
    return given.astype(np.float32) if given.dtype == np.float16 else given
