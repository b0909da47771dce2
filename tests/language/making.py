"""Random rules and contexts, for properties."""

from hypothesis import strategies as st

from nlrewrite.language.sentence import SILENT, STRONGEST, Change, Place, Rule
from nlrewrite.language.vocabulary import END_OF_TEXT, KINDS

FEW = [b" of", b"of", b'"', b"\n", b" 7", b"A", b" or", b"\xe2\x80", "木".encode(), END_OF_TEXT]

tokens = st.binary(min_size=1, max_size=6) | st.text(min_size=1, max_size=4).map(str.encode)


def places(farthest: int = 64) -> st.SearchStrategy[Place]:
    return st.builds(Place, st.integers(1, farthest), st.booleans())


def rules(tokens: st.SearchStrategy[bytes] = tokens, farthest: int = 64) -> st.SearchStrategy[Rule]:
    strengths = st.dictionaries(tokens, st.integers(0, STRONGEST), min_size=1, max_size=6)
    items = tokens | st.integers(0, len(KINDS) - 1)
    amounts = st.integers(-STRONGEST, STRONGEST) | st.just(SILENT)
    changes = st.dictionaries(st.tuples(places(farthest), items), amounts, max_size=8)
    return st.builds(
        lambda strengths, changes: Rule(
            tuple(strengths.items()),
            tuple(Change(place, item, amount) for (place, item), amount in changes.items()),
        ),
        strengths,
        changes,
    )
