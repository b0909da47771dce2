import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nlrewrite import steps
from nlrewrite.activations.pairs import Active
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.execution import Execution
from nlrewrite.explain import gate
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import ActivationsSpec, GatesSpec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows
from tests.simulate.test_simulate_rules import RUNNING, folder
from tests.text.conftest import made_up, train_tokenizer

LATENTS = 5


def learned(token_P: np.ndarray, active_P: np.ndarray, **fields: float) -> gate.Gate:
    active = Active(np.zeros((len(token_P), 1), dtype=np.int32), active_P[:, None].astype(np.float32))
    seen_V = np.bincount(token_P, minlength=30)
    return gate.gate(active.by_latent(1), 0, token_P, seen_V, GatesSpec.model_validate(fields))


@given(st.integers(0, 50), st.floats(0.05, 1), st.floats(0.01, 0.9))
def test_a_gate_keeps_its_share_and_not_a_token_more(seed: int, keep: float, rate: float) -> None:
    draws = generator(seed, "gate")
    token = draws.integers(0, 20, 400)
    active = draws.random(400) < rate * (token + 1) / 20
    found = learned(token, active, keep=keep)
    inside = np.isin(token, found.tokens)
    if not active.any():
        assert (len(found.tokens), found.kept, found.passed) == (0, 0.0, 0.0)
        return
    assert found.kept == pytest.approx(active[inside].mean() * inside.sum() / active.sum())
    assert found.kept >= keep - 1e-9
    assert found.passed == pytest.approx(inside.mean())
    shorter = np.isin(token, found.tokens[:-1])
    assert (active & shorter).sum() < keep * active.sum() + 1e-9
    often = [active[token == each].mean() for each in found.tokens]
    assert often == sorted(often, reverse=True)
    others = np.setdiff1d(np.arange(20), found.tokens)
    assert all(active[token == each].mean() <= often[-1] for each in others if (token == each).any())


def test_no_set_of_tokens_with_less_traffic_keeps_as_much() -> None:
    """Against all sets of six tokens: what keeps the same or more lets more through, or as much."""
    draws = generator(1, "traffic")
    token = draws.integers(0, 6, 300)
    active = draws.random(300) < np.array([0.9, 0.5, 0.3, 0.1, 0.05, 0.0])[token]
    found = learned(token, active, keep=0.8)
    kept, passed = (active & np.isin(token, found.tokens)).sum(), np.isin(token, found.tokens).sum()
    for chosen in range(1 << 6):
        some = np.isin(token, np.flatnonzero([(chosen >> bit) & 1 for bit in range(6)]))
        assert (active & some).sum() < kept or some.sum() >= passed


def test_ties_go_by_id_and_a_gate_that_is_full_says_what_it_keeps() -> None:
    token = np.repeat(np.arange(10), 4)
    found = learned(token, np.ones(40, dtype=bool), keep=1.0, tokens=3)
    assert found.tokens.tolist() == [0, 1, 2]
    assert (found.kept, found.passed) == (pytest.approx(0.3), pytest.approx(0.3))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "Never active."),
        ([b" the"], 'Active only on " the".'),
        ([b"a", b'"', b"\n"], r'Active only on "a", "\"" or "\n".'),
    ],
)
def test_the_clause_is_english(texts: list[bytes], said: str) -> None:
    assert gate.clause(texts) == said


# -- the step ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def inputs(store: Store) -> dict[str, Folder]:
    draws = generator(0, "gates")
    columns = {name: np.arange(4, dtype=np.int32) for name in ("document", "group", "start")}
    ids = {split: draws.integers(1, 40, (4, 31)).astype(np.int32) for split in ("explain", "report")}

    def subject(out: Path) -> None:
        train_tokenizer(out, [made_up(number) for number in range(20)])

    def tokens(out: Path) -> None:
        for split, each in ids.items():
            save_file({"tokens": each, "lengths": np.full(4, 30, np.int32), **columns}, out / f"{split}.safetensors")

    def activations(out: Path) -> None:
        token = ids["explain"][:, :30].ravel()
        latents = draws.integers(0, LATENTS - 1, (len(token), 2)).astype(np.int32)
        latents[:, 1] = (latents[:, 0] + 1) % (LATENTS - 1)
        values = (draws.random(latents.shape) < 0.4).astype(np.float32)
        save_file({"latents": latents, "values": values}, out / "pairs.safetensors")
        pd.DataFrame({"latent": np.arange(LATENTS)}).to_parquet(out / "latents.parquet")

    return {
        "subject": folder(store, "subject", "1", subject),
        "tokens": folder(store, "tokens", "2", tokens),
        "activations": folder(store, "activations", "3", activations),
    }


class Local:
    """A folder of files as the readers of artifacts take it."""

    def __init__(self, root: Path) -> None:
        self.folder = root

    def path(self, name: str) -> Path:
        return self.folder / name


def test_the_files_say_what_passes(store: Store, inputs: dict[str, Folder], tmp_path: Path) -> None:
    gate.build(GatesSpec(keep=0.9), inputs, tmp_path, RUNNING)
    table, found = pd.read_parquet(tmp_path / "gates.parquet"), gate.read_gates(Local(tmp_path))  # type: ignore[arg-type]
    token = positions(read_windows(inputs["tokens"], "explain")).token
    spelled = token_texts(inputs["subject"].root())
    grouped = gate.read(inputs["activations"]).by_latent(LATENTS)
    assert found.there.tolist() == [True] * (LATENTS - 1) + [False]
    assert table["clause"].tolist()[-1] == "Never active."
    for latent in range(LATENTS - 1):
        members = found.token[found.latent == latent]
        position, _ = grouped.of(latent)
        assert np.isin(token[position], members).mean() == pytest.approx(table["kept"][latent])
        assert float(table["kept"].to_numpy()[latent]) >= 0.9 - 1e-6
        assert np.isin(token, members).mean() == pytest.approx(table["passed"][latent])
        assert len({spelled[member] for member in members}) == table["tokens"][latent]
        for member in members:
            assert gate.quote(spelled[member]) in table["clause"][latent]


def test_a_gate_never_sees_the_report_split(store: Store, inputs: dict[str, Folder], tmp_path: Path) -> None:
    """With other windows in the report split the bytes are the same, and its activations are refused."""

    def tokens(out: Path) -> None:
        shutil.copy(inputs["tokens"].path("explain.safetensors"), out)
        (out / "report.safetensors").write_text("nobody reads this")

    other = folder(store, "tokens", "4", tokens)
    for name, each in (("one", inputs["tokens"]), ("other", other)):
        (tmp_path / name).mkdir()
        gate.build(GatesSpec(), {**inputs, "tokens": each}, tmp_path / name, RUNNING)
    for file in ("gates.parquet", "members.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()

    active = Artifact(kind="activations", digest="5" * 16)
    with store.attempt(active) as attempt:
        (attempt.folder / "pairs.safetensors").write_text("nobody reads this either")
        made = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
        store.commit(attempt, version=1, spec=ActivationsSpec(split="report"), inputs={}, made=made)
    given = {name: each.manifest.artifact for name, each in inputs.items()} | {"activations": active}
    artifact = steps.name("gates", GatesSpec(), given)
    with pytest.raises(AssertionError, match="must read activations from the explain split, and was given the report"):
        steps.build(artifact, GatesSpec(), given, store, Execution(), Progress(), "test", store.find(artifact))
