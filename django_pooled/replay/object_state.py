"""The state of objects at one moment, so that it can be restored in place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.http import HttpRequest

__all__ = ["CONTAINERS", "DEPTH", "KINDS", "Kept", "KeptAttributes", "Snapshot", "keeps", "kinds"]

DEPTH = 8
"""How far objects are followed: an argument's list, its rows, their relations' rows."""


class Kept:
    """One object and its state; subclasses say what of it is restored, always in place."""

    __slots__ = ()

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        """Keep the state of *value*, and have *snapshot* keep the objects that it holds."""

    def restore(self) -> None:
        """Restore the state.

        Raises:
            CannotReplay: That is not possible.
        """


class Hook(Protocol):
    """Is told when an attempt starts and stops."""

    def start(self) -> None:
        """Begin to take note of what the attempt does."""

    def stop(self) -> None:
        """Take note of nothing more."""


class AwaitedBody(Protocol):
    """The body of a request that a client may still be sending."""

    def read_ahead(self) -> None:
        """Wait for the rest of it."""


class Snapshot:
    """The state of objects, each of them once; an object keeps its identity."""

    __slots__ = ("_kept", "bodies", "hooks", "requests")

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self.hooks: list[Hook] = []
        self.bodies: list[AwaitedBody] = []
        self.requests: list[HttpRequest] = []
        """The requests among the objects, wherever they were."""

    def keep(self, value: object, depth: int = DEPTH) -> None:
        """Keep the state of *value*, if its class is one whose objects are restored."""
        kind = KINDS[type(value)]
        if kind is None or depth < 0 or id(value) in self._kept:
            return
        # Before its state is taken, since it may hold itself.
        self._kept[id(value)] = _NOT_YET
        self._kept[id(value)] = kind(value, self, depth)

    def keep_all(self, values: Iterable[object], depth: int = DEPTH) -> None:
        """Keep the state of each of them."""
        for value in values:
            if KINDS[type(value)] is not None:
                self.keep(value, depth)

    def holds(self, value: object) -> bool:
        """Tell whether the attributes of *value* are kept."""
        kept = self._kept.get(id(value))
        # An object that was kept otherwise may be gone, and its id reused.
        return isinstance(kept, KeptAttributes) and kept.value is value

    def restore(self) -> None:
        """Restore every object.

        Raises:
            CannotReplay: That is not possible for one of them.
        """
        for kept in self._kept.values():
            kept.restore()


class KeptAttributes(Kept):
    """An object by its attributes."""

    __slots__ = ("attributes", "value")

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        self.value = value
        self.attributes: dict[str, Any] = vars(value).copy()
        snapshot.keep_all(self.attributes.values(), depth - 1)

    def restore(self) -> None:
        now = vars(self.value)
        now.clear()
        now.update(self.attributes)


K = TypeVar("K", bound=Kept)

# By name, so that nothing is imported that the project does not use.
_BY_NAME: dict[str, type[Kept]] = {}
CONTAINERS: dict[type, type[Kept]] = {}
"""Python's own containers, without subclasses, whose further state would not be restored."""

_NOT_YET = object.__new__(Kept)
_MOST_TYPES = 5000
"""Types whose kind is kept, so that those made at run time do not pile up."""


class _Kinds(dict[type, "type[Kept] | None"]):
    """How objects of each type are kept; None for those that are not."""

    def __missing__(self, cls: type) -> type[Kept] | None:
        if len(self) >= _MOST_TYPES:
            self.clear()
        self[cls] = kind = _find_kind(cls)
        return kind


KINDS = _Kinds()


def keeps(name: str) -> Callable[[type[K]], type[K]]:
    """Declare how objects of the class with this full name are kept, subclasses included."""

    def register(kind: type[K]) -> type[K]:
        _BY_NAME[name] = kind
        return kind

    return register


def kinds() -> list[str]:
    """Return the full names of the classes whose objects are restored."""
    return sorted(_BY_NAME)


def _find_kind(cls: type) -> type[Kept] | None:
    if cls in CONTAINERS:
        return CONTAINERS[cls]
    for base in cls.__mro__:
        kind = _BY_NAME.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind
    if issubclass(cls, tuple):
        return CONTAINERS[tuple]
    # Most have no such class among their bases: these two tell by the methods.
    is_iterator = issubclass(cls, Iterator | AsyncIterator)
    return _BY_NAME["collections.abc.Iterator"] if is_iterator else None
