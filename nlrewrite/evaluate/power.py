"""How many contexts a difference takes to be seen, and how small a difference so many contexts can show.

In: a paired difference, its spread over contexts, and how much the contexts of a document resemble each other. Out:
contexts, or nats. Invariant: both answers come from one formula, n = (z_0.975 + z_0.8)^2 sd^2 deff / delta^2: a
two-sided test at 5%, which finds the difference in 80% of the studies.
"""

import math

TEST, POWER = 1.959963984540054, 0.8416212335729143
"""Normal quantiles: 97.5% and 80%."""


def contexts_needed(spread: float, difference: float, design_effect: float = 1.0) -> int | None:
    """Contexts that show a mean paired difference; None for no difference at all, which no number shows.

    `spread` is the standard deviation over contexts; `design_effect` how many times larger than with independent
    contexts the variance of the mean is.
    """
    if difference == 0:
        return None
    needed = (TEST + POWER) ** 2 * spread**2 * design_effect / difference**2
    return max(2, math.ceil(needed)) if needed < 1e15 else None


def detectable(spread: float, contexts: int, design_effect: float = 1.0) -> float:
    """The smallest mean paired difference that `contexts` contexts show."""
    return (TEST + POWER) * spread * math.sqrt(design_effect / contexts)
