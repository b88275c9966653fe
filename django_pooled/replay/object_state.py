"""What objects were at one moment, so that they can be put back in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.http import HttpRequest

__all__ = ["DEPTH", "EXACTLY", "KINDS", "Kept", "KeptAttributes", "Snapshot", "keeps", "kinds"]

DEPTH = 8
"""How far objects are followed: an argument's list, its rows, their relations' rows."""


class Kept:
    """One object as it was; subclasses say what of it is put back, always in place."""

    __slots__ = ()

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        """Take down the state of *value*, and have *snapshot* keep what else it holds."""

    def restore(self) -> None:
        """Put it back.

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
    """Objects and what they were, each once; the same object keeps its identity."""

    __slots__ = ("_kept", "bodies", "hooks", "requests")

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self.hooks: list[Hook] = []
        self.bodies: list[AwaitedBody] = []
        self.requests: list[HttpRequest] = []
        """The requests among the objects, wherever they were."""

    def keep(self, value: object, depth: int = DEPTH) -> None:
        """Take down what *value* is, if it is of a kind that can be put back."""
        kind = KINDS[type(value)]
        if kind is None or depth < 0 or id(value) in self._kept:
            return
        # Before its state is taken, which may lead back here.
        self._kept[id(value)] = _NOT_YET
        self._kept[id(value)] = kind(value, self, depth)

    def keep_all(self, values: Iterable[object], depth: int = DEPTH) -> None:
        """Take down what each of them is."""
        for value in values:
            if KINDS[type(value)] is not None:
                self.keep(value, depth)

    def holds(self, value: object) -> bool:
        """Tell whether the attributes of *value* are kept."""
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
EXACTLY: dict[type, type[Kept]] = {}
"""Kinds for a type alone: what its subclasses keep elsewhere would not be put back."""

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
    """Return the full names of the classes whose objects are put back."""
    return sorted(_BY_NAME)


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
