from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.calibrate.cells import cells
from nlrewrite.execution import Execution
from nlrewrite.explain.gate import Gates
from nlrewrite.language.reading import distributions
from nlrewrite.seeds import generator
from nlrewrite.simulate import gating, rules
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Spoken
from nlrewrite.specs import GatingSpec, SimulateSpec, Split
from nlrewrite.steps import STEPS, provenance
from tests.simulate.test_simulate_rules import RUNNING, folder

LATENTS, VOCABULARY, POSITIONS = 6, 12, 90


def planted(seed: int = 0) -> tuple[Gates, np.ndarray, Simulated]:
    """Gates of all latents but the last, tokens, and what sentences say of all but the first."""
    draws = generator(seed, "gating")
    open_LV = draws.random((LATENTS, VOCABULARY)) < 0.3
    open_LV[:, 0], open_LV[-1] = True, False
    latent, token = np.nonzero(open_LV)
    explained = np.arange(LATENTS) > 0
    level_LP = draws.integers(1, 10, (LATENTS, POSITIONS)) * (draws.random((LATENTS, POSITIONS)) < 0.4)
    level_LP[0] = 0
    named, position = np.nonzero(level_LP)
    said = Simulated(named, position, level_LP[named, position].astype(np.int8), distributions(), explained)
    return Gates(latent, token, LATENTS), draws.integers(0, VOCABULARY, POSITIONS), said


def dense(found: Simulated) -> np.ndarray:
    return Spoken(found, POSITIONS).scores(slice(None)).astype(int)


@given(st.integers(0, 30))
def test_a_gate_alone_is_a_lookup_of_tokens_that_says_0_or_1(seed: int) -> None:
    gates, token_P, said = planted(seed)
    found = gating.inside(gates, token_P, said, sentence=False)
    table = np.zeros((LATENTS, VOCABULARY), dtype=int)
    table[gates.latent, gates.token] = 1
    assert (dense(found) == table[:, token_P]).all()
    assert (found.levels, found.explained.tolist()) == (2, [True] * (LATENTS - 1) + [False])
    order = found.latent.astype(int) * POSITIONS + found.position
    assert (np.diff(order) > 0).all()


@given(st.integers(0, 30))
def test_inside_the_gate_the_sentence_speaks_one_level_higher(seed: int) -> None:
    gates, token_P, said = planted(seed)
    found = gating.inside(gates, token_P, said, sentence=True)
    open_LP = dense(gating.inside(gates, token_P, said, sentence=False)) == 1
    both = said.explained & gates.there
    assert found.explained.tolist() == both.tolist() == [False] + [True] * (LATENTS - 2) + [False]
    assert (dense(found) == np.where(open_LP & both[:, None], 1 + dense(said), 0)).all()
    assert (found.levels, found.level.max(initial=0) <= 10) == (11, True)


def test_levels_mean_distributions_that_tell_them_apart() -> None:
    for table in (gating.of_gate(), gating.of_gated(distributions())):
        assert table.sum(1) == pytest.approx(1)
        assert (table >= 0).all()
        assert table[0, 0] == 1
        expected = table @ np.arange(10)
        assert (np.diff(expected) > 0).all()
    assert (gating.of_gated(distributions())[2:] == distributions()[1:]).all()


def test_cells_count_as_many_levels_as_there_are() -> None:
    from scipy import sparse

    gates, token_P, said = planted()
    truth = sparse.csr_matrix((generator(0, "truth").random((POSITIONS, LATENTS)) < 0.2).astype(np.float32))
    for sentence, levels in ((False, 2), (True, 11)):
        found = gating.inside(gates, token_P, said, sentence)
        counted = cells(found, truth)
        assert counted.said.shape == counted.active.shape == (LATENTS, levels)
        assert (counted.said.sum(1) == POSITIONS).all()
        for level in range(levels):
            assert (counted.said[:, level] == (dense(found) == level).sum(1)).all()


def test_a_closed_gate_is_no_pair() -> None:
    _, token_P, said = planted()
    none = Gates(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32), LATENTS)
    for sentence in (False, True):
        found = gating.inside(none, token_P, said, sentence)
        assert (len(found.latent), found.explained.any()) == (0, False)


# -- the step ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    gates, token_P, said = planted()
    column = {name: np.arange(3, dtype=np.int32) for name in ("document", "group", "start")}

    def tokens(out: Path) -> None:
        ids = np.concatenate([token_P.reshape(3, 30), np.zeros((3, 1), int)], 1).astype(np.int32)
        save_file({"tokens": ids, "lengths": np.full(3, 30, np.int32), **column}, out / "report.safetensors")

    def fill_gates(out: Path) -> None:
        pd.DataFrame({"latent": np.arange(LATENTS)}).to_parquet(out / "gates.parquet")
        pd.DataFrame({"latent": gates.latent, "token": gates.token}).to_parquet(out / "members.parquet")

    def simulated(split: Split, digest: str) -> Folder:
        artifact = Artifact(kind="simulation", digest=digest * 16)
        with store.attempt(artifact) as attempt:
            pairs = {"latent": said.latent.astype(np.int32), "position": said.position.astype(np.int32)}
            save_file({**pairs, "level": said.level}, attempt.folder / rules.LEVELS)
            outcome = np.where(said.explained, "ok", "unparseable")
            table = pd.DataFrame({"latent": np.arange(LATENTS), "sentence_of": np.arange(LATENTS), "outcome": outcome})
            table.to_parquet(attempt.folder / "outcomes.parquet")
            (attempt.folder / "distributions.json").write_text(f'{{"levels": {distributions().tolist()}}}')
            made = provenance(STEPS["corpus"], Execution(), "test", 0.0)
            store.commit(attempt, version=1, spec=SimulateSpec(split=split), inputs={}, made=made)
        return store.folder(artifact)

    return {
        "tokens": folder(store, "tokens", "1", tokens),
        "gates": folder(store, "gates", "2", fill_gates),
        "simulation": simulated("report", "3"),
        "elsewhere": simulated("calibrate", "4"),
    }


@pytest.mark.parametrize(
    ("sentence", "outcomes"),
    [(False, ["ok"] * 5 + ["unexplained"]), (True, ["unparseable"] + ["ok"] * 4 + ["unexplained"])],
)
def test_the_step_writes_the_files_of_a_simulation(
    inputs: dict[str, Folder], tmp_path: Path, sentence: bool, outcomes: list[str]
) -> None:
    gating.build(GatingSpec(sentence=sentence), inputs, tmp_path, RUNNING)

    class Local:
        def path(self, name: str) -> Path:
            return tmp_path / name

    found, expected = rules.read(Local()), gating.inside(*planted(), sentence)  # type: ignore[arg-type]
    for name in ("latent", "position", "level", "digits_ZD", "explained"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name
    simulation = inputs["simulation"]
    theirs = {name: each.dtype for name, each in load_file(simulation.path(rules.LEVELS)).items()}
    assert {name: each.dtype for name, each in load_file(tmp_path / rules.LEVELS).items()} == theirs
    table = pd.read_parquet(tmp_path / "outcomes.parquet")
    assert table["outcome"].tolist() == outcomes
    assert table["sentence_of"].tolist() == list(range(LATENTS))


def test_a_gate_and_its_sentence_are_read_on_one_split(inputs: dict[str, Folder], tmp_path: Path) -> None:
    given = {**inputs, "simulation": inputs["elsewhere"]}
    with pytest.raises(AssertionError, match="on the report split was given a simulation of the calibrate split"):
        gating.build(GatingSpec(), given, tmp_path, RUNNING)
