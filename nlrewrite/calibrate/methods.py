"""The calibrators by name: what each one is told, how it is fitted, and which number it reads.

In: a name such as `hurdle@log-odds-centred+gain`. Out: its parts. Grammar: a base name, then optionally `@` and the
number that is read from the answers, then `+gain` (each latent goes the share of the way from its mean that proves
right) or `+output-gain` (one share for all, by what the latents write), then `+refit` (the decoder is fitted anew to
the predictions: "retuned"). Invariant: the name says all that a fit depends on besides its evidence.

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

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from nlrewrite.calibrate import digit_values, hurdle, isotonic, levels, logistic, quantile
from nlrewrite.calibrate.evidence import Evidence, Known
from nlrewrite.calibrate.fitted import Part
from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.simulate.said import Number, Reading

Shared = dict[str, np.ndarray]
Fit = Callable[[Evidence, Known, Shared], Part]
Target = Literal["corpus", "tenth", "on-prompt"]

ON_PROMPT = "-on-prompt"
LOOKUPS = {"token-mean": "token_lookup", "bigram-mean": "bigram_lookup"}
"""Baselines that read the tokens and no answer, and the arms of every evaluation that measure them."""
TARGETS: dict[str, Target] = {"": "corpus", "-tenth": "tenth", ON_PROMPT: "on-prompt"}
"""By what a quantile map's name ends in."""
READINGS = {
    "expected": Reading("expected"),
    "log-odds": Reading("log-odds"),
    "centred": Reading("own", True),
    "expected-centred": Reading("expected", True),
    "log-odds-centred": Reading("log-odds", True),
}


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


@dataclass(frozen=True)
class Name:
    """A calibrator's name, taken apart."""

    full: str
    base: str
    reading: Reading | None = None
    gain: bool = False
    output_gain: bool = False
    refit: bool = False

    @property
    def plain(self) -> "Name":
        """Without what is done after the map is fitted."""
        return Name(self.full.partition("+")[0], self.base, self.reading)


def parse(name: str) -> Name:
    if name in LOOKUPS:
        raise SettingError(
            f"{name} reads tokens and no answers, and is no calibrator of them: every evaluation measures it as the "
            f"arm {LOOKUPS[name]}. Leave it out of --set calibrate.calibrators"
        )
    found = re.fullmatch(r"(?P<base>[^@+]+)(@(?P<number>[^@+]+))?(?P<after>(\+[^@+]+)*)", name)
    after = found["after"].split("+")[1:] if found else []
    if (
        found is None
        or found["base"] not in METHODS
        or found["number"] not in (None, *READINGS)
        or after not in [gain + refit for gain in ([], ["gain"], ["output-gain"]) for refit in ([], ["refit"])]
    ):
        raise SettingError(
            f"no calibrator is called {name!r}: there are {_listed()}; each may read another number with one of "
            f"{', '.join('@' + number for number in READINGS)}, and end in +gain or +output-gain and in +refit. "
            f"Change --set calibrate.calibrators"
        )
    reading = READINGS[found["number"]] if found["number"] else None
    return Name(name, found["base"], reading, "gain" in after, "output-gain" in after, "refit" in after)


def _listed() -> str:
    others = ", ".join(base for base in METHODS if not base.startswith("quantile"))
    endings = " or ".join(ending for ending in TARGETS if ending)
    return f"{others}, quantile-{quantile.TYPES[0]} to quantile-{quantile.TYPES[-1]} and those with {endings}"


def method(name: Name) -> Method:
    return METHODS[name.base]


def information(name: Name) -> str:
    """What a calibrator has seen when its fit is done."""
    own = method(name).information
    if name.output_gain or name.refit:
        return "outputs"
    return "paired" if name.gain and own in ("nothing", "maximum", "marginals") else own


def may_be_chosen(name: Name) -> bool:
    """Whether it can become the default: not what peeks, nor what changes the coder."""
    return method(name).target != "on-prompt" and not name.refit


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
