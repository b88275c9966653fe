"""When a pool opens connections, how many at once, and what becomes of each."""

from __future__ import annotations

import traceback
from time import sleep
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, ref

from django_pooled.activity import start_thread

from .connect_errors import is_permanent_refusal
from .psycopg_pool_private import Later, PsycopgPool
from .slots import Slots

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from django_pooled.stats.counters import Reason

    from .connection import PooledConnection
    from .connector import Connector
    from .opener import Opener
    from .slots import Slot
    from .waiter import Place

__all__ = ["GrowingPool", "Refused"]

STEP = 0.01
"""Seconds between two glances at a connection that is being opened."""


class Refused(Exception):
    """Ends a wait: no connection can be opened; ``__cause__`` is why."""


def _nothing() -> None:
    """Stands for a weak reference to an object that does not exist any more."""


class GrowingPool(PsycopgPool):
    """A psycopg_pool whose connections are opened by a `Connector`, as many as are waited for.

    Args:
        connector: Decides when a connection is opened, and knows whether the server is away.
        opener: Opens one.
        closed: Called for each connection that is closed for good, with the reason.
        lock: As `PsycopgPool`.
        options: As `PsycopgPool`.
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
        # All under the lock.
        self._slots = Slots()
        self._successes = 0  # connections that were opened
        self._grows_later: Callable[[], object] = _nothing  # the task at the end of a pause
        self._patience_ends = False  # whether reconnect_timeout runs
        self._reported = False  # whether it has run out since the last success
        self._one_at_a_time = False  # whether no two connections are opened at once
        super().__init__(lock, **options)

    @property
    def waiting(self) -> int:
        """Waiters that have neither a connection nor an error yet."""
        raise NotImplementedError

    @property
    def wanted(self) -> int:
        """Connections that would all be taken at once by those that wait; under the lock."""
        return self.waiting

    @property
    def opening(self) -> int:
        """Connections being opened, or about to be."""
        return self._slots.opening

    @property
    def in_place(self) -> int:
        """Connections that are open."""
        return self._slots.in_place

    @property
    def lent(self) -> int:
        """Connections in use, and those on their way to a user or back."""
        with self.lock:
            return max(0, self._slots.in_place - len(self.ready))

    @property
    def has_room(self) -> bool:
        """Whether another connection may be opened."""
        return not self.closed and len(self._slots) < self.max_size

    @property
    def successes(self) -> int:
        """How many connections were opened."""
        return self._successes

    def open_one(self) -> bool:
        """Have a connection opened, unless one is on its way or in a pause; tell whether it is."""
        with self.lock:
            wanted = not self._slots.opening and self.has_room and not self._connector.pause
            if wanted:
                self.open_another()
        return wanted

    def wait_for_one(self, opened_before: int, is_in_vain: Callable[[], bool]) -> bool:
        """Wait until a connection is opened; tell whether one was. For threads of the pool's own.

        Args:
            opened_before: How many `successes` there were before it was asked for.
            is_in_vain: Called now and then; whether to wait no longer.
        """
        while self._successes == opened_before:
            if self.closed or is_in_vain():
                return False
            sleep(STEP)
        return True

    def open_one_at_a_time(self, only: bool) -> None:
        """Open no two connections at once from now on; or as many as are wanted again."""
        with self.lock:
            self._one_at_a_time = only
            self.grow(at_least=self.min_size)

    def discard(self, connection: PooledConnection, reason: Reason) -> None:
        """Close a connection that was taken; open another only below min_size or for a waiter."""
        connection.session.closed_for = reason
        try:
            self.close_connection(connection)
        finally:
            with self.lock:
                self.grow(at_least=self.min_size)

    def discard_expired(self, connection: PooledConnection) -> None:
        self.discard(connection, "lifetime")

    def grow(self, at_least: int = 0) -> None:
        """Have connections opened for those that wait, and up to *at_least*; under the lock."""
        if not self.has_room or self.holds_back:
            return  # Before it counts those that wait, which are many if the pool is full.
        wanted = self.wanted
        while self.has_room and (self._slots.opening < wanted or len(self._slots) < at_least):
            if (self._connector.holds_off or self._one_at_a_time) and self._slots.opening:
                return  # That one has to show first that it is of use.
            pause = self._connector.pause
            if pause:
                if wanted and self._grows_later() is None:
                    task = Later(self, GrowingPool.grow_after_a_pause)
                    self._grows_later = ref(task)
                    self.schedule_by_worker(task, pause)
                return
            self.open_another()

    def grow_for_waiter(self) -> None:
        # One connection on its way for each waiter, where psycopg_pool has one on its way for all
        # of them.
        taken = len(self._slots)
        if taken >= self.max_size:
            return
        refusal = self._connector.standing_refusal()
        if refusal is not None and not taken:
            # No connection is on its way, and none will come back for the waiter.
            _fail([self.places[-1]], refusal)
            self.places.pop()
        else:
            self.grow()

    def grow_after_a_pause(self) -> None:
        """Go on opening connections, if some wait still."""
        with self.lock:
            self._grows_later = _nothing
            if self._connector.pause:
                self.grow()  # There has been another refusal meanwhile.
            elif self.wanted and not self._slots.opening and self.has_room:
                # One attempt for all of them. If it succeeds, the others follow.
                self.open_another()

    # One attempt

    def take_slot(self) -> Slot:
        return self._slots.take()

    def slots_taken(self) -> int:
        return len(self._slots)

    def open_in(self, slot: Slot) -> None:
        try:
            connection = self._connector.open(
                self._attempt, lambda: self.waiting > 0, self._is_wanted
            )
        except BaseException as error:
            # Its frames hold the pool, and the retrying code holds the error.
            traceback.clear_frames(error.__traceback__)
            self._give_up(error, slot)
            if not isinstance(error, Exception):
                raise
        else:
            self._welcome(connection, slot)

    def _is_wanted(self) -> bool:
        """Tell whether one more connection may stay: attempts hold slots too."""
        return self._slots.in_place < self.max_size

    def _attempt(self) -> PooledConnection:
        try:
            # An attempt that was given up must not hold the pool.
            return self._opener.open(WeakMethod(self._arrived_late))
        except Exception:
            self._watch_patience()
            raise

    def _arrived_late(self, connection: PooledConnection, seconds: float) -> None:
        """Keep a connection whose attempt was given up, if there is room."""
        self._connector.arrived(seconds)
        with self.lock:
            slot = self._slots.take()
        self._welcome(connection, slot)

    def _welcome(self, connection: PooledConnection, slot: Slot) -> None:
        """Keep a new connection, unless the pool is full by now."""
        connection.session.slot = slot
        with self.lock:
            self._successes += 1
            self._reported = False
            # The connections that arrive first stay.
            room = self._is_wanted()
            if room:
                self._slots.connected(slot)
        if room:
            self.hand_over(connection)
        else:
            self.close_connection(connection)
        with self.lock:
            self.grow()

    def _give_up(self, error: BaseException, slot: Slot) -> None:
        waiting = []
        with self.lock:
            self._slots.give_up(slot)
            if self.closed:
                return
            if is_permanent_refusal(error) and not self._slots.in_place:
                # No connection will come back for those that wait.
                waiting = list(self.places)
                self.places.clear()
            # The probe may have ended because no thread waited, and one may wait by now.
            self.grow()
        _fail(waiting, error)

    def _watch_patience(self) -> None:
        """An attempt has failed: check after reconnect_timeout whether one has succeeded."""
        with self.lock:
            if not self.has_reconnect_failed or self._patience_ends or self.closed:
                return
            if self._reported and not self.places:
                return  # The last attempt of a probe that no thread waited for.
            self._patience_ends = True
            successes = self._successes

        def end(pool: GrowingPool) -> None:
            with pool.lock:
                pool._patience_ends = False
                failed = pool._reported = pool._successes == successes
            if failed:
                # It is the project's code: it may take long, or raise SystemExit.
                start_thread(pool.reconnect_failed, f"{pool.name}-reconnect-failed")

        self.schedule_task(Later(self, end), self.reconnect_timeout)

    def was_closed(self, connection: PooledConnection) -> None:
        slot, connection.session.slot = connection.session.slot, None
        if slot is None:
            return
        with self.lock:
            if not self._slots.give_up(slot):
                return
        reason = connection.session.closed_for
        if reason is None:
            # psycopg_pool has closed it.
            reason = "drained" if self.closed else "idle"
        self._report_closed(reason)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool; end a probe that waits for the server instead of joining it."""
        self._connector.close()
        super().close(timeout)


def _fail(waiting: list[Place], error: BaseException) -> None:
    for place in waiting:
        refusal = Refused(str(error))
        refusal.__cause__ = error
        place.fail(refusal)
