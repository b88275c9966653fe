"""What objects were at one moment, so that they can be put back in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.http import HttpRequest

    from .bodies import Body

__all__ = ["DEPTH", "EXACTLY", "Kept", "KeptAttributes", "Memory", "is_container", "keeps", "kinds"]

DEPTH = 8
"""How far objects are followed: an argument's list, its rows, their relations' rows."""


class Kept:
    """One object as it was; subclasses say what of it is put back, always in place."""

    __slots__ = ()

    def __init__(self, value: Any, memory: Memory, depth: int) -> None:
        """Take down the state of *value*, and have *memory* keep what else it holds."""

    def restore(self) -> None:
        """Put it back.

        Raises:
            CannotReplay: That is not possible.
        """


class Memory:
    """Objects and what they were, each once; the same object keeps its identity."""

    __slots__ = ("_kept", "bodies", "hooks", "requests")

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self.hooks: list[Any] = []
        """Whatever is to be told when an attempt starts and stops."""
        self.bodies: list[Body] = []
        """Those of requests that a client may still be sending."""
        self.requests: list[HttpRequest] = []
        """Those that were met, wherever they were."""

    def keep(self, value: object, depth: int = DEPTH) -> None:
        """Remember what *value* is, if it is of a kind that can be put back."""
        kind = _kind_of(type(value))
        if kind is None or depth < 0 or id(value) in self._kept:
            return
        # Before its state is taken, which may lead back here.
        self._kept[id(value)] = _NOT_YET
        self._kept[id(value)] = kind(value, self, depth)

    def keep_all(self, values: Iterable[object], depth: int = DEPTH) -> None:
        """Do so with each of them."""
        for value in values:
            if type(value) not in _PLAIN:
                self.keep(value, depth)

    def holds(self, value: object) -> bool:
        """Tell whether the attributes of *value* are remembered."""
        kept = self._kept.get(id(value))
        # What else was kept may be gone, and its id another's.
        return isinstance(kept, KeptAttributes) and kept.value is value

    def restore(self) -> None:
        """Make every object again what it was.

        Raises:
            CannotReplay: That is not possible for one of them.
        """
        for kept in self._kept.values():
            kept.restore()


class KeptAttributes(Kept):
    """An object by its attributes."""

    __slots__ = ("attributes", "value")

    def __init__(self, value: Any, memory: Memory, depth: int) -> None:
        self.value = value
        self.attributes: dict[str, Any] = vars(value).copy()
        memory.keep_all(self.attributes.values(), depth - 1)

    def restore(self) -> None:
        now = vars(self.value)
        now.clear()
        now.update(self.attributes)


K = TypeVar("K", bound=Kept)

# By name, so that nothing is imported for whoever does not use it.
_BY_NAME: dict[str, type[Kept]] = {}
EXACTLY: dict[type, type[Kept]] = {}
"""Kinds for a type alone: what its subclasses keep elsewhere would not be put back."""

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_NOT_YET = object.__new__(Kept)
_MOST_TYPES = 5000
"""Of those whose kind is remembered, so that types made at run time do not pile up."""

_kind_by_type: dict[type, type[Kept] | None] = {}


def keeps(name: str) -> Callable[[type[K]], type[K]]:
    """Declare how objects of the class with this full name are kept, subclasses included."""

    def register(kind: type[K]) -> type[K]:
        _BY_NAME[name] = kind
        return kind

    return register


def kinds() -> list[str]:
    """Return the full names of the classes whose objects are put back."""
    return sorted(_BY_NAME)


def is_container(value: object) -> bool:
    """Tell whether *value* is one of Python's own containers."""
    return type(value) in EXACTLY


def _kind_of(cls: type) -> type[Kept] | None:
    try:
        return _kind_by_type[cls]
    except KeyError:
        if len(_kind_by_type) >= _MOST_TYPES:
            _kind_by_type.clear()
        _kind_by_type[cls] = kind = _find_kind(cls)
        return kind


def _find_kind(cls: type) -> type[Kept] | None:
    if cls in EXACTLY:
        return EXACTLY[cls]
    for base in cls.__mro__:
        kind = _BY_NAME.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind
    if issubclass(cls, tuple):
        return EXACTLY[tuple]
    return _BY_NAME["collections.abc.Iterator"] if issubclass(cls, Iterator) else None
