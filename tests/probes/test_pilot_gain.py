"""From some latents to all: exact for all of them, without bias for some, and right where errors go together."""

import numpy as np
import pytest

from nlrewrite.probes.pilot_errors import Errors
from nlrewrite.probes.pilot_gain import Composed, composed, splice
from nlrewrite.probes.pilot_pairs import Pairs
from nlrewrite.seeds import generator

CONTEXTS, WIDTH, PER_GROUP, Z80 = 400, 16, 4, 1.2816


class Planted:
    """Latents whose errors share a part: by how much, `common` says."""

    def __init__(self, latents: int, common: float, seed: int = 0, aligned: float = 0.4) -> None:
        draws = generator(seed, "pilot", "planted")
        rows = draws.normal(size=(latents, WIDTH)) + aligned * np.sqrt(WIDTH) * draws.normal(size=WIDTH) / 2
        self.dec_LE = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        self.off_LC = draws.normal(size=(latents, CONTEXTS)).astype(np.float32)
        own = draws.normal(size=(latents, CONTEXTS))
        left = 0.6 * own * np.sqrt(1 - common) + 0.6 * np.sqrt(common) * draws.normal(size=CONTEXTS)
        self.wrong_LC = (0.2 * self.off_LC + left).astype(np.float32)
        self.group_P = np.arange(CONTEXTS) // PER_GROUP

    def true_share(self) -> float:
        wrong, off = (np.square(each.T @ self.dec_LE).sum() for each in (self.wrong_LC, self.off_LC))
        return float(wrong / off)

    def alone_share(self) -> float:
        return float(np.square(self.wrong_LC).sum() / np.square(self.off_LC).sum())

    def piloted(self, latents: np.ndarray, contexts: np.ndarray, reads: np.ndarray | None = None) -> Composed:
        n, shared = len(latents), len(contexts)
        pairs = Pairs(
            latents,
            np.broadcast_to(contexts.astype(np.int32), (n, shared)).copy(),
            np.zeros((n, shared), dtype=bool),
            np.zeros(shared, dtype=np.int64),
            np.broadcast_to([CONTEXTS, 0], (n, 2)).copy(),
            shared,
            len(self.dec_LE),
            np.ones(n, dtype=bool),
        )
        chosen = Errors(self.wrong_LC[latents][:, contexts], self.off_LC[latents][:, contexts])
        off_PE = self.off_LC.T @ self.dec_LE
        given = splice(
            pairs,
            chosen,
            self.dec_LE,
            off_PE[contexts],
            contexts,
            self.group_P,
            np.square(off_PE).sum(1),
            np.arange(CONTEXTS),
            reads,
            None if reads is None else contexts,
        )
        return composed(given)


def test_all_latents_give_the_whole_exactly() -> None:
    made = Planted(30, common=0.3)
    found = made.piloted(np.arange(30), np.arange(CONTEXTS))
    assert found.together.value == pytest.approx(made.true_share(), rel=1e-5)
    assert found.alone.value == pytest.approx(made.alone_share(), rel=1e-5)


def test_a_random_sample_of_latents_has_no_bias() -> None:
    made = Planted(60, common=0.3)
    every = [
        made.piloted(np.sort(generator(seed, "some").permutation(60)[:20]), np.arange(CONTEXTS)).together
        for seed in range(150)
    ]
    values = np.array([each.value for each in every])
    assert abs(values.mean() - made.true_share()) < 3.5 * values.std() / np.sqrt(len(values))


def test_each_latent_alone_misses_what_errors_have_in_common_and_the_joint_replacement_does_not() -> None:
    """400 latents with a tenth of their leftover variance in common, 40 of them piloted in 200 of 400 contexts."""
    covered = 0
    for seed in range(40):
        made = Planted(400, common=0.1, seed=seed)
        draws = generator(seed, "some")
        some, contexts = np.sort(draws.permutation(400)[:40]), np.sort(draws.permutation(CONTEXTS)[:200])
        found, true = made.piloted(some, contexts), made.true_share()
        assert found.alone.value == pytest.approx(0.4, abs=0.05)
        assert true - found.alone.value > 0.8
        covered += abs(found.together.value - true) < Z80 * found.together.error
    assert 25 <= covered <= 39


def test_without_anything_in_common_both_say_the_same() -> None:
    found = Planted(200, common=0.0, aligned=0.0).piloted(np.arange(200), np.arange(CONTEXTS))
    assert found.together.value == pytest.approx(found.alone.value, abs=0.02)


def test_the_error_is_smaller_with_more_latents_and_more_contexts() -> None:
    made = Planted(200, common=0.2)
    few, more = (
        made.piloted(np.arange(latents), np.arange(contexts)).together.error
        for latents, contexts in ((20, 100), (150, 400))
    )
    assert more < 0.6 * few


def test_a_loss_that_reads_all_directions_alike_reads_nothing_louder() -> None:
    made = Planted(30, common=0.3)
    alike = np.broadcast_to(np.eye(WIDTH, dtype=np.float32), (CONTEXTS, WIDTH, WIDTH))
    found = made.piloted(np.arange(30), np.arange(CONTEXTS), alike)
    assert found.read.value == pytest.approx(1, rel=1e-4)
    assert found.share.value == pytest.approx(found.together.value, rel=1e-4)


def test_a_loss_that_reads_where_predictions_fail_reads_errors_louder() -> None:
    made = Planted(30, common=0.3)
    half = np.arange(CONTEXTS) % 2
    made.wrong_LC[:, half == 0] = 0
    reads = np.broadcast_to(np.eye(WIDTH, dtype=np.float32), (CONTEXTS, WIDTH, WIDTH)) * half[:, None, None]
    found = made.piloted(np.arange(30), np.arange(CONTEXTS), reads.astype(np.float32))
    assert found.read.value == pytest.approx(2, rel=0.05)
