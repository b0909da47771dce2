import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.activations.pairs import Active, ByLatent
from nlrewrite.explain import examples as shown
from nlrewrite.explain.examples import Text
from nlrewrite.seeds import generator
from nlrewrite.text.positions import Positions

WINDOWS, LENGTH, VOCABULARY = 60, 50, 200


def text(windows: int = WINDOWS, length: int = LENGTH, distinct: bool = False) -> Text:
    count = windows * length
    window, offset = np.divmod(np.arange(count, dtype=np.int32), np.int32(length))
    token = np.arange(count) if distinct else generator(0, "text").integers(0, VOCABULARY, count)
    where = Positions(window, offset, token.astype(np.int32), window // 3)
    return Text(where, [f" t{number}".encode() for number in range(count if distinct else VOCABULARY)])


def active(total: int, counts: list[int], seed: int = 0) -> tuple[ByLatent, np.ndarray]:
    """Latents active so often, at random positions; and the same as a dense array [latents, P]."""
    dense = np.zeros((len(counts), total), dtype=np.float32)
    for latent, count in enumerate(counts):
        draws = generator(seed, "active", latent)
        dense[latent, draws.choice(total, count, replace=False)] = draws.random(count) + 0.01
    latents = np.tile(np.arange(len(counts), dtype=np.int32), (total, 1))
    return Active(latents, dense.T.copy()).by_latent(len(counts)), dense


@given(st.integers(1, 300), st.integers(4, 60), st.sampled_from(["quantile", "top"]))
def test_activations_of_an_example_are_the_stored_ones_of_its_tokens(count: int, window: int, style) -> None:
    # every token id stands once, so that a stretch can be found again by its tokens alone
    book = text(windows=20, distinct=True)
    grouped, dense = active(len(book.where), [count])
    found = shown.examples(book, grouped, 0, 40, window, 0, style)
    assert len({each.first for each in found}) == len(found) <= 40
    for each in found:
        start = int(each.tokens[0][2:])
        assert [int(token[2:]) for token in each.tokens] == list(range(start, start + len(each.tokens)))
        assert (each.activation == dense[0, start : start + len(each.tokens)]).all()
        assert len(set(book.where.window[start : start + len(each.tokens)].tolist())) == 1
        assert len(each.tokens) == min(window, LENGTH)
        assert dense[0, each.position] > 0
        assert start <= each.position < start + len(each.tokens)
        marked = np.flatnonzero(each.activation >= shown.MARKED * each.activation.max()).tolist()
        assert set(each.at) == {*marked, each.position - each.first}


def test_the_activation_stands_three_quarters_in_wherever_the_text_allows() -> None:
    book = text()
    grouped, _ = active(len(book.where), [400])
    places = [each.position - each.first for each in shown.examples(book, grouped, 0, 200, 32, 0)]
    offsets = [int(book.where.offset[each.position]) for each in shown.examples(book, grouped, 0, 200, 32, 0)]
    for place, offset in zip(places, offsets, strict=True):
        assert place == (offset if offset < 23 else 23 if offset <= LENGTH - 9 else offset - (LENGTH - 32))
    assert places.count(23) > 30


def test_examples_come_evenly_from_the_deciles_and_top_ones_are_the_largest() -> None:
    book = text(windows=600)
    grouped, dense = active(len(book.where), [500])
    found = shown.examples(book, grouped, 0, 40, 32, 0)
    ranks = np.searchsorted(np.sort(dense[0][dense[0] > 0]), [dense[0, each.position] for each in found])
    assert np.bincount(ranks // 50, minlength=10).tolist() == [4] * 10
    top = shown.examples(book, grouped, 0, 5, 32, 0, "top")
    assert [dense[0, each.position] for each in top] == sorted(dense[0], reverse=True)[:5]


def test_one_busy_passage_does_not_fill_the_list() -> None:
    book = text(windows=200)
    dense = np.zeros((len(book.where), 1), dtype=np.float32)
    dense[:LENGTH] = 1  # the whole first window, and one place in each of the others
    dense[np.arange(1, 200) * LENGTH + 30] = 1
    dense *= generator(0, "sizes").random(dense.shape, dtype=np.float32) + 0.1
    grouped = Active(np.zeros_like(dense, dtype=np.int32), dense).by_latent(1)
    found = shown.examples(book, grouped, 0, 40, 32, 0)
    assert len({int(book.where.window[each.position]) for each in found}) == len(found) == 40


def test_draws_depend_on_seed_and_latent_alone() -> None:
    book = text()
    one, _ = active(len(book.where), [100])
    two, _ = active(len(book.where), [100, 300])

    def firsts(grouped: ByLatent, seed: int) -> list[int]:
        return [each.first for each in shown.examples(book, grouped, 0, 40, 32, seed)]

    assert firsts(one, 0) == firsts(two, 0)
    assert firsts(one, 0) != firsts(one, 1)


def test_counter_examples_show_the_others_where_the_latent_is_silent() -> None:
    book = text()
    grouped, dense = active(len(book.where), [80, 60, 60, 0])
    found = shown.counter_examples(book, grouped, 0, [1, 2, 3], 10, 16, 0)
    assert len(found) == 10
    others = [int(dense[1, each.position] > 0) for each in found]
    assert 3 <= sum(others) <= 7  # they take turns
    for each in found:
        assert not dense[0, each.first : each.first + 16].any()
        assert not each.activation.any()
        assert each.position - each.first in each.at


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_latent_that_is_active_a_few_times_has_as_many_examples(count: int) -> None:
    book = text()
    grouped, _ = active(len(book.where), [count])
    assert len(shown.examples(book, grouped, 0, 40, 32, 0)) == count
    assert shown.counter_examples(book, grouped, 0, [], 5, 32, 0) == []


def test_silent_stretches_hold_no_activation_and_differ_from_latent_to_latent() -> None:
    # two latents with as many silent stretches: a stream shared between them would give the same ones
    book = text(windows=400)
    grouped, dense = active(len(book.where), [200, 200])
    drawn = []
    for latent in (0, 1):
        draws = generator(0, "silent", latent)
        spans = shown.silent_spans(book, grouped.of(latent)[0], 50, 32, np.array([20]), draws)
        assert len(set(spans.first.tolist())) == len(spans) == 50
        assert not any(dense[latent, first:stop].any() for first, stop in zip(spans.first, spans.stop, strict=True))
        drawn.append(set(spans.first.tolist()))
    assert len(drawn[0] & drawn[1]) < 10


def test_silent_stretches_are_found_where_there_are_few_and_none_where_there_are_none() -> None:
    book = text(windows=30)
    dense = np.ones((len(book.where), 1), dtype=np.float32)
    dense[7 * LENGTH : 8 * LENGTH] = 0
    position = np.flatnonzero(dense)
    spans = shown.silent_spans(book, position, 50, LENGTH, np.array([3]), generator(0, "x"))
    assert spans.first.tolist() == [7 * LENGTH]
    everywhere = np.arange(len(book.where))
    assert not len(shown.silent_spans(book, everywhere, 5, 8, np.array([3]), generator(0, "x")))


@pytest.mark.parametrize(("window", "before"), [(16, 12), (16, 0), (16, 15), (49, 20), (50, 49), (80, 60)])
@pytest.mark.parametrize("count", [1, 3, 25, 300])
def test_the_share_of_active_stretches_is_that_of_a_count(window: int, before: int, count: int) -> None:
    book = text(windows=10)
    grouped, dense = active(len(book.where), [count])
    spans = book.spans(np.arange(len(book.where)), window, before)
    counted = np.mean([dense[0, a:b].any() for a, b in zip(spans.first, spans.stop, strict=True)])
    assert shown.share_active(book, grouped.of(0)[0], window, before) == pytest.approx(counted)
    assert shown.share_active(book, np.zeros(0, dtype=np.int64), window, before) == 0


def test_strengths_are_digits_of_a_strong_activation() -> None:
    assert [shown.strength(value, 2.0) for value in (0, 0.01, 1.0, 2.0, 50.0)] == [0, 1, 4, 9, 9]
