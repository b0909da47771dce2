from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nlrewrite.artifacts import Artifact, Store, Work
from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome, PrefixBlock, Scores
from nlrewrite.progress import Advance, Progress
from nlrewrite.questions import Order
from nlrewrite.simulate import ask as asking
from nlrewrite.simulate.ask import NOTHING, ask
from tests.simulate.asking import Told

SENTENCES = ["one", "two", "", "four"]
SHOWN = ["a", "bb", "ccc", "dddd", "eeeee"]


class Ids:
    """Prompts whose token ids are their characters."""

    labels = tuple(range(10))

    def prefix(self, **given: str) -> np.ndarray:
        return np.array([1, *map(ord, str(sorted(given.items())))], dtype=np.int32)

    def split_checked(self, prefix_given: dict[str, str], suffix_given: dict[str, str]) -> None:
        assert not prefix_given.keys() & suffix_given.keys()

    def suffix(self, **given: str) -> np.ndarray:
        return np.array([2, *map(ord, str(sorted(given.items())))], dtype=np.int32)


def expected(engine: Told, order: Order, latent: int, context: int) -> np.ndarray:
    sentence, shown = {"explanation": SENTENCES[latent]}, {"context": SHOWN[context]}
    first, second = (shown, sentence) if order == "context" else (sentence, shown)
    return engine.answer(Ids().prefix(**first), Ids().suffix(**second), 10)[0]


@pytest.mark.parametrize("order", ["context", "explanation"])
def test_every_pair_gets_its_own_answer(order: Order) -> None:
    context_LS = np.array([[0, 3, NOTHING], [1, 2, 4], [0, 1, 2], [4, NOTHING, 0]], dtype=np.int32)
    engine = Told()
    found = ask(engine, Ids(), SENTENCES, SHOWN, context_LS, order, Progress())  # type: ignore[arg-type]
    for latent in range(4):
        for column, context in enumerate(context_LS[latent]):
            if context == NOTHING or not SENTENCES[latent]:
                assert np.isnan(found.logp[latent, column]).all()
                assert found.outcome[latent, column] == Outcome.SKIPPED
            else:
                right = expected(engine, order, latent, context)
                np.testing.assert_array_equal(found.logp[latent, column], right.astype(np.float16))
    asked = 7
    assert sum(len(block) for block in engine.blocks) == asked
    assert len(engine.blocks) == (5 if order == "context" else 3)  # one for each prefix that is asked about


def test_the_same_contexts_for_all_latents() -> None:
    context_1S = np.arange(5, dtype=np.int32)[None]
    own = np.repeat(context_1S, 4, axis=0)
    shared, each = (
        ask(Told(), Ids(), SENTENCES, SHOWN, contexts, "context", Progress())  # type: ignore[arg-type]
        for contexts in (context_1S, own)
    )
    np.testing.assert_array_equal(shared.logp, each.logp)
    assert shared.logmass is not None and shared.logmass.shape == (4, 5)


def test_a_failed_answer_is_missing_and_counted() -> None:
    contexts = np.arange(5, dtype=np.int32)[None]
    found = ask(Told(failing=0.5), Ids(), SENTENCES, SHOWN, contexts, "context", Progress())  # type: ignore[arg-type]
    failed = found.outcome == Outcome.UNPARSEABLE
    assert 0 < failed.sum() < 15
    assert np.isnan(found.logp[failed]).all() and np.isfinite(found.logp[found.outcome == Outcome.OK]).all()


def test_what_was_finished_before_a_kill_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PIECE", 4)
    contexts = np.arange(5, dtype=np.int32)[None]
    work = Work(Store(str(tmp_path)).place, Artifact(kind="answers", digest="0" * 16))
    killed, again, whole = Told(most=3), Told(), Told()
    with pytest.raises(OSError, match="killed here"):
        ask(killed, Ids(), SENTENCES, SHOWN, contexts, "context", Progress(), work)  # type: ignore[arg-type]
    found = ask(again, Ids(), SENTENCES, SHOWN, contexts, "context", Progress(), work)  # type: ignore[arg-type]
    right = ask(whole, Ids(), SENTENCES, SHOWN, contexts, "context", Progress())  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.logp, right.logp)
    np.testing.assert_array_equal(found.outcome, right.outcome)
    assert len(whole.blocks) == 5 and len(again.blocks) == 3  # two blocks a piece: one piece was finished
    assert work.read("asked-0000000000-6") is not None
    work.clear()
    assert work.read("asked-0000000000-6") is None


