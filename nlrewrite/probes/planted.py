"""A planted model: latents, a readout and simulators of which everything is known, small enough for numpy.

In: a `Design` and a seed. Out: activations, residuals and next-token distributions of any number of contexts, and what
replacing the activations costs. Invariant: nothing is trained, so that the same seed gives the same model everywhere;
contexts of different splits are independent, and more contexts of a split begin with the fewer.

A context has the k latents with the largest log rate + Gumbel noise active, at lognormal magnitudes around each one's
scale. It is read out as softmax(temperature * h / rms(h) @ U), h = x + strength * a @ D, with x Normal. Simulators are
oracles (`simulate.oracle`) with slope 1/2, and calibrators are the real ones.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log1p, sqrt

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import Dense, Kept, true_codes
from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.quantile import Sample
from nlrewrite.seeds import derive, generator
from nlrewrite.simulate.oracle import Manner, Oracle, Scored, oracle

CHUNK = 1000
SLOPE = 0.5


@dataclass(frozen=True)
class Design:
    latents: int = 2048
    k: int = 8
    width: int = 128
    vocabulary: int = 256
    cv: float = 0.6
    """Coefficient of variation of a latent's magnitudes."""
    rate_spread: float = 0.8
    scale_spread: float = 0.3
    strength: float = 1.6
    temperature: float = 0.35
    known_contexts: int = 20_000
    """Contexts from which rates, mean magnitudes and largest activations are known."""

    @property
    def rate(self) -> float:
        """Mean base rate."""
        return self.k / self.latents


@dataclass(frozen=True)
class Model:
    design: Design
    seed: int = 0

    @cached_property
    def log_rate_L(self) -> np.ndarray:
        return self._draws("rates").normal(0, self.design.rate_spread, self.design.latents)

    @cached_property
    def scale_L(self) -> np.ndarray:
        """Mean magnitude of each latent."""
        return np.exp(self._draws("scales").normal(0, self.design.scale_spread, self.design.latents))

    @cached_property
    def dec_LE(self) -> np.ndarray:
        rows = self._draws("decoder").normal(size=(self.design.latents, self.design.width))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    @cached_property
    def _readout_EV(self) -> np.ndarray:
        return self._draws("readout").normal(size=(self.design.width, self.design.vocabulary))

    def activations(self, split: str, contexts: int) -> sparse.csr_matrix:
        """True activations of a split's first contexts."""
        design, width = self.design, sqrt(log1p(self.design.cv**2))
        latents = np.empty((contexts, design.k), dtype=np.int64)
        values = np.empty((contexts, design.k), dtype=np.float32)
        for start in range(0, contexts, CHUNK):
            draws = self._draws("activations", split, start)
            order = self.log_rate_L + draws.gumbel(size=(CHUNK, design.latents))
            chosen = np.sort(np.argpartition(order, -design.k, axis=1)[:, -design.k :], axis=1)
            size = self.scale_L[chosen] * np.exp(width * draws.normal(size=chosen.shape) - width**2 / 2)
            rows = slice(start, min(start + CHUNK, contexts))
            latents[rows], values[rows] = chosen[: rows.stop - start], size[: rows.stop - start]
        return true_codes(Active(latents, values), design.latents).extra_PL

    def simulator(
        self,
        truth_PL: sparse.csr_matrix,
        split: str,
        d_prime: float,
        spread: float = 0.0,
        tau: float = 0.0,
        manner: Manner | None = None,
        seed: int = 0,
    ) -> Oracle:
        knows = Scored(d_prime, spread, SLOPE, tau)
        own = derive(self.seed, "planted", "simulator", seed)
        return oracle(truth_PL, self.scale_L, knows, manner or Manner(digits=False), seed=own, split=split)

    @cached_property
    def known_truth_PL(self) -> sparse.csr_matrix:
        """The contexts from which marginals are known."""
        return self.activations("known", self.design.known_contexts)

    @cached_property
    def known(self) -> Known:
        return known(self.known_truth_PL)

    def report(self, contexts: int) -> "Report":
        return Report(self, self.activations("report", contexts))

    def log_probabilities(self, split: str, written_PE: np.ndarray) -> np.ndarray:
        """Of the next token, where the latents write this at the first contexts of a split: [P, V]."""
        residual = self._draws("residuals", split).normal(size=written_PE.shape)
        hidden = residual + self.design.strength * written_PE
        hidden = self.design.temperature * hidden / np.sqrt(np.mean(hidden**2, axis=1, keepdims=True))
        logits = hidden @ self._readout_EV
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def _draws(self, *path: str | int) -> np.random.Generator:
        return generator(self.seed, "planted", *path)


