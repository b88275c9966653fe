"""Context variables, and the containers that they hold."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from .object_state import CONTAINERS, DEPTH

if TYPE_CHECKING:
    from .object_state import Snapshot

__all__ = ["containers_in", "keep_containers", "restore_variables"]

_MOST_FOLLOWED = 1000
"""Elements of a container that are looked at; it is kept itself in any case."""


def containers_in(context: Context) -> list[Any]:
    """Return the containers that variables hold, such as a queue that a middleware sends later.

    Functions in between add to it, and know it by the variable alone.
    """
    return [value for value in context.values() if type(value) in CONTAINERS]


def keep_containers(containers: list[Any], snapshot: Snapshot) -> None:
    """Keep what the containers hold."""
    for container in containers:
        snapshot.keep(container, DEPTH if len(container) <= _MOST_FOLLOWED else 0)


def restore_variables(context: Context) -> None:
    """Give variables the values that they have in *context*, in place of those of an attempt.

    A variable that had none gets its default. Python cannot take the value away from one without a
    default, so a container that it was given is emptied.
    """
    for variable, value in copy_context().items():
        before = context.get(variable, _MISSING)
        if value is before:
            continue
        if before is _MISSING:
            try:
                before = Context().run(variable.get)
            except LookupError:
                if type(value) in CONTAINERS and not isinstance(value, tuple | frozenset):
                    value.clear()
                continue
        variable.set(before)


_MISSING: Any = object()
