"""A simulation of which one number is heard: its own score, the expected digit, or the log-odds of one above 0.

In: an oracle or a reading of rules. Out: a `Said` whose own score is that number and which has no digits. Invariant:
the number is the one that `simulate/said.py` reads from the ten digits, and the ten digits are never held.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit

from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.oracle import Flagged, Oracle
from nlrewrite.simulate.said import LEAST_MASS, Spoken, expected, log_odds


@dataclass(frozen=True)
class Heard:
    said: Oracle | Spoken
    number: Literal["own", "expected", "log-odds"]

    @property
    def explained(self) -> np.ndarray:
        return self.said.explained

    @property
    def contexts(self) -> int:
        return self.said.contexts

    def scores(self, latents: slice) -> np.ndarray:
        score_BP = self.said.scores(latents)
        if self.number == "own":
            return score_BP
        if isinstance(self.said, Spoken):
            of_level_Z = (expected if self.number == "expected" else log_odds)(self.said.simulated.digits_ZD)
            return of_level_Z.astype(np.float32)[score_BP.astype(np.int64)]
        manner = self.said.manner
        if self.number == "log-odds":
            assert manner.renormalised and not manner.quantised and not isinstance(self.said.knows, Flagged)
            most = np.float32(np.log1p(-LEAST_MASS) - np.log(LEAST_MASS))
            return np.clip(score_BP - np.float32(manner.threshold), -most, most)
        if isinstance(self.said.knows, Flagged):
            digit_BP = np.float32(DIGITS - 1) * score_BP
        elif manner.quantised:
            digit_BP = score_BP
        else:  # 0 with chance 1 - rate, else 1 + Binomial(8, rate)
            rate_BP = expit(score_BP - np.float32(manner.threshold))
            digit_BP = rate_BP * (1 + (DIGITS - 2) * rate_BP)
        return digit_BP if manner.renormalised else digit_BP * self.said.masses(latents)

    def digits(self, latents: slice) -> None:
        return None
