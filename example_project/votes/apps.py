"""The voting app's place in Django."""

from __future__ import annotations

from django.apps import AppConfig


class VotesConfig(AppConfig):
    """Votes for tabs or for spaces."""

    name = "votes"
