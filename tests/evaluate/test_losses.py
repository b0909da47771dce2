import numpy as np
import pytest
import torch

from nlrewrite.evaluate import losses as measuring
from nlrewrite.evaluate.losses import Where, losses
from nlrewrite.progress import Progress
from nlrewrite.subject import sites
from tests.evaluate.planted import Planted, planted

PROGRESS = Progress()


@pytest.fixture(scope="module")
def given() -> Planted:
    return planted()


def shifted(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * y + x + torch.from_numpy(rows)[:, None] / 50


def own(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y


def coded(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.9 * y


def one_by_one(given: Planted, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The patched losses by forward passes over single windows without padding."""
    ce, kl, at = [], [], 0
    for row, length in enumerate(given.windows.lengths.tolist()):
        ids = torch.from_numpy(given.windows.tokens[row : row + 1, : length + 1].astype(np.int64))
        rows = np.arange(at, at + length)
        at += length
        chosen = slice(0, length) if where == "all" else slice(length - 1, length)

        def replace(x, y, rows=rows, chosen=chosen):
            full = y.clone()
            full[0, chosen] = shifted(rows[chosen], x[0, chosen], y[0, chosen])
            return full

        original = torch.log_softmax(sites.logits(given.model, ids[:, :-1]), -1)[0]
        with sites.patched(given.model, given.located, replace):
            found = torch.log_softmax(sites.logits(given.model, ids[:, :-1]), -1)[0]
        ce.append(-found.gather(1, ids[0, 1:, None])[chosen, 0])
        kl.append((original.exp() * (original - found)).sum(-1)[chosen])
    return torch.cat(ce).numpy(), torch.cat(kl).numpy()


@pytest.mark.parametrize("where", ["all", "last"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 1000])
def test_losses_are_those_of_windows_taken_alone(given: Planted, where, batch_tokens: int) -> None:
    found = losses(given.model, given.located, given.windows, {"a": (where, shifted)}, batch_tokens, PROGRESS)["a"]
    ce, kl = one_by_one(given, where)
    assert len(found.ce) == (len(given.where) if where == "all" else len(given.windows))
    assert found.ce == pytest.approx(ce, abs=2e-5)
    assert found.kl == pytest.approx(kl, abs=2e-5)
    assert kl.max() > 0.01


@pytest.mark.parametrize("where", ["all", "last"])
def test_the_sites_own_output_changes_nothing(given: Planted, where) -> None:
    found = losses(
        given.model, given.located, given.windows, {"own": (where, own), "original": (where, None)}, 30, PROGRESS
    )
    assert (found["own"].ce == found["original"].ce).all()
    assert (found["own"].kl == 0).all()
    assert (found["original"].kl == 0).all()


def test_patching_the_last_position_leaves_the_others_alone(given: Planted) -> None:
    """At the last position all that differs from patching everywhere is what attention brings from before it."""
    arms = {"last": ("last", shifted), "all": ("all", shifted), "original": ("last", None)}
    found = losses(given.model, given.located, given.windows, arms, 1000, PROGRESS)
    last = np.cumsum(given.windows.lengths) - 1
    assert (np.abs(found["last"].ce - found["all"].ce[last]) > 1e-4).any()
    assert (np.abs(found["last"].ce - found["original"].ce) > 1e-4).all()
    seen: list[np.ndarray] = []

    def spy(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        assert (x - given.x_PD[rows]).abs().max() < 1e-4
        assert (y - given.y_PE[rows]).abs().max() < 1e-4
        return y

    losses(given.model, given.located, given.windows, {"spy": ("last", spy)}, 30, PROGRESS)
    assert np.concatenate(seen).tolist() == last.tolist()
    seen.clear()
    losses(given.model, given.located, given.windows, {"spy": ("all", spy)}, 30, PROGRESS)
    assert np.concatenate(seen).tolist() == list(range(len(given.where)))


def test_what_stands_behind_a_window_does_not_matter(given: Planted) -> None:
    arms = {"a": ("all", shifted), "b": ("last", shifted)}
    first = losses(given.model, given.located, given.windows, arms, 1000, PROGRESS)
    other = given.windows[:]
    tokens = other.tokens.copy()
    for row, length in enumerate(other.lengths):
        tokens[row, length + 1 :] = 5
    changed = type(other)(tokens, other.lengths, other.document, other.group, other.start)
    again = losses(given.model, given.located, changed, arms, 1000, PROGRESS)
    for name in arms:
        assert (first[name].ce == again[name].ce).all()
        assert (first[name].kl == again[name].kl).all()


def test_a_uniform_prediction_costs_the_logarithm_of_the_vocabulary(given: Planted) -> None:
    def blown_up(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(y)

    head = given.model.get_output_embeddings().weight
    kept = head.data.clone()
    try:
        head.data.zero_()
        found = losses(given.model, given.located, given.windows, {"a": ("all", blown_up)}, 1000, PROGRESS)["a"]
    finally:
        head.data.copy_(kept)
    assert found.ce == pytest.approx(np.full(len(found.ce), np.log(head.shape[0])), abs=1e-5)
    assert found.kl == pytest.approx(np.zeros(len(found.kl)), abs=1e-6)


@pytest.mark.parametrize("where", ["all", "last"])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_arms_are_compared_with_the_coder_and_the_originals_first_choice(
    given: Planted, where: Where, batch_tokens: int
) -> None:
    logits: dict[str, torch.Tensor] = {}
    writes = {"original": None, "coder": coded, "patched": shifted}
    for name, write in writes.items():
        at, kept = 0, []
        for row, length in enumerate(given.windows.lengths.tolist()):
            ids = torch.from_numpy(given.windows.tokens[row : row + 1, :length].astype(np.int64))
            rows, at = np.arange(at, at + length), at + length
            chosen = slice(0, length) if where == "all" else slice(length - 1, length)

            def replace(x, y, rows=rows, chosen=chosen, write=write):
                full = y.clone()
                full[0, chosen] = y[0, chosen] if write is None else write(rows[chosen], x[0, chosen], y[0, chosen])
                return full

            with sites.patched(given.model, given.located, replace):
                kept.append(torch.log_softmax(sites.logits(given.model, ids), -1)[0, chosen])
        logits[name] = torch.cat(kept)
    arms = {name: (where, write) for name, write in writes.items()}
    found = losses(given.model, given.located, given.windows, arms, batch_tokens, PROGRESS, {where: "coder"})
    for name, patched in logits.items():
        expected = (logits["coder"].exp() * (logits["coder"] - patched)).sum(-1)
        assert found[name].kl_coder == pytest.approx(expected.numpy(), abs=2e-5)
        agrees = patched.argmax(-1) == logits["original"].argmax(-1)
        assert found[name].agrees is not None
        assert found[name].agrees.tolist() == agrees.tolist()
    assert not np.any(found["coder"].kl_coder)
    assert np.min(found["original"].kl_coder) > 0
    assert 0 < np.mean(found["patched"].agrees) < 1
    alone = losses(given.model, given.located, given.windows, arms, batch_tokens, PROGRESS)
    assert alone["patched"].kl_coder is None
    assert alone["patched"].kl.tolist() == found["patched"].kl.tolist()


def test_a_coder_is_measured_once_for_all_arms(given: Planted) -> None:
    calls: list[int] = []

    def counting(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return coded(rows, x, y)

    arms = {"a": ("all", shifted), "coder": ("all", counting), "b": ("all", shifted)}
    losses(given.model, given.located, given.windows, arms, 1000, PROGRESS, {"all": "coder"})
    assert calls == [len(given.where)]


def test_divergences_do_not_depend_on_how_many_are_computed_at_a_time(
    given: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"a": ("all", shifted)}
    whole = losses(given.model, given.located, given.windows, arms, 1000, PROGRESS)["a"]
    monkeypatch.setattr(measuring, "CHUNK", 100)
    parts = losses(given.model, given.located, given.windows, arms, 1000, PROGRESS)["a"]
    assert parts.kl == pytest.approx(whole.kl, abs=1e-7)
