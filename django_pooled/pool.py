"""One pool: checkout within a deadline, checkin whatever happened, and how full it is."""

from __future__ import annotations

import logging
import os
from functools import partial
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import finalize

from . import psycopg_seam as seam
from .connecting import Connector
from .errors import CheckoutTimeout, ConnectFailed, Gauges, PoolClosed, PoolError, PoolExhausted
from .liveness import answers, looks_alive
from .log_facts import facts
from .readiness import Readiness
from .record import Record
from .reset import reset
from .retry.budget import RetryBudget
from .signals import (
    connection_checked_in,
    connection_checked_out,
    connection_discarded,
    connection_opened,
)
from .sqlstates import READ_ONLY, is_connection_lost, is_stale_plan
from .stats import PoolSnapshot
from .usage import Usage, described

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import psycopg
    from django.dispatch import Signal

    from .conf import PoolOptions
    from .connection import PooledConnection
    from .readiness import Look
    from .record import Reason
    from .usage import Checkout

__all__ = ["Pool"]

logger = logging.getLogger("django_pooled.pool")


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
        self.lends: bool = options.pool_mode == "transaction"
        """Whether a checkout lasts for a transaction, and not for a request."""
        self.record: Record = Record()
        self.retry_budget: RetryBudget = RetryBudget(options.retry_budget)
        self._made_at = monotonic()
        self._id = os.urandom(8).hex()
        self._configure = configure
        # None of its parts holds the pool: closed and let go of, it is freed at once, and not
        # when the garbage collector comes by.
        self._tell = partial(_tell, type(self), alias, options.name or alias)
        self._usage = Usage(alias, self.record, options.leak_after)
        self._connector = Connector(
            alias,
            options.backoff,
            options.reconnect_timeout,
            opened=partial(_opened, self.record, self._tell),
            credentials_change=credentials_change,
        )
        self._pool = seam.RecoveringPool(
            self._connector,
            self._usage,
            partial(_closed, self.record, self._tell),
            kwargs=lambda: dict(parameters()),
            configure=partial(_configure_new, configure, options.max_lifetime),
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
        self._readiness = Readiness(
            alias, options.timeout, self._connector, self._pool, self._usage
        )

    def open(self) -> None:
        """Start the workers and open ``min_size`` connections; without effect on an open pool."""
        self._pool.open()

    @property
    def closed(self) -> bool:
        """Whether it refuses checkouts: not opened yet, or closed for good."""
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
            if self._begin(connection, started, deadline):
                return connection

    def checkin(self, connection: PooledConnection) -> None:
        """Give a connection back, in whatever state; from any thread. A second time is no error.

        An open transaction is rolled back. A connection that broke, or on which the server
        said that it is going away or read-only, is closed instead.
        """
        used = self._usage.end(connection)
        if used is None:
            return
        kept = False
        try:
            kept = not self._pool.closed and reset(
                connection, self.alias, self.options.reset, self._configure
            )
        finally:
            # Whatever ended the reset, Ctrl-C included, the connection leaves or goes back.
            self._usage.done(connection, used, kept)
            if kept:
                self._pool.give(connection, monotonic())
            else:
                if connection.broken:
                    self._connector.suspect()
                self._pool.discard(connection, self._spoilt(connection))
            if connection_checked_in.receivers:
                self._tell(connection_checked_in, used=used, kept=kept)

    def look(self, timeout: float) -> Look:
        """Begin to find out whether the pool can serve, without queuing; see `Readiness.look`."""
        return self._readiness.look(timeout, self._ping)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse checkouts, close what is idle, and let other threads finish what is in use.

        What is still in use after that, and what this thread holds, is closed at its checkin.

        Args:
            timeout: Seconds to wait for both.
        """
        deadline = monotonic() + timeout
        self._pool.close(timeout)
        self._usage.wait_for_other_threads(max(0.0, deadline - monotonic()))

    def abandon(self) -> None:
        """Forget a pool inherited through fork(); its sockets and locks are the parent's."""
        self._pool.abandon()
        self.record.abandon()
        self._usage.abandon()

    def gauges(self) -> Gauges:
        """How full the pool is now."""
        idle, in_use = self._pool.idle, len(self._usage)
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
        counters = self.record.counters()
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
            longest_waiting=self._pool.longest_waiting,
            connecting=self._pool.opening,
            server=self.server,
            age=monotonic() - self._made_at,
            retry_budget_left=self.retry_budget.left,
            last_error=str(error).strip() if error else None,
            last_error_age=monotonic() - self._connector.last_error_at if error else None,
            counters=counters,
            connections=[*self._usage.describe(), *map(described, self._pool.idle_connections)],
            name=self.options.name or self.alias,
            id=self._id,
        )

    def note_error(self, connection: PooledConnection, error: psycopg.Error) -> None:
        """Take note of an error on a connection in use: some say that it must not come back.

        A server that refuses to write because it has been demoted (25006) loses all of its
        connections at once; one whose client asked for a read-only transaction does not.
        A prepared statement that no longer fits its tables would fail on each of them, each time:
        psycopg keeps it, and has no public way to forget it.
        """
        if is_connection_lost(error):
            connection.life.doom(f"{error.sqlstate or 'lost'}: {error}")
        elif error.sqlstate == READ_ONLY and connection.server_is_read_only:
            place = connection.place
            for other in self._usage.connections():
                if other.place == place:
                    other.life.doom(f"{READ_ONLY}: {error}")
            self._pool.sweep(lambda other: other.place != place, "drained")
            logger.warning(
                "pool %r: %s:%s turned read-only, and is left",
                *(self.alias, *place),
                extra=facts("server_read_only", alias=self.alias, host=place[0], port=place[1]),
            )
        elif is_stale_plan(error):
            for other in self._usage.connections():
                other.life.doom(str(error))
            self._pool.sweep(lambda other: False, "drained")
            logger.info(
                "pool %r: tables have changed; new connections prepare anew",
                self.alias,
                extra=facts("tables_changed", alias=self.alias),
            )

    def _take(self, started: float, deadline: float) -> PooledConnection:
        cause: BaseException | None
        counter = "timeouts"
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
            counter = "exhausted"
            cause = self._connector.trouble
        except seam.PoolClosed:
            raise self._error(PoolClosed, started, "the pool is closed") from None
        except seam.Refused as refused:
            counter = "refused"
            cause = refused.__cause__
            error = self._error(ConnectFailed, started, f"cannot connect: {str(cause).strip()}")
        self.record.add(counter)
        if isinstance(error, CheckoutTimeout):
            self._usage.log_long_holds()
        try:
            raise error from cause
        finally:
            # Its traceback holds this frame.
            del error, cause

    def _begin(self, connection: PooledConnection, started: float, deadline: float) -> bool:
        """Check a connection that was idle out, or close it if it is not usable; tell which."""
        try:
            unusable = self._unusable(connection, deadline)
            if unusable is None:
                waited = self._usage.begin(connection, started, self._left_behind)
        except BaseException:
            self._pool.discard(connection, "error")
            raise
        if unusable is not None:
            self._pool.discard(connection, unusable)
            return False
        if connection_checked_out.receivers:
            self._tell(connection_checked_out, waited=waited)
        return True

    def _ping(self) -> bool | None:
        """Make a round trip on an idle connection; None if there is none."""
        started = monotonic()
        connection = self._pool.take_idle()
        if connection is None:
            return None
        connection.life.idle_since = float("-inf")  # So only a round trip tells.
        if not self._begin(connection, started, started + self.options.check_timeout):
            return False
        self.checkin(connection)
        return True

    def _error(self, kind: type[PoolError], started: float, what: str) -> PoolError:
        elapsed, gauges = monotonic() - started, self.gauges()
        message = f"pool {self.alias!r}: {what} (after {elapsed:.2f} s; {gauges})"
        trouble, opening = self._connector.trouble, self._pool.opening
        if kind is CheckoutTimeout and trouble is not None:
            message += f"; the last attempt to connect failed: {str(trouble).strip()}"
        elif kind is CheckoutTimeout and opening:
            message += f"; {opening} being opened, without an answer yet from {self.server}"
        return kind(message, alias=self.alias, elapsed=elapsed, gauges=gauges)

    def _unusable(self, connection: PooledConnection, deadline: float) -> Reason | None:
        """Return why a connection that was idle cannot be used; None if it can."""
        now = monotonic()
        if now >= connection.life.expires_at:
            return "lifetime"
        if not self._is_alive(connection, now, deadline):
            self._connector.suspect()
            # Where one died the others may have: look at all of them now, since each would
            # cost a later checkout its own discovery. Where one only kept silent, those that
            # need a round trip too go unasked: each would cost another check_timeout.
            silent = looks_alive(connection)
            dead = self._pool.sweep(
                lambda other: looks_alive(other) and not (silent and self._is_due(other, now)),
                "dead",
            )
            logger.info(
                "pool %r: found %d dead connections",
                self.alias,
                dead + 1,
                extra=facts("connections_dead", alias=self.alias, connections=dead + 1),
            )
            return "dead"
        if self.options.check is not None:
            try:
                self.options.check(connection)
            except Exception as error:
                logger.info(
                    "pool %r: the project's check failed: %s",
                    self.alias,
                    error,
                    extra=facts("check_failed", alias=self.alias, error=error),
                )
                return "dead"
        return None

    def _is_alive(self, connection: PooledConnection, now: float, deadline: float) -> bool:
        if not looks_alive(connection):
            return False
        if not self._is_due(connection, now):
            return True
        return answers(connection, min(self.options.check_timeout, deadline - now))

    def _is_due(self, connection: PooledConnection, now: float) -> bool:
        """Whether it has been idle so long that only a round trip tells."""
        return now - connection.life.idle_since >= self.options.check_after

    def _left_behind(self, checkout: Checkout) -> None:
        self._pool.run_later(partial(self._reclaim, checkout))

    def _reclaim(self, checkout: Checkout) -> None:
        if not self._usage.is_current(checkout):
            return
        reference = checkout.connection.owner
        owner = reference() if reference is not None else None
        if owner is not None and owner.keeps(checkout.connection):
            # Until the owner goes too.
            finalize(owner, self._left_behind, checkout).atexit = False  # type: ignore[misc]
        else:
            logger.warning(
                "pool %r: a thread ended with a connection checked out at %s; it goes back now. "
                "Close it with connections.close_all() at the end of the thread.",
                self.alias,
                checkout.where,
                extra=facts("connection_reclaimed", alias=self.alias, where=str(checkout.where)),
            )
            self.record.add("reclaimed")
            self.checkin(checkout.connection)

    def _spoilt(self, connection: PooledConnection) -> Reason:
        """Say why a connection that came back is not kept."""
        if self._pool.closed:
            return "drained"
        spoilt = connection.broken or connection.life.doomed_by is not None
        return "error" if spoilt else "reset"


def _configure_new(
    configure: Callable[[PooledConnection], object],
    max_lifetime: float,
    connection: PooledConnection,
) -> None:
    connection.life.expires_at = connection.life.opened_at + uniform(0.9, 1.0) * max_lifetime
    try:
        configure(connection)
    except BaseException:
        connection.close()
        raise


def _tell(sender: type[Pool], alias: str, name: str, signal: Signal, **facts: object) -> None:
    if signal.receivers:
        signal.send_robust(sender=sender, using=alias, pool_name=name, **facts)


def _opened(record: Record, tell: Callable[..., None], seconds: float) -> None:
    record.connect(seconds)
    tell(connection_opened, seconds=seconds)


def _closed(
    record: Record, tell: Callable[..., None], connection: PooledConnection, reason: Reason
) -> None:
    record.add("closed", reason)
    tell(connection_discarded, reason=reason)
