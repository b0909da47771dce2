"""A small random subject, coder and activations over windows of several lengths."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from nlrewrite.activations.codes import Codes, constant_codes, oracle_codes, true_codes
from nlrewrite.activations.pairs import Active
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.calibrate.lookup import Seen, bigram_lookup, token_lookup
from nlrewrite.coders.form import Coder
from nlrewrite.evaluate.arms import Sources
from nlrewrite.evaluate.selection import Gain
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.specs import Site
from nlrewrite.subject import sites
from nlrewrite.text.positions import Positions, positions
from nlrewrite.text.tokens import Windows
from tests.subject import small_models

LATENTS, K = 12, 3


def windows(lengths: tuple[int, ...] = (9, 4, 12, 7, 12), seed: int = 0) -> Windows:
    ids = generator(seed, "windows").integers(1, small_models.VOCABULARY, (len(lengths), 13)).astype(np.int32)
    column = np.arange(len(lengths), dtype=np.int32)
    return Windows(ids, np.array(lengths, dtype=np.int32), column, column // 2, np.zeros_like(column))


@dataclass(frozen=True)
class Planted:
    model: torch.nn.Module
    located: sites.Located
    coder: Coder
    windows: Windows
    where: Positions
    active: Active
    x_PD: torch.Tensor
    y_PE: torch.Tensor

    @property
    def truth(self) -> Codes:
        return true_codes(self.active, LATENTS)


def coder(seed: int = 0) -> Coder:
    draws = torch_generator(seed, "coder")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws)

    width = small_models.WIDTH
    skip = 0.1 * normal(width, width)
    enc, dec = (normal(LATENTS, width), normal(LATENTS)), (0.3 * normal(LATENTS, width), normal(width))
    return Coder(*enc, *dec, skip, K)


def planted() -> Planted:
    model = small_models.fresh("gpt_neox").requires_grad_(False)
    located = sites.locate(model, Site(layer=1))
    every = windows()
    inside = torch.arange(12)[None, :] < torch.from_numpy(every.lengths)[:, None]
    record = sites.activations_upto(model, located, torch.from_numpy(every.tokens[:, :12].astype(np.int64)))
    made = coder()
    values, latents = made.encode(record.x[inside]).padded()
    active = Active(latents.numpy().astype(np.int32), values.numpy())
    return Planted(model, located, made, every, positions(every), active, record.x[inside], record.y[inside])


def random_codes(count: int, seed: int = 0, latents: int = LATENTS) -> Codes:
    draws = generator(seed, "codes")
    dense = draws.normal(size=(count, latents)) * (draws.random((count, latents)) < 0.3)
    constant = draws.normal(size=latents).astype(np.float32)
    return Codes(constant, sparse.csr_matrix(dense.astype(np.float32)))


def fitted(name: str, information: str) -> Fitted:
    """A calibrator that makes nothing of any level."""
    values = {"value": np.zeros((LATENTS, 10), dtype=np.float32)}
    return Fitted(name, information, "levels", values, np.zeros(LATENTS), np.ones(LATENTS))


def sources(planted: Planted, truth: Codes | None = None) -> Sources:
    count, vocabulary = len(planted.where), small_models.VOCABULARY
    seen = [Seen(planted.where, planted.truth)]
    calibrated = fitted("hurdle", "paired")
    mean_L = np.asarray(planted.truth.extra_PL.mean(0)).ravel()
    return Sources(
        truth=planted.truth if truth is None else truth,
        mean=constant_codes(mean_L, count),
        mean_firing=constant_codes(mean_L + 1, count),
        zero=constant_codes(np.zeros(LATENTS), count),
        oracle=oracle_codes(planted.active, mean_L),
        oracle_digits=oracle_codes(planted.active, mean_L),
        oracle_flags=oracle_codes(planted.active, mean_L),
        token_lookup=token_lookup(seen, planted.where, vocabulary, 1.0),
        bigram_lookup=bigram_lookup(seen, planted.where, vocabulary, 1.0, 1.0),
        rewritten={
            "hurdle": (calibrated, random_codes(count, seed=1)),
            "none": (fitted("none", "maximum"), random_codes(count, seed=2)),
        },
        shuffled=(calibrated, random_codes(count, seed=3)),
        lengths={2: (calibrated, random_codes(count, seed=4))},
        chosen="hurdle",
        rungs={name: (calibrated, random_codes(count, seed=place)) for place, name in ((5, "gate"), (6, "gated"))},
        silent={name: np.arange(LATENTS) < 2 for name in ("rules", "shuffled")},
        gain=Gain(np.linspace(1, -1, LATENTS), np.where(np.arange(LATENTS) < 5, 0.1, -0.1)),
        window_P=planted.where.window,
    )
