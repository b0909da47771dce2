"""Documents one after another in pieces of fixed length, and where in them a document begins.

In: ids of documents and the id that stands before each. Out: pieces (shards or rows) with the documents' starts.
Invariant: the pieces one after another are exactly the documents with the separator before each, a document is cut
wherever a piece is full and goes on in the next, and packing that goes on at a piece's `after` gives the same pieces.
The separator is an id like any other: 0 is one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike


@dataclass(frozen=True)
class Place:
    """Where packing goes on: at that document, of which so many ids (its separator is one) are packed already."""

    document: int = 0
    used: int = 0


@dataclass(frozen=True)
class Piece:
    ids_T: np.ndarray
    starts_D: np.ndarray
    """int64, rising: where in ids_T the separators stand with which documents begin."""
    after: Place


def pack(
    documents: Iterable[tuple[int, np.ndarray]],
    length: int,
    separator: int,
    dtype: DTypeLike = np.int64,
    used: int = 0,
    most: int | None = None,
) -> Iterator[Piece]:
    """Pieces of `length` ids, the last one shorter; `most` ids in all. Numbers of documents rise.

    `used` ids of the first document were packed before, as the place says after which packing goes on.
    """
    room = length if most is None else min(length, most)
    if not room:
        return
    ids_T, at = np.empty(room, dtype), 0
    starts: list[int] = []
    place = Place(0, used)
    for number, text in documents:
        begin, used = used, 0
        while begin <= len(text) and room:
            if begin == 0:
                starts.append(at)
                ids_T[at] = separator
                took = 1
            else:
                took = min(len(text) + 1 - begin, room - at)
                ids_T[at : at + took] = text[begin - 1 : begin - 1 + took]
            at, begin = at + took, begin + took
            place = Place(number, begin)
            if at == room:
                yield Piece(ids_T, np.array(starts, dtype=np.int64), place)
                most = None if most is None else most - room
                room = length if most is None else min(length, most)
                ids_T, at, starts = np.empty(room, dtype), 0, []
        if not room:
            return
    if at:
        yield Piece(ids_T[:at], np.array(starts, dtype=np.int64), place)


def unpack(ids_N: np.ndarray, starts_D: np.ndarray) -> list[np.ndarray]:
    """The documents of a stream that begins with one, without their separators."""
    assert len(ids_N) == 0 or (len(starts_D) and starts_D[0] == 0), "what stands before the first start is no document"
    return [each[1:] for each in np.split(ids_N, starts_D[1:])] if len(starts_D) else []


# -- which document a place belongs to --------------------------------------------------------------------------------


def document_of(starts_D: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64, as `places`: number of the document each belongs to; -1 in front of the first start."""
    return np.searchsorted(starts_D, places, side="right") - 1


def since_start(starts_D: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Ids between each place and its document's start; in front of the first start, from the stream's beginning."""
    return places - np.append(np.int64(0), starts_D)[document_of(starts_D, places) + 1]


def within_rows(ids_BT: np.ndarray, separator: int) -> tuple[np.ndarray, np.ndarray]:
    """document_BT and since_BT of rows read by themselves: both count from 0 at the beginning of each row.

    A row that begins within a document begins a part of its own, and so does every separator behind it.
    """
    begins_BT = ids_BT == separator
    begins_BT[:, :1] = True
    place_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape)
    start_BT = np.maximum.accumulate(np.where(begins_BT, place_BT, 0), axis=1)
    return np.cumsum(begins_BT, axis=1) - 1, place_BT - start_BT
