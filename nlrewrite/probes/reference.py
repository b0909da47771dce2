"""The tables of the planted model: what every calibrator makes of the same simulator, at full size.

In: a `Setting`. Out: rows with the ratio of KL and of squared errors to mean ablation of the same latents, and the
standard error of the paired difference of KL in nats. Invariant: all rows of a setting share model, simulator, contexts
and the calibrators that a rewriting uses; rows that no calibrator stands for (a straight line, a known slope, as many
active latents as there are) are made here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.special import expit, logit

from nlrewrite.calibrate import apply, fit
from nlrewrite.calibrate.cases import case_control
from nlrewrite.calibrate.evidence import Known
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.pairing import Cases
from nlrewrite.probes.planted import Design, Losses, Model, Report, known, top, top_of_mixed
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Oracle
from nlrewrite.simulate.said import answers, centre

FOLDS = 4
CASES = ((10, 40), (20, 80), (50, 200), (100, 400))
FRACTIONS = (0.1, 0.25, 0.5, 0.75)
PREDICTORS = (
    "quantile-7",
    "quantile-5",
    "quantile-8",
    "quantile-6",
    "quantile-6-on-prompt",
    "isotonic",
    "isotonic-shrunk",
    "hurdle",
    "hurdle@centred",
)
OTHERS = (
    "prior-shift",
    "platt",
    "beta",
    "hurdle-none",
    "hurdle-full",
    "quantile-6+output-gain",
    "quantile-7+output-gain",
)
BISECTIONS = 60


@dataclass(frozen=True)
class Setting:
    d_prime: float = 1.4
    spread: float = 1.0
    tau: float = 0.0
    contexts: int = 4000
    """Random contexts that calibrators are fitted on."""
    report: int = 1500


AUC_80, AUC_91 = Setting(), Setting(2.5, 1.2)
"""Mean AUC over latents."""


@dataclass(frozen=True)
class Row:
    table: str
    predictor: str
    topk: str
    kl: float
    """KL to the original, divided by that of mean ablation of the same latents."""
    written: float
    """Squared error of what the latents write, divided likewise."""
    squared: float
    """Squared error of the activations themselves, divided likewise."""
    error: float
    """Standard error of the mean paired difference of KL, in nats."""
    order: str = "all"
    fraction: float = 1.0
    evicted: float = 0.0
    """Share of the true activations that a TopK drops in favour of predicted ones."""
    queries: int = 0
    """How often the simulator was asked to fit this."""


class Bench:
    """One model and one simulator, calibrated and measured."""

    def __init__(self, setting: Setting, design: Design | None = None, seed: int = 0) -> None:
        self.setting, self.model = setting, Model(design or Design(), seed)
        self.truth_PL = self.model.activations("calibrate", setting.contexts)
        self.folds_P = _folds(setting.contexts, seed)
        self.said = self._simulator(self.truth_PL, "calibrate")
        self.report: Report = self.model.report(setting.report)
        self.heard = self._simulator(self.report.truth_PL, "report")

    @cached_property
    def mean_ablation(self) -> Losses:
        return self.report.mean_ablation()

    @cached_property
    def score_PL(self) -> np.ndarray:
        """Scores on the contexts that are measured."""
        return self.heard.scores(slice(None)).T

    def known_of(self, latents: slice) -> Known:
        return _block(self.model.known, latents)

    def fitted(self, name: str) -> Fitted:
        """A calibrator on the random contexts."""
        peeks = name.endswith("on-prompt")
        known_of = _peeking(self.model.known, known(self.report.truth_PL)) if peeks else self.known_of
        return fit.fit(name, self.said, self.truth_PL, known_of, self.folds_P, dec_LE=self.model.dec_LE)

    def by_cases(self, name: str, active: int, inactive: int, seed: int = 0) -> tuple[Fitted, int]:
        """A calibrator on cases drawn for each latent from the contexts that rates are known from; and the queries."""
        truth_PL, folds_P = self.model.known_truth_PL, _folds(self.model.design.known_contexts, self.model.seed)
        drawn = case_control(truth_PL, folds_P, active, inactive, seed=seed)
        said = self._simulator(truth_PL, "known")
        cases: Cases = drawn.evidence(said, truth_PL)
        return fit.fit(name, said, truth_PL, self.known_of, folds_P, cases=cases), drawn.queries()

    def predicted(self, fitted: Fitted) -> np.ndarray:
        """Activations at the measured contexts: [P, L]."""
        return apply.dense(fitted, self.heard).values_PL

    def row(self, table: str, predictor: str, values_PL: np.ndarray, topk: str = "none", queries: int = 0) -> Row:
        found, mean = self.report.losses(values_PL), self.mean_ablation
        return Row(table, predictor, topk, *_against(found, mean), queries=queries)

    def kept(self, values_PL: np.ndarray, topk: str) -> np.ndarray:
        k, mean = self.model.design.k, self.model.known.mean
        return top(values_PL, k) if topk == "values" else top(values_PL, k, mean) if topk == "deviations" else values_PL

    def _simulator(self, truth_PL: sparse.csr_matrix, split: str) -> Oracle:
        each = self.setting
        return self.model.simulator(truth_PL, split, each.d_prime, each.spread, each.tau)

    # -- what no calibrator stands for ---------------------------------------------------------------------------------

    def raw(self) -> np.ndarray:
        """The score's logistic function, in shares of the largest activation."""
        return (expit(self.score_PL - 1) * self.model.known.largest).astype(np.float32)

    def line(self) -> np.ndarray:
        """Least squares of activations on the score."""
        score, truth = self.said.scores(slice(None)), self.truth_PL.toarray().T
        away = score - score.mean(1, keepdims=True)
        slope = (away * truth).sum(1) / np.square(away).sum(1)
        return (truth.mean(1) + slope * (self.score_PL - score.mean(1))).astype(np.float32)

    def known_slope(self) -> np.ndarray:
        """Bayes' rule with each latent's d' and base rate, and its mean magnitude."""
        distance, known_ = self.heard.d_primes(), self.model.known
        prior = logit(np.clip(known_.rate, 1e-9, 1 - 1e-9))
        return (expit(prior + distance * self.score_PL - distance**2 / 2) * known_.magnitude).astype(np.float32)

    def exactly_k(self, fitted: Fitted) -> np.ndarray:
        """Chances of being active, their log-odds shifted in each context such that k latents are expected."""
        middle = centre(self.heard, fitted.reading) if fitted.reading.centred else None
        said = answers(self.heard, slice(None), fitted.reading, middle, digits=False)
        chance = fitted.active(said)
        assert chance is not None, f"{fitted.name} has no chance of being active"
        chance_PL = np.clip(chance.T, 1e-12, 1 - 1e-12)
        size = fitted.predict(said).T / chance_PL
        odds, low, high = logit(chance_PL), np.full((len(chance_PL), 1), -20.0), np.full((len(chance_PL), 1), 20.0)
        for _ in range(BISECTIONS):
            middle_P = (low + high) / 2
            more = expit(odds + middle_P).sum(1, keepdims=True) > self.model.design.k
            low, high = np.where(more, low, middle_P), np.where(more, middle_P, high)
        return (expit(odds + (low + high) / 2) * size).astype(np.float32)

    def oracle_mask(self) -> np.ndarray:
        return np.where(self.report.truth > 0, self.model.known.magnitude, 0).astype(np.float32)