class Away(Told):
    """Leaves whole blocks without an answer, of which it then tells nothing else either."""

    def __init__(self, blocks: set[int], outcome: Outcome) -> None:
        super().__init__()
        self._away, self._outcome = blocks, outcome

    def digits(self, block: PrefixBlock) -> Scores:
        found, away = super().digits(block), len(self.blocks) - 1 in self._away
        if not away:
            return Scores(found.logp, found.logmass, found.outcome, top=np.ones(found.logp.shape, dtype=bool))
        nothing = np.full(found.logp.shape, np.nan, dtype=np.float32)
        return Scores(nothing, None, np.full(len(block), self._outcome, dtype=np.int8))


def test_a_block_that_nothing_answered_spoils_no_others(tmp_path: Path) -> None:
    contexts = np.arange(5, dtype=np.int32)[None]
    work = Work(Store(str(tmp_path)).place, Artifact(kind="answers", digest="0" * 16))
    away, back = Away({0, 3}, Outcome.TRANSPORT), Away(set(), Outcome.TRANSPORT)
    found = ask(away, Ids(), SENTENCES, SHOWN, contexts, "context", Progress(), work)  # type: ignore[arg-type]
    lost = found.outcome == Outcome.TRANSPORT
    assert lost[:, [0, 3]].sum() == lost.sum() == 6
    assert found.top is not None and found.logmass is not None
    assert np.isnan(found.logp[lost]).all() and np.isnan(found.logmass[lost]).all() and not found.top[lost].any()
    answered = found.outcome == Outcome.OK
    assert np.isfinite(found.logmass[answered]).all() and found.top[answered].all()
    again = ask(back, Ids(), SENTENCES, SHOWN, contexts, "context", Progress(), work)  # type: ignore[arg-type]
    assert len(back.blocks) == 2 and not (again.outcome == Outcome.TRANSPORT).any()  # and nothing else is asked again
    np.testing.assert_array_equal(again.logp[answered], found.logp[answered])


class Counted(Progress):
    """Notes every advance."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda amount=1, note="": self.seen.append((amount, note))


def test_progress_goes_on_block_by_block_and_tells_what_was_kept(tmp_path: Path) -> None:
    contexts = np.arange(5, dtype=np.int32)[None]
    work = Work(Store(str(tmp_path)).place, Artifact(kind="answers", digest="0" * 16))
    first, again = Counted(), Counted()
    for progress in (first, again):
        ask(Told(), Ids(), SENTENCES, SHOWN, contexts, "context", progress, work)  # type: ignore[arg-type]
    assert first.seen == [(3, "")] * 5
    assert again.seen == [(15, "kept from before")]


def test_a_limit_decides_nothing_about_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PIECE", 4)
    contexts = np.arange(5, dtype=np.int32)[None]
    work = Work(Store(str(tmp_path)).place, Artifact(kind="answers", digest="0" * 16))
    spent, more = Away({3}, Outcome.SKIPPED), Away(set(), Outcome.SKIPPED)
    with pytest.raises(SettingError, match="left 3 of 6 questions unasked"):
        ask(spent, Ids(), SENTENCES, SHOWN, contexts, "context", Progress(), work)  # type: ignore[arg-type]
    ask(more, Ids(), SENTENCES, SHOWN, contexts, "context", Progress(), work)  # type: ignore[arg-type]
    assert len(more.blocks) == 2  # the one that was too dear, and the one behind it
    dropped = ask(
        Away({3}, Outcome.SKIPPED),
        Ids(),  # type: ignore[arg-type]
        SENTENCES,
        SHOWN,
        contexts,
        "context",
        Progress(),
        screened=True,
    )
    assert (dropped.outcome[[0, 1, 3], 3] == Outcome.SKIPPED).all()
