"""The calibrators by name: what each one is told, how it is fitted, and which number it reads.

In: a name, taken apart by `names`. Out: how it is fitted, and what it will have seen. Invariant: the name says all that
a fit depends on besides its evidence.

| information           | what the fit has seen                                                                     |
|-----------------------|-------------------------------------------------------------------------------------------|
| nothing               | nothing                                                                                   |
| maximum               | the largest activation of each latent                                                     |
| marginals             | what is said, and the distribution of activations, but not which belongs to which         |
| paired                | what is said and what was true, context by context                                        |
| test marginals        | marginals of the very contexts that it is measured on: it peeks                           |
| outputs               | paired, and what the latents write together                                               |
| tokens and activations | the tokens, and no simulator: baselines, which are arms of every evaluation              |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from nlrewrite.calibrate import digit_values, hurdle, isotonic, levels, logistic, quantile
from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Part
from nlrewrite.calibrate.names import ON_PROMPT, TARGETS, Name, Target, may_be_chosen, parse
from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.said import Number, Reading

Shared = dict[str, np.ndarray]
Fit = Callable[[Evidence, Known, Shared], Part]
READINGS = {
    "expected": Reading("expected"),
    "log-odds": Reading("log-odds"),
    "centred": Reading("own", True),
    "expected-centred": Reading("expected", True),
    "log-odds-centred": Reading("log-odds", True),
}
"""What a name may read after its `@`."""
__all__ = ["METHODS", "ON_PROMPT", "Name", "Target", "information", "may_be_chosen", "method", "parse", "reading"]


@dataclass(frozen=True)
class Method:
    """How a calibrator is fitted, but for its gain and its decoder."""

    information: str
    fit: Fit
    share: Callable[[Evidence, Known], Shared] | None = None
    """What latents share, fitted on a sample of them first."""
    number: Number = "own"
    """What is read unless the name says so; the simulator's own number where it gives no digits."""
    target: Target | None = None
    """The activations that predictions are carried onto."""
    digits: bool = False
    """Whether it reads the whole distribution over digits."""


def method(name: Name) -> Method:
    return METHODS[name.base]


def information(name: Name) -> str:
    """What a calibrator has seen when its fit is done."""
    own = method(name).information
    if name.output_gain or name.refit:
        return "outputs"
    return "paired" if name.gain and own in ("nothing", "maximum", "marginals") else own


def reading(name: Name) -> Reading | None:
    """What the name says to read; nothing: what its method reads."""
    return READINGS[name.number] if name.number else None


def _mean(evidence: Evidence, known: Known, shared: Shared) -> Part:
    return Part("mean", {})


def _none(evidence: Evidence, known: Known, shared: Shared) -> Part:
    """The sources' uncalibrated prediction: the expected digit, in ninths of the latent's largest activation."""
    return Part("digits", {"shared.value": np.arange(DIGITS) / (DIGITS - 1), "scale": known.largest})


def _published(evidence: Evidence, known: Known, shared: Shared) -> Part:
    """The same with the published program's two slips: see the map."""
    return Part("published", {"scale": known.largest})


METHODS: dict[str, Method] = {
    "none": Method("maximum", _none, digits=True),
    "mean": Method("nothing", _mean),
    "published": Method("maximum", _published, digits=True),
    **{
        f"quantile-{type_}{suffix}": Method(
            "test marginals" if target == "on-prompt" else "marginals",
            partial(quantile.fit, type_=type_),
            target=target,
        )
        for type_ in quantile.TYPES
        for suffix, target in TARGETS.items()
    },
    "prior-shift": Method("marginals", logistic.prior_shift, number="log-odds"),
    "platt": Method("paired", logistic.platt),
    "beta": Method("paired", logistic.beta, number="log-odds"),
    "isotonic": Method("paired", isotonic.fit),
    "isotonic-shrunk": Method("paired", isotonic.fit_shrunk, isotonic.share),
    "digit-values": Method("paired", digit_values.fit, digit_values.share, digits=True),
    "hurdle-none": Method("paired", hurdle.fit("none")),
    "hurdle": Method("paired", hurdle.fit("partial"), hurdle.share("partial")),
    "hurdle-full": Method("paired", hurdle.fit("full"), hurdle.share("full")),
    "levels": Method("paired", levels.fit, levels.share),
}
