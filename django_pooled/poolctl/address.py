"""Which server answers at the address of a database, and whether it can be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections

from django_pooled.poolstats.server.probe import NoAnswer, Probe

if TYPE_CHECKING:
    import psycopg

__all__ = ["Address", "Server"]

APPLICATION_NAME = "django poolctl"

LONGEST_LOOK = 2.0
"""Seconds that a server has to answer. One that says nothing is asked anew after that."""

_QUERY = """
    SELECT pg_postmaster_start_time()::text,
           coalesce(inet_server_addr()::text, 'local'),
           coalesce(inet_server_port(), 0),
           current_setting('server_version'),
           NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'
"""


class Server(NamedTuple):
    """The server that has answered."""

    started: str
    """When it was started: no two servers, and no two lives of one, have the same."""
    host: str
    port: int
    version: str
    writable: bool

    def is_same(self, other: Server) -> bool:
        """Tell whether it is the other, in the same life."""
        return self[:3] == other[:3]

    @property
    def words(self) -> str:
        """Name it."""
        return f"PostgreSQL {self.version.partition(' ')[0]}"


class Address:
    """Asks the address in the settings, with a new connection each time: it may lead elsewhere.

    Args:
        alias: Key of the database.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.error: str = ""
        """Why the last question had no answer."""
        self._probe = Probe(connections[alias], _ask, APPLICATION_NAME)
        self._asked = False

    def look(self, wait: float) -> Server | None:
        """Return the server that answers; None if none has within *wait* seconds.

        A question that takes longer goes on, and its answer is for the next look.
        """
        if not self._asked:
            self._probe.close()
            self._probe.start(LONGEST_LOOK)
            self._asked = True
        try:
            server = self._probe.wait(wait)
        except NoAnswer as error:
            self.error = str(error)
            self._asked = self._probe.is_asking
            return None
        self._asked = False
        return server

    def close(self) -> None:
        """Close the connection."""
        self._probe.close()


def _ask(connection: psycopg.Connection[Any]) -> Server:
    answer = connection.execute(_QUERY).fetchone()
    assert answer is not None
    return Server(*answer)
