import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlrewrite import specs, steps
from nlrewrite.artifacts import Artifact, Folder, Provenance, Store
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.language.prompts import prompts
from nlrewrite.language.template import template
from nlrewrite.llm import loading, reader, training
from nlrewrite.llm.engine import PrefixBlock
from nlrewrite.llm.packed import Packed
from nlrewrite.llm.reference import Reference
from nlrewrite.progress import Progress
from nlrewrite.subject.load import fingerprint
from nlrewrite.subject.tiny import save_tokenizer, train_tokenizer
from tests.subject import small_hub, small_models

SUBJECT, TOKENS = Artifact(kind="subject", digest="0" * 16), Artifact(kind="tokens", digest="1" * 16)
MADE = Provenance(time="", seconds=0, run="", commit="", dirty=False, source="", packages={}, execution={})
SPEC = specs.TrainedReader(layers=1, width=32, steps=4, batch=8)
REVISION = "0123456789abcdef0123456789abcdef01234567"
SENTENCE = 'Fires on " the" (7), " cat" (3). Weaker right after "." (-2).'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a subject's tokenizer and windows of its text."""
    store = Store(str(tmp_path_factory.mktemp("reader") / "store"))
    text = "the cat sat on the mat. The dog lay on the log, and the cat ran.\n" * 40
    tokenizer: Tokenizer = train_tokenizer([text], 300)
    with store.attempt(SUBJECT) as attempt:
        save_tokenizer(tokenizer, attempt.folder)
        store.commit(attempt, version=1, spec=specs.TinySubject(), inputs={}, made=MADE)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
    rows = np.pad(ids[: len(ids) // 16 * 16].reshape(-1, 16), ((0, 0), (1, 0)))
    count = len(rows)
    columns = {name: np.arange(count, dtype=np.int32) for name in ("document", "group", "start")}
    with store.attempt(TOKENS) as attempt:
        arrays = {"tokens": rows, "lengths": np.full(count, 16, np.int32), **columns}
        save_file(arrays, attempt.folder / "explain.safetensors")
        store.commit(attempt, version=1, spec=specs.TokensSpec(), inputs={}, made=MADE)
    return store


def build(store: Store, spec: specs.Spec, execution: Execution | None = None) -> Folder:
    inputs = {}
    if isinstance(spec, specs.TrainedReader):
        inputs = {"subject": SUBJECT, "tokens": TOKENS}
    elif isinstance(spec, specs.ServedReader) and not spec.tokenizer:
        inputs = {"subject": SUBJECT}
    artifact = steps.name("reader", spec, inputs)
    steps.build(artifact, spec, inputs, store, execution or Execution(), Progress(), "test", store.find(artifact))
    return store.folder(artifact)


def about(folder: Folder) -> dict:
    return json.loads(folder.path(reader.REFERENCE).read_text())


@pytest.fixture(scope="module")
def trained(store: Store) -> Folder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "JUDGED", 6)
        patch.setattr(training, "JUDGED_BY", 16)
        return build(store, SPEC)


def test_a_trained_reader_is_a_folder_that_transformers_reads(trained: Folder) -> None:
    root = trained.root()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(root), AutoTokenizer.from_pretrained(root)
    assert tokenizer.is_fast and model.config.vocab_size == len(tokenizer) and model.config.model_type == "llama"
    assert (root / "model.safetensors").is_file() and not list(root.glob("*.bin"))
    told = about(trained)
    assert told["kind"] == "trained" and told["parameters"] == sum(each.numel() for each in model.parameters())
    assert told["cpu_seconds"] > 0 and told["trained_on"]["questions"] == 32
    low, high = told["judged"]["auc_interval"]
    assert told["strengths_alone"]["auc"] > told["judged"]["auc"]
    assert low <= told["judged"]["auc"] <= high and told["judged"]["sentences"] == 6
    assert specs.TrainedReader.model_validate({name: told[name] for name in specs.TrainedReader.model_fields}) == SPEC


def test_engines_agree_on_a_trained_reader_and_its_digits_have_nearly_all_mass(trained: Folder) -> None:
    model, tokenizer = loading.load(trained.root(), Execution(), "float32")
    asked = prompts(template(reader.prompt()), tokenizer, SPEC.order)
    prefix = asked.prefix(explanation=SENTENCE)
    contexts = [[b" the"], [b".", b" cat"], [b"\n", b"T", b"he", b" dog", b" the", b" cat"]]
    suffixes = [asked.suffix(context=asked.shown(context, [-1])).tolist() for context in contexts]
    assert [len(suffix) for suffix in suffixes] == [len(context) for context in contexts]
    block = PrefixBlock.of(prefix.tolist(), suffixes, asked.labels)
    one, many = Reference(model, tokenizer).digits(block), Packed(model, tokenizer).digits(block)
    assert np.abs(one.logp - many.logp).max() < 1e-5
    assert np.allclose(np.exp(one.logp).sum(1), 1, atol=1e-5)


def test_the_same_spec_gives_the_same_reader(store: Store, trained: Folder, tmp_path: Path) -> None:
    again = Store(str(tmp_path / "store"))
    shutil.copytree(Path(store.uri), tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "manifests" / "reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "JUDGED", 6)
        patch.setattr(training, "JUDGED_BY", 16)
        other = build(again, SPEC)

    def hashes(folder: Folder) -> dict[str, str]:
        return {entry.path: entry.sha256 for entry in folder.manifest.files if entry.path != reader.REFERENCE}

    assert hashes(other) == hashes(trained)
    assert about(other)["judged"] == about(trained)["judged"]


# -- a folder, the hub, an endpoint ------------------------------------------------------------------------------------


def test_a_reader_is_trained_with_the_words_it_is_named_after(store: Store, trained: Folder) -> None:
    told = json.loads(trained.path("reader.json").read_text())
    assert told["trained_on"]["prompt_sha256"] == reader.wording()
    with pytest.raises(SettingError, match="is not the one that this result is named after"):
        build(store, SPEC.model_copy(update={"template": "0" * 64}))


def test_of_a_folder_the_reference_and_the_tokenizer_are_kept(store: Store, tmp_path: Path) -> None:
    root = small_models.save(small_models.fresh("llama"), tmp_path / "model")
    (root / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    spec = specs.FolderReader(content=fingerprint(root))
    folder = build(store, spec, Execution(reader_folder=str(root)))
    kept = {entry.path for entry in folder.manifest.files}
    assert kept == {"reader.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert about(folder) == {"kind": "folder", "content": spec.content, "dtype": "float32"}


def test_a_folder_that_changed_or_is_not_named_is_refused(store: Store, tmp_path: Path) -> None:
    root = small_models.save(small_models.fresh("llama"), tmp_path / "model")
    spec = specs.FolderReader(content=fingerprint(root))
    with pytest.raises(SettingError, match="no folder is named"):
        build(store, spec)
    small_models.save(small_models.fresh("llama", seed=1), root)
    with pytest.raises(SettingError, match="is not the folder that this result is named after"):
        build(store, spec, Execution(reader_folder=str(root)))


def test_of_the_hub_the_reference_and_the_tokenizer_are_kept(store: Store, tmp_path: Path, monkeypatch) -> None:
    published = small_models.save(small_models.fresh("llama"), tmp_path / "published")
    spec = specs.HubReader(model="somebody/small", revision=REVISION)
    with small_hub.serving({(spec.model, REVISION): published}) as (address, asked):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        folder = build(store, spec)
    assert {entry.path for entry in folder.manifest.files} == {"reader.json", "tokenizer.json", "tokenizer_config.json"}
    assert about(folder) == spec.model_dump()
    assert not any(path.startswith("GET") and path.endswith(".safetensors") for path in asked)


def test_a_hub_model_without_safetensors_is_refused(store: Store, tmp_path: Path, monkeypatch) -> None:
    published = small_models.save(small_models.fresh("llama"), tmp_path / "published")
    (published / "model.safetensors").rename(published / "pytorch_model.bin")
    spec = specs.HubReader(model="somebody/pickled", revision=REVISION)
    with small_hub.serving({(spec.model, REVISION): published}) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(SettingError, match="only safetensors weights are read"):
            build(store, spec)


def test_a_hub_that_cannot_be_reached_is_no_setting(store: Store, tmp_path: Path, monkeypatch) -> None:
    small_hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    with pytest.raises(Unreachable, match="cannot be reached"):
        build(store, specs.HubReader(model="somebody/away", revision=REVISION))


def test_a_served_reader_cuts_by_the_subject_or_by_a_tokenizer_at_a_revision(store: Store) -> None:
    folder = build(store, specs.ServedReader(model="small"))
    subject = store.folder(SUBJECT).path("tokenizer.json").read_bytes()
    assert folder.path("tokenizer.json").read_bytes() == subject and about(folder)["model"] == "small"
    with pytest.raises(SettingError, match=r"reader\.tokenizer_revision"):
        build(store, specs.ServedReader(model="small", tokenizer="somebody/small"))
