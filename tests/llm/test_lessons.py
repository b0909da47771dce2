import dataclasses

import numpy as np
import pytest

from nlrewrite.language.reading import simulate
from nlrewrite.language.sentence import SILENT, Change, Place, Rule, parse, write
from nlrewrite.llm.lessons import HARD, SHARES, SPEAKS, Stage, Teacher, held_out
from tests.llm.small_readers import TEXTS, VOCABULARY, positions

WINDOW = 9
WHERE = positions()


def teacher(seed: int = 0, share: float = 0.2) -> Teacher:
    return Teacher(WHERE, VOCABULARY, WINDOW, share, seed)


def test_a_lesson_is_the_same_each_time_and_another_for_another_number_or_seed() -> None:
    first, again = teacher().lesson(7, 16), teacher().lesson(7, 16)
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    assert teacher().lesson(8, 16).sentence != first.sentence != teacher(1).lesson(7, 16).sentence


def test_digits_are_what_the_rule_reader_says_of_the_tokens_that_are_shown() -> None:
    for number in range(30):
        lesson = teacher().lesson(number, 12)
        assert parse(lesson.sentence) == lesson.rule
        for position, digit in zip(lesson.position_C.tolist(), lesson.digit_C.tolist(), strict=True):
            first = position - min(int(WHERE.offset[position]), WINDOW - 1)
            shown = [TEXTS[token] for token in WHERE.token[first : position + 1]]
            assert int(simulate(lesson.sentence, shown, WINDOW).argmax()) == digit


def test_no_sentence_is_taught_that_others_are_judged_by() -> None:
    judged = {teacher().lesson(number, 4, judging=True).sentence for number in range(40)}
    taught = {teacher().lesson(number, 4).sentence for number in range(160)}
    assert not judged & taught
    assert all(held_out(sentence, 0.2) for sentence in judged) and not any(held_out(each, 0.2) for each in taught)
    assert abs(np.mean([held_out(f"sentence {n}", 0.2) for n in range(4000)]) - 0.2) < 0.03


def test_tilts_and_weights_undo_the_draw() -> None:
    """Over many draws each case has its weight, and exp(-tilt) of the questions adds up to the text's share."""
    rule = Rule(((b" of", 5), (b" the", 2)), (Change(Place(1), b" the", SILENT),)).normal()
    contexts = teacher().contexts
    active = len(contexts.levels(rule)[0]) / len(WHERE)
    lesson = teacher().about(rule, 100, np.random.default_rng(0))
    assert lesson is not None
    speaks = lesson.digit_C > 0
    assert speaks.sum() == round(SHARES[SPEAKS] * 100)
    assert lesson.weight_C[speaks].sum() == pytest.approx(active)
    drawn_by_text = np.exp(-lesson.tilt_CZ[np.arange(100), lesson.digit_C]) / 100
    assert drawn_by_text[speaks].sum() == pytest.approx(active) and drawn_by_text.sum() == pytest.approx(1)
    assert np.allclose(drawn_by_text, lesson.weight_C)


def test_hard_contexts_end_with_what_the_sentence_quotes_or_what_is_spelled_like_it() -> None:
    rule = Rule(((b" the", 5),), (Change(Place(1), b" of", SILENT), Change(Place(2), b" cat", 3))).normal()
    lesson = teacher().about(rule, 200, np.random.default_rng(0))
    assert lesson is not None
    count = round(SHARES[HARD] * 200)
    start = round(SHARES[SPEAKS] * 200)
    last = {TEXTS[token] for token in WHERE.token[lesson.position_C[start : start + count]]}
    assert last <= {b" the", b"the", b" of", b" cat", b"Cat"} and b" the" in last and len(last) > 2
    others = {TEXTS[token] for token in WHERE.token[lesson.position_C[start + count :]]}
    assert not others & {b" the", b"the", b" of", b" cat"}
    assert teacher().names_last(lesson)[:start].all()


def test_a_rule_that_never_speaks_here_is_no_lesson_and_what_is_not_there_leaves_its_share() -> None:
    assert teacher().about(Rule(((b" zebra", 5),)), 8, np.random.default_rng(0)) is None
    alone = teacher().about(Rule(((b"7", 5),)), 20, np.random.default_rng(0))
    assert alone is not None and (alone.digit_C > 0).sum() >= 14  # nothing is spelled like a 7
    assert alone.weight_C.sum() == pytest.approx(1)


def test_an_early_stage_says_little() -> None:
    stage = Stage(0.1, quotes=2, kinds=0, changes=False, shown=1)
    rules = [teacher().lesson(number, 4, stage).rule for number in range(40)]
    assert all(
        len(rule.strengths) <= 2 and not rule.changes and all(value for _, value in rule.strengths) for rule in rules
    )
    late = [teacher().lesson(number, 4).rule for number in range(40)]
    assert max(len(rule.changes) for rule in late) > 6 and max(rule.quotes for rule in late) <= 12
    kinds = {type(change.item) for rule in late for change in rule.changes}
    assert kinds == {int, bytes} and any(change.amount == SILENT for rule in late for change in rule.changes)
    assert all(parse(write(rule)) == rule for rule in late)