def appendix_b(setting: Setting, design: Design | None = None, seed: int = 0) -> list[Row]:
    """All tables of one setting: full replacement, less information, mixed replacement. Minutes at full size."""
    bench = Bench(setting, design, seed)
    return [*full_replacement(bench), *less_information(bench), *mixed_replacement(bench)]


def full_replacement(bench: Bench) -> Iterator[Row]:
    table = "full replacement"
    raw = bench.raw()
    yield bench.row(table, "raw", raw)
    yield bench.row(table, "raw", bench.kept(raw, "values"), "values")
    for name in PREDICTORS:
        values = bench.predicted(fitted := bench.fitted(name))
        policies = (
            ("values",) if "quantile" in name else ("none", "values", "deviations") if name == "hurdle" else ("none",)
        )
        for topk in policies:
            yield bench.row(table, name, bench.kept(values, topk), topk)
        if name == "hurdle":
            yield bench.row(table, "hurdle, k expected", bench.exactly_k(fitted))
    yield bench.row(table, "line", bench.line())
    yield bench.row(table, "oracle mask x mean magnitude", bench.oracle_mask())


def less_information(bench: Bench) -> Iterator[Row]:
    table, explained = "less information", bench.model.design.latents
    for name in OTHERS:
        yield bench.row(table, name, bench.predicted(bench.fitted(name)), queries=bench.setting.contexts * explained)
    for active, inactive in CASES:
        fitted, queries = bench.by_cases("hurdle", active, inactive)
        yield bench.row(table, f"hurdle, cases {active}+{inactive}", bench.predicted(fitted), queries=queries)
    yield bench.row(table, "known slope", bench.known_slope())


