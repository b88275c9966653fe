"""The language and the time zone that are active in a thread or task."""

from __future__ import annotations

from contextvars import copy_context

from django.utils import timezone, translation

__all__ = ["Activation"]


class Activation:
    """What was active before an attempt, which may activate what its user prefers."""

    __slots__ = ("_context",)

    def __init__(self) -> None:
        # Where Django keeps both. They are looked up if there is another attempt, since that
        # takes longer than all the rest of a call's inputs.
        self._context = copy_context()

    def restore(self) -> None:
        """Activate it again, if something else is active."""
        language: str | None = self._context.run(translation.get_language)
        if translation.get_language() != language:
            if language is None:
                translation.deactivate_all()
            else:
                translation.activate(language)
        zone = self._context.run(timezone.get_current_timezone)
        if timezone.get_current_timezone() != zone:
            timezone.activate(zone)
