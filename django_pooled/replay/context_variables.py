"""Context variables, and what they hold: containers, the active language and time zone."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from django.utils import timezone, translation

from .object_state import CONTAINERS, DEPTH

if TYPE_CHECKING:
    from .object_state import Snapshot

__all__ = ["keep_container", "restore_context"]

_MOST_FOLLOWED = 1000
"""Elements of a container that are looked at; it is kept itself in any case."""


def keep_container(container: Any, snapshot: Snapshot) -> None:
    """Keep what a container holds that is the value of a variable."""
    snapshot.keep(container, DEPTH if len(container) <= _MOST_FOLLOWED else 0)


def restore_context(context: Context) -> None:
    """Give variables the values that they have in *context*, in place of those of an attempt.

    A variable that had none gets its default. Python cannot take the value away from one without a
    default, so a container that it was given is emptied, and the language and the time zone are
    activated anew.
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
    language: str | None = context.run(translation.get_language)
    if translation.get_language() != language:
        if language is None:
            translation.deactivate_all()
        else:
            translation.activate(language)
    zone = context.run(timezone.get_current_timezone)
    if timezone.get_current_timezone() != zone:
        timezone.activate(zone)


_MISSING: Any = object()
