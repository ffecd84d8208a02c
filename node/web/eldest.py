"""What waits at the edge and makes way for newer ones: the oldest of whoever has most there, and no one pushes others out."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T", bound=Hashable)


@define(eq=False)
class Eldest(Generic[T]):
    """Things in the order they came, by whose they are. Taking one out looks at everybody who has one."""

    _lines: dict[str, "OrderedDict[T, None]"] = field(factory=dict, init=False)
    _whose: dict[T, str] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._whose)

    def __contains__(self, thing: object) -> bool:
        return thing in self._whose

    def __iter__(self) -> Iterator[T]:
        return iter(self._whose)

    def add(self, thing: T, who: str) -> None:
        """Let somebody have one more."""
        self._whose[thing] = who
        self._lines.setdefault(who, OrderedDict())[thing] = None

    def discard(self, thing: T) -> None:
        """Take a thing out, if it is there."""
        who = self._whose.pop(thing, None)
        if who is not None:
            del self._lines[who][thing]
            if not self._lines[who]:
                del self._lines[who]

    def pop(self) -> T:
        """Take out the oldest of whoever has most, and return it. Raises ValueError where there is nothing."""
        most = max(self._lines, key=lambda who: len(self._lines[who]))
        eldest = next(iter(self._lines[most]))
        self.discard(eldest)
        return eldest
