"""One pool: checkout within a deadline, checkin whatever happened, and how full it is."""

from __future__ import annotations

import logging
import threading
import traceback
from copy import copy
from functools import partial
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.pq import TransactionStatus

from . import psycopg_seam as seam
from .connecting import Connector
from .errors import CheckoutTimeout, ConnectFailed, Gauges, PoolClosed, PoolError, PoolExhausted
from .liveness import answers, looks_alive
from .reclaim import caller, this_threads_holder
from .sqlstates import READ_ONLY, is_connection_lost
from .stats import Counters, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import psycopg

    from .conf import PoolOptions
    from .connection import PooledConnection

__all__ = ["Pool"]

logger = logging.getLogger("django_pooled.pool")


class _Checkout(NamedTuple):
    """A connection in use: since when, by which line of code, held for which thread."""

    since: float
    where: str
    stack: traceback.StackSummary | None
    holder: dict[int, Callable[[], None]]


class Pool:
    """The connections of this process to one database.

    Args:
        alias: Key of the database in ``settings.DATABASES``.
        options: Its pool's options.
        parameters: Called for each new connection; returns psycopg's connection parameters,
            so that credentials that expire can be fetched anew.
        configure: Called with each new connection, and again after ``reset="discard"``.
        server: Where the connections lead to, for people: never with a password.
        credentials_change: Whether *parameters* fetches credentials anew each time.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        parameters: Callable[[], Mapping[str, Any]],
        configure: Callable[[PooledConnection], object],
        server: str,
        credentials_change: bool = False,
    ) -> None:
        self.alias = alias
        self.options = options
        self.server = server
        self.counters = Counters()
        self._parameters = parameters
        self._configure = configure
        self._lock = threading.Lock()  # guards _in_use and counters
        self._came_back = threading.Condition(self._lock)
        self._in_use: dict[PooledConnection, _Checkout] = {}
        self._inherited: dict[PooledConnection, _Checkout] = {}
        self._connector = Connector(
            alias,
            options.backoff,
            options.reconnect_timeout,
            wanted=lambda: self._pool.waiting > 0,
            credentials_change=credentials_change,
        )
        self._pool = seam.RecoveringPool(
            self._connector,
            lambda: bool(self._in_use),
            kwargs=self._connection_parameters,
            configure=self._configure_new,
            name=options.name or alias,
            min_size=options.min_size,
            max_size=options.max_size,
            timeout=options.timeout,
            max_waiting=options.max_waiting,
            max_lifetime=options.max_lifetime,
            max_idle=options.max_idle,
            reconnect_timeout=options.reconnect_timeout,
            reconnect_failed=options.reconnect_failed,
            num_workers=options.num_workers,
        )

    def open(self) -> None:
        """Start the workers and open ``min_size`` connections; without effect on an open pool."""
        self._pool.open()

    @property
    def closed(self) -> bool:
        return self._pool.closed

    def checkout(self) -> PooledConnection:
        """Take a connection that is alive; wait for one, within ``timeout`` seconds in all.

        Raises:
            CheckoutTimeout: None became available in time; ``__cause__`` is the last error
                in connecting, if the server could not be reached.
            ConnectFailed: The server refuses connections for a reason that waiting does not mend.
            PoolExhausted: ``max_waiting`` threads were waiting already.
            PoolClosed: The pool is closed.
        """
        started = monotonic()
        deadline = started + self.options.timeout
        while True:
            connection = self._take(started, deadline)
            try:
                usable = self._is_usable(connection, deadline)
            except BaseException:
                self._pool.discard(connection)
                raise
            if usable:
                break
            self._pool.discard(connection)
        holder = this_threads_holder()
        checkout = _Checkout(
            since=monotonic(),
            where=caller(),
            stack=traceback.extract_stack() if self.options.leak_after else None,
            holder=holder,
        )
        with self._lock:
            self._in_use[connection] = checkout
            self.counters.checkouts += 1
            self.counters.wait_seconds += checkout.since - started
        holder[id(connection)] = partial(self._reclaim, connection)
        return connection

    def checkin(self, connection: PooledConnection) -> None:
        """Give a connection back, in whatever state; from any thread. A second time is no error.

        An open transaction is rolled back. A connection that broke, or on which the server
        said that it is going away or read-only, is closed instead.
        """
        with self._lock:
            checkout = self._in_use.pop(connection, None)
        if checkout is None:
            return
        checkout.holder.pop(id(connection), None)
        self._note_a_long_hold(checkout)
        kept = not self._pool.closed and self._is_clean(connection)
        with self._lock:
            if kept:
                self.counters.checkins += 1
            else:
                self.counters.discarded += 1
            if self._pool.closed:
                self._came_back.notify_all()
        if kept:
            connection.life.idle_since = monotonic()
            self._pool.putconn(connection)
        else:
            if connection.broken:
                self._connector.suspect()
            self._pool.discard(connection)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse checkouts, close what is idle, and let other threads finish what is in use.

        What is still in use after that, and what this thread holds, is closed at its checkin.

        Args:
            timeout: Seconds to wait for both.
        """
        deadline = monotonic() + timeout
        self._pool.close(timeout)
        mine = this_threads_holder()
        with self._came_back:
            self._came_back.wait_for(
                lambda: all(checkout.holder is mine for checkout in self._in_use.values()),
                timeout=max(0.0, deadline - monotonic()),
            )

    def abandon(self) -> None:
        """Forget a pool inherited through fork(), without touching the parent's sockets.

        Its connections stay referenced, so that nothing frees them, and its lock may be held
        for ever by a thread that only the parent has.
        """
        self._pool.abandon()
        self._lock = threading.Lock()
        self._came_back = threading.Condition(self._lock)
        self._inherited, self._in_use = self._in_use, {}

    def gauges(self) -> Gauges:
        """How full the pool is now."""
        idle, in_use = self._pool.idle, len(self._in_use)
        return Gauges(
            size=idle + in_use,
            idle=idle,
            in_use=in_use,
            waiting=self._pool.waiting,
            max_size=self.options.max_size,
        )

    def snapshot(self) -> PoolSnapshot:
        """Describe the pool for `manage.py poolstats`."""
        gauges = self.gauges()
        with self._lock:
            counters = copy(self.counters)
            counters.restarts = self.counters.restarts.copy()
        counters.connects = self._connector.connects
        counters.connect_failures = self._connector.failures
        error = self._connector.last_error
        return PoolSnapshot(
            alias=self.alias,
            pool_mode=self.options.pool_mode,
            min_size=self.options.min_size,
            max_size=gauges.max_size,
            size=gauges.size,
            idle=gauges.idle,
            in_use=gauges.in_use,
            waiting=gauges.waiting,
            connecting=self._pool.opening,
            server=self.server,
            last_error=str(error).strip() if error else None,
            last_error_age=monotonic() - self._connector.last_error_at if error else None,
            counters=counters,
        )

    def note_error(self, connection: PooledConnection, error: psycopg.Error) -> None:
        """Take note of an error on a connection in use: some say that it must not come back.

        A server that refuses to write because it has been demoted (25006) loses all of its
        connections at once; one whose client asked for a read-only transaction does not.
        """
        if is_connection_lost(error):
            connection.life.doom(f"{error.sqlstate or 'lost'}: {error}")
        elif error.sqlstate == READ_ONLY and connection.server_is_read_only:
            place = connection.place
            for other in list(self._in_use):
                if other.place == place:
                    other.life.doom(f"{READ_ONLY}: {error}")
            self._count("dead", self._pool.sweep(lambda other: other.place != place))
            logger.warning("pool %r: %s:%s turned read-only, and is left", self.alias, *place)

    def count_restart(self, sqlstate: str) -> None:
        """Count a transaction that retry_transaction starts again."""
        with self._lock:
            self.counters.restarts[sqlstate] += 1

    def _take(self, started: float, deadline: float) -> PooledConnection:
        cause: BaseException | None
        try:
            return self._pool.take(deadline - monotonic())
        except seam.PoolTimeout:
            error = self._error(
                CheckoutTimeout, started, f"no connection within {self.options.timeout:g} s"
            )
            cause = self._connector.trouble
        except seam.TooManyRequests:
            waiting = self.options.max_waiting
            error = self._error(PoolExhausted, started, f"{waiting} threads are waiting already")
            cause = self._connector.trouble
        except seam.PoolClosed:
            raise self._error(PoolClosed, started, "the pool is closed") from None
        except seam.Refused as refused:
            cause = refused.__cause__
            error = self._error(ConnectFailed, started, f"cannot connect: {str(cause).strip()}")
        with self._lock:
            if isinstance(error, CheckoutTimeout):
                self.counters.timeouts += 1
            else:
                self.counters.refused += 1
        if isinstance(error, CheckoutTimeout):
            self._log_long_holds()
        raise error from cause

    def _error(self, kind: type[PoolError], started: float, what: str) -> PoolError:
        elapsed, gauges = monotonic() - started, self.gauges()
        message = f"pool {self.alias!r}: {what} (after {elapsed:.2f} s; {gauges})"
        trouble, opening = self._connector.trouble, self._pool.opening
        if kind is CheckoutTimeout and trouble is not None:
            message += f"; the last attempt to connect failed: {str(trouble).strip()}"
        elif kind is CheckoutTimeout and opening:
            message += f"; {opening} being opened, without an answer yet from {self.server}"
        return kind(message, alias=self.alias, elapsed=elapsed, gauges=gauges)

    def _is_usable(self, connection: PooledConnection, deadline: float) -> bool:
        life, now = connection.life, monotonic()
        if now >= life.expires_at:
            self._count("expired")
            return False
        if not self._is_alive(connection, now, deadline):
            self._count("dead")
            self._connector.suspect()
            # Where one died the others may have: look at all of them now, since each would
            # cost a later checkout its own discovery. Where one only kept silent, those that
            # need a round trip too go unasked: each would cost another check_timeout.
            silent = looks_alive(connection)
            dead = self._pool.sweep(
                lambda other: looks_alive(other) and not (silent and self._is_due(other, now))
            )
            self._count("dead", dead)
            logger.info("pool %r: found %d dead connections", self.alias, dead + 1)
            return False
        if self.options.check is not None:
            try:
                self.options.check(connection)
            except Exception as error:
                logger.info("pool %r: the project's check failed: %s", self.alias, error)
                self._count("dead")
                return False
        return True

    def _is_alive(self, connection: PooledConnection, now: float, deadline: float) -> bool:
        if not looks_alive(connection):
            return False
        if not self._is_due(connection, now):
            return True
        return answers(connection, min(self.options.check_timeout, deadline - now))

    def _is_due(self, connection: PooledConnection, now: float) -> bool:
        """Whether it has been idle so long that only a round trip tells."""
        return now - connection.life.idle_since >= self.options.check_after

    def _is_clean(self, connection: PooledConnection) -> bool:
        """Bring a returned connection back to the state of a new one; tell whether it worked."""
        if connection.life.doomed_by is not None or connection.broken or connection.closed:
            return False
        try:
            status = connection.info.transaction_status
            if status == TransactionStatus.ACTIVE:
                # Given back amid a query or COPY: nobody knows what it still has to say.
                return False
            if status != TransactionStatus.IDLE:
                logger.warning("pool %r: rolled back a transaction left open", self.alias)
                connection.rollback()
            _restore_defaults(connection)
            if self.options.reset == "discard":
                connection.execute("DISCARD ALL")
                self._configure(connection)
            elif callable(self.options.reset):
                self.options.reset(connection)
        except Exception as error:
            logger.warning("pool %r: discarded a connection: %s", self.alias, error)
            return False
        return connection.info.transaction_status == TransactionStatus.IDLE

    def _connection_parameters(self) -> dict[str, Any]:
        return dict(self._parameters())

    def _configure_new(self, connection: PooledConnection) -> None:
        lifetime = self.options.max_lifetime
        connection.life.expires_at = connection.life.opened_at + uniform(0.9, 1.0) * lifetime
        try:
            self._configure(connection)
        except BaseException:
            connection.close()
            raise

    def _reclaim(self, connection: PooledConnection) -> None:
        # Called in a thread that is no more, as far as threading knows: logging there would
        # leave a dummy of it behind, for ever.
        self._pool.run_later(partial(self._take_back, connection))

    def _take_back(self, connection: PooledConnection) -> None:
        checkout = self._in_use.get(connection)
        if checkout is not None:
            logger.warning(
                "pool %r: a thread ended with a connection checked out at %s; it goes back now. "
                "Close it with connections.close_all() at the end of the thread.",
                self.alias,
                checkout.where,
            )
            self._count("reclaimed")
            self.checkin(connection)

    def _note_a_long_hold(self, checkout: _Checkout) -> None:
        held = monotonic() - checkout.since
        if self.options.leak_after is not None and held > self.options.leak_after:
            self._log_hold(checkout, held)

    def _log_long_holds(self) -> None:
        now = monotonic()
        for checkout in list(self._in_use.values()):
            if self.options.leak_after and now - checkout.since > self.options.leak_after:
                self._log_hold(checkout, now - checkout.since)

    def _log_hold(self, checkout: _Checkout, held: float) -> None:
        stack = "".join(checkout.stack.format()) if checkout.stack else checkout.where
        logger.warning(
            "pool %r: a connection is in use for %.1f s, checked out at:\n%s",
            self.alias,
            held,
            stack,
        )

    def _count(self, counter: str, by: int = 1) -> None:
        with self._lock:
            setattr(self.counters, counter, getattr(self.counters, counter) + by)


def _restore_defaults(connection: PooledConnection) -> None:
    # What a user may have set on the connection object; each setter refuses to run within
    # a transaction and does nothing on the server by itself.
    if not connection.autocommit:
        connection.autocommit = True
    if connection.isolation_level is not None:
        connection.isolation_level = None
    if connection.read_only is not None:
        connection.read_only = None
    if connection.deferrable is not None:
        connection.deferrable = None
