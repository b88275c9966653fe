"""Which server answers at the address of a database, and whether it can be written."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections

from django_pooled.poolstats.server.probe import NoAnswer, Probe

if TYPE_CHECKING:
    import psycopg

__all__ = ["Address", "Server"]

APPLICATION_NAME = "django poolctl"

LONGEST_LOOK = 2.0
"""Seconds that a server has to answer."""

AGAIN, MOST_QUESTIONS = 0.2, 8
"""Seconds after which another question is asked where none was answered, and how many at most."""

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

    Where nothing answers, another question is asked soon: the first may be stuck on its way to a
    server that has gone, when the address leads to another one already.

    Args:
        alias: Key of the database.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.error: str = ""
        """Why the last question had no answer."""
        self._asked: list[Probe[Server]] = []
        self._asked_at = float("-inf")

    def look(self, wait: float) -> Server | None:
        """Return the server that answers; None if none has within *wait* seconds.

        A question that takes longer goes on, and its answer is for the next look.
        """
        if len(self._asked) < MOST_QUESTIONS and monotonic() - self._asked_at >= AGAIN:
            probe = Probe(connections[self.alias], _ask, APPLICATION_NAME)
            probe.start(LONGEST_LOOK)
            self._asked.append(probe)
            self._asked_at = monotonic()
        until = monotonic() + wait
        for probe in reversed(list(self._asked)):
            try:
                server = probe.wait(until - monotonic())
            except NoAnswer as error:
                if not probe.is_asking:
                    self.error = str(error)
                    self._asked.remove(probe)
                    self._asked_at = float("-inf")
                continue
            self._asked.remove(probe)
            probe.close()
            return server
        return None

    def close(self) -> None:
        """Close the connections."""
        for probe in self._asked:
            probe.close()


def _ask(connection: psycopg.Connection[Any]) -> Server:
    answer = connection.execute(_QUERY).fetchone()
    assert answer is not None
    return Server(*answer)
