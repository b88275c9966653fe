"""The objects of a function besides its arguments: those it is bound to and closes over."""

from __future__ import annotations

import logging
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from django_pooled.diagnostics.log_fields import event_fields

from .object_state import CONTAINERS

if TYPE_CHECKING:
    from types import CellType, CodeType

__all__ = ["ClosedOver", "Surroundings", "log_changes"]

logger = logging.getLogger("django_pooled.retry")

_MOST_LOOKED_AT = 1000
"""Elements of a container around a function that are looked through for model instances."""


class Surroundings:
    """What a callable is bound to and closes over.

    Requests, model instances, forms and the like are kept as arguments are. Other variables
    are not: they may belong to more than one call, and what another thread has added must not
    go. A function that changes them does so in each attempt, and is named in the log.

    Args:
        function: What is decorated, with decorators of its own or not.
    """

    __slots__ = ("objects", "variables")

    def __init__(self, function: object) -> None:
        self.objects: list[object] = []
        """What it is bound to, and the arguments of partials."""
        self.variables: list[Variable] = []
        # Decorators wrap decorators; what each of them holds counts.
        while function is not None:
            if isinstance(function, partial):
                self.objects += [*function.args, *function.keywords.values()]
                function = function.func
            elif isinstance(function, MethodType):
                self.objects.append(function.__self__)
                function = function.__func__
            elif isinstance(function, FunctionType):
                inner = getattr(function, "__wrapped__", None)
                # What decorators count and cache around the function is their business.
                self.variables += _variables_around(function, is_watched=inner is None)
                function = inner
            else:
                self.objects.append(function)
                return

    def look(self, found: list[object]) -> list[ClosedOver]:
        """Add what may have to be put back to *found*; return what is watched for changes."""
        watched: list[ClosedOver] = []
        for variable in self.variables:
            try:
                value: Any = variable.cell.cell_contents
            except ValueError:
                # Not assigned yet.
                continue
            holds_more = type(value) in CONTAINERS
            if variable.is_watched:
                watched.append(ClosedOver(variable, value, len(value) if holds_more else None))
            if not holds_more:
                found.append(value)
            elif len(value) <= _MOST_LOOKED_AT:
                values = list(value.values() if isinstance(value, dict) else value)
                found += [each for each in values if type(each) not in CONTAINERS]
        return watched


class Variable(NamedTuple):
    """A variable around a function."""

    name: str
    cell: CellType
    code: CodeType
    """Of the function."""
    function_name: str
    is_watched: bool


def _variables_around(function: FunctionType, *, is_watched: bool) -> list[Variable]:
    code, cells = function.__code__, function.__closure__ or ()
    return [
        Variable(name, cell, code, function.__qualname__, is_watched)
        for name, cell in zip(code.co_freevars, cells, strict=True)
    ]


class ClosedOver(NamedTuple):
    """What a variable held before the first attempt."""

    variable: Variable
    value: Any
    length: int | None
    """Of a container."""


def log_changes(watched: list[ClosedOver]) -> None:
    """Log, once for each function, what an attempt has changed that is not put back."""
    changed: list[Variable] = []
    for variable, before, length in watched:
        if variable.code in _logged:
            continue
        try:
            is_another = variable.cell.cell_contents is not before
        except ValueError:
            # It was deleted.
            is_another = True
        if is_another or (length is not None and len(before) != length):
            changed.append(variable)
    if changed:
        # Only the innermost function is watched.
        function = changed[0].function_name
        _logged.add(changed[0].code)
        logger.warning(
            "%s closes over %s and changes what it holds in each attempt: make it an "
            "argument or a result",
            function, ", ".join(repr(variable.name) for variable in changed),
            extra=event_fields("closure_changed", function=function),
        )  # fmt: skip


_logged: WeakSet[CodeType] = WeakSet()
