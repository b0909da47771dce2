import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from nlrewrite.text import duplicates

passages = st.tuples(st.integers(0, 30), st.integers(0, 24)).map(lambda each: " ".join(numbered(*each)))
texts = st.lists(st.lists(passages, max_size=3).map(" ".join), max_size=12)


def numbered(begin: int, count: int) -> list[str]:
    return [f"w{number}" for number in range(begin, begin + count)]


def sets_of(text: str) -> set[tuple[str, ...]]:
    split = text.split()
    return {tuple(split[begin : begin + 8]) for begin in range(len(split) - 7)}


def linked(one: str, other: str) -> bool:
    if one.split() == other.split():
        return True
    mine, theirs = sets_of(one), sets_of(other)
    return len(mine & theirs) > min(len(mine), len(theirs)) / 2


def by_comparing_all(texts: list[str]) -> list[int]:
    group = list(range(len(texts)))
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            if linked(one, other):
                old, new = max(group[i], group[j]), min(group[i], group[j])
                group = [new if each == old else each for each in group]
    return group


def partition(group: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, each in enumerate(group) if each == number) for number in group}


@given(texts)
@example(["a b c a b c a b c a"] * 3)
@example(["", " ", "a"])
def test_groups_are_those_that_comparing_all_pairs_finds(texts: list[str]) -> None:
    assert partition(duplicates.groups(texts).tolist()) == partition(by_comparing_all(texts))


@given(texts, st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_the_texts(texts: list[str], random) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    moved = duplicates.groups([texts[index] for index in order]).tolist()
    back = [moved[order.index(index)] for index in range(len(texts))]
    assert partition(back) == partition(duplicates.groups(texts).tolist())


def test_more_than_half_of_the_smaller_links_and_half_does_not() -> None:
    small = numbered(0, 17)  # 10 shingles
    half = numbered(100, 40) + small[:12] + numbered(200, 40)  # holds 5 of them
    more = numbered(300, 40) + small[:13] + numbered(400, 40)  # holds 6 of them
    assert duplicates.groups([" ".join(each) for each in (small, half)]).tolist() == [0, 1]
    assert duplicates.groups([" ".join(each) for each in (small, more)]).tolist() == [0, 0]


def test_white_space_does_not_tell_documents_apart_and_short_ones_need_their_equals() -> None:
    assert duplicates.groups(["one two", "one\n\ttwo ", "one two three", "one  two"]).tolist() == [0, 0, 1, 0]


def test_a_chain_of_links_is_one_group() -> None:
    chain = [" ".join(numbered(begin, 30)) for begin in range(0, 100, 10)]
    assert set(duplicates.groups(chain).tolist()) == {0}
    assert set(duplicates.groups([chain[0], chain[-1]]).tolist()) == {0, 1}


def test_a_licence_in_every_document_links_them_only_where_it_is_most_of_the_smaller_one() -> None:
    licence = " ".join(numbered(0, 100))
    short = [f"{licence} " + " ".join(numbered(1000 * (each + 1), 40)) for each in range(300)]
    long = [f"{licence} " + " ".join(numbered(1000 * (each + 1), 400)) for each in range(300)]
    assert len(set(duplicates.groups(short).tolist())) == 1
    assert len(set(duplicates.groups(long).tolist())) == 300


def test_equal_shingles_have_equal_numbers_across_texts_and_others_do_not() -> None:
    one, other, neither = duplicates.shingles(["a b c d e f g h i", "z b c d e f g h i", "i h g f e d c b a"])
    assert len(np.intersect1d(one, other)) == 1
    assert len(np.intersect1d(one, neither)) == 0
