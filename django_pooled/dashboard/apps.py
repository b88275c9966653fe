"""The application's entry in INSTALLED_APPS: its template and static files."""

from __future__ import annotations

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    """An app without tables."""

    name = "django_pooled.dashboard"
    label = "django_pooled_dashboard"
    verbose_name = "Page of the pools"
