"""Lists, dictionaries and sets, with the objects that they hold."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

from .object_state import CONTAINERS, DEPTH, Kept, keeps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .object_state import Snapshot

__all__ = ["KeptDict", "KeptList", "copy_of"]


class KeptDict(Kept):
    """A dictionary's items, in their order."""

    # By dict's own methods: those of a QueryDict refuse changes or return copies of its lists.
    __slots__ = ("items", "value")

    def __init__(self, value: dict[Any, Any], snapshot: Snapshot, depth: int) -> None:
        self.value = value
        self.items = dict.copy(value)
        if depth > 0:
            snapshot.keep_all(self.items, depth - 1)
            snapshot.keep_all(self.items.values(), depth - 1)

    def restore(self) -> None:
        dict.clear(self.value)
        dict.update(self.value, self.items)


class KeptList(Kept):
    """A list's items."""

    __slots__ = ("items", "value")

    def __init__(self, value: list[Any], snapshot: Snapshot, depth: int) -> None:
        self.value = value
        self.items = list.copy(value)
        if depth > 0:
            snapshot.keep_all(self.items, depth - 1)

    def restore(self) -> None:
        list.__setitem__(self.value, slice(None), self.items)


class _KeptSet(Kept):
    __slots__ = ("items", "value")

    def __init__(self, value: set[Any], snapshot: Snapshot, depth: int) -> None:
        self.value = value
        self.items = set.copy(value)
        snapshot.keep_all(self.items, depth - 1)

    def restore(self) -> None:
        set.clear(self.value)
        set.update(self.value, self.items)


class _KeptSequence(Kept):
    # By its own methods: dict's do not know the order of an OrderedDict.
    __slots__ = ("items", "value")

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        self.value = value
        self.items = value.copy()
        snapshot.keep_all(value.values() if isinstance(value, dict) else value, depth - 1)

    def restore(self) -> None:
        self.value.clear()
        if isinstance(self.value, dict):
            self.value.update(self.items)
        else:
            self.value.extend(self.items)


class _KeptTuple(Kept):
    # It cannot change, but its items can.
    __slots__ = ()

    def __init__(self, value: Iterable[Any], snapshot: Snapshot, depth: int) -> None:
        snapshot.keep_all(value, depth - 1)


CONTAINERS.update(
    {
        dict: KeptDict,
        Counter: KeptDict,
        defaultdict: KeptDict,
        list: KeptList,
        set: _KeptSet,
        OrderedDict: _KeptSequence,
        deque: _KeptSequence,
        tuple: _KeptTuple,
        frozenset: _KeptTuple,
    }
)
for _name in (
    "django.forms.utils.ErrorDict",
    "django.utils.datastructures.MultiValueDict",
    "http.cookies.BaseCookie",
    "rest_framework.utils.serializer_helpers.ReturnDict",
):
    keeps(_name)(KeptDict)
keeps("rest_framework.utils.serializer_helpers.ReturnList")(KeptList)


def copy_of(value: Any, depth: int = DEPTH) -> Any:
    """Return a copy of one of Python's own containers; other objects in it are not copied."""
    if type(value) not in CONTAINERS or depth < 0:
        return value
    if isinstance(value, tuple):
        return tuple(copy_of(item, depth - 1) for item in value)
    copied: Any = value.copy()
    if isinstance(value, dict):
        for key, item in value.items():
            copied[key] = copy_of(item, depth - 1)
    elif isinstance(value, list | deque):
        for index, item in enumerate(value):
            copied[index] = copy_of(item, depth - 1)
    return copied
