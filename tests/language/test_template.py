"""Templates: ours, a user's own, and every way to write one wrongly."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from nlrewrite.errors import SettingError
from nlrewrite.language.replies import binary_list, sentence
from nlrewrite.language.template import FOLDER, Template, built_in, filled, names, read, template, text_of
from nlrewrite.questions import PromptSpec

MINE = """
version: 1
about: Mine.
answer: label
stub: "["
close: "]"
labels: ["0", "1"]
turn: ["T: {context}\\n", "D: {explanation}\\n"]
shots:
  - {context: a, explanation: b, answer: "1"}
"""


def changed(**fields: object) -> str:
    return yaml.safe_dump({**yaml.safe_load(MINE), **fields})


def test_there_is_one_for_every_question() -> None:
    assert set(names()) == {
        "active", "detection", "detection-list", "explain", "explain-contrast", "explain-top", "fuzzing",
        "fuzzing-list", "intruder", "reader", "refine", "simulate",
    }  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_ours_are_whole(name: str) -> None:
    ours = built_in(name)
    assert (name == "reader") == (not ours.shots)
    assert (name == "reader") == (ours.layout == "plain") == (ours.contexts == "tokens")
    if "score" in ours.fields:
        assert all(shot.score is not None for shot in ours.shots)
    for shot in ours.shots:
        if ours.answer == "list":
            assert binary_list(shot.answer, len(shot.examples or ())) is not None
        if ours.answer == "sentence":
            assert sentence(ours.stub + shot.answer) == shot.answer.strip()
        for text in (shot.context, *(shot.examples or ()), *(shot.missed or ()), *(shot.wrong or ())):
            assert text is None or (text.isprintable() and text.count("<<") == text.count(">>"))


def test_the_questions_digits_and_their_rarity_are_told() -> None:
    simulate = built_in("simulate")
    assert simulate.labels == tuple("0123456789")
    answers = [shot.answer for shot in simulate.shots]
    assert answers.count("0") >= len(answers) / 2
    assert all((shot.context or "").endswith(">>") for shot in simulate.shots)


def test_shots_of_a_list_are_of_several_lengths() -> None:
    for name in ("detection-list", "fuzzing-list"):
        assert len({len(shot.examples or ()) for shot in built_in(name).shots}) > 1


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        built_in("reader").stub = "["  # pyright: ignore[reportAttributeAccessIssue]


def test_the_text_is_what_identifies_it(tmp_path: Path) -> None:
    spec = filled(PromptSpec(name="simulate"), None)
    assert spec.text == (FOLDER / "simulate.yaml").read_text(encoding="utf-8")
    assert template(spec) == built_in("simulate")
    (tmp_path / "simulate.yaml").write_text(MINE)
    mine = filled(PromptSpec(name="simulate"), str(tmp_path))
    assert mine.text == MINE and mine != spec
    assert template(mine).about == "Mine."
    assert filled(mine, None) == mine  # what is filled stays as it is
    assert filled(PromptSpec(name="reader"), str(tmp_path)).text == text_of("reader")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"there is no folder .*nowhere. Change --template-folder"):
        filled(PromptSpec(name="simulate"), str(tmp_path / "nowhere"))


def test_one_that_was_not_filled_in_is_refused() -> None:
    with pytest.raises(SettingError, match="was not filled in"):
        template(PromptSpec(name="simulate"))


@pytest.mark.parametrize("name", ["none", "../simulate", "", "a/b", ".hidden"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"there is no template|letters, digits"):
        filled(PromptSpec(name=name), str(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("turn: [", "template mine is not YAML"),
        ("- a\n- b", "must hold fields by name"),
        ("x" * 200_001, "200001 characters, and at most 200000"),
        (changed(version=2), "mine, version: input should be 1"),
        (changed(prompt="x"), "mine, prompt: extra inputs are not permitted"),
        (changed(shots=[{"context": "a", "explanation": "b", "answer": "1", "text": "x"}]), r"shots.0.text: extra"),
        (changed(shots=[{"context": "a", "answer": "1"}]), "shots.0 lacks explanation"),
        (changed(shots=[{"context": "a", "explanation": "b", "examples": ["c"], "answer": "1"}]), "has examples"),
        (changed(shots=[{"context": "a", "explanation": "b", "answer": "2"}]), "one of the labels: '2'"),
        (changed(turn=["no field"]), r"turn has no \{field\}"),
        (changed(turn=["{context}", "{context}"]), "turn has a field twice"),
        (changed(turn=["{context} {explanation}"]), "a piece has one field, not 2"),
        (changed(turn=["{feature}"]), "there is no field 'feature'"),
        (changed(turn=["{context"]), "a brace that opens no field is written twice"),
        (changed(turn=["{context}", "and", "{explanation}"]), "without a field between others"),
        (changed(turn=["{context}\x00"]), "string should match pattern"),
        (changed(labels=[]), "labels are for answer: label"),
        (changed(labels=["0", "0", "1"]), "labels must differ"),
        (changed(answer="sentence"), "labels are for answer: label"),
        (changed(stub="[ "), "stub must not end with a space"),
        (changed(item="x"), r"item must have \{text\} once"),
        (changed(plain={"user": "x"}), r"plain: plain.user must have \{text\} once"),
        (changed(before=[{"role": "tool", "text": "x"}]), r"before.0.role: input should be 'system'"),
        (changed(longest_explanation=10), "longest_explanation: input should be greater than or equal to 40"),
        (MINE + 'labels: ["0"]', "mine says labels twice, again in line 11"),
        (MINE.replace("{context: a,", "{context: a, context: b,"), "says context twice, again in line 10"),
        ("a: &a [1]\nb: *a", r"repeats itself by \*alias"),
        ("[" * 2_000, "not YAML"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        read(text, "mine")


def test_a_doubled_brace_is_a_brace() -> None:
    mine = read(changed(turn=["{{x}} {context}", "{explanation}"]), "mine")
    assert mine.fields == ("context", "explanation")


def test_either_half_comes_first() -> None:
    mine = read(changed(turn=["Look.\n", "D: {explanation}", "S: {score}", "T: {context}", "Now."], shots=[]), "mine")
    said = ("D: {explanation}", "S: {score}")
    assert mine.pieces("explanation") == ("Look.\n", *said, "T: {context}", "Now.")
    assert mine.pieces("context") == ("Look.\n", "T: {context}", *said, "Now.")


def test_a_published_prompt_can_be_written_down_as_it_stands() -> None:
    verbatim = changed(
        system="You are given a feature.",
        before=[{"role": "user", "text": "An example"}, {"role": "assistant", "text": "[1]"}],
        shots=[],
        turn=["Explanation: {explanation}\n\n", "Text: {context}"],
    )
    mine = read(verbatim, "mine")
    assert [message.role for message in mine.before] == ["user", "assistant"]
    assert isinstance(mine, Template)
