"""One pool: checkout within a deadline, checkin whatever happened, and how full it is."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from functools import partial
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakMethod, ref

from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus

from django_pooled.signals import connection_checked_in, connection_checked_out
from django_pooled.sql.sqlstates import SERIALIZATION
from django_pooled.stats.counters import Record
from django_pooled.stats.names import SiteName

from . import queue
from .admission_queue import queue_for
from .checkin import Checkin
from .checkout import Checkout
from .checkouts import FOLD, Checkouts
from .connector import Connector
from .credentials import FetchedAnew, KeptCredentials
from .custom_check import CustomCheck
from .deadline import GRACE, current
from .events import Events
from .eviction import Eviction
from .figures import Figures
from .garbage_collection import collect_garbage
from .idle_checks import IdleChecks
from .opener import Opener
from .options import CONNECT_TIMEOUT
from .probes import Probes
from .psycopg_private import connect_timeout_of
from .readiness import Readiness
from .references import ALONE, references_to
from .refusals import REASONS, Refusals
from .reset import Reset
from .session_target import is_read_only_meant, misfit_for
from .steering import Steering
from .time_limit import LeftBehind
from .upkeep import YOUNGEST, Upkeep
from .waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import psycopg

    from django_pooled.errors import Gauges
    from django_pooled.stats.snapshot import PoolSnapshot

    from .connection import PooledConnection
    from .options import PoolOptions
    from .readiness import ReadinessCheck

__all__ = ["Pool"]

logger = logging.getLogger("django_pooled.pool")

_FRESH = 0.001
"""Seconds after a checkout in which its look at the socket counts for the first statement too. It
comes right after it as a rule, and a session may end between a look and a statement in any case."""


class RetryBudget(Protocol):
    """Limits how often transactions of this process are restarted on a pool's database."""

    @property
    def left(self) -> float | None:
        """Restarts that are left; None without a limit."""

    @property
    def is_owed(self) -> bool:
        """Whether there may be restarts that commits have to pay for."""

    def take(self, name: str) -> bool:
        """Take one restart of the function with this name; False if none is left."""

    def give(self, name: str) -> None:
        """A transaction of the function with this name was committed."""


