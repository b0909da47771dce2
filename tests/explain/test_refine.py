import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.explain import refine
from nlrewrite.explain.compare import Compared, crossed
from nlrewrite.explain.editing import ContrastEditor, RuleEditor, RuleReader, cases_of, level_at, squared_error
from nlrewrite.explain.examples import Text, counter_examples, examples
from nlrewrite.explain.refine import Asked, Cases, Wanted
from nlrewrite.language.sentence import Rule, parse, words, write
from nlrewrite.seeds import generator
from tests.explain.planted import WORDS, A, B, C, evidence, latent, text

WHERE = text()
CONTEXTS = evidence(WHERE).contexts
SHOWN_P = refine.parts(WHERE.group, 0)


def everything(truth_P: np.ndarray) -> Cases:
    count = len(truth_P)
    return Cases(np.arange(count), truth_P.astype(np.float64), np.ones(count), WHERE.group, SHOWN_P)


def some(truth, level=None, shown=None, weight=None, group=None) -> Cases:
    count = len(truth)
    weight = np.ones(count) if weight is None else np.array(weight, dtype=float)
    shown = np.arange(count) % 2 == 0 if shown is None else np.array(shown)
    group = np.arange(count) if group is None else np.array(group)
    return Cases(np.arange(count), np.array(truth, dtype=float), weight, group, shown)


class Fixed:
    """An editor that has one edit for every latent."""

    def __init__(self, sentence: str | None) -> None:
        self.sentence, self.seen = sentence, list[Wanted]()

    def edits(self, wanted):
        self.seen += wanted
        return [self.sentence for _ in wanted]


def run(truth_P: np.ndarray, sentence: str, editor, rounds: int = 1) -> refine.Refined:
    return refine.refine([7], [sentence], [everything(truth_P)], RuleReader(CONTEXTS), editor, rounds, 0)[0]


IS_A = WHERE.token == A
AFTER_B = WHERE.back(1) == B


def test_half_of_the_document_groups_are_shown_and_none_is_on_both_parts() -> None:
    shown, judged = (set(WHERE.group[part].tolist()) for part in (SHOWN_P, ~SHOWN_P))
    assert not shown & judged
    assert abs(len(shown) - len(judged)) <= 1


def test_an_edit_that_is_right_is_kept_and_one_that_is_wrong_is_not() -> None:
    truth = (IS_A & ~AFTER_B) * 5.0
    good = run(truth, 'Fires on " w0" (9).', Fixed('Fires on " w0" (9). Silent right after " w1".'))
    assert good.kept == 1
    assert good.sentence.endswith('Silent right after " w1".')
    bad = run(truth, 'Fires on " w0" (9).', Fixed('Fires on " w2" (9).'))
    assert (bad.kept, bad.sentence, len(bad.tried)) == (0, 'Fires on " w0" (9).', 1)
    unread = run(truth, 'Fires on " w0" (9).', Fixed("It is something."))
    assert unread.kept == 0


def test_an_edit_that_only_helps_what_was_shown_is_refused() -> None:
    # active on B in the shown documents alone: on the others naming it is a mistake
    truth = IS_A * 5.0 + ((WHERE.token == B) & SHOWN_P) * 5.0
    edited = run(truth, 'Fires on " w0" (9).', Fixed('Fires on " w0" or " w1" (9).'))
    assert edited.kept == 0
    assert edited.tried[0].rise.mean < 0


def test_errors_that_are_shown_are_errors_of_the_shown_part_and_those_refused_are_told() -> None:
    truth = (IS_A & ~AFTER_B) * 5.0 + (WHERE.token == C) * 5.0
    editor = Fixed('Fires on " w5" (9).')
    run(truth, 'Fires on " w0" (9).', editor, rounds=2)
    first, second = editor.seen
    for rows, kind in ((first.false_positives, IS_A & AFTER_B), (first.false_negatives, WHERE.token == C)):
        assert len(set(rows.tolist())) == len(rows) == refine.ERRORS
        assert kind[rows].all() and SHOWN_P[rows].all()
    assert first.refused == frozenset()
    assert second.refused == {'Fires on " w5" (9).'}


def test_nothing_is_asked_of_an_editor_when_there_are_no_errors() -> None:
    editor = Fixed('Fires on " w5" (9).')
    assert run(IS_A * 5.0, 'Fires on " w0" (9).', editor).tried == ()
    assert not editor.seen


