"""The names of calibrators: a grammar and nothing else, so that a wrong one is refused before anything is computed.

In: a name such as `hurdle@log-odds-centred+gain`. Out: its parts. Grammar: a base name, then optionally `@` and the
number that is read from the answers, then `+gain` (each latent goes the share of the way from its mean that proves
right) or `+output-gain` (one share for all, by what the latents write), then `+refit` (the decoder is fitted anew to
the predictions: "retuned"). Invariant: light to import, for the settings are checked with it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nlrewrite.errors import SettingError

TYPES = tuple(range(1, 10))
"""Hyndman and Fan's definitions of a quantile."""
ON_PROMPT = "-on-prompt"
Target = Literal["corpus", "tenth", "on-prompt"]
TARGETS: dict[str, Target] = {"": "corpus", "-tenth": "tenth", ON_PROMPT: "on-prompt"}
"""By what a quantile map's name ends in, the activations that predictions are carried onto."""
QUANTILES = tuple(f"quantile-{type_}{suffix}" for type_ in TYPES for suffix in TARGETS)
OTHERS = (
    *("none", "mean", "published", "prior-shift", "platt", "beta", "isotonic", "isotonic-shrunk", "digit-values"),
    *("hurdle-none", "hurdle", "hurdle-full", "levels"),
)
NUMBERS = ("expected", "log-odds", "centred", "expected-centred", "log-odds-centred")
LOOKUPS = {"token-mean": "token_lookup", "bigram-mean": "bigram_lookup"}
"""Baselines that read the tokens and no answer, and the arms of every evaluation that measure them."""
SETTING = "calibrate.calibrators"


@dataclass(frozen=True)
class Name:
    """A calibrator's name, taken apart."""

    full: str
    base: str
    number: str | None = None
    gain: bool = False
    output_gain: bool = False
    refit: bool = False

    @property
    def plain(self) -> "Name":
        """Without what is done after the map is fitted."""
        return Name(self.full.partition("+")[0], self.base, self.number)


def parse(name: str, setting: str = SETTING) -> Name:
    """`name` taken apart, or a SettingError that says what to change in `setting`."""
    if name in LOOKUPS:
        raise SettingError(
            f"{name} reads tokens and no answers, and is no calibrator of them: every evaluation measures it as the "
            f"arm {LOOKUPS[name]}. Leave it out of --set {setting}"
        )
    found = re.fullmatch(r"(?P<base>[^@+]+)(@(?P<number>[^@+]+))?(?P<after>(\+[^@+]+)*)", name)
    after = found["after"].split("+")[1:] if found else []
    if (
        found is None
        or found["base"] not in (*OTHERS, *QUANTILES)
        or found["number"] not in (None, *NUMBERS)
        or after not in [gain + refit for gain in ([], ["gain"], ["output-gain"]) for refit in ([], ["refit"])]
    ):
        raise SettingError(
            f"no calibrator is called {name!r}: there are {', '.join(OTHERS)}, quantile-{TYPES[0]} to "
            f"quantile-{TYPES[-1]} and those with {' or '.join(ending for ending in TARGETS if ending)}; each may read "
            f"another number with one of {', '.join('@' + number for number in NUMBERS)}, and end in +gain or "
            f"+output-gain and in +refit. Change --set {setting}"
        )
    if found["base"] == "levels" and found["number"]:
        raise SettingError(
            f"the calibrator 'levels' reads the simulator's own whole numbers and no other: {name}. "
            f"Leave @{found['number']} out, or use hurdle@{found['number']}, in --set {setting}"
        )
    return Name(name, found["base"], found["number"], "gain" in after, "output-gain" in after, "refit" in after)


def may_be_chosen(name: Name) -> bool:
    """Whether it can become the default: not what peeks, nor what changes the coder."""
    return not name.base.endswith(ON_PROMPT) and not name.refit


def check(names: Sequence[str], setting: str) -> None:
    """Refuse names that no calibrator has, and the same one twice."""
    for name in names:
        parse(name, setting)
        if names.count(name) > 1:
            raise SettingError(f"{name} stands {names.count(name)} times in {setting}. Name it once in --set {setting}")


def check_choice(names: Sequence[str]) -> None:
    """Refuse names of which none may become the default."""
    if not any(may_be_chosen(parse(name)) for name in names):
        raise SettingError(
            f"{SETTING} needs one that may be chosen before the report split is looked at: {', '.join(names)} peek "
            f"there or change the decoder. Add hurdle to --set {SETTING}"
        )
