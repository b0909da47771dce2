"""An early exit: after some layers a linear probe says which questions can be dropped; the others go on, exact.

In: a pilot of questions that were answered in full, with the hidden states at their ends behind a layer. Out: a `Probe`
of the expected digit, a threshold for each latent (`cascade.thresholds`), and `Screened`, the packed engine with the
screen in place. Invariants: the probe and the thresholds are fitted on different contexts, neither on those they
decide about; a question that goes on is answered as without a screen; one that is dropped is SKIPPED.

Only the rank of a context among its latent's matters, so that the probe is fitted to what differs within latents: of
hidden states and of digits each latent's mean is taken off.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Completion, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.simulate.cascade import bars, expected_digit, keep, recalled, thresholds

if TYPE_CHECKING:
    from torch import Tensor

    from nlrewrite.llm.packed import Packed

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Of the ridge, in units of a feature's mean variance."""


@dataclass(frozen=True)
class Probe:
    """A linear reading of hidden states behind a layer."""

    layer: int
    weight_D: np.ndarray
    penalty: float
    correlation: float
    """With the expected digit within latents, on contexts that it was not fitted on."""

    def __call__(self, hidden_XD: np.ndarray) -> np.ndarray:
        """Higher for more active; of one latent's contexts, for no comparison between latents."""
        return hidden_XD.astype(np.float64) @ self.weight_D


def fit(hidden_LSD: np.ndarray, digit_LS: np.ndarray, layer: int, folds: int = 4) -> Probe:
    """A ridge from hidden states to expected digits, its penalty chosen on held-out contexts."""
    there = ~np.isnan(digit_LS)
    if there.sum() < 2 * folds or digit_LS.shape[1] < folds:
        raise SettingError(
            f"a screen is fitted on at least {2 * folds} answers of {folds} contexts: there are {int(there.sum())} "
            f"of {digit_LS.shape[1]}. Ask a larger pilot"
        )
    hidden, digit = _within(hidden_LSD.astype(np.float64), there), _within(digit_LS[..., None], there)[..., 0]
    scale = hidden[there].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    hidden = hidden / scale
    fold_S = np.arange(digit_LS.shape[1]) % folds
    gram, moment = _sums(hidden, digit, there)
    held = [
        _sums(hidden[:, fold_S == fold], digit[:, fold_S == fold], there[:, fold_S == fold]) for fold in range(folds)
    ]
    spectra = [np.linalg.eigh(gram - part) for part, _ in held]
    best, told = -1.0, PENALTIES[-1]
    for penalty in PENALTIES:
        guess = np.full(digit_LS.shape, np.nan)
        for fold, ((values, vectors), (_, part)) in enumerate(zip(spectra, held, strict=True)):
            weight = vectors @ ((vectors.T @ (moment - part)) / (values + penalty * there.sum()))
            guess[:, fold_S == fold] = hidden[:, fold_S == fold] @ weight
        found = _correlation(guess[there], digit[there])
        if found > best:
            best, told = found, penalty
    weight = np.linalg.solve(gram + told * there.sum() * np.eye(len(gram)), moment)
    return Probe(layer, weight / scale, told, best)


def _within(values_LSX: np.ndarray, there_LS: np.ndarray) -> np.ndarray:
    """Less each latent's mean over the contexts that are there; 0 where none is."""
    kept = np.where(there_LS[..., None], values_LSX, 0.0)
    mean = kept.sum(1, keepdims=True) / np.maximum(there_LS.sum(1), 1)[:, None, None]
    return np.where(there_LS[..., None], kept - mean, 0.0)


