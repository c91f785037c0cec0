import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adtr.data.lazy import Lazy


class Squares(Lazy[int]):
    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def item(self, index: int) -> int:
        self.asked.append(index)
        return index**2


@given(st.integers(0, 8), st.slices(8))
def test_slices_are_those_of_a_list(count: int, wanted: slice) -> None:
    assert Squares(count)[wanted] == [i**2 for i in range(count)][wanted]


@pytest.mark.parametrize("index", [2, -3, np.int64(2)])
def test_only_what_is_asked_for_is_made(index: int) -> None:
    squares = Squares(5)
    assert squares[index] == 4
    assert squares.asked == [2]
    assert list(squares) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("index", [5, -6])
def test_there_is_nothing_outside(index: int) -> None:
    with pytest.raises(IndexError):
        Squares(5)[index]
