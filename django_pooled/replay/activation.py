"""The language and the time zone that are active in a thread or task."""

from __future__ import annotations

from django.utils import timezone, translation

__all__ = ["Activation"]


class Activation:
    """What was active before an attempt, which may activate what its user prefers."""

    __slots__ = ("_language", "_timezone")

    def __init__(self) -> None:
        self._language = translation.get_language()
        self._timezone = timezone.get_current_timezone()

    def restore(self) -> None:
        """Activate it again, if something else is active."""
        if translation.get_language() != self._language:
            if self._language is None:
                translation.deactivate_all()
            else:
                translation.activate(self._language)
        if timezone.get_current_timezone() != self._timezone:
            timezone.activate(self._timezone)
