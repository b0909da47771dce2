from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.activations.statistics import write_table
from nlrewrite.errors import SettingError
from nlrewrite.explain.examples import Text
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.template import filled, template
from nlrewrite.llm import opening
from nlrewrite.llm.engine import Completion, Outcome
from nlrewrite.questions import PromptSpec, QuizSpec
from nlrewrite.score import measures, quiz, quizzes, tally
from nlrewrite.score.quizzes import Latent
from nlrewrite.score.scorers import SCORERS, Asking, Detection, Embedding, Fuzzing, Intruder
from nlrewrite.score.tally import Answers
from nlrewrite.seeds import generator
from nlrewrite.text.positions import Positions
from tests.explain.asked import Here, Kept, Scripted, artifacts, reader, running, tokenizer

TOKENIZER = tokenizer()
WINDOWS, LENGTH, VOCABULARY = 300, 40, 60
LIST = {"answers": "list", "detection": PromptSpec(name="detection-list"), "fuzzing": PromptSpec(name="fuzzing-list")}
COMPILED: dict[str, Prompts] = {}


def compiled(prompt: PromptSpec) -> Prompts:
    if prompt.name not in COMPILED:
        COMPILED[prompt.name] = prompts(template(filled(prompt, None)), TOKENIZER, "explanation", name=prompt.name)
    return COMPILED[prompt.name]


def text() -> Text:
    count = WINDOWS * LENGTH
    window, offset = np.divmod(np.arange(count, dtype=np.int32), np.int32(LENGTH))
    token = generator(0, "quiz text").integers(0, VOCABULARY, count).astype(np.int32)
    return Text(Positions(window, offset, token, window), [f" t{number}".encode() for number in range(VOCABULARY)])


TEXT = text()


