"""Planned arms with made-up losses: an evaluation without a model."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from nlrewrite.evaluate.arms import Arm, Key
from nlrewrite.evaluate.losses import Losses, Where
from nlrewrite.evaluate.summarise import Summary, summarise
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import Windows

FRACTIONS = (0.25, 0.5)
COST = {"coder": 0.1, "mean": 1.1, "zero": 1.6, "rewritten": 0.6, "shuffled": 1.1, "oracle": 0.3, "token_lookup": 0.85}
"""Loss above the original's when all latents are replaced."""
SITE = {"mlp_mean": 2.0, "bigram_lookup": 0.45}
Loss = Callable[[Arm, np.ndarray, np.random.Generator], np.ndarray]
"""(arm, unpatched loss at its positions, draws) -> the arm's loss there."""


@dataclass(frozen=True)
class Study:
    planned: list[Arm]
    losses: dict[str, Losses]
    where: Positions
    windows: Windows

    def told(self, **settings: object) -> Summary:
        fields = {"resamples": 400, "positions": ("all", "last"), **settings}
        return summarise(EvaluateSpec.model_validate(fields), self.planned, self.losses, self.where, self.windows)

    def of(self, **key: object) -> int:
        """The place of the one arm with this key."""
        (found,) = [
            at
            for at, arm in enumerate(self.planned)
            if all(getattr(arm.key, name) == value for name, value in key.items())
        ]
        return found


def windows(groups: int = 14, seed: int = 0) -> Windows:
    """Documents of one to five windows of unequal length."""
    draws = generator(seed, "study", "windows")
    group = np.repeat(np.arange(groups), draws.integers(1, 6, groups)).astype(np.int32)
    lengths = draws.integers(3, 9, len(group)).astype(np.int32)
    tokens = draws.integers(1, 50, (len(group), 9)).astype(np.int32)
    return Windows(tokens, lengths, group + 100, group, np.zeros_like(group))


def nothing(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a study has no model to write in")


def arms(subsets: int = 2, positions_: tuple[Where, ...] = ("all", "last")) -> list[Arm]:
    planned = []
    for position in positions_:
        key = Key("original", "a site", position=position)
        planned.append(Arm(replace(key, fraction=0.0), None, 0))
        planned.append(Arm(replace(key, arm="coder", fraction=0.0), nothing, 0))
        planned += [Arm(_named(key, name), nothing, 8) for name in [*list(COST)[1:], *SITE]]
        for selection, seeds in (("top", 1), ("sampled", subsets)):
            for fraction in FRACTIONS:
                for seed in range(seeds):
                    part = replace(key, selection=selection, fraction=fraction, subset_seed=seed)
                    for name in ("mean", "shuffled", "rewritten"):
                        compared = (selection, fraction, seed)
                        planned.append(Arm(_named(part, name), nothing, int(8 * fraction), 0, compared))
    return planned


def _named(key: Key, name: str) -> Key:
    if name not in ("rewritten", "shuffled"):
        return replace(key, arm=name)
    return replace(
        key,
        arm=name,
        simulator="rules",
        explanation="shuffled" if name == "shuffled" else "rules",
        calibrator="hurdle",
    )


def exact(arm: Arm, base: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Every position costs the same, and a part of the latents its share of what all cost."""
    if arm.key.arm == "original":
        return base
    coder = COST["coder"]
    whole = (COST | SITE)[arm.key.arm]
    return base + coder + arm.key.fraction * (whole - coder)


def noisy(arm: Arm, base: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """As `exact`, with noise of its own at every position and in every random subset."""
    found = exact(arm, base, draws)
    if arm.key.arm == "original":
        return found
    subset = 0.2 * (arm.key.subset_seed - 0.5) if arm.key.selection == "sampled" else 0.0
    return found + draws.normal(0, 0.3, len(base)) + (subset if arm.key.arm == "rewritten" else 0.0)


def study(loss: Loss = noisy, subsets: int = 2, seed: int = 0, groups: int = 14) -> Study:
    every, planned = windows(groups, seed), arms(subsets)
    where = positions(every)
    base = generator(seed, "study", "base").gamma(2.0, 1.5, len(where))
    last = np.cumsum(every.lengths) - 1
    losses = {}
    for at, arm in enumerate(planned):
        draws = generator(seed, "study", "arm", at)
        own = base if arm.key.position == "all" else base[last]
        ce = loss(arm, own, draws)
        kl = np.zeros(len(own)) if arm.key.arm == "original" else np.abs(ce - own) / 2
        losses[str(at)] = Losses(ce, kl, kl + 0.01, draws.random(len(own)) < 0.8)
    return Study(planned, losses, where, every)
