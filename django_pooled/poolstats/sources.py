"""The pooled databases of a site, and the folders in which its processes publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_pooled.backend.databases import is_pooled
from django_pooled.diagnostics.redaction import told

if TYPE_CHECKING:
    from django_pooled.stats.socket_folder import StrPath

__all__ = ["chosen_aliases", "pooled_aliases", "stats_dirs"]


def pooled_aliases(problems: list[str] | None = None) -> list[str]:
    """Return the databases that have this engine, or one built on it.

    Args:
        problems: Takes sentences about those whose engine can't be loaded.
    """
    found = []
    for alias, settings_dict in connections.settings.items():
        try:
            if is_pooled(settings_dict):
                found.append(alias)
        except (ImproperlyConfigured, ImportError) as error:
            if problems is not None:
                problems.append(f'The ENGINE of "{alias}" can\'t be loaded: {told(error)}')
    return found


def chosen_aliases(alias: str | None, pooled: list[str]) -> list[str]:
    """Return the one database that was asked for, or all.

    Args:
        alias: Key of the one; None for all.
        pooled: From `pooled_aliases`.

    Raises:
        ImproperlyConfigured: There is no such alias, or it is not pooled.
    """
    if alias is None or alias in pooled:
        return pooled if alias is None else [alias]
    known = ", ".join(pooled) or "none"
    what = (
        f'The database "{alias}" does not use ENGINE = "django_pooled".'
        if alias in connections.settings
        else f'There is no database "{alias}".'
    )
    raise ImproperlyConfigured(f"{what} Pooled databases: {known}.")


def stats_dirs(aliases: list[str]) -> list[StrPath | None]:
    """Return the folders in which the processes with these databases publish, each once.

    None stands for the default folder; databases that publish nothing have none.

    Args:
        aliases: Keys of ``DATABASES``.
    """
    # Not through conf.parse(): a wrong value elsewhere must not hide the pools.
    folders: dict[StrPath | None, None] = {}
    for alias in aliases:
        pool = connections.settings[alias]["OPTIONS"].get("pool")
        folder = pool.get("stats_dir") if isinstance(pool, dict) else None
        if folder is not False:
            folders[folder] = None
    return list(folders)