def latent(number: int = 0, count: int = 400, sentence: str = "a thing", burst: int = 1) -> Latent:
    """Active at random places, `burst` tokens in a row."""
    draws = generator(0, "quiz latent", number)
    start = draws.choice(len(TEXT.where) - burst, max(1, count // burst), replace=False)
    position = np.unique((start[:, None] + np.arange(burst)).ravel())[: count or None]
    position = position[:0] if not count else position
    return Latent(number, sentence, position, draws.random(len(position)).astype(np.float32) + 0.1)


def asking(engine: Scripted, **changed: object) -> Asking:
    return Asking(QuizSpec(window=16, **changed), TEXT, engine, compiled)


# -- what is asked ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 6), st.sampled_from([0, 1, 5, 60, 400, 3000]), st.sampled_from([1, 3]))
def test_a_detection_quiz_is_balanced_distinct_and_right(number: int, count: int, burst: int) -> None:
    one = latent(number, count, burst=burst)
    made = quizzes.detection(TEXT, one, 50, 16, generator(0, "quiz", number))
    active = set(one.position.tolist())
    assert made.truth.sum() * 2 == len(made) <= 100
    assert len({each.first for each in made.examples}) == len(made)
    for each, true in zip(made.examples, made.truth, strict=True):
        assert bool(active.intersection(range(each.first, each.first + len(each.tokens)))) == bool(true)
        assert each.at == ()
    if count == 400 and burst == 1:
        assert len(made) == 100
    if len(made) == 100:
        assert 2 < made.truth[:20].sum() < 18  # in random order


def test_activating_examples_come_evenly_from_the_deciles() -> None:
    one = latent(0, 400)
    found = quizzes.active_examples(TEXT, one, 50, 16, generator(0, "x"))
    ranks = np.argsort(np.argsort(one.value))[np.searchsorted(one.position, [each.position for each in found])]
    assert np.bincount(ranks * 10 // len(one.value), minlength=10).tolist() == [5] * 10


@pytest.mark.parametrize("burst", [1, 3])
def test_wrong_marks_are_as_many_and_in_the_same_places_as_right_ones(burst: int) -> None:
    # the places are those of the activations, which stand anywhere in the second half and before it
    one = latent(1, 600, burst=burst)
    made = quizzes.fuzzing(TEXT, one, 50, 16, generator(0, "fuzzing"))
    right = Counter(each.at for each, true in zip(made.examples, made.truth, strict=True) if true)
    wrong = Counter(each.at for each, true in zip(made.examples, made.truth, strict=True) if not true)
    assert right == wrong
    assert right.total() == 50
    places = {place for at in right for place in at}
    assert len(places) >= 8
    for each, true in zip(made.examples, made.truth, strict=True):
        assert all((each.activation[place] > 0) == bool(true) for place in each.at)
    elsewhere = [each.activation.any() for each, true in zip(made.examples, made.truth, strict=True) if not true]
    assert np.mean(elsewhere) > 0.5  # most wrong marks stand in texts where the latent is active elsewhere


def test_marks_that_fit_nowhere_else_are_left_out_in_pairs() -> None:
    everywhere = Latent(0, "x", np.arange(len(TEXT.where)), np.ones(len(TEXT.where), dtype=np.float32))
    assert len(quizzes.fuzzing(TEXT, everywhere, 50, 16, generator(0, "x"))) == 0
    assert len(quizzes.detection(TEXT, everywhere, 50, 16, generator(0, "x"))) == 0


def test_silent_texts_of_two_latents_differ() -> None:
    # both have as many silent stretches
    drawn = []
    for number in (0, 1):
        made = quizzes.detection(TEXT, latent(number, 400), 50, 16, generator(0, "quiz", "detection", number))
        drawn.append({each.first for each, true in zip(made.examples, made.truth, strict=True) if not true})
    assert len(drawn[0]) == len(drawn[1]) == 50
    assert len(drawn[0] & drawn[1]) < 5


def test_an_intruder_is_silent_and_marked_like_one_of_the_others() -> None:
    made = quizzes.intruder(TEXT, latent(2, 600), 10, 16, generator(0, "intruder"))
    assert len(made) >= 8
    assert len(set(made.truth.tolist())) > 2
    for item, place in zip(made.items, made.truth.tolist(), strict=True):
        assert len(item) == 5
        assert not item[place].activation.any()
        others = [each for row, each in enumerate(item) if row != place]
        assert all(each.activation[list(each.at)].all() for each in others)
        assert item[place].at in [each.at for each in others]


# -- what is answered -------------------------------------------------------------------------------------------------


def test_a_reader_that_knows_is_right_and_one_that_is_blind_is_not() -> None:
    one = latent(0, 400)
    made = quizzes.detection(TEXT, one, 50, 16, generator(0, "quiz"))
    shown = {text_of(each): true for each, true in zip(made.examples, made.truth, strict=True)}
    scores = {}
    for name, chance in (
        ("knows", lambda prefix, suffix: 0.9 if shown[said(suffix)] else 0.2),
        ("blind", lambda prefix, suffix: 0.4),
    ):
        engine = Scripted(TOKENIZER, chance=chance)
        scorer = Detection(asking(engine))
        (answers,) = scorer.answers([made])
        assert engine.blocks == 1  # one prefix for all questions about a latent
        scores[name] = scorer.scores(one, made, answers)
    assert scores["knows"]["f1"] == scores["knows"]["auc"] == scores["knows"]["balanced_accuracy"] == 1
    assert scores["blind"]["auc"] == 0.5 and scores["blind"]["balanced_accuracy"] == 0.5
    assert scores["blind"]["f1"] == 0 and np.isnan(scores["blind"]["precision"])
    assert scores["knows"]["asked"] == 100 and scores["knows"]["failed"] == 0


def text_of(example) -> str:
    return compiled(PromptSpec(name="detection")).shown(example.tokens, example.at).strip()


def said(suffix: str) -> str:
    return suffix.rsplit("\nAnswer", 1)[0].split("Text: ")[-1].strip()


def test_missing_answers_are_neither_right_nor_wrong_and_are_counted() -> None:
    one = latent(0, 400)
    made = quizzes.detection(TEXT, one, 50, 16, generator(0, "quiz"))
    shown = {text_of(each): (row, true) for row, (each, true) in enumerate(zip(made.examples, made.truth, strict=True))}

    def chance(prefix: str, suffix: str) -> float | None:
        row, true = shown[said(suffix)]
        return None if row % 5 < 2 else 0.9 if true else 0.2

    (answers,) = Detection(asking(Scripted(TOKENIZER, chance=chance))).answers([made])
    assert np.isnan(answers.score[~answers.there]).all()
    scores = tally.balanced(answers, made.truth, 0.01)
    assert (scores["asked"], scores["failed"]) == (100, 40)
    assert scores["f1"] == scores["auc"] == 1
    assert tally.confusion(answers, made.truth).sum() == 60
    lost = Answers(np.full(100, np.nan), np.full(100, Outcome.TRANSPORT, dtype=np.int8))
    scores = tally.balanced(lost, made.truth, 0.01)
    assert (scores["asked"], scores["failed"]) == (100, 100)
    assert all(np.isnan(scores[name]) for name in tally.BALANCED)


def ones(prompt: str) -> str:
    """As many ones as it is shown examples."""
    asked = prompt[prompt.rindex("Texts:\n") + 7 : prompt.rindex("Answer:")]
    return "[" + ", ".join(["1"] * len(asked.strip().split("\n"))) + "]"


@pytest.mark.parametrize("positives", [50, 26, 3])
def test_the_last_short_list_is_legal(positives: int) -> None:
    one = latent(3, positives)
    engine = Scripted(TOKENIZER, ones)
    scorer = Detection(asking(engine, **LIST))
    made = scorer.quiz(one, generator(0, "quiz"))
    (answers,) = scorer.answers([made])
    assert answers.there.all()
    assert (answers.score == 1).all()
    assert len(engine.prompts) == -(-len(made) // 5)
    assert engine.batches == [len(engine.prompts)]


@pytest.mark.parametrize(
    ("reply", "score", "outcome"),
    [
        ("[EXPLANATION]: as in [1] and [2] [1,0,1,0,1]", [1, 0, 1, 0, 1], Outcome.OK),
        ("First I thought [1, 1, 1, 1, 1], but no: [0, 0, 0, 0, 1].", [0, 0, 0, 0, 1], Outcome.OK),
        ("[1, 0, 1, 0]", [np.nan] * 5, Outcome.UNPARSEABLE),
        ("[1, 0, 1, 0, 10]", [np.nan] * 5, Outcome.UNPARSEABLE),
        ("yes, all of them", [np.nan] * 5, Outcome.UNPARSEABLE),
        ("I'm sorry, I can't do that.", [np.nan] * 5, Outcome.REFUSED),
        (Completion("", Outcome.TRANSPORT), [np.nan] * 5, Outcome.TRANSPORT),
    ],
)
def test_lists_in_any_wrapping_are_read_and_others_are_missing(reply, score, outcome) -> None:
    scorer = Detection(asking(Scripted(TOKENIZER, lambda prompt: reply), examples=5, **LIST))
    made = scorer.quiz(latent(0, 100), generator(0, "quiz"))
    (answers,) = scorer.answers([made])
    assert len(made) == 10
    np.testing.assert_array_equal(answers.score, [*score, *score])
    assert set(answers.outcome.tolist()) == {int(outcome)}


def test_one_failed_request_loses_its_own_questions_and_no_others() -> None:
    engine = Scripted(
        TOKENIZER, lambda prompt: ones(prompt) if len(engine.prompts) != 5 else Completion("", Outcome.TRANSPORT)
    )
    scorer = Detection(asking(engine, examples=10, **LIST))
    made = [scorer.quiz(latent(number, 100), generator(0, "quiz", number)) for number in range(2)]
    first, second = scorer.answers(made)
    assert len(engine.prompts) == 8
    assert first.there.all()
    assert second.there.tolist() == [False] * 5 + [True] * 15


def test_a_verbose_intruder_reply_is_missing_and_not_wrong() -> None:
    one = latent(2, 600)
    for reply, failed in (("[3]", 0), ("I would say that it is number three", 10), ("It is 3.", 0), ("1 or 3", 10)):
        scorer = Intruder(asking(Scripted(TOKENIZER, lambda prompt, reply=reply: reply), answers="list"))
        made = scorer.quiz(one, generator(0, "intruder"))
        (answers,) = scorer.answers([made])
        scores = scorer.scores(one, made, answers)
        assert scores["failed"] == (len(made) if failed else 0)
        if failed:
            assert np.isnan(scores["accuracy"])
        else:
            assert scores["accuracy"] == pytest.approx((made.truth == 2).mean())


def test_an_intruder_by_probabilities_is_the_likeliest_number() -> None:
    one = latent(2, 600)
    engine = Scripted(TOKENIZER, chance=lambda prefix, suffix: 0.9)  # of the last label, 5
    scorer = Intruder(asking(engine))
    made = scorer.quiz(one, generator(0, "intruder"))
    (answers,) = scorer.answers([made])
    assert engine.blocks == 1
    assert (answers.score == 4).all()
    assert scorer.scores(one, made, answers)["accuracy"] == pytest.approx((made.truth == 4).mean())


def test_embeddings_rank_texts_by_their_likeness_and_must_be_given() -> None:
    @dataclass
    class Letters:
        def embed(self, texts):
            return np.array([[each.count(letter) for letter in "0123456789"] for each in texts], dtype=np.float64)

    one = latent(0, 200)
    with pytest.raises(SettingError, match="needs something that embeds"):
        Embedding(asking(Scripted(TOKENIZER))).answers([])
    given = Asking(QuizSpec(window=16), TEXT, Scripted(TOKENIZER), compiled, Letters())
    made = Embedding(given).quiz(one, generator(0, "x"))
    example = made.examples[0]
    alike = quizzes.Quiz(0, b"".join(example.tokens).decode(), made.items, made.truth)
    (answers,) = Embedding(given).answers([alike])
    assert answers.score[0] == pytest.approx(1) == answers.score.max()


def test_templates_that_cannot_answer_so_are_refused() -> None:
    scorer = Detection(asking(Scripted(TOKENIZER), answers="list"))
    with pytest.raises(SettingError, match="detection-list"):
        scorer.answers([scorer.quiz(latent(), generator(0, "x"))])
    scorer = Detection(asking(Scripted(TOKENIZER), detection=PromptSpec(name="detection-list")))
    with pytest.raises(SettingError, match="two labels"):
        scorer.answers([scorer.quiz(latent(), generator(0, "x"))])


# -- scores -----------------------------------------------------------------------------------------------------------


def test_the_auc_is_the_chance_of_the_right_order() -> None:
    draws = generator(0, "auc")
    score, active = draws.integers(0, 6, 80) / 5, draws.random(80) < 0.4
    pairs = score[active][:, None] - score[~active]
    assert tally.auc(score, active) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert np.isnan(tally.auc(score, np.ones(80, dtype=bool)))


def test_at_half_the_average_precision_of_a_balanced_quiz_is_the_plain_one() -> None:
    draws = generator(0, "ap")
    level = draws.integers(0, 10, 60)
    active = np.arange(60) < 30
    said = np.bincount(level, minlength=10)[None].astype(float)
    plain = measures.average_precision(said, np.bincount(level[active], minlength=10)[None].astype(float))[0]
    assert tally.average_precision(level / 9, active, 0.5) == pytest.approx(plain)
    assert tally.average_precision(level / 9, active, 0.01) < plain


def test_natural_scores_are_those_of_as_many_cases() -> None:
    # 8 of 10 active cases and 1 of 10 silent ones are called; text in which a tenth is active
    score = np.array([0.9] * 8 + [0.1] * 2 + [0.9] + [0.1] * 9)
    truth = np.repeat([1, 0], 10)
    found = tally.natural(Answers.known(score), truth, 0.1, 0.5)
    said = np.array([[90 * 9 + 20, 90 + 80]], dtype=float)
    active = np.array([[20.0, 80.0]])
    assert found["mcc"] == pytest.approx(measures.matthews(said, active)[0])
    assert found["sensitivity"] == pytest.approx(0.8) and found["specificity"] == pytest.approx(0.9)
    assert found["mcc2"] == pytest.approx(found["mcc"] ** 2)
    assert tally.natural(Answers.known(np.zeros(20)), truth, 0.1, 0.5)["mcc"] == 0


def test_exactly_one_half_is_no_yes() -> None:
    assert tally.confusion(Answers.known([0.5, 0.51]), np.array([1, 1])).tolist() == [1, 0, 1, 0]


# -- the whole --------------------------------------------------------------------------------------------------------


def active() -> dict[str, np.ndarray]:
    draws = generator(2, "active")
    dense = (draws.random((5, 600)) < 0.1) * draws.random((5, 600))
    dense[3] = 0
    return {"explain": dense, "calibrate": dense}


def inputs(folder: Path, sentences: list[str], into: str = "explanations") -> dict[str, object]:
    made = artifacts(folder, active())
    explanations = Here(folder / into)
    write_table({"sentence": np.array(sentences, dtype=object)}, explanations.path("explanations.parquet"))
    return {
        "subject": made["subject"],
        "tokens": made["tokens"],
        "activations": made["activations-calibrate"],
        "explanations": explanations,
        "reader": Here(folder / "reader"),
    }


SENTENCES = ["cats", "dogs", "", "never", "mats"]
SPEC = QuizSpec(examples=6, window=8)


def built(folder: Path, given: dict[str, object], engine, monkeypatch, spec=SPEC, work=None) -> pd.DataFrame:
    monkeypatch.setattr(opening, "opened", lambda folder, execution: (engine, TOKENIZER))
    folder.mkdir()
    quiz.build(spec, given, folder, running(work))
    return pd.read_parquet(folder / "scores.parquet")


def test_the_table_has_the_columns_of_the_rule_readers_scores(tmp_path, monkeypatch) -> None:
    engine = Scripted(TOKENIZER, chance=lambda prefix, suffix: 0.3 + 0.4 * ("cat" in suffix[-200:]))
    spec = SPEC.model_copy(update={"also": ("intruder",)})
    table = built(tmp_path / "out", inputs(tmp_path, SENTENCES), engine, monkeypatch, spec)
    for name in (
        *(f"{name}_{each}" for name in ("detection", "fuzzing") for each in ("f1", "balanced_accuracy", "precision")),
        *("latent", "explained", "sensitivity", "specificity", "mcc", "mcc2", "explained_by_flags", "auprc", "active"),
    ):
        assert name in table
    assert engine.closed
    assert table["explained"].tolist() == [True, True, False, True, True]
    assert table["detection_asked"].tolist() == [12, 12, 0, 0, 12]
    assert table["detection_auc"].isna().tolist() == [False, False, True, True, False]
    assert table["detection_failed"].tolist() == [0] * 5
    assert table["intruder_asked"][2] > 0  # it needs no sentence
    assert table["active"].tolist() == (active()["calibrate"] > 0).sum(1).tolist()


def test_what_was_answered_is_not_asked_again(tmp_path, monkeypatch) -> None:
    given, work = inputs(tmp_path, SENTENCES), Kept()
    monkeypatch.setattr(quiz, "BATCH", 2)
    engines = [Scripted(TOKENIZER, chance=lambda prefix, suffix: 0.1 + len(suffix) % 7 / 10) for _ in range(2)]
    first = built(tmp_path / "one", given, engines[0], monkeypatch, work=work)
    del work.pieces["quiz-00000004"]
    second = built(tmp_path / "two", given, engines[1], monkeypatch, work=work)
    pd.testing.assert_frame_equal(first, second)
    assert (engines[0].blocks, engines[1].blocks) == (6, 2)
    assert (tmp_path / "one" / "quiz.json").read_text() == (tmp_path / "two" / "quiz.json").read_text()


def test_a_batch_that_was_not_reached_is_asked_again_and_a_limit_leaves_none_out(tmp_path, monkeypatch) -> None:
    given, work = inputs(tmp_path, SENTENCES), Kept()
    monkeypatch.setattr(quiz, "BATCH", 2)
    away = Scripted(TOKENIZER, chance=lambda prefix, suffix: None if "mats" in prefix[-200:] else 0.2)
    table = built(tmp_path / "away", given, away, monkeypatch, work=work)
    assert table["detection_failed"].tolist() == [0, 0, 0, 0, 12] and table["detection_asked"][4] == 12
    assert sorted(work.pieces) == ["quiz-00000000", "quiz-00000002"]
    back = Scripted(TOKENIZER, chance=lambda prefix, suffix: 0.2)
    assert built(tmp_path / "back", given, back, monkeypatch, work=work)["detection_failed"].sum() == 0
    broke = Scripted(TOKENIZER, lambda prompt: Completion("", Outcome.SKIPPED))
    with pytest.raises(SettingError, match="left 12 of 12 questions unasked"):
        built(tmp_path / "broke", given, broke, monkeypatch, SPEC.model_copy(update=LIST))


def test_scores_of_a_latent_do_not_depend_on_the_others(tmp_path, monkeypatch) -> None:
    def engine() -> Scripted:
        return Scripted(TOKENIZER, chance=lambda prefix, suffix: 0.1 + len(suffix) % 7 / 10)

    all_ = built(tmp_path / "all", inputs(tmp_path / "a", SENTENCES), engine(), monkeypatch)
    alone = built(tmp_path / "alone", inputs(tmp_path / "b", ["", "dogs", "", "", ""]), engine(), monkeypatch)
    assert all_.loc[1].equals(alone.loc[1])


def test_documents_that_an_explainer_has_seen_are_not_asked_about(tmp_path, monkeypatch) -> None:
    given = inputs(tmp_path, SENTENCES)
    tokens = given["tokens"]
    tokens.path("calibrate.safetensors").write_bytes(tokens.path("explain.safetensors").read_bytes())
    with pytest.raises(AssertionError, match="has seen documents"):
        built(tmp_path / "out", given, Scripted(TOKENIZER), monkeypatch)


def test_a_scorer_joins_in_a_few_lines(tmp_path, monkeypatch) -> None:
    @dataclass(frozen=True)
    class Letters(Detection):
        def answers(self, quizzes):
            return [Answers.known([self.share(quiz.sentence, each) for each in quiz.examples]) for quiz in quizzes]

        @staticmethod
        def share(sentence: str, example) -> float:
            return float(np.mean([letter in b"".join(example.tokens).decode() for letter in sentence]))

    monkeypatch.setitem(SCORERS, "letters", Letters)
    spec = SPEC.model_copy(update={"also": ("letters",)})
    table = built(tmp_path / "out", inputs(tmp_path, SENTENCES), Scripted(TOKENIZER), monkeypatch, spec)
    assert table["letters_asked"].tolist() == [12, 12, 0, 0, 12]
    assert table["letters_auc"].notna().sum() == 3


def test_a_real_engine_gives_probabilities_and_the_same_by_one_question_at_a_time(tmp_path, monkeypatch) -> None:
    given = inputs(tmp_path, ["cats", "", "", "", "mats"])
    given["reader"] = reader(tmp_path / "reader")
    tables = []
    spec = QuizSpec(examples=5, window=8)
    for engine in ("packed", "reference"):
        out = tmp_path / engine
        out.mkdir()
        quiz.build(spec, given, out, running(engine=engine))
        tables.append(pd.read_parquet(out / "scores.parquet"))
    pd.testing.assert_frame_equal(*tables, atol=1e-4)
    assert tables[0]["detection_failed"].sum() == 0
    assert tables[0]["detection_auc"].notna().sum() == 2
    assert isinstance(Fuzzing(asking(Scripted(TOKENIZER))), Detection)
