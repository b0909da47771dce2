import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.text.packing import Place, document_of, pack, since_start, unpack, within_rows

texts = st.lists(st.lists(st.integers(0, 9), max_size=12).map(lambda ids: np.array(ids, dtype=np.int64)), max_size=12)


@given(texts, st.integers(1, 9), st.integers(0, 9))
def test_rows_one_after_another_are_the_documents(documents: list[np.ndarray], length: int, separator: int) -> None:
    pieces = list(pack(enumerate(documents), length, separator))
    assert all(len(piece.ids_T) == length for piece in pieces[:-1])
    assert all(0 < len(piece.ids_T) <= length for piece in pieces)
    empty = np.array([], dtype=np.int64)
    ids_N = np.concatenate([empty, *(piece.ids_T for piece in pieces)])
    starts_D = np.concatenate([empty, *(piece.starts_D + number * length for number, piece in enumerate(pieces))])
    found = unpack(ids_N, starts_D)
    assert [each.tolist() for each in found] == [each.tolist() for each in documents]
    assert (ids_N[starts_D] == separator).all() and len(ids_N) == sum(len(each) + 1 for each in documents)


@given(texts, st.integers(1, 9), st.integers(1, 60), st.data())
def test_packing_goes_on_after_any_piece(
    documents: list[np.ndarray], length: int, most: int, data: st.DataObject
) -> None:
    pieces = list(pack(enumerate(documents), length, 0, most=most))
    assert sum(len(piece.ids_T) for piece in pieces) == min(most, sum(len(each) + 1 for each in documents))
    done = data.draw(st.integers(0, len(pieces)))
    place = pieces[done - 1].after if done else Place()
    rest = list(enumerate(documents))[place.document :]
    left = most - sum(len(piece.ids_T) for piece in pieces[:done])
    again = list(pack(rest, length, 0, used=place.used, most=left))
    assert [piece.ids_T.tolist() for piece in again] == [piece.ids_T.tolist() for piece in pieces[done:]]
    assert [piece.starts_D.tolist() for piece in again] == [piece.starts_D.tolist() for piece in pieces[done:]]
    assert [piece.after for piece in again] == [piece.after for piece in pieces[done:]]


@given(texts, st.integers(1, 9))
def test_every_place_knows_its_document_and_how_far_it_is_in_it(documents: list[np.ndarray], length: int) -> None:
    owner = [(number, place) for number, each in enumerate(documents) for place in range(len(each) + 1)]
    starts_D = np.array([at for at, (_, place) in enumerate(owner) if place == 0], dtype=np.int64)
    places = np.arange(len(owner))
    assert document_of(starts_D, places).tolist() == [number for number, _ in owner]
    assert since_start(starts_D, places).tolist() == [place for _, place in owner]
    # Read from the middle of the stream, its first places belong to a document that began before.
    assert document_of(starts_D[1:], places[:1]).tolist() == ([-1] if owner else [])
    assert since_start(starts_D[1:], places[:1]).tolist() == ([0] if owner else [])


def test_rows_read_by_themselves_begin_a_part_each() -> None:
    ids_BT = np.array([[5, 6, 0, 7, 8], [0, 1, 0, 0, 2], [3, 3, 3, 3, 0]])
    document_BT, since_BT = within_rows(ids_BT, 0)
    assert document_BT.tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 2, 2], [0, 0, 0, 0, 1]]
    assert since_BT.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 1], [0, 1, 2, 3, 0]]


def test_ids_keep_the_type_they_are_packed_in() -> None:
    (piece,) = pack([(3, np.array([65535]))], 8, 0, np.uint16)
    assert piece.ids_T.dtype == np.uint16 and piece.ids_T.tolist() == [0, 65535] and piece.after == Place(3, 2)
