"""Whose sessions a server has, seen over a connection of the pool: a full one lets no other in."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .connection import PooledConnection

__all__ = ["ServerSessions", "ask_sessions"]

# As poolstats asks, for names alone: they tell who it is, and each role may see them.
_QUESTION = """
    BEGIN READ ONLY;
    SET LOCAL statement_timeout = 1000;
    SELECT coalesce(application_name, ''), count(*),
           current_setting('max_connections'),
           current_setting('superuser_reserved_connections')::int
             + coalesce(current_setting('reserved_connections', true)::int, 0)
      FROM pg_stat_activity
     WHERE coalesce(backend_type, 'client backend') = 'client backend'
       AND usesysid IS NOT NULL AND datid IS NOT NULL
     GROUP BY 1;
    COMMIT
"""


class ServerSessions(NamedTuple):
    """The client sessions of a server at one moment."""

    seen_at: float
    max_connections: int
    reserved: int
    """Of them, kept for superusers and privileged roles."""
    by_name: Counter[str]
    """Sessions by ``application_name``."""


def ask_sessions(connection: PooledConnection) -> ServerSessions:
    """Count the sessions of a connection's server by their names.

    Raises:
        psycopg.Error: The server's answer, or the loss of the connection.
    """
    found: Counter[str] = Counter()
    limit = reserved = b"0"
    for result in connection.ask(_QUESTION):
        for row in range(result.ntuples):
            name, number, limit, reserved = (result.get_value(row, i) or b"" for i in range(4))
            found[name.decode(errors="replace")] = int(number)
    return ServerSessions(monotonic(), int(limit), int(reserved), found)
