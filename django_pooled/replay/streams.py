"""Arguments that can be read once: iterators and open files."""

from __future__ import annotations

import inspect
from itertools import count, cycle, repeat
from operator import length_hint
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from .object_state import DEPTH, Kept, keeps
from .refusal import CannotReplay

if TYPE_CHECKING:
    from .object_state import Snapshot

__all__ = ["KeptIterator", "KeptStream"]


@keeps("collections.abc.Iterator")
@keeps("collections.abc.AsyncIterator")
class KeptIterator(Kept):
    """An iterator, asynchronous or not, which an attempt must not have advanced.

    Only if it is an argument itself; nested iterators are left alone.
    """

    __slots__ = ("_left", "_value")

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        # An object that returns another iterator each time, such as a mock, is not one itself.
        self._value = value if depth == DEPTH and _iterated(value) is value else None
        self._left = _left(self._value)

    def restore(self) -> None:
        if self._value is not None and (self._left is None or _left(self._value) != self._left):
            raise CannotReplay(
                f"an argument is a {type(self._value).__name__}, whose elements the failed "
                f"attempt may have used up; pass a list instead"
            )


def _iterated(value: Any) -> object:
    return aiter(value) if hasattr(value, "__anext__") else iter(value)


def _left(value: Any) -> int | None:
    """Return a value that changes when an iterator is advanced; None if there is none."""
    if isinstance(value, AsyncGeneratorType):
        return _ASYNC_STATES.get(_state_of(value))
    if isinstance(value, GeneratorType):
        state = inspect.getgeneratorstate(value)
        return {inspect.GEN_CREATED: 1, inspect.GEN_CLOSED: 0}.get(state)
    if isinstance(value, count | cycle | repeat):
        # It never ends.
        return 1
    return length_hint(value) if hasattr(value, "__length_hint__") else None


# Before Python 3.12 nothing tells one that is new from one that waits at its first yield.
_state_of: Any = getattr(inspect, "getasyncgenstate", lambda generator: None)
_ASYNC_STATES = {"AGEN_CREATED": 1, "AGEN_CLOSED": 0}


@keeps("_io._IOBase")
class KeptStream(Kept):
    """The position of an open file that is an argument itself."""

    __slots__ = ("_position", "_value")

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        self._value = value
        self._position: int | None = None
        if depth == DEPTH and not value.closed and value.readable() and value.seekable():
            self._position = value.tell()

    def restore(self) -> None:
        if self._position is None:
            return
        if self._value.closed:
            raise CannotReplay("an argument is a file that the failed attempt has closed")
        self._value.seek(self._position)