def test_false_positives_are_drawn_in_proportion_to_their_damage() -> None:
    # levels 3 and 9 in vain: by the line through all, 9 adds far more than 3
    truth = np.concatenate([np.full(40, 6.0), np.zeros(200)])
    level = np.concatenate([np.full(40, 9.0), np.full(40, 9.0), np.full(40, 3.0), np.zeros(120)])
    cases = some(truth, shown=np.ones(240, dtype=bool))
    wrong, lost = refine.damage(cases, level)
    assert (wrong[:40] == 0).all() and (wrong[120:] == 0).all() and not lost[40:].any()
    guess = refine.predicted(cases, level)
    assert wrong[40] == pytest.approx(guess[40] ** 2 - guess[-1] ** 2)
    drawn = np.concatenate([refine._drawn(wrong, generator(seed, "x")) for seed in range(200)])
    share = np.isin(drawn, np.arange(40, 80)).mean()
    expected = wrong[40:80].sum() / wrong.sum()
    assert share == pytest.approx(expected, abs=0.05)  # drawn without replacement from 80: near the proportion
    doubled = refine.damage(some(truth, shown=np.ones(240, dtype=bool), weight=np.full(240, 2)), level)[0]
    assert doubled == pytest.approx(2 * wrong)


def test_missing_answers_are_no_errors_and_are_predicted_by_the_mean() -> None:
    cases = some([4.0, 0, 4, 0, 4, 0], shown=[True] * 4 + [False] * 2)
    level = np.array([9.0, 0, np.nan, np.nan, np.nan, 0])
    guess = refine.predicted(cases, level)
    assert guess[[0, 1]] == pytest.approx([4, 0])
    assert guess[[2, 3, 4]] == pytest.approx([2, 2, 2])
    wrong, lost = refine.damage(cases, level)
    assert not wrong.any() and not lost[2:5].any()


def test_an_edit_does_not_win_because_the_sentence_before_it_was_not_heard() -> None:
    cases = some([4.0, 4, 0, 0] * 6)
    right, lost = np.where(cases.truth > 0, 9.0, 0.0), np.full(len(cases), np.nan)
    assert not refine.risen(cases, lost, right).accepted and not refine.risen(cases, right, lost).accepted
    wrong = 9 - right
    assert refine.risen(cases, wrong, right).accepted
    partly = np.where(np.arange(len(cases)) < 12, right, np.nan)
    assert refine.risen(cases, partly, right).mean == pytest.approx(0)  # alike wherever both were heard


def test_the_line_never_falls_and_a_constant_level_gives_the_mean() -> None:
    cases = some([0.0, 4, 0, 4], shown=[True] * 4)
    assert refine.predicted(cases, np.array([9.0, 0, 9, 0])) == pytest.approx([2] * 4)
    assert refine.predicted(cases, np.full(4, 3.0)) == pytest.approx([2] * 4)


@given(st.integers(0, 5))
def test_weights_count_like_repetitions(seed: int) -> None:
    draws = generator(seed, "cases")
    truth, level = draws.random(20) * (draws.random(20) < 0.4), draws.integers(0, 10, 20).astype(float)
    shown, group, weight = draws.random(20) < 0.5, draws.integers(0, 6, 20), draws.integers(1, 4, 20)
    shown[:2] = [True, False]
    other = draws.integers(0, 10, 20).astype(float)
    once = some(truth, shown=shown, weight=weight, group=group)
    many = np.repeat(np.arange(20), weight)
    often = some(truth[many], shown=shown[many], group=group[many])
    left, right = refine.risen(once, level, other), refine.risen(often, level[many], other[many])
    assert (left.mean, left.error) == pytest.approx((right.mean, right.error))


def test_the_standard_error_of_equal_groups_is_the_textbook_one() -> None:
    value = generator(0, "values").random(30)
    rise = refine.mean_by_group(value, np.ones(30), np.arange(30))
    assert rise.mean == pytest.approx(value.mean())
    assert rise.error == pytest.approx(value.std(ddof=1) / np.sqrt(30))
    assert not refine.mean_by_group(value, np.ones(30), np.zeros(30)).accepted


# -- rules as editors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "plain", "edited"),
    [
        (IS_A & ~AFTER_B, 'Fires on " w0" (9).', 'Fires on " w0" (9). Silent right after " w1".'),
        (IS_A | (WHERE.token == C), 'Fires on " w0" (9).', 'Fires on " w0" or " w2" (9).'),
        (IS_A, 'Fires on " w0" or " w2" (9).', 'Fires on " w0" (9).'),
        (IS_A, 'Fires on " w0" (9). Silent right after " w1".', 'Fires on " w0" (9).'),
    ],
    ids=["spoken in vain", "missed", "a token too many", "a change too many"],
)
def test_the_rule_editor_finds_the_edit(truth, plain: str, edited: str) -> None:
    editor = RuleEditor(CONTEXTS, most_quotes=4, most_words=40)
    found = run(truth * 5.0, plain, editor, rounds=2)
    assert found.sentence == edited
    assert found.kept == 1


