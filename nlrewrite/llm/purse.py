"""Money that is spent on an endpoint, and a limit that is kept.

In: prices and tokens. Out: permission to ask. Invariant: what is spent and what requests in flight may still cost stay
within the limit together; a request whose reply was lost is counted as paid, since its provider may count it so.
"""

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome
from nlrewrite.llm.rates import Prices


class Purse:
    """Spent and promised, in the currency of the prices."""

    def __init__(self, prices: Prices | None = None, limit: float | None = None) -> None:
        if limit is not None and (prices is None or not prices.by_token):
            raise SettingError(f"a spending limit needs the price of a token: limit={limit}. Give prices too")
        if limit is not None and not limit >= 0:
            raise SettingError(f"a spending limit must be a number from 0 on: limit={limit}. Change it")
        self._prices, self.limit = prices, limit
        self.spent, self._promised = 0.0, 0.0

    def cost(self, prompt: float, new: float, cached: float = 0.0) -> float:
        """Money for so many tokens, of which the cached ones are not among `prompt`."""
        money = self._prices.of_tokens(prompt, cached, new) if self._prices is not None else None
        return money or 0.0

    def promise(self, most: float) -> bool:
        """Whether a request that costs at most so much may be sent; if so, that much is set aside."""
        if self.limit is not None and self.spent + self._promised + most > self.limit:
            return False
        self._promised += most
        return True

    def settle(self, promised: float, paid: float) -> None:
        """What was set aside is paid, or given back."""
        self._promised -= promised
        self.spent += paid


def check_asked(outcome: "np.ndarray | list[Outcome]") -> None:
    """SettingError if an engine left out questions it was to ask: a limit may not decide what a result holds."""
    every = np.asarray(outcome)
    if left := int((every == Outcome.SKIPPED).sum()):
        raise SettingError(
            f"the spending limit left {left} of {len(every)} questions unasked; what was answered before them is kept. "
            f"Raise --spend, and run again to go on"
        )