class Pool:
    """The connections of this process to one database.

    Args:
        alias: Key of the database in ``settings.DATABASES``.
        options: Its pool's options.
        parameters: Called for each new connection; returns psycopg's connection parameters,
            so that credentials that expire can be fetched anew.
        configure: Called with each new connection, and again with one that was cleared.
        server: Where the connections lead to, for people: never with a password.
        credentials_change: Whether *parameters* fetches credentials anew each time.
        connect_timeout: Seconds that each step of opening a connection may take, as psycopg's
            parameter of that name has it.
        assume_role: Called with a connection whose role a statement may have changed; None
            where roles do not matter.
        site: The site that it belongs to.
        target: The value of ``target_session_attrs``; empty for any server.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        parameters: Callable[[], Mapping[str, Any]],
        configure: Callable[[PooledConnection], object],
        server: str,
        credentials_change: bool = False,
        connect_timeout: Any = CONNECT_TIMEOUT,
        assume_role: Callable[[PooledConnection], object] | None = None,
        site: SiteName | None = None,
        target: str = "",
    ) -> None:
        if options.read_only is None:
            options = replace(options, read_only=is_read_only_meant(target))
        self.alias = alias
        self.options = options
        self.server = server
        self.site = site or SiteName()
        self.transaction_mode: bool = options.pool_mode == "transaction"
        """Whether a checkout lasts for a transaction, and not for a request."""
        self.closed: bool = True
        """Whether it refuses checkouts: not opened yet, or closed for good. Without a lock, as all
        that is one assignment here; who has read it too early finds the queue closed."""
        self._lock = threading.RLock()
        """Guards the idle connections and the waiters (see `queue`), which slots are taken, the
        ends of checkouts, and the sums. Reentrant, since a signal handler may check out too."""
        self.record: Record = Record(self._lock)
        self.retry_budget: RetryBudget | None = None
        """Made by retry_transaction at its first restart; see `budget_of`, whose lock guards it."""
        self._looks_again_at = 0.0
        reset = Reset(alias, options.reset, self.transaction_mode, configure, assume_role)
        self._always_resets = reset.always_acts
        # Seconds after which a checkout asks the server, or the project's own check.
        self._trusted_for = options.check_after if options.check is None else 0.0
        # None of its parts holds the pool: closed and let go of, it is freed at once, and not
        # when the garbage collector comes by.
        self._events = events = Events(self.record, type(self), alias, options.name or alias)
        self._checkouts = Checkouts(
            alias, self._lock, self.record, options.leak_after, options.show_statements
        )
        self._connector = Connector(
            alias,
            options.backoff,
            options.reconnect_timeout,
            opened=self.record.connect,
            credentials_change=credentials_change,
        )
        self._kept_credentials: KeptCredentials | None = None
        left_behind = LeftBehind(options.max_size, options.reconnect_timeout)
        check = CustomCheck(alias, options.check, self._connector, left_behind)

        def opened(seconds: float) -> None:
            check.note_opened()
            events.opened(seconds)

        credentials = FetchedAnew(parameters)
        if options.credentials_lifetime and credentials_change:
            limit = connect_timeout_of({"connect_timeout": connect_timeout})
            credentials = self._kept_credentials = KeptCredentials(
                alias, parameters, options.credentials_lifetime, limit, left_behind
            )
        opener = Opener(
            alias,
            credentials,
            configure=partial(
                _configure_new,
                configure,
                options.max_lifetime,
                self.record.add,
                clears_state=reset.clears_what_is_left,
            ),
            opened=opened,
            connect_timeout=connect_timeout,
            left_behind=left_behind,
            connect=options.connect,
        )
        self._pool = queue_for(
            options,
            self._connector,
            opener,
            self._events.closed,
            self._lock,
            use_lifo=options.use_lifo,
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
        self._misfit = misfit_for(target)
        self._idle_checks = IdleChecks(
            alias, options, self._connector, self._pool, check, self._misfit
        )
        self._eviction = Eviction(
            alias, options.backoff, self._pool, self._checkouts, self.record, options.read_only
        )
        self._checkin = Checkin(
            self._lock,
            self._pool,
            self._checkouts,
            reset,
            self._connector,
            self._eviction,
            self._events,
            self.record,
        )
        self.steering: Steering = Steering(
            alias, self._pool, self.record, self._connector, self._checkouts
        )
        """Obeys the orders of `manage.py poolctl`."""
        self._upkeep = Upkeep(
            options,
            self._pool,
            self._connector,
            self._checkouts,
            self._idle_checks,
            self.steering,
        )
        self._readiness = Readiness(
            alias, options, self._connector, self._pool, self._checkouts, self._eviction
        )
        self._probes = Probes(
            options,
            self._pool,
            self._connector,
            self._checkouts,
            self._checkin,
            self._idle_checks,
            self._eviction,
        )
        self._figures = figures = Figures(
            alias,
            options,
            server,
            self.site,
            self._pool,
            self._connector,
            self._checkouts,
            self._eviction,
            self.steering,
            self.record,
        )
        self._refusals = Refusals(
            alias,
            options,
            server,
            self._pool,
            self._connector,
            self._checkouts,
            figures,
            self._events,
            self.record,
        )

    def open(self) -> None:
        """Start the workers and open ``min_size`` connections; without effect on an open pool."""
        self._pool.open()
        if not self.closed:
            return
        self.closed = False
        self._pool.repeat(WeakMethod(self._upkeep.look), self._upkeep.next_look)
        if self.options.leak_after is not None:
            self._pool.repeat(WeakMethod(self._checkouts.log_overdue), self.options.leak_after)
        if self._kept_credentials is not None:
            ahead = WeakMethod(self._kept_credentials.fetch_ahead)
            self._pool.repeat(ahead, self.options.credentials_lifetime / 4)

    def enqueue(self, woken: Callable[[], object]) -> Waiter | None:
        """Begin to wait for a connection without a thread.

        Args:
            woken: Called by any thread, once one should go on with `checkout`, or `leave`.

        Returns:
            None if `checkout` need not wait, or would be refused.
        """
        if self.closed or (self._pool.has_idle and self.options.lanes is None):
            return None
        waiter = Waiter(monotonic() + self.options.timeout, woken)
        return waiter if self._pool.enqueue(waiter) else None

    def leave(self, waiter: Waiter) -> None:
        """End a wait with which no thread goes on."""
        self._pool.leave(waiter)

    def is_overdue(self, waiter: Waiter) -> bool:
        """Tell whether a waiter has waited too long, as all do: `checkout` would refuse it."""
        return self._pool.is_overdue(waiter)

    def next_look(self, waiter: Waiter) -> float:
        """Return the monotonic moment from which a waiter may be overdue; infinite for never."""
        return self._pool.next_look(waiter)

    def look_for_lost_soon(self) -> None:
        """Have connections looked for that no code can reach, as a thread that waits does."""
        now = monotonic()
        if now >= self._looks_again_at and not self.closed:
            self._looks_again_at = now + queue.PATIENCE
            self._pool.start(partial(self._look_for_lost, None))

    def checkout(self, queued: Waiter | None = None) -> PooledConnection:
        """Take a connection that is alive; wait for one, within ``timeout`` seconds in all.

        The present deadline bounds it too.

        Args:
            queued: What `enqueue` has returned, to go on with that wait.

        Raises:
            CheckoutTimeout: None became available in time; ``__cause__`` is the last error
                in connecting, if the server could not be reached.
            ConnectFailed: The server refuses connections, and waiting will not help.
            PoolExhausted: ``max_waiting`` threads were waiting already, or all of them for longer
                than ``queue_target``.
            PoolClosed: The pool is closed.
        """
        started = monotonic() if queued is None else queued.since
        deadline = started + self.options.timeout
        limit = current.get()
        if limit is not None and limit.until < deadline:
            deadline = limit.until
            if deadline <= started:
                # Before it queues, and also where one is idle: nothing could be sent on it.
                raise self._refusals.too_late(limit, started)
        checkouts = self._checkouts
        while True:
            if queued is None:
                connection = self._pool.take_idle() or self._wait(started, deadline)
            else:
                connection, queued = self._wait(started, deadline, queued), None
            try:
                now, session, pgconn = monotonic(), connection.session, connection.pgconn
                if (
                    pgconn.status != ConnStatus.OK
                    or session.doomed_by is not None
                    or now >= session.expires_at
                    or now - session.idle_since >= self._trusted_for
                    # Without a round trip: an idle connection has nothing to read.
                    or session.is_readable()
                    or (self._misfit is not None and self._misfit(connection))
                ):
                    unusable = self._idle_checks.unusable(connection, deadline)
                    if unusable is not None:
                        self._pool.discard(connection, unusable)
                        continue
                    now = monotonic()
                if self._eviction.in_doubt:
                    self._eviction.note_use(connection)
                thread, leak_after = checkouts.threads.this, self.options.leak_after
                checkout = Checkout(connection, started, now, thread, self._checkin, leak_after)
                connection.uses.append(checkout)
                checkouts.open[checkout.key] = checkout
            except BaseException:
                self._pool.discard(connection, "error")
                raise
            connection.in_use, connection.fresh_until = True, now + _FRESH
            if connection_checked_out.receivers:
                self._events.checked_out(checkout.waited)
            return connection

    def checkin(self, connection: PooledConnection) -> None:
        """Give a connection back, in whatever state; from any thread. A second time is no error.

        An open transaction is rolled back. A connection that broke, or on which the server
        said that it is going away or read-only, is closed instead.
        """
        self.checkin_from([connection])

    def checkin_from(self, holder: list[PooledConnection]) -> None:
        """Give a connection back to which its user does not refer any more; as `checkin`.

        Args:
            holder: The connection, which is taken out.
        """
        connection = holder.pop()
        checkouts, session, pgconn = self._checkouts, connection.session, connection.pgconn
        try:
            # As `PooledConnection.claim`. A parent process's is not among those of this one.
            checkout = checkouts.open[connection.uses.pop().key]
        except (IndexError, KeyError):
            return
        checkout.returning = True
        connection.owner = connection.observer = None
        connection.in_use = False
        if connection.wrote:
            session.was_written = True
            connection.wrote = connection.drew = False
        made = connection.as_made
        is_as_new = (
            pgconn.transaction_status == TransactionStatus.IDLE
            and pgconn.pipeline_status == PipelineStatus.OFF
            and session.doomed_by is None
            and connection.pinned_by is None
            and not self._always_resets
            and not self.closed
        )
        if (
            is_as_new
            and made is not None
            # No cursor, generator or user can reach it, and nothing was changed on it.
            and references_to((connection,)[0]) == ALONE
            and [*vars(connection).values(), *made.adapters.values(), *made.types.values()]
            == made.values
            and made.prepared.prepare_threshold == made.prepare_threshold
            and made.prepared.prepared_max == made.prepared_max
        ):
            # What was set since the checkout; see the test that compares with a new object.
            connection.relied_on = connection.time_limits = connection.replaced_by = None
            connection.control = connection.beginning = None
            connection.carries = False
            connection.may_have_begun, connection.announced_by, connection.statements = False, 0, 0
        elif is_as_new and connection.autocommit:
            # The session is as new, and only the object has to be another.
            connection = connection.renewed()
            checkout.connection = ref(connection)
        else:
            self._checkin.end(checkout, connection)
            return
        # If an exception ends this early, its finalizer finds it.
        connection.uses.append(checkout)
        now = monotonic()
        with self._lock:
            # Counted before it is given: whatever comes in between, it has one user.
            ends = self.record.book[1]
            ends[checkout.key] = (checkout.waited, now - checkout.since, True)
            checkouts.open.pop(checkout.key, None)
            if len(ends) >= FOLD or checkouts.watched:
                checkouts.settle()
            connection.uses.clear()
            self._pool.give(connection, now)
        if connection_checked_in.receivers:
            self._events.checked_in(now - checkout.since, kept=True)

    def _wait(
        self, started: float, deadline: float, queued: Waiter | None = None
    ) -> PooledConnection:
        try:
            return self._pool.take(deadline - monotonic(), self._look_for_lost, queued)
        except REASONS as reason:
            refusal = self._refusals.because(reason, started, deadline)
        try:
            raise refusal.error from refusal.cause
        finally:
            # The error holds this frame by its traceback.
            del refusal

    def _look_for_lost(self, since: float | None) -> bool:
        """Look for connections in use that no code can reach; tell whether there were any.

        Before a checkout is refused. A connection that is not referred to has been handed over by
        its finalizer, or is missing here. One that is part of a reference cycle, as a wrapper of
        Django's is with its features, is freed by the garbage collector first.
        """
        # One that is idle in a lane's reservation, or beyond its maximum, is not for all that wait.
        if self._pool.opening == 0 and not self._pool.holds_back:
            collect_garbage(since)
        found = self._pool.take_back_found()
        return self._checkouts.end_lost() > 0 or found

    def note_error(self, connection: PooledConnection, error: psycopg.Error) -> None:
        """Take note of an error on a connection in use: some say that it must not come back."""
        # These are about one transaction.
        if error.sqlstate not in SERIALIZATION:
            self._eviction.note_error(connection, error)

    def check_readiness(self, timeout: float) -> ReadinessCheck:
        """Begin to find out whether the pool can serve, without queuing; see `Readiness.check`."""
        return self._readiness.check(timeout, partial(self._probes.ping, self.checkin))

    def look_at_server(self, timeout: float = 0.0) -> None:
        """Find out whose sessions the server has, for `snapshot`; see `Probes.look_at_server`."""
        self._probes.look_at_server(self.checkin, timeout)

    def close(self, timeout: float = 5.0, *, cancel: bool = False) -> None:
        """Refuse checkouts, close what is idle, and let other threads finish what is in use.

        A connection that is still in use after that, or by this thread, is closed at its checkin.

        Args:
            timeout: Seconds to wait for both.
            cancel: Whether to cancel the statements that are under way after that, and give their
                threads a second more. A COMMIT is not cancelled.
        """
        deadline = monotonic() + timeout
        self.closed = True
        self._pool.close(timeout)
        self._pool.take_back_found()
        self._checkouts.wait_for_other_threads(max(0.0, deadline - monotonic()))
        if cancel and self._checkouts.cancel_statements():
            self._checkouts.wait_for_other_threads(GRACE)

    def abandon(self) -> None:
        """Forget a pool inherited through fork(); its sockets and locks are the parent's."""
        self.closed = True
        self._lock = threading.RLock()
        self._pool.abandon()
        self.record.abandon(self._lock)
        self._checkouts.abandon(self._lock)

    def gauges(self) -> Gauges:
        """How full the pool is now."""
        return self._figures.gauges()

    def snapshot(self) -> PoolSnapshot:
        """Describe the pool for `manage.py poolstats`."""
        return self._figures.snapshot(self._probes.sessions, self._retry_budget_left())

    def note_held(self, seconds: float) -> None:
        """Count the time since the last look for the holders of the connections in use now."""
        self._checkouts.note_held(seconds)

    def _retry_budget_left(self) -> float | None:
        if self.retry_budget is not None:
            return self.retry_budget.left
        # Nothing was restarted yet; 0 stands for no limit.
        return float(self.options.retry_budget) or None


def _configure_new(
    configure: Callable[[PooledConnection], object],
    max_lifetime: float,
    count: Callable[[str, str], object],
    connection: PooledConnection,
    clears_state: bool,
) -> None:
    session = connection.session
    session.expires_at = session.opened_at + uniform(YOUNGEST, 1.0) * max_lifetime
    session.place = connection.place
    session.clears_state = clears_state
    session.count = count
    configure(connection)
    connection.remember_configuration()