def _sums(hidden: np.ndarray, digit: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = hidden[there], digit[there]
    return x.T @ x, x.T @ y


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    spread = first.std() * second.std()
    return float(((first - first.mean()) * (second - second.mean())).mean() / spread) if spread > 0 else 0.0


def cost(layer: int, layers: int, kept: float) -> float:
    """Of a block's layers, relative to none dropped."""
    if not 0 < layer < layers:
        raise SettingError(f"a screen must stand behind one of the layers 1 to {layers - 1}: layer={layer}. Move it")
    return layer / layers + kept * (1 - layer / layers)


# -- a pilot -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pilot:
    """L latents in S contexts, answered in full."""

    hidden_LSD: np.ndarray
    """float32, at the ends of the questions, behind `layer`."""
    digit_LS: np.ndarray
    """Expected digits; NaN where there is no answer."""
    layer: int

    def at(self, contexts: np.ndarray) -> "Pilot":
        return Pilot(self.hidden_LSD[:, contexts], self.digit_LS[:, contexts], self.layer)


def pilot(engine: "Packed", blocks: Iterable[PrefixBlock], layer: int, *, by_prefix: bool = False) -> Pilot:
    """Ask every question of `blocks` once, with a screen that drops none, and look on.

    A block for each context with the latents in one order; `by_prefix`: a block for each latent, contexts in one order.
    """
    from nlrewrite.llm.packed import Screen

    hidden: list[np.ndarray] = []
    digits: list[np.ndarray] = []
    for block in blocks:
        seen: list[np.ndarray] = []
        scores = engine.digits(block, Screen(layer, _looking_on(seen)))
        answered = ~np.isnan(scores.logp[:, 0])
        states = np.zeros((len(block), seen[0].shape[1]) if seen else (len(block), 1), dtype=np.float32)
        if seen:
            states[answered] = seen[0]
        hidden.append(states)
        digits.append(expected_digit(scores))
    axis = 0 if by_prefix else 1
    return Pilot(np.stack(hidden, axis=axis), np.stack(digits, axis=axis), layer)


def _looking_on(seen: list[np.ndarray]):
    def look(hidden_ND: "Tensor") -> "Tensor":
        import torch

        seen.append(hidden_ND.float().cpu().numpy())
        return torch.ones(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device)

    return look


@dataclass(frozen=True)
class Fitted:
    """A screen that is ready, and what its pilot promises."""

    probe: Probe
    threshold_L: np.ndarray
    kept: float
    """Share of the pilot's second half that goes on."""
    recall: float
    """Of that half's top pairs; the thresholds were fitted on it."""
    cost: float


def fitted(
    first: Pilot, second: Pilot, frequency_L: np.ndarray, recall: float, layers: int, *, pooled: bool = False
) -> Fitted:
    """Probe from the first half of a pilot, thresholds from the second, so that no probe is judged by its own data."""
    assert first.layer == second.layer
    probe = fit(first.hidden_LSD, first.digit_LS, first.layer)
    screen = np.where(np.isnan(second.digit_LS), np.nan, probe(second.hidden_LSD))
    threshold_L = thresholds(screen, second.digit_LS, frequency_L, recall, pooled=pooled)
    kept_LS = keep(screen, threshold_L)
    kept = float(kept_LS.mean())
    found = recalled(kept_LS, second.digit_LS, frequency_L)
    return Fitted(probe, threshold_L, kept, found, cost(probe.layer, layers, kept))


def cheapest(found: Sequence[Fitted]) -> Fitted:
    """The screen that saves most, of those fitted for one recall."""
    return min(found, key=lambda each: (each.cost, each.probe.layer))


# -- as an engine ------------------------------------------------------------------------------------------------------


class Screened:
    """The packed engine with a screen: what goes on is answered exactly, what does not is SKIPPED.

    `thresholds` as in `cascade.Cascade`. A block in which the engine refuses a question is not screened, for its hidden
    states do not say which one that is.
    """

    def __init__(
        self, engine: "Packed", probe: Probe, thresholds: Mapping[bytes, float], *, by_prefix: bool = False
    ) -> None:
        self.name = f"{engine.name}, screened"
        self.exact_mass = engine.exact_mass
        self.engine, self.probe = engine, probe
        self._thresholds, self._by_prefix = thresholds, by_prefix

    @property
    def usage(self) -> Usage:
        return self.engine.usage

    def about(self) -> dict[str, object]:
        screen = {"layer": self.probe.layer, "penalty": self.probe.penalty, "correlation": self.probe.correlation}
        return {**self.engine.about(), "screen": screen}

    def digits(self, block: PrefixBlock) -> Scores:
        from nlrewrite.llm.packed import Screen

        bar_N = bars(block, self._thresholds, by_prefix=self._by_prefix)

        def going_on(hidden_ND: "Tensor") -> "Tensor":
            import torch

            if len(hidden_ND) != len(bar_N):
                return torch.ones(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device)
            told_N = self.probe(hidden_ND.float().cpu().numpy())
            return torch.from_numpy(~(told_N < bar_N)).to(hidden_ND.device)

        return self.engine.digits(block, Screen(self.probe.layer, going_on))

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        return self.engine.complete(prompts, sampling)

    def close(self) -> None:
        self.engine.close()
