"""The tuned step on a reader of a few training steps: what it leaves is opened as a reader trained here is."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from nlrewrite import profiles, specs, steps
from nlrewrite.activations.pairs import PAIRS, Active
from nlrewrite.artifacts import Artifact, Folder, Provenance, Store
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.language.prompts import prompts
from nlrewrite.language.template import template
from nlrewrite.llm import opening, reader, training, tuned
from nlrewrite.llm.engine import PrefixBlock
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress
from nlrewrite.questions import PromptSpec, TunedSpec, TuneSpec
from nlrewrite.subject.load import fingerprint
from nlrewrite.subject.tiny import save_tokenizer, train_tokenizer
from nlrewrite.text.positions import last_tokens, positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

MADE = Provenance(time="", seconds=0, run="", commit="", dirty=False, source="", packages={}, execution={})
TEXT = "the cat sat on the mat. The dog lay on the log, and the cat ran.\n" * 40
LATENTS, WINDOW = 12, 9
SPEC = TunedSpec(
    tune=TuneSpec(steps=30, active=4, inactive=8, learning_rate=2e-2, held_out=0.3),
    prompt=reader.prompt(),
    order="explanation",
    window=WINDOW,
)


class Made:
    """A store with all that a reader is taught from: every latent is active on " the", as if it had read the others."""

    def __init__(self, root: Path) -> None:
        self.store = Store(str(root / "store"))
        self.known = {
            label: Artifact(kind=kind, digest=str(number) * 16)
            for number, (label, kind) in enumerate(
                (
                    *(("subject", "subject"), ("tokens", "tokens"), ("explanations", "explanations")),
                    *(("activations", "activations"), ("later", "activations")),
                )
            )
        }
        tokenizer = train_tokenizer([TEXT], 300)
        self.put("subject", specs.TinySubject(), lambda out: save_tokenizer(tokenizer, out))
        ids = np.array(tokenizer.encode(TEXT, add_special_tokens=False).ids, dtype=np.int32)
        rows = np.pad(ids[: len(ids) // 16 * 16].reshape(-1, 16), ((0, 0), (1, 0)))
        columns = {name: np.arange(len(rows), dtype=np.int32) for name in ("document", "group", "start")}
        windows = {"tokens": rows, "lengths": np.full(len(rows), 16, np.int32), **columns}
        self.put("tokens", specs.TokensSpec(), lambda out: save_file(windows, out / "explain.safetensors"))
        self.where = positions(read_windows(self.store.folder(self.known["tokens"]), "explain"))
        self.texts = token_texts(self.store.folder(self.known["subject"]).root())
        there = self.where.token == self.texts.index(b" the")
        values = np.where(there[:, None], np.float32(2.0), np.float32(0)) * np.ones((1, LATENTS - 1), np.float32)
        latents = np.tile(np.arange(LATENTS - 1, dtype=np.int32), (len(there), 1))  # the last one is never active
        pairs = {"latents": latents, "values": values}
        for label, split in (("activations", "explain"), ("later", "calibrate")):
            of = specs.ActivationsSpec(split="explain" if split == "explain" else "calibrate")
            self.put(label, of, lambda out: save_file(pairs, out / PAIRS))
        said = ["", *(f'Fires on "{number}" (5).' for number in range(LATENTS - 1))]
        table = pd.DataFrame({"sentence": said})
        self.put("explanations", specs.ExplainSpec(), lambda out: table.to_parquet(out / "explanations.parquet"))

    def put(self, label: str, spec: specs.Spec, write) -> None:
        with self.store.attempt(self.known[label]) as attempt:
            write(attempt.folder)
            self.store.commit(attempt, version=1, spec=spec, inputs={}, made=MADE)

    def build(self, kind: str, spec: specs.Spec, inputs: dict[str, Artifact], **execution: str) -> Artifact:
        artifact = steps.name(kind, spec, inputs)
        found = self.store.find(artifact)
        steps.build(artifact, spec, inputs, self.store, Execution(**execution), Progress(), "test", found)
        return artifact

    def taught(self, of: Artifact, activations: str = "activations", **execution: str) -> Artifact:
        labels = ("subject", "tokens", "explanations")
        inputs = {label: self.known[label] for label in labels} | {"activations": self.known[activations]}
        return self.build("tuned", SPEC, {**inputs, "reader": of}, **execution)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def untaught(made: Made) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "JUDGED", 6)
        patch.setattr(training, "JUDGED_BY", 16)
        spec = specs.TrainedReader(layers=2, width=64, steps=4, batch=8)
        return made.build("reader", spec, {label: made.known[label] for label in ("subject", "tokens")})


@pytest.fixture(scope="module")
def taught(made: Made, untaught: Artifact) -> Folder:
    return made.store.folder(made.taught(untaught))


def about(folder: Folder) -> dict:
    return json.loads(folder.path(reader.REFERENCE).read_text())


def test_it_is_a_folder_as_a_reader_trained_here_leaves_it(made: Made, untaught: Artifact, taught: Folder) -> None:
    before = made.store.folder(untaught)
    assert {entry.path for entry in taught.manifest.files} == {entry.path for entry in before.manifest.files}
    same = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in same & {entry.path for entry in before.manifest.files}:
        assert taught.path(name).read_bytes() == before.path(name).read_bytes()
    old, new = (load_file(each.path("model.safetensors")) for each in (before, taught))
    assert old.keys() == new.keys()
    changed = {name.rpartition(".")[0].rpartition(".")[2] for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_it_says_what_it_was_taught_and_reads_sentences_it_was_not_taught_by(taught: Folder) -> None:
    told = about(taught)
    assert told["kind"] == "trained" and told["tuned_from"]["layers"] == 2
    assert told["tuned_on"] | {"prompt_sha256": ""} == {
        **{"split": "explain", "latents": 7, "template": "reader", "order": "explanation", "window": WINDOW},
        "prompt_sha256": "",
    }
    assert told["after"]["sentences"] == 3  # of ten latents that are active and have a sentence
    assert told["after"]["auc"] > 0.95 and told["loss"]["last"] < 0.7 * told["loss"]["first"]
    assert TuneSpec.model_validate(told["tune"]) == SPEC.tune


def test_an_engine_opens_it_and_hears_what_it_was_taught(made: Made, taught: Folder) -> None:
    compiled = prompts(template(SPEC.prompt), opening.tokenizer(taught), SPEC.order)
    engine, _ = opening.opened(taught, Execution(), opening.Wanted(compiled.labels))
    shown = tuned.Shown(made.where, made.texts, WINDOW, compiled)
    at = list(range(20, 60))
    suffixes = [compiled.suffix(context=shown[each]) for each in at]
    block = PrefixBlock.of(compiled.prefix(explanation='Fires on "1" (5).'), suffixes, compiled.labels)
    active = 1 - np.exp(engine.digits(block).logp[:, 0])
    engine.close()
    there = made.where.token[at] == made.texts.index(b" the")
    assert there.any() and active[there].min() > active[~there].max()


def test_a_context_is_shown_as_it_will_be_asked_about(made: Made, taught: Folder) -> None:
    compiled = prompts(template(SPEC.prompt), opening.tokenizer(taught), SPEC.order)
    shown = tuned.Shown(made.where, made.texts, WINDOW, compiled)
    assert len(shown) == len(made.where)
    for at in (0, 3, 40):
        tokens = last_tokens(made.where, made.texts, at, WINDOW)
        assert len(tokens) == min(WINDOW, int(made.where.offset[at]) + 1)
        assert shown[at] == compiled.shown(tokens, [len(tokens) - 1])
    assert shown[3:5] == [shown[3], shown[4]] and shown[-1] == shown[len(shown) - 1]
    with pytest.raises(IndexError):
        shown[len(shown)]


def test_digits_are_ninths_of_a_latents_largest_value() -> None:
    active = Active(np.array([[0, 1], [0, 2], [0, 2]], np.int32), np.array([[9, 0], [1, 4], [4.5, 4]], np.float32))
    found = tuned.truths(active, 4)
    assert [each.context.tolist() for each in found] == [[0, 1, 2], [], [1, 2], []]
    assert [each.digit.tolist() for each in found] == [[9, 1, 5], [], [9, 9], []]


def test_a_local_folder_is_taught_and_teaching_it_again_gives_the_same_weights(
    made: Made, untaught: Artifact, taught: Folder
) -> None:
    root = made.store.folder(untaught).root()
    spec = specs.FolderReader(content=fingerprint(root))
    named = made.build("reader", spec, {}, reader_folder=str(root))
    found = made.store.folder(made.taught(named, reader_folder=str(root)))
    assert about(found)["tuned_from"] == spec.model_dump()
    assert found.path("model.safetensors").read_bytes() == taught.path("model.safetensors").read_bytes()


def test_nothing_but_the_explain_split_teaches(made: Made, untaught: Artifact) -> None:
    with pytest.raises(AssertionError, match=r"tuned must read activations from the explain split.*calibrate"):
        made.taught(untaught, "later")


def test_the_words_are_part_of_the_name(made: Made, untaught: Artifact) -> None:
    inputs = {"subject": made.known["subject"], "reader": untaught}
    labels = ("tokens", "explanations", "activations")
    inputs |= {label: made.known[label] for label in labels}
    others = [
        SPEC.model_copy(update={"window": 8}),
        SPEC.model_copy(update={"order": "context"}),
        SPEC.model_copy(update={"prompt": PromptSpec(name="reader", text=SPEC.prompt.text + "\n")}),
        SPEC.model_copy(update={"tune": SPEC.tune.model_copy(update={"seed": 1})}),
    ]
    assert len({steps.name("tuned", each, inputs) for each in (SPEC, *others)}) == 5


HUB = ("reader.kind=hub", "reader.model=someone/model", f"reader.revision={'a' * 40}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("reader.kind=rules",), r"the rule reader has nothing to be taught.*reader\.kind"),
        (("reader.kind=served", "reader.model=m"), r"out of reach: tune\.steps=3, reader\.kind=served"),
        ((*HUB, "reader.quantisation=awq"), r"quantised weights.*reader\.quantisation=awq"),
        ((*HUB, "reader.dtype=float16"), r"vanish in float16.*reader\.dtype=bfloat16"),
        (("ask.with_score=true",), r"explain split alone.*ask\.with_score=false"),
        (("tune.steps=-1",), r"tune\.steps"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_is_built(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        profiles.settled("smoke-reader", Overrides(settings=("tune.steps=3", *settings)))
