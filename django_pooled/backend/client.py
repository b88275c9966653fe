"""``manage.py dbshell``, with credentials that are fetched: psql cannot call for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql import client

from .credentials import settled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["DatabaseClient"]


class DatabaseClient(client.DatabaseClient):
    """Django's own, which would hand over the callables themselves."""

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: Mapping[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        """Return psql's arguments and environment, as Django's does."""
        made: tuple[list[str], dict[str, str] | None]
        made = super().settings_to_cmd_args_env(settled(settings_dict), parameters)
        return made
