"""What a function works with besides its arguments: its object, and the variables around it."""

from __future__ import annotations

import logging
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from django_pooled.diagnostics.log_fields import facts

from .object_state import is_container

if TYPE_CHECKING:
    from types import CellType, CodeType

    from .object_state import Memory

__all__ = ["Surroundings"]

logger = logging.getLogger("django_pooled.retry")

_MOST_LOOKED_AT = 1000
"""Elements of a container around a function that are looked through for model instances."""


class Surroundings:
    """What a callable was bound to and closes over.

    Requests, model instances, forms and the like are kept as arguments are. Other variables
    are not: they may belong to more than one call, and what another thread has added must not
    go. A function that changes them does so in each attempt, and is named in the log.
    """

    __slots__ = ("_watched",)

    def __init__(self, function: object, memory: Memory) -> None:
        self._watched: list[_Watched] = []
        # Decorators wrap decorators; what each of them holds counts.
        while function is not None:
            if isinstance(function, partial):
                memory.keep_all(function.args)
                memory.keep_all(function.keywords.values())
                function = function.func
            elif isinstance(function, MethodType):
                memory.keep(function.__self__)
                function = function.__func__
            elif isinstance(function, FunctionType):
                inner = getattr(function, "__wrapped__", None)
                if function.__closure__:
                    # What decorators count and remember around the function is their business.
                    self._look_around(function, memory, watch=inner is None)
                function = inner
            else:
                memory.keep(function)
                return

    def tell_changes(self) -> None:
        """Log, once for each function, what an attempt has changed that is not put back."""
        changed: dict[FunctionType, list[str]] = {}
        for watched in self._watched:
            if watched.function.__code__ not in _told and watched.changed():
                changed.setdefault(watched.function, []).append(repr(watched.name))
        for function, names in changed.items():
            _told.add(function.__code__)
            logger.warning(
                "%s closes over %s and changes what it holds in each attempt: make it an "
                "argument or a result",
                function.__qualname__, ", ".join(names),
                extra=facts("closure_changed", function=function.__qualname__),
            )  # fmt: skip

    def _look_around(self, function: FunctionType, memory: Memory, watch: bool) -> None:
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                # Not assigned yet.
                continue
            if watch:
                self._watched.append(_Watched(function, name, cell, value))
            if not is_container(value):
                memory.keep(value)
            elif len(value) <= _MOST_LOOKED_AT:
                values = list(value.values() if isinstance(value, dict) else value)
                memory.keep_all(one for one in values if not is_container(one))


class _Watched:
    __slots__ = ("cell", "function", "length", "name", "value")

    def __init__(self, function: FunctionType, name: str, cell: CellType, value: Any) -> None:
        self.function = function
        self.name = name
        self.cell = cell
        self.value = value
        self.length = len(value) if is_container(value) else None

    def changed(self) -> bool:
        try:
            if self.cell.cell_contents is not self.value:
                return True
        except ValueError:
            return True
        return self.length is not None and len(self.value) != self.length


_told: WeakSet[CodeType] = WeakSet()
