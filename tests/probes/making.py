"""A small random subject with a coder, as the probes have it."""

from dataclasses import replace

import numpy as np
from scipy import sparse

from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import Active
from nlrewrite.probes import upstream
from nlrewrite.probes.upstream import Part, Upstream
from nlrewrite.seeds import generator
from nlrewrite.specs import Site
from nlrewrite.subject import sites
from nlrewrite.subject.batches import inside, padded
from nlrewrite.text.tokens import Windows
from tests.evaluate import planted
from tests.evaluate.planted import LATENTS

LENGTHS = (9, 4, 12, 7, 12, 12, 5, 12)


def sparse_truth(contexts: int, latents: int, share: float) -> sparse.csr_matrix:
    draws = generator(0, "sparse truth")
    return sparse.csr_matrix(draws.random((contexts, latents)) * (draws.random((contexts, latents)) < share))


def made(layer: int | None = None) -> tuple[Upstream, Active]:
    """Different windows of the same subject in the three splits; also the explain split's activations."""
    base = planted.planted()
    if layer is not None:
        base = replace(base, located=sites.locate(base.model, Site(layer=layer)))

    def part(seed: int, groups: int) -> tuple[Part, Active]:
        windows = planted.windows(LENGTHS, seed)
        windows = Windows(windows.tokens, windows.lengths, windows.document, windows.group + groups, windows.start)
        record = sites.activations_upto(base.model, base.located, padded(windows))
        values, latents = base.coder.encode(record.x[inside(windows)]).padded()
        active = Active(latents.numpy().astype(np.int32), values.numpy())
        return Part(windows, true_codes(active, LATENTS).extra_PL), active

    (_, explain), (calibrate, _), (report, _) = (part(seed, 100 * seed) for seed in (1, 2, 3))
    return upstream.upstream(base.model, base.located, base.coder, explain, calibrate, report, 64), explain
