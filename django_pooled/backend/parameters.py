"""Connection parameters: their defaults, and the key of a set of them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from psycopg import IsolationLevel

from django_pooled.diagnostics.redaction import masked, one_line, shown
from django_pooled.pool.options import CONNECT_TIMEOUT
from django_pooled.stats.names import session_name

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from datetime import tzinfo

__all__ = [
    "FALLBACK_NAME",
    "copied",
    "fingerprint",
    "first_of_equal",
    "isolation_level_of",
    "server_of",
    "with_defaults",
]

# A silent network loss ends in bounded time. Settings' OPTIONS win; a service file is left
# alone, since parameters given here would override it.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
NETWORK_DEFAULTS = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
FALLBACK_NAME = "fallback_application_name"


def with_defaults(params: Mapping[str, Any]) -> dict[str, Any]:
    """Add defaults: time limits for a network that is lost, and the session's name.

    A name from OPTIONS, from a service file or in PGAPPNAME comes first.
    """
    name = session_name(os.getpid(), socket.gethostname())
    defaults = {} if "service" in params else NETWORK_DEFAULTS
    return {**defaults, FALLBACK_NAME: name, **params}


def fingerprint(params: Mapping[str, Any]) -> Hashable:
    """Return a hashable key for a set of connection parameters."""
    items = []
    for key, value in sorted(params.items()):
        if isinstance(value, type):
            # Packages that watch cursors make a class for each wrapper, and all are alike.
            value = tuple((kind.__module__, kind.__qualname__) for kind in value.__mro__)
        try:
            hash(value)
        except TypeError:
            value = repr(value)
        items.append((key, value))
    return tuple(items)


_zones: dict[tuple[type, str], tzinfo] = {}
"""By class and name. Only ever added to, by setdefault(), which no other thread divides."""


def first_of_equal(zone: tzinfo) -> tzinfo:
    """Return the object that all wrappers have for a time zone.

    Threads that ask ``zoneinfo`` for the same one together may get two, which are not equal, and
    the parameters of a connection are compared by it.
    """
    return _zones.setdefault((type(zone), str(zone)), zone)


def server_of(settings: Mapping[str, Any]) -> str:
    """Say which database an entry of ``settings.DATABASES`` leads to, for people."""
    options = settings["OPTIONS"]
    host = settings["HOST"] or options.get("host", "local socket")
    port = settings["PORT"] or options.get("port", 5432)
    name = options.get("dbname") or settings["NAME"] or f"service {options.get('service')}"
    return one_line(masked(f"{host}:{port}/{name}"))


def isolation_level_of(alias: str, settings: Mapping[str, Any]) -> IsolationLevel:
    """Return the level that ``OPTIONS["isolation_level"]`` asks for.

    Raises:
        ImproperlyConfigured: There is no such level.
    """
    value = settings["OPTIONS"]["isolation_level"]
    try:
        return IsolationLevel(value)
    except ValueError:
        levels = ", ".join(f"psycopg.IsolationLevel.{level.name}" for level in IsolationLevel)
        # Django's message first, which people may search for.
        raise ImproperlyConfigured(
            f"Invalid transaction isolation level {shown(value)} specified. Use one of the "
            f"psycopg.IsolationLevel values. DATABASES[{alias!r}]['OPTIONS']['isolation_level'] "
            f"is {shown(value)}; expected one of {levels}."
        ) from None


def copied(settings: Any) -> Any:
    """Copy dictionaries, and what they hold by reference."""
    if isinstance(settings, dict):
        return {key: copied(value) for key, value in settings.items()}
    return settings