@dataclass(frozen=True)
class Losses:
    """What a replacement costs at each context."""

    kl_P: np.ndarray
    """From the model as it is."""
    ce_P: np.ndarray
    """Cross-entropy of a token drawn from the model as it is."""
    square_P: np.ndarray
    """Squared error of the activations themselves."""
    written_P: np.ndarray
    """Squared error of what they write."""

    def ratio(self, other: "Losses") -> float:
        """KL divided by another replacement's."""
        return float(self.kl_P.mean() / other.kl_P.mean())

    def square_ratio(self, other: "Losses") -> float:
        return float(self.square_P.mean() / other.square_P.mean())

    def written_ratio(self, other: "Losses") -> float:
        return float(self.written_P.mean() / other.written_P.mean())


class Report:
    """Contexts on which replacements are measured."""

    def __init__(self, model: Model, truth_PL: sparse.csr_matrix) -> None:
        self.model, self.truth_PL = model, truth_PL
        self.truth = truth_PL.toarray()
        self._written = np.asarray(truth_PL @ model.dec_LE)
        self._log_p = model.log_probabilities("report", self._written)
        draws = generator(model.seed, "planted", "labels").random((len(self.truth), 1))
        self._label_P = np.minimum((np.exp(self._log_p).cumsum(1) < draws).sum(1), self._log_p.shape[1] - 1)

    @property
    def contexts(self) -> int:
        return len(self.truth)

    def losses(self, values_PL: np.ndarray) -> Losses:
        """Of these activations, [P, L] or the same everywhere, [L]."""
        values = np.broadcast_to(values_PL, self.truth.shape)
        written = values @ self.model.dec_LE
        log_q = self.model.log_probabilities("report", written)
        return Losses(
            (np.exp(self._log_p) * (self._log_p - log_q)).sum(1),
            -np.take_along_axis(log_q, self._label_P[:, None], axis=1)[:, 0],
            np.square(values - self.truth, dtype=np.float64).sum(1),
            np.square(written - self._written, dtype=np.float64).sum(1),
        )

    def mean_ablation(self, replaced: np.ndarray | None = None) -> Losses:
        """Of the latents of a mask, or of all."""
        mean = self.model.known.mean.astype(np.float32)
        return self.losses(mean if replaced is None else self.mixed(mean, replaced))

    def mixed(self, values_PL: np.ndarray, replaced: np.ndarray) -> np.ndarray:
        """These activations for the latents of a mask [L], true ones for the others."""
        return np.where(replaced, values_PL, self.truth)


def known(truth_PL: sparse.csr_matrix) -> Known:
    """What a sample of contexts tells of the latents, with itself as the target of quantile maps."""
    truth_LP = sparse.csr_matrix(truth_PL.T)
    contexts = truth_PL.get_shape()[0]
    samples = [Sample(np.sort(values), contexts) for values in np.split(truth_LP.data, truth_LP.indptr[1:-1])]
    count = np.diff(truth_LP.indptr)
    total = np.asarray(truth_PL.sum(0), dtype=np.float64).ravel()
    largest = np.array([each.positive[-1] if len(each.positive) else 0.0 for each in samples])
    return Known(largest, count / contexts, total / np.maximum(count, 1), tuple(samples))


def top(values_PL: np.ndarray, k: int, rest_L: np.ndarray | float = 0.0) -> np.ndarray:
    """The k values of each context that are farthest from `rest`, and `rest` for the others."""
    rest = np.broadcast_to(np.asarray(rest_L, dtype=np.float32), values_PL.shape[1:])
    return Kept(Dense(values_PL), k, rest).dense(np.arange(len(values_PL)))


def top_of_mixed(values_PL: np.ndarray, truth_PL: np.ndarray, replaced: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """The k largest of predicted and true values together, and the share of true ones that predictions evict."""
    kept = top(np.where(replaced, values_PL, truth_PL), k)
    true = (truth_PL > 0) & ~replaced
    return kept, float((true & (kept == 0)).sum() / max(int(true.sum()), 1))