def mixed_replacement(bench: Bench) -> Iterator[Row]:
    """Some latents predicted, the others true; a TopK goes over both and may evict true ones."""
    k, latents = bench.model.design.k, bench.model.design.latents
    centred = bench.fitted("hurdle@centred")
    hurdle = bench.predicted(centred)
    predictors = {
        ("raw", "mixed"): bench.raw(),
        ("quantile-7", "mixed"): bench.predicted(bench.fitted("quantile-7")),
        ("quantile-6", "mixed"): bench.predicted(bench.fitted("quantile-6")),
        ("hurdle@centred", "none"): hurdle,
        ("hurdle@centred", "mixed"): hurdle,
    }
    for order, by_rank in _orders(bench, centred).items():
        for fraction in FRACTIONS:
            replaced = np.zeros(latents, dtype=bool)
            replaced[by_rank[: round(fraction * latents)]] = True
            mean = bench.report.mean_ablation(replaced)
            for (name, topk), values in predictors.items():
                chosen, evicted = bench.report.mixed(values, replaced), 0.0
                if topk == "mixed":
                    chosen, evicted = top_of_mixed(values, bench.report.truth, replaced, k)
                ratios = _against(bench.report.losses(chosen), mean)
                yield Row("mixed replacement", name, topk, *ratios, order, fraction, evicted)


def _orders(bench: Bench, fitted: Fitted) -> dict[str, np.ndarray]:
    """Latents in the order in which they are replaced."""
    wrong = np.zeros(bench.model.design.latents)
    truth_LP = sparse.csr_matrix(bench.truth_PL.T)
    for block, predicted in apply.predictions(fitted, bench.said):
        truth = truth_LP[block].toarray()
        mean = bench.model.known.mean[block, None]
        wrong[block] = (np.square(truth - predicted) - np.square(truth - mean)).sum(1)
    drawn = generator(bench.model.seed, "planted", "subset").permutation(bench.model.design.latents)
    return {"random": drawn, "best d'": np.argsort(-bench.heard.d_primes()), "best gain": np.argsort(wrong)}


def _against(found: Losses, mean: Losses) -> tuple[float, float, float, float]:
    difference = found.kl_P - mean.kl_P
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return found.ratio(mean), found.written_ratio(mean), found.square_ratio(mean), error


def _folds(contexts: int, seed: int) -> np.ndarray:
    return generator(seed, "planted", "folds").permutation(contexts) % FOLDS


def _block(every: Known, latents: slice) -> Known:
    return Known(every.largest[latents], every.rate[latents], every.magnitude[latents], every.targets[latents])


def _peeking(every: Known, measured: Known) -> Callable[[slice], Known]:
    """Known, but that predictions are carried onto the activations of the measured contexts themselves."""
    both = Known(every.largest, every.rate, every.magnitude, measured.targets)
    return lambda latents: _block(both, latents)
