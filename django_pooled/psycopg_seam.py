"""Everything that reaches below the public interface of psycopg_pool.

psycopg_pool opens connections one at a time, retries each with a backoff of its own that has
no cap, lets nobody end a wait early, and keeps waiters that timed out in its queue. None of
it can be changed by its options, so this subclass replaces the methods that decide when and
where a connection is opened, and touches the queue of waiters and the deque of idle connections
under psycopg_pool's own lock. tests/test_psycopg_seam.py fails when what is used here changes.
"""

from __future__ import annotations

import threading
import traceback
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from psycopg_pool.pool import AddConnection, MaintenanceTask, WaitingClient

from .connection import PooledConnection
from .sqlstates import is_permanent_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connecting import Connector
    from .opening import Opener
    from .record import Reason

__all__ = [
    "PoolClosed",
    "PoolTimeout",
    "RecoveringPool",
    "Refused",
    "TooManyRequests",
]


class Refused(Exception):
    """Ends a wait: no connection can be opened; ``__cause__`` is why."""


class _Waiter(WaitingClient[PooledConnection]):
    """A thread in the queue, and since when."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        super().__init__()
        self.since = monotonic()


class _Call(MaintenanceTask):
    """Any action as a task; it is run even if the pool was closed meanwhile."""

    def __init__(self, pool: ConnectionPool[Any], action: Callable[[], None]) -> None:
        super().__init__(pool)
        self._action = action

    def run(self) -> None:
        self._action()

    _run = None  # type: ignore[assignment]  # abstract, and called by the run() replaced above


class _Later(MaintenanceTask):
    """A moment at which the pool looks after itself; it does not keep the pool from being freed."""

    def __init__(self, pool: RecoveringPool, action: Callable[[RecoveringPool], None]) -> None:
        super().__init__(pool)
        self._action = action

    def tick(self) -> None:
        # In the scheduler's thread: a worker may be busy with something that hangs.
        pool = self.pool()
        if isinstance(pool, RecoveringPool) and not pool.closed:
            self._action(pool)

    _run = None  # type: ignore[assignment]  # abstract, and called by nobody but ticks


class RecoveringPool(ConnectionPool[PooledConnection]):
    """A psycopg_pool whose connections are opened by a `Connector`.

    Args:
        connector: Decides when a connection is opened, and knows whether the server is away.
        opener: Opens one.
        closed: Called for each connection that is closed for good, with the reason.
        lock: Guards what psycopg_pool's own lock does, instead of it.
        options: psycopg_pool's own.
    """

    def __init__(
        self,
        connector: Connector,
        opener: Opener,
        closed: Callable[[Reason], None],
        lock: threading.RLock,
        **options: Any,
    ) -> None:
        self._connector = connector
        self._opener = opener
        self._report_closed = closed
        # All guarded by the lock.
        self._opening = 0  # AddConnection tasks queued or under way
        self._successes = 0  # connections that were opened
        self._grows_later = False  # whether a pause is being waited for
        self._patience_ends = False  # whether reconnect_timeout runs
        self._reported = False  # whether it has run out since the last success
        super().__init__(connection_class=PooledConnection, open=False, **options)
        self._lock = lock

    @property
    def idle(self) -> int:
        """Connections ready for a checkout."""
        return len(self._pool)

    @property
    def idle_connections(self) -> list[PooledConnection]:
        """The connections ready for a checkout, which may be in use the next moment."""
        return list(self._pool)

    @property
    def opening(self) -> int:
        """Connections being opened, or about to be."""
        return self._opening

    @property
    def waiting(self) -> int:
        """Waiters that have neither a connection nor an error yet."""
        return sum(1 for waiter in list(self._waiting) if not (waiter.conn or waiter.error))

    @property
    def longest_waiting(self) -> float | None:
        """Seconds that the waiter who is next has waited; None without waiters."""
        since = [
            waiter.since
            for waiter in list(self._waiting)
            if isinstance(waiter, _Waiter) and not (waiter.conn or waiter.error)
        ]
        return max(0.0, monotonic() - min(since)) if since else None

    def take_idle(self) -> PooledConnection | None:
        """Take an idle connection, or return None, without a place in the queue.

        Nobody waits while one is idle: whoever gives one back hands it to a waiter.
        """
        # Where all are in use, the queue is next, and its turn under the lock is enough.
        if not self._pool:
            return None
        with self._lock:
            if not self._pool:
                return None
            connection = self._pool.popleft()
            # Those that were never needed are what psycopg_pool may close after max_idle.
            if len(self._pool) < self._nconns_min:
                self._nconns_min = len(self._pool)
        connection._pool = self
        return connection

    def take(self, timeout: float) -> PooledConnection:
        """Take an idle connection, or queue for one; as getconn(), without its own checks.

        Who leaves the queue, on a timeout or by whatever else ends the wait (gevent's timeouts and
        Ctrl-C are no Exceptions), leaves nothing behind: getconn() would count the timed-out
        against max_waiting, and hand a connection to the interrupted.

        Raises:
            PoolTimeout, PoolClosed, TooManyRequests: As getconn().
            Refused: No connection can be opened.
        """
        with self._lock:
            self._check_open_getconn()
            connection = self._get_ready_connection(timeout)
            if connection is None:
                waiter = _Waiter()
                self._waiting.append(waiter)
                self._maybe_grow_pool()
        if connection is None:
            try:
                connection = waiter.wait(timeout)
            except BaseException:
                self._leave(waiter)
                raise
        connection._pool = self
        return connection

    def give(self, connection: PooledConnection, now: float) -> bool:
        """Hand a connection that came back to the waiter who is next, or keep it; as putconn().

        Returns whether it was kept, and not closed since the pool is.
        """
        kept = not self._closed
        connection.life.idle_since = now
        if now >= connection.life.expires_at:
            self.discard(connection, "lifetime")
        else:
            self._add_to_pool(connection)
        return kept

    def _leave(self, waiter: _Waiter) -> None:
        # Connections are handed over under this lock, so from here on none is handed to it.
        with self._lock:
            connection = waiter.conn
            if connection is None:
                with suppress(ValueError):
                    self._waiting.remove(waiter)
        # It has been raised, and its frames hold the waiter, and this pool.
        waiter.error = None
        if connection is not None:
            self._add_to_pool(connection)

    def open_one(self) -> bool:
        """Have one connection opened, unless one is on its way or there is a pause; tell if so."""
        with self._lock:
            wanted = not self._opening and self._may_grow() and not self._connector.pause
            if wanted:
                self._add_one()
        return wanted

    def discard(self, connection: PooledConnection, reason: Reason) -> None:
        """Close a connection that was taken; open another only if it will be missed."""
        connection.life.closed_for = reason
        try:
            self._close_connection(connection)
        finally:
            with self._lock:
                self._nconns -= 1
                self._grow(at_least=self._min_size)

    def sweep(self, alive: Callable[[PooledConnection], bool], reason: Reason) -> int:
        """Discard every idle connection for which *alive* is false; return how many."""
        with self._lock:
            connections = list(self._pool)
            self._pool.clear()
        dead = 0
        for connection in connections:
            if alive(connection):
                self._add_to_pool(connection)
            else:
                dead += 1
                self.discard(connection, reason)
        return dead

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool; end a probe that waits for the server instead of joining it."""
        self._connector.close()
        # psycopg_pool waits that long for each of its threads, one after another.
        super().close(timeout / (self.num_workers + 1))

    def _close_connection(self, conn: PooledConnection) -> None:
        # Whatever psycopg_pool closes by itself comes by here too, without a word of why.
        super()._close_connection(conn)
        reason = conn.life.closed_for
        if reason is None:
            reason = "drained" if self._closed else "idle"
        self._report_closed(reason)

    def abandon(self) -> None:
        """Forget a pool inherited through fork(): its threads, locks and sockets are the parent's.

        Without this mark its finalizer would take a lock that a thread of the parent may hold.
        """
        self._closed = True

    def run_later(self, action: Callable[[], None]) -> None:
        """Run *action* in the pool's worker."""
        if self._closed:
            action()
        else:
            super().run_task(_Call(self, action))

    def run_task(self, task: MaintenanceTask) -> None:
        if not isinstance(task, AddConnection):
            super().run_task(task)
            return
        with self._lock:
            self._opening += 1
        # A thread for each connection, which ends with it: as many as are wanted are opened
        # side by side, an idle process keeps none, and one that hangs on a silent server holds
        # up neither the pool's workers nor the process's exit.
        try:
            threading.Thread(target=task.run, name=f"{self.name}-opens", daemon=True).start()
        except RuntimeError:
            # No more threads can be had; the pool's own worker does it.
            super().run_task(task)

    def _maybe_grow_pool(self) -> None:
        # Called under the lock when a waiter has queued. One connection on its way for each
        # waiter, where psycopg_pool has one on its way for all of them.
        refusal = self._connector.standing_refusal()
        if refusal is not None and not self._nconns:
            # Neither is one on its way, nor will one come back to serve the waiter.
            self._fail([self._waiting.pop()], refusal)
        else:
            self._grow()

    def _grow(self, at_least: int = 0) -> None:
        """Have connections opened for those that wait, and up to *at_least*; under the lock."""
        while self._may_grow() and (self._opening < len(self._waiting) or self._nconns < at_least):
            pause = self._connector.pause
            if pause:
                if self._waiting and not self._grows_later:
                    self._grows_later = True
                    self.schedule_task(_Later(self, RecoveringPool._grow_after_a_pause), pause)
                return
            self._add_one()

    def _may_grow(self) -> bool:
        return not self._closed and self._nconns < self._max_size

    def _add_one(self) -> None:
        self._nconns += 1
        self.run_task(AddConnection(self))

    def _grow_after_a_pause(self) -> None:
        with self._lock:
            self._grows_later = False
            if self._connector.pause:
                self._grow()  # There has been another refusal meanwhile.
            elif self._waiting and not self._opening and self._may_grow():
                # One, whose answer is for all. If it is a good one, the others follow.
                self._add_one()

    def _add_connection(self, attempt: object, growing: bool = False) -> None:
        try:
            connection = self._connector.open(self._attempt, lambda: self.waiting > 0)
        except BaseException as error:
            # What retried keeps it, and is kept by its frames, pool and all.
            traceback.clear_frames(error.__traceback__)
            self._give_up(error)
            if not isinstance(error, Exception):
                raise
        else:
            with self._lock:
                self._opening -= 1
                self._nconns -= 1
            self._welcome(connection)

    def _attempt(self) -> PooledConnection:
        try:
            # Whoever has been given up holds nothing of the pool.
            return self._opener.open(WeakMethod(self._arrived_late))
        except Exception:
            self._watch_patience()
            raise

    def _arrived_late(self, connection: PooledConnection, seconds: float) -> None:
        """Keep a connection whose attempt had been given up, if there is room."""
        self._connector.arrived(seconds)
        self._welcome(connection)

    def _welcome(self, connection: PooledConnection) -> None:
        """Keep a new connection, unless others have taken its place meanwhile."""
        with self._lock:
            self._successes += 1
            self._reported = False
            # Those on their way hold places too; the first to arrive is the one that stays.
            room = self._nconns - self._opening < self._max_size
            if room:
                self._nconns += 1
        if room:
            self._add_to_pool(connection)
        else:
            self._close_connection(connection)
        with self._lock:
            self._grow()

    def _give_up(self, error: BaseException) -> None:
        waiting = []
        with self._lock:
            self._opening -= 1
            self._nconns -= 1
            if self._closed:
                return
            if is_permanent_refusal(error) and self._nconns <= self._opening:
                # No connection will come back to serve those that wait.
                waiting = list(self._waiting)
                self._waiting.clear()
            # The probe ended since nobody waited; somebody may have come meanwhile.
            self._grow()
        self._fail(waiting, error)

    def _watch_patience(self) -> None:
        """An attempt has failed: see what has become of it when reconnect_timeout has passed."""
        with self._lock:
            if self._reconnect_failed is None or self._patience_ends or self._closed:
                return
            if self._reported and not self._waiting:
                return  # The last attempt of a probe that was for nobody.
            self._patience_ends = True
            successes = self._successes

        def end(pool: RecoveringPool) -> None:
            with pool._lock:
                pool._patience_ends = False
                failed = pool._reported = pool._successes == successes
            if failed:
                # What it does is the project's: it may take long, or raise SystemExit.
                name = f"{pool.name}-reconnect-failed"
                threading.Thread(target=pool.reconnect_failed, name=name, daemon=True).start()

        self.schedule_task(_Later(self, end), self.reconnect_timeout)

    @staticmethod
    def _fail(waiting: list[WaitingClient[PooledConnection]], error: BaseException) -> None:
        for waiter in waiting:
            refusal = Refused(str(error))
            refusal.__cause__ = error
            waiter.fail(refusal)
