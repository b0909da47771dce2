"""A small corpus of made-up documents, a byte-level tokenizer trained on it, and both as artifacts of a store."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import TextFolder, TextSpec, TinySubject
from nlrewrite.text import sources

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "reads",
    "writes",
    "café",
    "木",
    "number",
    "of",
    "sentence",
    "under",
    "seven\n",
]


def made_up(number: int) -> str:
    random = generator(0, "made up", number)
    return " ".join(WORDS[each] for each in random.integers(0, len(WORDS), size=int(random.integers(30, 200))))


def train_tokenizer(folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


@pytest.fixture(scope="module")
def execution(tmp_path_factory: pytest.TempPathFactory) -> Execution:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(made_up(number), encoding="utf-8")
    return Execution(text_folder=str(folder))


@pytest.fixture(scope="module")
def text_spec(execution: Execution) -> TextSpec:
    return TextSpec(source=sources.identified(TextFolder(), execution))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def corpus_folder(store: Store, text_spec: TextSpec, execution: Execution) -> Folder:
    artifact = steps.name("corpus", text_spec, {})
    steps.build(artifact, text_spec, {}, store, execution, Progress(), "test", store.find(artifact))
    return store.folder(artifact)


@pytest.fixture(scope="module")
def subject_folder(store: Store, corpus_folder: Folder) -> Folder:
    """No model, only what the tokens step reads of one."""
    artifact = Artifact(kind="subject", digest="0" * 16)
    with store.attempt(artifact) as attempt:
        train_tokenizer(attempt.folder, [made_up(number) for number in range(20)])
        made = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
        store.commit(attempt, version=1, spec=TinySubject(), inputs={}, made=made)
    return store.folder(artifact)