def test_edits_keep_to_their_limits_and_are_sentences_of_the_language() -> None:
    rule = parse('Fires on " w0" (9), " w3" (4). Stronger right after " w5" (+3).')
    editor = RuleEditor(CONTEXTS, most_quotes=4, most_words=20)
    position = np.flatnonzero(IS_A)
    found = list(editor.candidates(rule, position[:10], np.flatnonzero(WHERE.token == C)[:10], position[10:20]))
    assert len(found) == len(set(found)) > 5
    for each in found:
        assert parse(write(each)) == each
        assert each.quotes <= 4 and words(write(each)) <= 20 and each.strengths


def test_one_case_of_a_group_stands_for_all_that_can_never_be_spoken_of() -> None:
    truth = (IS_A & ~AFTER_B) * 5.0
    position, value = np.flatnonzero(truth), truth[truth > 0]
    rule = parse('Fires on " w0" (9), " w7" (4).')
    few, all_ = cases_of(CONTEXTS, position, value, SHOWN_P, rule), everything(truth)
    assert len(few) < len(all_) / 3
    assert few.weight.sum() == len(all_)
    edited = parse('Fires on " w0" (9). Silent right after " w1".')
    rises = []
    for cases in (few, all_):
        levels = [level_at(CONTEXTS, each, cases.position) for each in (rule, edited)]
        rises.append(refine.risen(cases, *levels))
        assert squared_error(cases, levels[1]) == pytest.approx(
            squared_error(all_, level_at(CONTEXTS, edited, all_.position))
        )
    assert (rises[0].mean, rises[0].error) == pytest.approx((rises[1].mean, rises[1].error))


def test_a_contrast_sees_the_examples_alone_and_learns_what_tells_the_rival() -> None:
    from nlrewrite.activations.pairs import Active

    mine, rival = IS_A & ~AFTER_B, IS_A & AFTER_B
    values = np.stack([mine, rival], axis=1).astype(np.float32)
    latents = np.tile(np.arange(2, dtype=np.int32), (len(WHERE), 1))
    grouped = Active(latents, values).by_latent(2)
    book = Text(WHERE, WORDS)
    own = {0: examples(book, grouped, 0, 20, 8, 0)}
    others = {0: counter_examples(book, grouped, 0, [1], 10, 8, 0)}
    assert others[0]
    editor = ContrastEditor(RuleEditor(CONTEXTS, 4, 40), own, others)
    cases = everything(mine * 1.0)
    level = level_at(CONTEXTS, parse('Fires on " w0" (9).'), cases.position)
    nothing = np.zeros(0, dtype=np.int64)
    wanted = Wanted(0, 'Fires on " w0" (9).', cases, level, nothing, nothing)
    assert editor.edits([wanted])[0] == 'Fires on " w0" (9). Silent right after " w1".'
    shown = editor._by_examples(wanted)
    allowed = {each.first + place for each in (*own[0], *others[0]) for place in range(len(each.tokens))}
    assert set(shown.cases.position.tolist()) == allowed


def test_a_sentence_that_cannot_be_read_has_no_answers() -> None:
    level = RuleReader(CONTEXTS).levels([Asked(0, "no rule", np.arange(5))])[0]
    assert np.isnan(level).all()


# -- comparing --------------------------------------------------------------------------------------------------------


def test_compared_gains_are_those_of_predictions_fitted_on_the_other_half() -> None:
    truth = IS_A * 5.0
    cases = everything(truth)
    level = level_at(CONTEXTS, parse('Fires on " w0" (9).'), cases.position)
    found = Compared(np.unique(WHERE.group))
    found.add(cases, np.zeros(len(level)), level, 4.0, True)
    found.add(cases, level, level, 4.0, False)
    result = found.result()
    means = np.where(SHOWN_P, truth[~SHOWN_P].mean(), truth[SHOWN_P].mean())
    perfect = 4 * np.square(truth - means).mean()
    assert result["edited"] == pytest.approx(2 * perfect)
    assert result["plain"] == pytest.approx(perfect)
    assert (result["changed"], result["better"], result["worse"]) == (1, 1, 0)
    rise = result["rise_over_documents"]
    assert rise.mean == pytest.approx(1)
    assert rise.low < 1 < rise.high
    assert crossed(cases, np.zeros(len(level))) == pytest.approx(np.zeros(len(level)))


def test_rules_that_are_never_true_gain_nothing() -> None:
    assert latent(np.zeros(5))[0].size == 0
    cases = cases_of(CONTEXTS, np.zeros(0, dtype=np.int64), np.zeros(0), SHOWN_P, Rule(()))
    assert len(cases) == len(np.unique(WHERE.group))
    assert not refine.gains(cases, np.zeros(len(cases))).any()
