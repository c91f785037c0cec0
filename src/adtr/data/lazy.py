"""Sequences whose items are read or made when they are asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

Item_co = TypeVar("Item_co", covariant=True)


class Lazy(Sequence[Item_co]):
    """Needs its length and one item at a time; a slice is a list of them."""

    @abstractmethod
    def item(self, index: int) -> Item_co:
        """The item at a place, from 0."""

    @overload
    def __getitem__(self, index: int) -> Item_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item_co]: ...
    def __getitem__(self, index: int | slice) -> Item_co | list[Item_co]:
        """One item, or several.

        Raises:
            IndexError: there is no such place.
        """
        places = range(len(self))[index]
        return self.item(places) if isinstance(places, int) else [self.item(i) for i in places]
