import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.text.positions import NOTHING, positions
from nlrewrite.text.tokens import Windows


def windows_of(lengths: list[int]) -> Windows:
    rows = np.arange(len(lengths) * 9, dtype=np.int32).reshape(len(lengths), 9)
    column = np.arange(len(lengths), dtype=np.int32)
    return Windows(rows, np.array(lengths, dtype=np.int32), column, column + 100, column)


@given(st.lists(st.integers(1, 8), max_size=6), st.integers(0, 10))
def test_positions_are_the_inputs_in_window_order_and_look_back_within_their_window(
    lengths: list[int], steps: int
) -> None:
    windows = windows_of(lengths)
    flat = positions(windows)
    expected = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert list(zip(flat.window.tolist(), flat.offset.tolist(), strict=True)) == expected
    assert flat.token.tolist() == [windows.tokens[row, place] for row, place in expected]
    assert flat.group.tolist() == [row + 100 for row, _ in expected]
    before = [windows.tokens[row, place - steps] if place >= steps else NOTHING for row, place in expected]
    assert flat.back(steps).tolist() == before
