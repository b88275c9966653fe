"""Options of the pool in a place where nothing reads them, and options that nothing knows."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import shown
from django_pooled.pool.options import PoolOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "connection_parameters",
    "is_connection_parameter",
    "refuse_misplaced",
    "refuse_unknown_parameters",
]

_POOL_OPTIONS = frozenset(field.name for field in fields(PoolOptions))
# Settings of Django's own that belong beside OPTIONS.
_ENTRY = (
    "ATOMIC_REQUESTS",
    "AUTOCOMMIT",
    "CONN_HEALTH_CHECKS",
    "CONN_MAX_AGE",
    "DISABLE_SERVER_SIDE_CURSORS",
    "TIME_ZONE",
)
_CONTAINERS = {"pool": "OPTIONS['pool']", "options": "OPTIONS"}


def refuse_misplaced(alias: str, settings_dict: Mapping[str, Any]) -> None:
    """Refuse options of the pool beside ``OPTIONS`` or beside ``OPTIONS["pool"]``.

    The first have no effect, and libpq refuses the second with every connection.

    Args:
        alias: The key of the entry of ``settings.DATABASES``, for the message.
        settings_dict: The entry.

    Raises:
        ImproperlyConfigured: There is one; the message says where it belongs.
    """
    for key in settings_dict:
        small = str(key).lower()
        # Django's own settings are in capitals, and one is called as an option of the pool is.
        if key in ("NAME", "OPTIONS"):
            continue
        place = f"DATABASES[{alias!r}][{shown(key)}]"
        if small in _CONTAINERS:
            raise ImproperlyConfigured(f"{place} has no effect; expected {_CONTAINERS[small]}.")
        if small in _POOL_OPTIONS:
            raise ImproperlyConfigured(f"{place} has no effect; expected {_in_pool(small)}.")
    for key in settings_dict.get("OPTIONS", {}):
        small = str(key).lower()
        if key == "pool" or is_connection_parameter(key):
            continue
        place = f"DATABASES[{alias!r}]['OPTIONS'][{shown(key)}]"
        if small == "pool":
            raise ImproperlyConfigured(f"{place} has no effect; expected OPTIONS['pool'].")
        if small in _POOL_OPTIONS:
            raise ImproperlyConfigured(
                f"{place} is an option of the pool; expected {_in_pool(small)}."
            )


def refuse_unknown_parameters(alias: str, names: Iterable[str]) -> None:
    """Refuse connection parameters that neither libpq nor psycopg knows.

    Args:
        alias: The key of the entry of ``settings.DATABASES``, for the message.
        names: What Django hands over to psycopg.

    Raises:
        ImproperlyConfigured: There is one; the message names the nearest that is known.
    """
    for name in names:
        if is_connection_parameter(name):
            continue
        meant = {key.lower(): f"DATABASES[{alias!r}][{key!r}]" for key in _ENTRY}
        meant["pool_options"] = "OPTIONS['pool']"
        meant.update({key: _in_pool(key) for key in _POOL_OPTIONS})
        meant.update({key: f"OPTIONS[{key!r}]" for key in connection_parameters()})
        near = difflib.get_close_matches(str(name).lower(), meant, n=1)
        hint = f" Did you mean {meant[near[0]]}?" if near else ""
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['OPTIONS'][{shown(name)}] is not a connection parameter; "
            f"expected one that libpq or psycopg knows.{hint}"
        )


def is_connection_parameter(name: object) -> bool:
    """Tell whether libpq or psycopg knows a connection parameter of that name."""
    return name in connection_parameters()


@lru_cache(maxsize=1)
def connection_parameters() -> frozenset[str]:
    """Return the names of all connection parameters that libpq or psycopg knows."""
    # Here, since the system checks have to be imported without it.
    import psycopg

    # https://www.psycopg.org/psycopg3/docs/api/pq.html#psycopg.pq.Conninfo
    libpq = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    own = inspect.signature(psycopg.Connection.connect).parameters.values()
    return frozenset(libpq | {each.name for each in own if each.kind is each.KEYWORD_ONLY})


def _in_pool(name: str) -> str:
    return f"OPTIONS['pool'][{name!r}]"
