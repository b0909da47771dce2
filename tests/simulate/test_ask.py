import numpy as np
import pytest

from nlrewrite.artifacts import Artifact, Store, Work
from nlrewrite.llm.engine import Outcome
from nlrewrite.progress import Progress
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


def test_what_was_finished_before_a_kill_is_not_asked_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert work.read("asked-000000-6") is not None
    work.clear()
    assert work.read("asked-000000-6") is None
