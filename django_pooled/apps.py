"""The application's entry in INSTALLED_APPS: the command, system checks, validation at start."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class DjangoPooledConfig(AppConfig):
    """Registers the system checks, refuses settings that cannot work, and opens pools."""

    name = "django_pooled"
    verbose_name = "Pooled database connections"

    def ready(self) -> None:
        """Register the checks, under a tag of their own; validate the settings; open pools.

        Raises:
            ImproperlyConfigured: See `django_pooled.backend.startup`.
        """
        from . import checks
        from .backend.open_at_start import arrange
        from .backend.startup import refuse_bad_settings

        for check in checks.REGISTERED:
            register(check, checks.TAG)
        refuse_bad_settings()
        arrange()
