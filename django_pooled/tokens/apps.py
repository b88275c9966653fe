"""The application's entry in INSTALLED_APPS: its one table."""

from __future__ import annotations

from django.apps import AppConfig


class TokensConfig(AppConfig):
    """Brings the table of tokens, which ``retry_transaction(commit_check="token")`` needs."""

    name = "django_pooled.tokens"
    label = "django_pooled_tokens"
    verbose_name = "Commit tokens"
