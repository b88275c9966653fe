"""The language and the time zone that are active in a thread or task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.utils import timezone, translation

if TYPE_CHECKING:
    from contextvars import Context

__all__ = ["restore_activation"]


def restore_activation(context: Context) -> None:
    """Activate again what was active in *context*, since an attempt may have changed it.

    Looked up now and not before each call, which would take longer than all the rest of its inputs.
    """
    language: str | None = context.run(translation.get_language)
    if translation.get_language() != language:
        if language is None:
            translation.deactivate_all()
        else:
            translation.activate(language)
    zone = context.run(timezone.get_current_timezone)
    if timezone.get_current_timezone() != zone:
        timezone.activate(zone)
