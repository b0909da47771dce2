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
    place: dict[str, int] = {}
    same = np.array([place.setdefault(folded(text), len(place)) for text in texts], dtype=np.int64)
    label = linked(shingles(list(place)))[same]
    number: dict[int, int] = {}
    return np.array([number.setdefault(each, len(number)) for each in label.tolist()], dtype=np.int64)


def shingles(texts: list[str]) -> list[np.ndarray]:
    """For each text its different 8-word shingles as sorted numbers; equal shingles have equal numbers everywhere.

    Numbers of single words are joined to numbers of 2, 4 and 8 words, so that no shingle is ever hashed.
    """
    vocabulary: dict[str, int] = {}
    words = [[vocabulary.setdefault(word, len(vocabulary)) for word in text.split()] for text in texts]
    ends = np.cumsum([len(each) for each in words], dtype=np.int64)
    ids = np.array([word for each in words for word in each], dtype=np.int64)
    if len(ids) < SHINGLE:
        return [np.empty(0, dtype=np.int64) for _ in texts]
    width = 1
    while width < SHINGLE:
        pairs = ids[:-width] * (ids.max() + 1) + ids[width:]
        ids = np.unique(pairs, return_inverse=True)[1]
        width *= 2
    starts = np.concatenate([[0], ends[:-1]])
    return [np.unique(ids[start : max(start, end - SHINGLE + 1)]) for start, end in zip(starts, ends, strict=True)]


def linked(shingles_of: list[np.ndarray]) -> np.ndarray:
    """int64 [documents]: a label for each, equal for those that a chain of links connects.

    More than half of n shingles are held only by a document that holds one of any ceil(n / 2) of them: it is enough to
    look up the rarest ones. A shingle whose holders are all in one group already has nothing left to tell.
    """
    label = np.arange(len(shingles_of))
    if not shingles_of:
        return label
    everything = np.concatenate(shingles_of)
    counts = np.bincount(everything)
    holders = np.repeat(label, [len(each) for each in shingles_of])[np.argsort(everything, kind="stable")]
    begins = np.concatenate([[0], np.cumsum(counts)])
    settled = counts < 2
    in_own = np.zeros(len(counts), dtype=bool)
    for document, own in enumerate(shingles_of):
        need = len(own) // 2 + 1
        rarest = own[np.argsort(counts[own], kind="stable")][: len(own) - need + 1]
        in_own[own] = True
        compared: set[int] = set()
        for shingle in rarest[~settled[rarest]]:
            held_by = holders[begins[shingle] : begins[shingle + 1]]
            elsewhere = held_by[label[held_by] != label[document]].tolist()
            settled[shingle] = not elsewhere
            for other in elsewhere:
                if other in compared or label[other] == label[document]:
                    continue
                compared.add(other)
                if np.count_nonzero(in_own[shingles_of[other]]) >= need:
                    label[label == label[other]] = label[document]
        in_own[own] = False
    return label
