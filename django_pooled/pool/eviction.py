"""Eviction: connections that must not be used again after an error on one of them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.sql.sqlstates import (
    READ_ONLY,
    is_connection_lost,
    is_pooler_timeout,
    is_stale_plan,
)

from .connector import LONGEST_WHEN_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from django_pooled.stats.counters import Reason, Record

    from .backoff import Backoff
    from .checkouts import Checkouts
    from .connection import PooledConnection
    from .queue import RecoveringPool
    from .session import Session

__all__ = ["Eviction", "ReadOnly"]

logger = logging.getLogger("django_pooled.pool")


Place = tuple[str, int]
"""Host and port of a server."""

NEVER = float("-inf")

LONGEST_WHEN_READ_ONLY = 10.0
"""Cap in seconds, where the backoff's own is not longer, of the waits before another connection is
replaced while the server stays read-only. They double, so that a failover is noticed at the latest
when it has lasted twice as long."""


class ReadOnly(NamedTuple):
    """A server that refuses writes."""

    words: str
    """"127.0.0.1:5432 is a read-only standby"."""
    refused_at: float | None
    """When it last refused one; None if none was sent."""


@dataclass
class _ReadOnlyServer:
    words: str
    since: float
    refused_at: float | None = None


class Eviction:
    """Decides by the errors on connections in use which ones have to leave the pool.

    A change on the server is noticed once, and the connections that were opened before it leave.
    Those opened since then know the server as it is: replacing them changes nothing, unless their
    address leads to another server by now. That is tried with one at a time, now and then.

    Args:
        alias: The pool's alias, for log lines.
        backoff: Waits between two of those.
        pool: The connections.
        checkouts: Which of them are in use.
        record: Counts the writes that were refused.
        read_only: Whether the server is meant to be read-only; None until a write is refused.
    """

    def __init__(
        self,
        alias: str,
        backoff: Backoff,
        pool: RecoveringPool,
        checkouts: Checkouts,
        record: Record,
        read_only: bool | None,
    ) -> None:
        self._alias = alias
        self._pool = pool
        self._checkouts = checkouts
        self._record = record
        self._is_replica = read_only is True
        self._has_to_write = read_only is False
        self._waits = replace(
            backoff, maximum=max(backoff.maximum, LONGEST_WHEN_READ_ONLY), jitter=False
        )
        self.in_doubt: bool = self._has_to_write
        """Whether `note_use` may learn something, since a write has been refused for instance; set
        under the lock, and read without."""
        self._lock = threading.RLock()  # guards all below
        self._read_only: dict[Place, _ReadOnlyServer] = {}
        self._drained: dict[Place | str, float] = {}  # when, by what the drain was for
        self._spared: dict[Place | str, float] = {}  # until when there is no other
        self._replaced = 0  # one by one, since the last of them led to a server that can write
        self._replaced_at = NEVER
        self._leaving: Session | None = None  # that of the one to be replaced
        self._replace_at = NEVER

    def note_error(self, connection: PooledConnection, error: psycopg.Error) -> None:
        """Take note of an error on a connection in use: some say that it must not come back.

        A server that refuses to write because it has been demoted (25006) loses all of its
        connections at once; one whose client asked for a read-only transaction does not.
        """
        if is_connection_lost(error):
            if is_pooler_timeout(error):
                self._record.add("pooler_timeouts")
            connection.session.doom(f"{error.sqlstate or 'lost'}: {told(error)}")
        elif error.sqlstate == READ_ONLY and connection.server_is_read_only:
            self._record.add("refused_writes")
            if not self._is_replica:
                self._note_read_only(connection, f"{READ_ONLY}: {told(error)}", refused=True)
        elif is_stale_plan(error):
            self._note_stale_plan(connection, told(error))

    @property
    def read_only(self) -> ReadOnly | None:
        """The server that refuses writes though it should not; None without one."""
        with self._lock:
            found = [ReadOnly(server.words, server.refused_at) for server in self._servers()]
        return found[0] if found else None

    def _servers(self) -> list[_ReadOnlyServer]:
        return sorted(self._read_only.values(), key=lambda it: -(it.refused_at or it.since))

    def note_use(self, connection: PooledConnection, *, looks_again: bool = False) -> None:
        """Take note of what a connection that is about to be used says of its server.

        Args:
            connection: In use by this thread.
            looks_again: Whether it may be replaced, to see where its address leads by now: a
                refused write does the same, but none may come while no request does.
        """
        place = connection.session.place
        if connection.server_is_read_only:
            if self._has_to_write or (looks_again and place in self._read_only):
                self._note_read_only(connection, f"{READ_ONLY}: {_words(connection)}")
            return
        with self._lock:
            if connection.session.opened_at >= self._replaced_at:
                self._replaced, self._replace_at = 0, NEVER
            server = self._read_only.pop(place, None)
            left = {} if server is not None else self._pop_left()
            self.in_doubt = bool(self._read_only or self._replaced) or self._has_to_write
        if server is not None:
            # Its address leads to another server by now, and the others are on the one before.
            self._evict(
                lambda other: other.session.place == place and _is_read_only(other),
                f"{READ_ONLY}: opened while {place[0]}:{place[1]} was read-only",
                "drained",
            )
            self._log_writable(place, "can write again", server)
        for host, port in left:
            what = f"can write, and none is left to {host}:{port}, which was read-only,"
            self._log_writable(place, what, left[host, port])

    def _pop_left(self) -> dict[Place, _ReadOnlyServer]:
        """Forget the servers to which no connection leads any more; under the lock."""
        if not self._read_only:
            return {}
        used = [*self._checkouts.connections(), *self._pool.idle_connections]
        places = {connection.session.place for connection in used}
        return {place: self._read_only.pop(place) for place in {*self._read_only} - places}

    def _log_writable(self, place: Place, what: str, server: _ReadOnlyServer) -> None:
        host, port = place
        outage = monotonic() - server.since
        logger.warning(
            "pool %r: %s:%s %s after %.1f s",
            *(self._alias, host, port, what, outage),
            extra=event_fields(
                "server_writable", alias=self._alias, host=host, port=port, outage=outage
            ),
        )

    def note_closed(self, connection: PooledConnection) -> None:
        """Take note of a connection that was closed and not kept."""
        # The object is another by now: see `PooledConnection.renewed`.
        if connection.session is self._leaving:
            self._leaving = None
            # Needed or not: it shows where the address leads by now.
            self._pool.open_one()

    def _note_read_only(
        self, connection: PooledConnection, reason: str, *, refused: bool = False
    ) -> None:
        place, now, opened_at = connection.session.place, monotonic(), connection.session.opened_at
        with self._lock:
            is_news = place not in self._read_only and self._may_drain(place, now)
            server = self._read_only.setdefault(place, _ReadOnlyServer(_words(connection), now))
            if refused:
                server.refused_at = now
            self.in_doubt = True
            if not is_news:
                if opened_at <= self._drained.get(place, NEVER):
                    connection.session.doom(reason, "drained")
                elif now >= self._replace_at:
                    connection.session.doom(reason, "drained")
                    self._replaced += 1
                    self._replaced_at, self._leaving = now, connection.session
                    self._replace_at = now + self._waits.wait(self._replaced)
                return
        self._evict(lambda other: other.session.place == place, reason, "drained")
        logger.warning(
            "pool %r: %s:%s is read-only; its connections are closed",
            *(self._alias, *place),
            extra=event_fields("server_read_only", alias=self._alias, host=place[0], port=place[1]),
        )

    def _note_stale_plan(self, connection: PooledConnection, reason: str) -> None:
        """A prepared statement no longer fits its tables: it would fail on each connection.

        psycopg keeps it, and has no public way to forget it. On a connection opened since then it
        may become stale again and again, for instance where two schemas have tables of the same
        name: such a connection prepares nothing any more.
        """
        now, opened_at = monotonic(), connection.session.opened_at
        with self._lock:
            before = opened_at <= self._drained.get("tables", NEVER)
            is_news = not before and self._may_drain("tables", now)
        if not is_news:
            if before or connection.prepare_threshold is None:
                # Prepared before, or by SQL: it stays for as long as the session.
                connection.session.doom(reason)
            connection.stop_preparing()
            return
        self._evict(lambda other: True, reason)
        logger.info(
            "pool %r: tables have changed; new connections prepare anew",
            self._alias,
            extra=event_fields("tables_changed", alias=self._alias),
        )

    def _may_drain(self, what_for: Place | str, now: float) -> bool:
        """Tell whether connections may leave together; under the lock.

        Each has to be opened anew. So the next time comes as late as if they had left one by one.
        """
        if now < self._spared.get(what_for, NEVER):
            return False
        size = self._pool.idle + len(self._checkouts)
        self._drained[what_for] = now
        self._spared[what_for] = now + LONGEST_WHEN_REFUSED * size
        return True

    def _evict(
        self, leaves: Callable[[PooledConnection], bool], reason: str, counts_as: Reason = "error"
    ) -> None:
        for connection in self._checkouts.connections():
            if leaves(connection):
                connection.session.doom(reason, counts_as)
        self._pool.sweep(lambda other: not leaves(other), "drained")


def _is_read_only(connection: PooledConnection) -> bool:
    """Tell whether the server of a connection that another thread may use is read-only."""
    # What the server reports is a list of libpq's, which the user's thread may be changing.
    if not connection.lock.acquire(blocking=False):
        # It has been in use since its server was read-only, and does not come back.
        return True
    try:
        return bool(connection.look(lambda pgconn: connection.server_is_read_only))
    finally:
        connection.lock.release()


def _words(connection: PooledConnection) -> str:
    host, port = connection.session.place
    what = "a read-only standby" if connection.server_is_standby else "read-only"
    return f"{host}:{port} is {what}"
