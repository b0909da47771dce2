from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.execution import Execution
from nlrewrite.language import reading
from nlrewrite.language.reading import distributions
from nlrewrite.progress import Progress
from nlrewrite.simulate import rules
from nlrewrite.specs import SimulateSpec, Spec
from nlrewrite.steps import STEPS, Running, provenance
from nlrewrite.text.tokenizer import token_texts
from tests.text.conftest import made_up, train_tokenizer

SENTENCES = [
    'Fires on "e" (4), " " or "s" (2). Stronger right after "t" (+3).',
    "",
    "Fires on everything, always.",
    r'Fires on "\n" (9). Silent within 4 tokens after "h".',
    "Never fires.",
    'Fires on "a" (5). Weaker right after the start (-2).',
]
RUNNING = Running(Execution(), Progress())


def folder(store: Store, kind: str, digest: str, write) -> Folder:
    artifact = Artifact(kind=kind, digest=digest * 16)
    with store.attempt(artifact) as attempt:
        write(attempt.folder)
        made = provenance(STEPS["corpus"], Execution(), "test", 0.0)
        store.commit(attempt, version=1, spec=Spec(), inputs={}, made=made)
    return store.folder(artifact)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    draws = np.random.default_rng(0)
    lengths = np.array([12, 20, 7], dtype=np.int32)
    columns = {name: np.arange(3, dtype=np.int32) for name in ("document", "group", "start")}

    def subject(out: Path) -> None:
        train_tokenizer(out, [made_up(number) for number in range(20)])

    def tokens(out: Path) -> None:
        ids = draws.integers(1, 300, (3, 21)).astype(np.int32)
        spelled = token_texts(store.folder(Artifact(kind="subject", digest="1" * 16)).root())
        common = [spelled.index(text) for text in (b"e", b" ", b"s", b"t", b"\n", b"h", b"a")]
        ids[draws.random(ids.shape) < 0.7] = 0
        ids = np.where(ids == 0, draws.choice(common, ids.shape), ids).astype(np.int32)
        save_file({"tokens": ids, "lengths": lengths, **columns}, out / "report.safetensors")

    def explanations(out: Path) -> None:
        pd.DataFrame({"sentence": SENTENCES}).to_parquet(out / "explanations.parquet")

    return {
        "subject": folder(store, "subject", "1", subject),
        "tokens": folder(store, "tokens", "2", tokens),
        "explanations": folder(store, "explanations", "3", explanations),
    }


def simulated(inputs: dict[str, Folder], out: Path, **fields: object) -> rules.Simulated:
    rules.build(SimulateSpec(split="report", **fields), inputs, out, RUNNING)

    class Local:
        def path(self, name: str) -> Path:
            return out / name

    return rules.read(Local())  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [1, 3, 32])
def test_every_pair_is_what_the_reader_says_of_its_context(inputs, tmp_path: Path, window: int) -> None:
    found = simulated(inputs, tmp_path, window=window)
    windows = rules.read_windows(inputs["tokens"], "report")
    spelled = token_texts(inputs["subject"].root())
    pairs = zip(found.latent.tolist(), found.position.tolist(), strict=True)
    told = dict(zip(pairs, found.level.tolist(), strict=True))
    assert len(told) == len(found.latent) > 5
    at = 0
    for row in range(3):
        for place in range(windows.lengths[row]):
            context = [spelled[token] for token in windows.tokens[row, : place + 1]]
            for latent in (0, 3, 4, 5):
                expected = reading.simulate(SENTENCES[latent], context, window)
                assert (distributions()[told.pop((latent, at), 0)] == expected).all()
            at += 1
    assert told == {}
    assert found.expected == pytest.approx(distributions() @ np.arange(10))


def test_pairs_are_sorted_and_failures_are_counted(inputs, tmp_path: Path) -> None:
    found = simulated(inputs, tmp_path)
    order = found.latent.astype(np.int64) * 1000 + found.position
    assert (np.diff(order) > 0).all()
    assert (found.level > 0).all()
    assert found.explained.tolist() == [True, False, False, True, True, True]
    outcomes = pd.read_parquet(tmp_path / "outcomes.parquet")
    assert outcomes["outcome"].tolist() == ["ok", "unexplained", "unparseable", "ok", "ok", "ok"]
    assert outcomes["sentence_of"].tolist() == list(range(6))


def test_a_shuffled_simulation_reads_other_latents_sentences(inputs, tmp_path: Path) -> None:
    plain = simulated(inputs, tmp_path)
    (tmp_path / "shuffled").mkdir()
    found = simulated(inputs, tmp_path / "shuffled", shuffle=True)
    outcomes = pd.read_parquet(tmp_path / "shuffled" / "outcomes.parquet")
    source = outcomes["sentence_of"].to_numpy()
    names = {"": "unexplained", SENTENCES[2]: "unparseable"}
    assert outcomes["outcome"].tolist() == [names.get(SENTENCES[origin], "ok") for origin in source]
    for latent, origin in enumerate(source):
        pairs, original = found.latent == latent, plain.latent == origin
        assert found.position[pairs].tolist() == plain.position[original].tolist()
        assert found.level[pairs].tolist() == plain.level[original].tolist()


def test_two_simulations_have_the_same_bytes(inputs, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        simulated(inputs, tmp_path / name, shuffle=True)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["distributions.json", "levels.safetensors", "outcomes.parquet"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_nothing_explained_is_no_pairs(inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "read_sentences", lambda folder: ["", ""])
    found = simulated(inputs, tmp_path)
    assert (len(found.latent), len(found.position), len(found.level)) == (0, 0, 0)
    assert found.explained.tolist() == [False, False]


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5))
def test_shuffling_permutes_the_explained_latents_without_fixed_points(explained: list[bool], seed: int) -> None:
    sentences = ["a sentence" if each else "" for each in explained]
    source = rules.shuffled(sentences, seed)
    some = np.flatnonzero(explained)
    assert sorted(source[some]) == some.tolist()
    if len(some) > 1:
        assert (source[some] != some).all()
    silent = np.flatnonzero(~np.array(explained, dtype=bool))
    assert (source[silent] == silent).all()
    assert (rules.shuffled(sentences, seed) == source).all()


def test_another_seed_shuffles_otherwise() -> None:
    sentences = ["a sentence"] * 50
    assert (rules.shuffled(sentences, 0) != rules.shuffled(sentences, 1)).any()


def test_pairs_at_some_positions() -> None:
    pairs = rules.Simulated(
        np.array([0, 0, 1]), np.array([1, 3, 3]), np.array([2, 5, 9]), np.arange(10.0), np.array([True, True])
    )
    some = pairs.at(np.array([False, True, False, False]))
    assert (some.latent.tolist(), some.position.tolist(), some.level.tolist()) == ([0], [1], [2])
