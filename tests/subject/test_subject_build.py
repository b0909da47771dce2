import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from nlrewrite import specs, steps
from nlrewrite.artifacts import Artifact, Folder, Provenance, Store
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.subject import load, sites
from tests.subject import small_hub, small_models

REVISION = "0123456789abcdef0123456789abcdef01234567"
MODEL = "somebody/small"
CORPUS = Artifact(kind="corpus", digest="0" * 16)
MADE = Provenance(time="", seconds=0, run="", commit="", dirty=False, source="", packages={}, execution={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a corpus in it."""
    store = Store(str(tmp_path / "store"))
    split = ["train"] * 12 + ["explain"] * 6 + ["calibrate"] * 2 + ["report"] * 2
    texts = [
        f"{name} {number} the cat sat on the mat and the dog lay on the log. " * 8 for number, name in enumerate(split)
    ]
    documents = pyarrow.table(
        {
            "document": list(range(len(split))),
            "name": [f"document {number}" for number in range(len(split))],
            "text": texts,
            "group": list(range(len(split))),
            "split": split,
        }
    )
    with store.attempt(CORPUS) as attempt:
        pyarrow.parquet.write_table(documents, attempt.folder / "documents.parquet")
        store.commit(attempt, version=1, spec=specs.TextSpec(), inputs={}, made=MADE)
    return store


def build(store: Store, spec: specs.Spec, execution: Execution | None = None) -> Folder:
    artifact = steps.name("subject", spec, {"corpus": CORPUS})
    execution = execution or Execution()
    steps.build(artifact, spec, {"corpus": CORPUS}, store, execution, Progress(), "test", store.find(artifact))
    return store.folder(artifact)


def names(folder: Folder) -> set[str]:
    return {entry.path for entry in folder.manifest.files}


# -- the one we train -------------------------------------------------------------------------------------------------


TINY = specs.TinySubject(layers=1, width=32, vocabulary=300, context=32, batch=2, steps=3)


def test_the_tiny_subject_is_trained_stored_and_loaded(store):
    folder = build(store, TINY)
    assert {"config.json", load.WEIGHTS, load.REFERENCE, *load.TOKENIZER[:2], "training.json"} <= names(folder)
    assert any(name.startswith("checkpoints/") for name in names(folder))
    loaded = load.model(folder, Execution())
    assert sites.locate(loaded, specs.Site(layer=0)).name == "gpt_neox.layers.0.mlp"
    assert load.tokenizer_path(folder).name == "tokenizer.json"
    about = json.loads(folder.path(load.REFERENCE).read_text())
    assert about == {"kind": "tiny", "dtype": "float32", "model_type": "gpt_neox"}


def test_the_tiny_subject_is_trained_on_the_train_split_and_measured_on_explain(store, monkeypatch):
    seen = {}

    def train(spec, texts, held_out, out, running):
        seen.update(texts=texts, held_out=held_out)
        small_models.save(small_models.fresh("gpt_neox"), out)

    monkeypatch.setattr("nlrewrite.subject.tiny.train", train)
    build(store, TINY)
    assert [text.split()[0] for text in seen["texts"]] == ["train"] * 12
    assert [text.split()[0] for text in seen["held_out"]] == ["explain"] * 6


# -- a folder ---------------------------------------------------------------------------------------------------------


def of_folder(folder: Path) -> tuple[specs.FolderSubject, Execution]:
    return specs.FolderSubject(content=load.fingerprint(folder)), Execution(subject_folder=str(folder))


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama", "gemma2"])
def test_a_folder_is_copied_without_what_is_not_needed_and_then_no_longer_needed(store, tmp_path, family):
    root = small_models.save(small_models.fresh(family), tmp_path / "model", max_shard_size="20KB")
    (root / "training_args.bin").write_bytes(b"no weights")
    (root / "notes.md").write_text("no weights")
    folder = build(store, *of_folder(root))
    shards = {path.name for path in root.glob("*.safetensors")}
    assert len(shards) > 1
    assert names(folder) == {"config.json", load.INDEX, load.REFERENCE, *load.TOKENIZER[:2], *shards}
    shutil.rmtree(root)
    ids = small_models.ids()
    loaded = load.model(folder, Execution())
    assert torch.equal(sites.logits(loaded, ids), sites.logits(small_models.fresh(family), ids))


def test_the_dtype_of_a_folder_subject_is_the_specs(store, tmp_path):
    spec, execution = of_folder(small_models.save(small_models.fresh("llama"), tmp_path / "model"))
    folder = build(store, spec.model_copy(update={"dtype": "bfloat16"}), execution)
    assert next(load.model(folder, Execution()).parameters()).dtype == torch.bfloat16


def test_a_folder_that_changed_since_it_was_named_is_refused(store, tmp_path):
    root = small_models.save(small_models.fresh("llama"), tmp_path / "model")
    spec, execution = of_folder(root)
    small_models.save(small_models.fresh("llama", seed=1), root)
    with pytest.raises(SettingError, match=r"is not the folder that this result is named after: its content is"):
        build(store, spec, execution)


def test_a_folder_subject_needs_a_folder(store):
    with pytest.raises(SettingError, match="no folder is named"):
        build(store, specs.FolderSubject(content="0" * 64))


def test_an_unknown_family_is_refused_before_anything_is_copied(store, tmp_path):
    root = small_models.save(small_models.fresh("llama"), tmp_path / "model")
    described = json.loads((root / "config.json").read_text()) | {"model_type": "mistral"}
    (root / "config.json").write_text(json.dumps(described))
    with pytest.raises(SettingError, match="'mistral'"):
        build(store, *of_folder(root))


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return small_models.save(small_models.fresh("gpt2"), tmp_path / "published", max_shard_size="20KB")


HUB = specs.HubSubject(model=MODEL, revision=REVISION)


def test_of_a_hub_subject_only_the_reference_and_the_tokenizer_are_stored(store, published, tmp_path, monkeypatch):
    with small_hub.serving({(MODEL, REVISION): published}) as (address, asked):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        folder = build(store, HUB)
        assert names(folder) == {load.REFERENCE, *load.TOKENIZER[:2]}
        assert not any(path.startswith("GET") and path.endswith(".safetensors") for path in asked), (
            "weights wait until they are needed"
        )
        loaded = load.model(folder, Execution())
    ids = small_models.ids()
    assert torch.equal(sites.logits(loaded, ids), sites.logits(small_models.fresh("gpt2"), ids))
    assert json.loads(folder.path(load.REFERENCE).read_text()) == {
        "kind": "hub",
        "dtype": "float32",
        "model": MODEL,
        "model_type": "gpt2",
        "revision": REVISION,
    }
    small_hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    assert torch.equal(sites.logits(load.model(folder, Execution()), ids), sites.logits(loaded, ids))


def test_a_hub_that_cannot_be_reached_is_said_in_one_sentence(store, tmp_path, monkeypatch):
    small_hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    with pytest.raises(Unreachable, match=f"{MODEL} at 0123456789ab is not cached here and the hub cannot be reached"):
        build(store, HUB)


def test_weights_that_cannot_be_reached_are_said_when_the_model_is_loaded(store, published, tmp_path, monkeypatch):
    with small_hub.serving({(MODEL, REVISION): published}) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        folder = build(store, HUB)
    small_hub.use(monkeypatch, address, tmp_path / "cache", offline=True)
    with pytest.raises(Unreachable, match="the hub cannot be reached"):
        load.model(folder, Execution())


def test_a_model_the_hub_does_not_show_is_named(store, published, tmp_path, monkeypatch):
    with small_hub.serving({(MODEL, REVISION): published}) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(Unreachable, match="the hub shows no model somebody/else"):
            build(store, specs.HubSubject(model="somebody/else", revision=REVISION))
        with pytest.raises(Unreachable, match=f"the hub has no revision {'f' * 40} of {MODEL}"):
            build(store, specs.HubSubject(model=MODEL, revision="f" * 40))
        with pytest.raises(SettingError, match="'no id at all' is no model id"):
            build(store, specs.HubSubject(model="no id at all", revision=REVISION))


@pytest.mark.parametrize(
    ("weights", "message"),
    [("pytorch_model.bin", "only safetensors weights are read"), (None, "has no model.safetensors")],
)
def test_a_hub_model_without_safetensors_is_refused(store, published, tmp_path, monkeypatch, weights, message):
    for file in published.glob("model*"):
        file.unlink()
    if weights:
        (published / weights).write_bytes(b"pickled")
    with small_hub.serving({(MODEL, REVISION): published}) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(SettingError, match=message):
            build(store, HUB)


def test_a_hub_model_without_a_fast_tokenizer_is_refused(store, published, tmp_path, monkeypatch):
    (published / "tokenizer.json").unlink()
    with small_hub.serving({(MODEL, REVISION): published}) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(SettingError, match=r"has no tokenizer\.json"):
            build(store, HUB)


def test_a_hub_model_of_another_family_is_refused(store, published, tmp_path, monkeypatch):
    (published / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with small_hub.serving({(MODEL, REVISION): published}) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(SettingError, match="'opt'"):
            build(store, HUB)
