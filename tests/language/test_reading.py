import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.language.reading import Contexts, distances, distributions, simulate
from nlrewrite.language.sentence import SILENT, Change, Place, Rule, write
from nlrewrite.language.vocabulary import END_OF_TEXT, KINDS, START, Vocabulary, kind
from nlrewrite.text.positions import Positions
from tests.language.making import FEW, rules

few = st.sampled_from(FEW)
contexts = st.lists(few, min_size=1, max_size=14)


def level(sentence: str, context: list[bytes], window: int = 32) -> int:
    return int(simulate(sentence, context, window).argmax())


def by_hand(rule: Rule, context: list[bytes]) -> int:
    """The meaning of a rule, spelled out: strength of the last token, plus what holds, cut to 0..9."""
    strengths = dict(rule.strengths)
    if context[-1] not in strengths:
        return 0
    total = strengths[context[-1]]
    for change in rule.changes:
        first = 1 if change.place.within else change.place.distance
        holds = False
        for distance in range(first, change.place.distance + 1):
            there = context[-1 - distance] if distance < len(context) else None
            if isinstance(change.item, bytes):
                holds |= there == change.item
            else:
                holds |= (START if there is None else kind(there)) == change.item
        total += change.amount * holds
    return min(9, max(0, total))


def positions_of(windows: list[list[int]]) -> Positions:
    columns = [(row, place, token) for row, tokens in enumerate(windows) for place, token in enumerate(tokens)]
    window, offset, token = np.array(columns, dtype=np.int32).reshape(-1, 3).T
    return Positions(window, offset, token, window)


@given(rules(few, farthest=9), contexts, st.integers(1, 12))
def test_a_context_gets_the_level_that_the_sentence_states(rule: Rule, context: list[bytes], window: int) -> None:
    table = simulate(write(rule), context, window)
    assert (table == distributions()[by_hand(rule, context[-window:])]).all()


@given(rules(few, farthest=9), st.lists(contexts, min_size=1, max_size=4), st.integers(1, 12), st.randoms())
def test_reading_in_bulk_agrees_with_reading_one_context(rule: Rule, texts: list, window: int, random) -> None:
    vocabulary = [*FEW, b"unused", *FEW[:4], b""]  # some tokens are spelled alike
    alike = {text: [index for index, each in enumerate(vocabulary) if each == text] for text in FEW}
    windows = [[random.choice(alike[text]) for text in context] for context in texts]
    where = positions_of(windows)
    position, levels = Contexts(where, Vocabulary(tuple(vocabulary)), window).levels(rule)
    assert (np.diff(position) > 0).all()
    assert (levels > 0).all()
    told = dict(zip(position.tolist(), levels.tolist(), strict=True))
    for at, (row, place) in enumerate(zip(where.window, where.offset, strict=True)):
        context = texts[row][: place + 1]
        expected = simulate(write(rule), context, window)
        assert (distributions()[told.get(at, 0)] == expected).all()


@given(rules(few, farthest=9), contexts, contexts, st.integers(1, 12))
def test_nothing_beyond_the_window_is_seen(rule: Rule, before: list, context: list, window: int) -> None:
    sentence = write(rule)
    whole = simulate(sentence, [*before, *context], window)
    assert (whole == simulate(sentence, [*before, *context][-window:], window)).all()
    if len(context) >= window:
        assert (whole == simulate(sentence, context, window)).all()


def test_what_is_not_named_is_zero_for_certain() -> None:
    table = simulate('Fires on " of" (7).', [b"a", b"of"])
    assert table.tolist() == [1.0] + [0.0] * 9
    assert simulate("Never fires.", [b"a"])[0] == 1
    assert simulate('Fires on " of" (7).', [])[0] == 1


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ('Fires on " of" (7).', 7),
        ('Fires on " of" (2).', 2),
        ('Fires on "of" (7).', 0),
        ('Fires on " of" (7). Stronger right after " 7" (+2).', 9),
        ('Fires on " of" (7). Stronger right after a number (+1).', 8),
        ('Fires on " of" (7). Stronger right after " 7" (+2), a number (+2).', 9),
        ('Fires on " of" (7). Weaker 2 tokens after "🙂" (-3).', 4),
        ('Fires on " of" (7). Weaker right after "🙂" (-3).', 7),
        ('Fires on " of" (7). Weaker within 3 tokens after "🙂" (-3).', 4),
        ('Fires on " of" (7). Silent within 3 tokens after "🙂".', 0),
        ('Fires on " of" (7). Silent within 4 tokens after the start.', 0),
        ('Fires on " of" (7). Silent within 3 tokens after the start.', 7),
        ('Fires on " of" (7). Silent 4 tokens after the start.', 0),
        ('Fires on " of" (7). Silent 99 tokens after the start.', None),
        (r'Fires on " of" (7). Weaker 3 tokens after "\xe6\x9c" (-1).', 6),
        ('Fires when strengthened on " of".', 0),
        ('Fires when strengthened on " of". Stronger right after " 7" (+3).', 3),
    ],
)
def test_a_sentence_edited_by_hand_changes_the_prediction(edited: str, expected: int | None) -> None:
    context = ["木".encode()[:2], "🙂".encode(), b" 7", b" of"]
    if expected is None:
        with pytest.raises(ValueError, match="1 to 64"):
            simulate(edited, context)
    else:
        assert level(edited, context) == expected


def test_the_start_is_where_the_readers_text_begins() -> None:
    sentence = 'Fires on "a" (5). Silent right after the start.'
    assert level(sentence, [b"a"]) == 0
    assert level(sentence, [END_OF_TEXT, b"a"]) == 0
    assert level(sentence, [b"b", b"a"]) == 5
    assert level(sentence, [b"b", b"a"], window=1) == 0


def test_distributions_are_distributions_around_their_level() -> None:
    table = distributions()
    assert table.sum(1) == pytest.approx(np.ones(10))
    assert (table.argmax(1) == np.arange(10)).all()
    expected = table @ np.arange(10)
    assert expected[:9] == pytest.approx(np.arange(9))
    assert (np.diff(expected) > 0).all()


def test_every_kind_can_be_read() -> None:
    for index, name in enumerate(KINDS):
        change = Change(Place(1), index, SILENT)
        assert write(Rule(((b"a", 1),), (change,))).endswith(f"Silent right after {name}.")
    assert list(distances(Place(3))) == [3]
    assert list(distances(Place(3, within=True))) == [1, 2, 3]


def test_silent_is_stronger_than_any_sum() -> None:
    weaker = 'Fires on "a" (9). Stronger right after "b" (+9). Weaker within 2 tokens after "c" (-9).'
    silent = 'Fires on "a" (9). Stronger right after "b" (+9). Silent within 2 tokens after "c".'
    assert level(weaker, [b"c", b"b", b"a"]) == 9
    assert level(silent, [b"c", b"b", b"a"]) == 0
    assert level(silent, [b"x", b"b", b"a"]) == 9
