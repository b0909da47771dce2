"""The step that asks a language model: what goes into its questions, and what may not."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nlrewrite.explain.gate import GATES, MEMBERS
from nlrewrite.language.template import filled
from nlrewrite.llm.engine import Outcome
from nlrewrite.questions import AskSpec, PromptSpec
from nlrewrite.simulate import answers, inquiry
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows
from tests.explain.asked import WORDS, Here, Scripted, artifacts, is_word, running, tokenizer

TOKENIZER = tokenizer()
SENTENCES = ["reacts to cats", "reacts to dogs", "", "reacts to mats"]
SCORE = [0.11, 0.22, 0.33, 0.44]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Here]:
    folder = tmp_path_factory.mktemp("made")
    dense = {
        split: np.stack([is_word(split, word) * 2.0 for word in (" cat", " dog", " sat", " mat")])
        for split in ("explain", "calibrate")
    }
    made = artifacts(folder, dense)
    explanations, scores, gates = (Here(folder / name) for name in ("explanations", "scores", "gates"))
    pd.DataFrame({"sentence": SENTENCES}).to_parquet(explanations.path("explanations.parquet"))
    pd.DataFrame({"detection_f1": SCORE}).to_parquet(scores.path("scores.parquet"))
    return {**made, "explanations": explanations, "scores": scores, "gates": gates, "reader": Here(folder / "reader")}


def build(made: dict[str, Here], out: Path, monkeypatch: pytest.MonkeyPatch, spec: AskSpec, **more: Here):
    """The texts of all questions, and the artifact."""
    asked: list[str] = []

    def chance(prefix: str, suffix: str) -> float:
        asked.append(prefix + suffix)
        return 0.5

    engine = Scripted(TOKENIZER, chance=chance)
    monkeypatch.setattr(inquiry, "opened", lambda *given: (engine, TOKENIZER))
    monkeypatch.setattr(inquiry, "tokenizer", lambda folder: TOKENIZER)
    out.mkdir()
    filled_in = spec.model_copy(update={"prompt": filled(PromptSpec(name="simulate"), None)})
    inputs = {name: made[name] for name in ("subject", "tokens", "explanations", "reader", "scores")}
    inquiry.build(filled_in, {**inputs, **more}, out, running())  # type: ignore[arg-type]
    return asked, Here(out, **filled_in.model_dump())


def told(question: str) -> tuple[str, str]:
    """Sentence and score of the last turn."""
    turn = question[question.rindex("Score of this description") - 200 :]
    score = re.findall(r"Score of this description, from 0 to 1: ([0-9.]+)", turn)[-1]
    return re.findall(r"reacts to \w+", turn)[-1], score


def test_a_score_goes_with_its_sentence_when_sentences_are_shuffled(made, tmp_path, monkeypatch) -> None:
    spec = AskSpec(split="calibrate", with_score=True, mass=False)
    of = {sentence: f"{score:.2f}" for sentence, score in zip(SENTENCES, SCORE, strict=True)}
    for shuffle in (False, True):
        asked, folder = build(made, tmp_path / str(shuffle), monkeypatch, spec.model_copy(update={"shuffle": shuffle}))
        assert len(asked) == 3 * 30
        for question in asked:
            sentence, score = told(question)
            assert score == of[sentence]
    source = pd.read_parquet(folder.path("outcomes.parquet"))["sentence_of"].to_numpy()
    assert (source[[0, 1, 3]] != [0, 1, 3]).all()


def test_cases_of_another_split_are_refused(made, tmp_path, monkeypatch) -> None:
    spec = AskSpec(split="calibrate", contexts="cases", active=3, inactive=4, mass=False)
    with pytest.raises(AssertionError, match="must be of the calibrate split"):
        build(made, tmp_path / "wrong", monkeypatch, spec, activations=made["activations-explain"])
    asked, folder = build(made, tmp_path / "right", monkeypatch, spec, activations=made["activations-calibrate"])
    counts = pd.read_parquet(folder.path("outcomes.parquet"))
    assert counts["ok"].tolist() == [7, 7, 0, 7] and len(asked) == 21
    assert counts["skipped"].sum() == 0 and counts["outcome"].tolist() == ["ok", "ok", "unexplained", "ok"]


def test_behind_a_closed_gate_nothing_is_asked_and_the_digit_is_nought(made, tmp_path, monkeypatch) -> None:
    cat = tokenizer(WORDS).encode(" cat", add_special_tokens=False)[0]
    pd.DataFrame({"latent": np.arange(4)}).to_parquet(made["gates"].path(GATES))
    pd.DataFrame({"latent": [0], "token": [cat]}).to_parquet(made["gates"].path(MEMBERS))
    spec = AskSpec(split="calibrate", gate=True, mass=False)
    asked, folder = build(made, tmp_path / "gated", monkeypatch, spec, gates=made["gates"])
    files = [SimpleNamespace(path=each.name) for each in folder.root().iterdir()]
    folder.manifest.files = files
    stored = answers.read(folder, 600)  # type: ignore[arg-type]
    open_ = is_word("calibrate", " cat")[stored.rows]
    assert 0 < open_.sum() < 30 and len(asked) == open_.sum() + 60  # two latents have no gate, one no sentence
    assert (stored.asked.outcome[0] == np.where(open_, Outcome.OK, Outcome.SKIPPED)).all()
    some = np.array([3, 0])
    where = positions(read_windows(made["tokens"], "calibrate"))  # type: ignore[arg-type]
    of_some = inquiry.closed(made["gates"], where, np.stack([stored.rows] * 2), some)  # type: ignore[arg-type]
    assert not of_some[0].any() and (of_some[1] == ~open_).all()
    closed = stored.columned.scores(slice(0, 1))[0][~open_]
    assert (closed == 0).all() and np.isnan(stored.columned.scores(slice(2, 3))).all()
