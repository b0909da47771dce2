"""Which documents say the same: groups that must stay together when a corpus is split.

In: texts. Out: a group number for each. Two documents are linked when they are equal after white space is folded, or
when they share more than half of the different 8-word shingles of the one that has fewer; a group is everything that
links connect. Invariant: this is exact, neither sampled nor hashed, and does not depend on the order of the texts.
A document of fewer than 8 words has no shingles: only its equals are linked to it.
"""

import numpy as np

SHINGLE = 8


def folded(text: str) -> str:
    return " ".join(text.split())


def groups(texts: list[str]) -> np.ndarray:
    """int64 [documents]: equal numbers for linked documents, numbered from 0 in order of first appearance."""
    forest = Forest(len(texts))
    first: dict[str, int] = {}
    for document, text in enumerate(texts):
        forest.join(document, first.setdefault(folded(text), document))
    different = np.array(sorted(first.values()), dtype=np.int64)
    _join_overlapping(forest, different, shingles([texts[document] for document in different]))
    roots = [forest.root(document) for document in range(len(texts))]
    number: dict[int, int] = {}
    return np.array([number.setdefault(root, len(number)) for root in roots], dtype=np.int64)


def shingles(texts: list[str]) -> list[np.ndarray]:
    """For each text its different 8-word shingles as sorted numbers; equal shingles have equal numbers everywhere.

    Numbers of single words are joined to numbers of 2, 4 and 8 words, so that no shingle is ever hashed.
    """
    vocabulary: dict[str, int] = {}
    words = [[vocabulary.setdefault(word, len(vocabulary)) for word in text.split()] for text in texts]
    ends = np.cumsum([len(each) for each in words], dtype=np.int64)
    ids = np.fromiter((word for each in words for word in each), dtype=np.int64, count=int(ends[-1]) if texts else 0)
    width = 1
    while width < SHINGLE and len(ids) > width:
        pairs = ids[:-width] * (ids.max() + 1) + ids[width:]
        ids = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
        width *= 2
    starts = np.concatenate([[0], ends[:-1]]) if texts else []
    return [np.unique(ids[start : max(start, end - SHINGLE + 1)]) for start, end in zip(starts, ends, strict=True)]


def _join_overlapping(forest: "Forest", documents: np.ndarray, shingles_of: list[np.ndarray]) -> None:
    """Link each document to those that hold more than half of its shingles.

    More than half of n shingles are held only by a document that holds one of any ceil(n / 2) of them: it is enough to
    look up the rarest ones, and shingles of half the corpus (licences, headings) are never looked up in vain.
    """
    if not shingles_of:
        return
    everything = np.concatenate(shingles_of)
    counts = np.bincount(everything)
    order = np.argsort(everything, kind="stable")
    holders = np.repeat(np.arange(len(shingles_of)), [len(each) for each in shingles_of])[order]
    begins = np.concatenate([[0], np.cumsum(counts)])
    for document, own in enumerate(shingles_of):
        need = len(own) // 2 + 1
        rarest = own[np.argsort(counts[own], kind="stable")][: len(own) - need + 1]
        candidates = {
            int(holder)
            for shingle in rarest[counts[rarest] > 1]
            for holder in holders[begins[shingle] : begins[shingle + 1]]
        }
        for candidate in candidates - {document}:
            if forest.root(int(documents[candidate])) == forest.root(int(documents[document])):
                continue
            other = shingles_of[candidate]
            if len(other) >= len(own) and len(np.intersect1d(own, other, assume_unique=True)) >= need:
                forest.join(int(documents[document]), int(documents[candidate]))


class Forest:
    """Disjoint sets of 0..size-1."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def root(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        self.parent[max(one, other)] = min(one, other)
