"""Evidence of planted latents, in the forms that a fit must not tell apart."""

import numpy as np

from nlrewrite.calibrate.evidence import Evidence, Known, dense
from nlrewrite.calibrate.fitted import Fitted, Part
from nlrewrite.calibrate.quantile import Sample
from nlrewrite.seeds import generator
from nlrewrite.simulate.said import Answers

LATENTS, CASES, FOLDS = 6, 400, 4
DIGITS = generator(0, "digits of levels").dirichlet(np.ones(10), 10)


def levels(seed: int = 0, cases: int = CASES, latents: int = LATENTS) -> tuple[np.ndarray, np.ndarray]:
    """Levels 0..9, and activations that are more likely and larger where they are high: both [B, S]."""
    draws = generator(seed, "planted levels")
    level = np.where(draws.random((latents, cases)) < 0.7, 0, draws.integers(1, 10, (latents, cases)))
    active = draws.random(level.shape) < 0.01 + 0.05 * level
    return level.astype(np.float32), np.where(active, draws.gamma(4.0, 0.05 + 0.02 * level), 0.0)


def scores(seed: int = 0, cases: int = CASES, latents: int = LATENTS) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties, and activations that go with them."""
    draws = generator(seed, "planted scores")
    score = draws.normal(size=(latents, cases)).astype(np.float32)
    active = draws.random(score.shape) < 1 / (1 + np.exp(3 - 1.5 * score))
    return score, np.where(active, draws.gamma(4.0, 0.25, score.shape), 0.0)


def evidence(score: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> Evidence:
    """Every context a case, in folds one after the other; whole scores up to 9 come with digits."""
    whole = bool((score == np.clip(np.round(score), 0, 9)).all())
    digits = DIGITS[score.astype(int)] if whole else None
    return dense(Answers(score, digits), truth, np.arange(score.shape[1]) * FOLDS // score.shape[1], weight)


def aggregated(found: Evidence) -> Evidence:
    """The same with a case for each fold and level."""
    level = found.answers.score_BS.astype(int)
    cell = found.fold * 10 + level
    rows = np.arange(len(level))[:, None]

    def table(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(level), FOLDS * 10))
        np.add.at(sums, (rows, cell), values)
        return sums

    every = np.tile(np.arange(10.0), FOLDS)[None]
    said = Answers(np.broadcast_to(every, (len(level), FOLDS * 10)), np.tile(DIGITS, (FOLDS, 1))[None])
    fold = np.repeat(np.arange(FOLDS), 10)
    return Evidence(said, table(found.weight), table(found.active), table(found.total), fold)


def replicated(found: Evidence, times_S: np.ndarray) -> tuple[Evidence, Evidence]:
    """Each case weighing as much as `times_S` says, and each case there that many times."""
    again = np.repeat(np.arange(len(times_S)), times_S)
    weighed = Evidence(found.answers, found.weight * times_S, found.active * times_S, found.total * times_S, found.fold)
    repeated = Evidence(
        found.answers.at(again),
        found.weight[:, again],
        found.active[:, again],
        found.total[:, again],
        found.fold[again],
    )
    return weighed, repeated


def known(truth: np.ndarray, target: np.ndarray | None = None) -> Known:
    """What is known of latents with these activations; the target is the same sample or another."""
    rate = (truth > 0).mean(1)
    magnitude = truth.sum(1) / np.maximum((truth > 0).sum(1), 1)
    targets = tuple(sample(row) for row in (truth if target is None else target))
    return Known(truth.max(1, initial=0), rate, magnitude, targets)


def sample(dense: np.ndarray) -> Sample:
    return Sample(np.sort(dense[dense > 0]), len(dense))


def predicted(part: Part, found: Evidence) -> np.ndarray:
    """What the part makes of what was said, drawn towards the mean of the cases."""
    gain = np.ones(found.latents) if part.gain is None else part.gain
    return Fitted("", "", part.map, part.arrays, found.mean(), gain).predict(found.answers).astype(np.float64)


def error(part: Part, found: Evidence) -> np.ndarray:
    """Summed squared error of each latent, less that of predicting 0: the same for all forms of evidence."""
    values = predicted(part, found)
    return (found.weight * values**2 - 2 * found.total * values).sum(1)


def mean_error(found: Evidence) -> np.ndarray:
    mean = found.mean()[:, None]
    return (found.weight * mean**2 - 2 * found.total * mean).sum(1)
