"""Where the figures come from: which databases are pooled, and where their processes publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_pooled.conf import is_pooled

if TYPE_CHECKING:
    from django_pooled.stats_folder import StrPath

__all__ = ["pooled_aliases", "stats_dirs"]


def pooled_aliases() -> list[str]:
    """Return the databases that have this engine, or one built on it."""
    found = []
    for alias, settings_dict in connections.settings.items():
        try:
            if is_pooled(settings_dict):
                found.append(alias)
        except (ImproperlyConfigured, ImportError):
            continue  # Whoever uses that database gets to see the error.
    return found


def stats_dirs(aliases: list[str]) -> list[StrPath | None]:
    """Return the folders in which the processes with these databases publish, each once.

    Args:
        aliases: Keys of ``DATABASES``.
    """
    folders: dict[StrPath | None, None] = {}
    for alias in aliases:
        pool = connections.settings[alias]["OPTIONS"].get("pool")
        folder = pool.get("stats_dir") if isinstance(pool, dict) else None
        if folder is not False:
            folders[folder] = None
    return list(folders)
