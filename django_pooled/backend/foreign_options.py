"""Settings of other packages' pools: their names here, and the refusal of leftovers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["name_here", "refuse_leftovers"]

# What these packages call an option, in small letters, and the option that takes its place.
# docs/migration.md has the whole of it.
_NAMES = {
    # SQLAlchemy's pool, in POOL_OPTIONS of dj_db_conn_pool and in other packages' settings
    "pool_size": "max_size",
    "max_overflow": "max_size",
    "pool_timeout": "timeout",
    "recycle": "max_lifetime",
    "pool_recycle": "max_lifetime",
    "pre_ping": "check_after",
    "pool_pre_ping": "check_after",
    "pool_use_lifo": "use_lifo",
    # django-db-geventpool
    "max_conns": "max_size",
    "reuse_conns": "min_size",
}


def name_here(key: object) -> str | None:
    """Return what an option of another pool is called here; None if it is not known."""
    return _NAMES.get(str(key).lower())


def refuse_leftovers(alias: str, settings_dict: Mapping[str, Any]) -> None:
    """Refuse what another pool's package read from an entry of ``settings.DATABASES``.

    One of them, a limit that the project relies on, would silently have no effect. The others
    would reach libpq at the first query, which knows no such parameter.

    Raises:
        ImproperlyConfigured: There is one; the message names the options that take its place.
    """
    if "POOL_OPTIONS" in settings_dict:
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['POOL_OPTIONS'] is an option of dj_db_conn_pool; expected "
            f"OPTIONS['pool'], with 'max_size' for POOL_SIZE plus MAX_OVERFLOW, 'timeout' for "
            f"TIMEOUT and 'max_lifetime' for RECYCLE."
        )
    options = settings_dict.get("OPTIONS", {})
    for key, instead in (
        ("MAX_CONNS", "OPTIONS['pool']['max_size']"),
        ("REUSE_CONNS", "OPTIONS['pool']['min_size'] and ['max_idle']"),
    ):
        if key in options:
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['OPTIONS'][{key!r}] is an option of django-db-geventpool; "
                f"expected {instead}."
            )
