"""The application's entry in INSTALLED_APPS: the management command and the system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class DjangoPooledConfig(AppConfig):
    """Registers the system checks."""

    name = "django_pooled"
    verbose_name = "Pooled database connections"

    def ready(self) -> None:
        """Register the checks, under a tag of their own."""
        from . import checks

        for check in checks.REGISTERED:
            register(check, checks.TAG)
