"""The pool of psycopg_pool with other rules, and everything that is private of psycopg_pool.

psycopg_pool opens connections one at a time, retries each with a backoff of its own that has
no cap, lets nobody end a wait early, and keeps waiters that timed out in its queue. None of
it can be changed by its options, so this subclass replaces the methods that decide when and
where a connection is opened, and touches the queue of waiters and the deque of idle connections
under psycopg_pool's own lock. A name that is gone is found out as this module is loaded; when what
a name stands for changes, the tests of this module fail.
"""

from __future__ import annotations

import queue
import traceback
from collections import deque
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, ref

from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from psycopg_pool import pool as inside

from django_pooled.activity import start_thread
from django_pooled.diagnostics.required_names import Need, require, require_overrides

from .connect_errors import is_permanent_refusal
from .connection import PooledConnection
from .deadline import current
from .slots import Slots
from .waiter import Place, Waiter

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from django_pooled.stats.counters import Reason

    from .connection import Use
    from .connector import Connector
    from .deadline import Deadline
    from .opener import Opener
    from .pause import Pause
    from .slots import Slot

__all__ = [
    "PoolClosed",
    "PoolTimeout",
    "RecoveringPool",
    "Refused",
    "TooManyRequests",
]


_OPTIONS = (
    "connection_class= open= name= min_size= max_size= timeout= max_waiting= max_lifetime="
    " max_idle= reconnect_timeout= reconnect_failed= num_workers="
)


def _require() -> None:
    kind = ConnectionPool
    tasks, taking_back = "give tasks to its threads", "take a connection back"
    require(
        "psycopg-pool",
        (
            Need(inside, "ConnectionPool", "open a pool", takes=_OPTIONS),
            Need(inside, "AddConnection MaintenanceTask", tasks, takes="pool"),
            Need(inside, "Schedule", tasks, takes="pool task delay"),
            Need(inside.MaintenanceTask, "run tick _run", tasks),
            Need(kind, "run_task", tasks, takes="self task"),
            Need(kind, "schedule_task", tasks, takes="self task delay"),
            Need(kind, "_start_workers _start_initial_tasks", "do without threads at exit"),
            Need(kind, "_maybe_grow_pool _add_connection", "decide when a connection is opened"),
            Need(kind, "_check_open_getconn", "take an idle connection", takes="self"),
            Need(kind, "_add_to_pool _close_connection", taking_back, takes="self conn"),
            Need(kind, "_shrink_pool", taking_back, takes="self"),
            Need(kind, "close", "end its threads", takes="self timeout"),
        ),
    )
    pool = ConnectionPool("", min_size=0, max_size=1, open=False)
    require(
        "psycopg-pool",
        (
            Need(pool, "_workers", tasks),
            Need(pool, "_pool _waiting _closed", "take an idle connection"),
            Need(pool, "_nconns _nconns_min _min_size _max_size", "count connections"),
            Need(pool, "_reconnect_failed", "call it when the server stays away"),
            Need(inside.AddConnection(pool), "attempt pool", "know what a task is for"),
            Need(kind._add_to_pool, "_lock _waiting _pool", "guard its fields by a lock of ours"),
            Need(kind._start_workers, "_tasks", "give its threads a queue that takes no lock"),
        ),
    )


_require()

PATIENCE = 1.0
"""Seconds that a thread waits before it has lost connections looked for."""

CLIENT_INTERVAL = 0.1
"""Seconds after which a thread that waits looks again whether its client has gone."""


def _nothing() -> None:
    """Stands for a weak reference to an object that does not exist any more."""


class Refused(Exception):
    """Ends a wait: no connection can be opened; ``__cause__`` is why."""


class _Call(inside.MaintenanceTask):
    """Any action as a task; it is run even if the pool was closed meanwhile."""

    def __init__(self, pool: ConnectionPool[Any], action: Callable[[], object]) -> None:
        super().__init__(pool)
        self._action = action

    def run(self) -> None:
        self._action()

    _run = None  # type: ignore[assignment]  # abstract, and called by the run() replaced above


class _Start(inside.MaintenanceTask):
    """Starts a thread for another task, which may take long; in the pool's worker.

    Not in the calling thread, which would wait until the new one runs: an exception that is thrown
    into it (PyThreadState_SetAsyncExc) may end the new one instead, since CPython gives both the
    same number for a moment, and it would wait for ever.
    """

    def __init__(self, pool: RecoveringPool, task: inside.MaintenanceTask, name: str) -> None:
        super().__init__(pool)
        # The worker holds its last task until the next one, which must not hold a connection. And
        # only one thread may run it: pop() is one operation.
        self._task = [task]
        self._name = name

    def run(self) -> None:
        try:
            task = self._task.pop()
        except IndexError:
            return
        try:
            start_thread(task.run, self._name)
        except RuntimeError:
            # The system has no more threads.
            task.run()

    _run = None  # type: ignore[assignment]  # as above


class _Later(inside.MaintenanceTask):
    """A task at a later moment, which does not keep the pool from being freed."""

    def __init__(self, pool: RecoveringPool, action: Callable[[RecoveringPool], None]) -> None:
        super().__init__(pool)
        self._action = action

    def tick(self) -> None:
        # In the scheduler's thread: a worker may be busy with something that hangs.
        pool = self.pool()
        if isinstance(pool, RecoveringPool) and not pool.closed:
            self._action(pool)

    _run = None  # type: ignore[assignment]  # abstract, and only called by ticks


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
        # All guarded by the lock, as psycopg_pool's idle connections and waiters are. Lengths of
        # those, and copies, are read without.
        self._slots = Slots()
        self._successes = 0  # connections that were opened
        self._grows_later: Callable[[], object] = _nothing  # the task at the end of a pause
        self._patience_ends = False  # whether reconnect_timeout runs
        self._reported = False  # whether it has run out since the last success
        self._pause: Pause | None = None  # while it lasts, nothing that is idle is handed out
        self._wanted: tuple[Place, int] | None = None  # for a connection that is older, see `slots`
        # Whether one of the two is there: what comes back is then looked at by `_add_to_pool`.
        self._is_steered = False
        self._one_at_a_time = False  # whether no two connections are opened at once
        # Connections that were dropped while in use. Only ever appended to and popped from, which
        # takes no lock: finalizers append.
        self._found: deque[tuple[PooledConnection, Use | None]] = deque()
        self._finds = 0  # only compared: two finalizers at once may count as one
        self._abandoned = False  # set by the only thread of a forked process
        super().__init__(connection_class=PooledConnection, open=False, **options)
        self._lock = lock

    @property
    def idle(self) -> int:
        """Connections ready for a checkout."""
        return len(self._pool)

    @property
    def idle_connections(self) -> list[PooledConnection]:
        """The connections ready for a checkout, which may be in use the next moment."""
        return list(self._pool.copy())

    @property
    def opening(self) -> int:
        """Connections being opened, or about to be."""
        return self._slots.opening

    @property
    def waiting(self) -> int:
        """Waiters that have neither a connection nor an error yet."""
        return len(self._waiters())

    @property
    def longest_waiting(self) -> float | None:
        """Seconds that the next waiter has waited; None without waiters."""
        since = [waiter.since for waiter in self._waiters()]
        return max(0.0, monotonic() - min(since)) if since else None

    def _waiters(self) -> list[Waiter]:
        now = monotonic()
        found = [place.waiter for place in self._places]
        return [waiter for waiter in found if waiter is not None and now < waiter.deadline]

    def take_idle(self) -> PooledConnection | None:
        """Take an idle connection, or return None, without a place in the queue.

        No thread waits while one is idle, but in a pause: a connection that comes back is handed
        to a waiter.
        """
        # With all in use, the queue is next, which takes the lock once more.
        if not self._pool:
            return None
        with self._lock:
            if self._pause is not None:
                return None
            try:
                connection = self._pool.popleft()
            except IndexError:
                # Another thread has taken the last one, or a signal handler of this thread.
                return None
            connection._pool = self
            # Those that were never needed are what psycopg_pool may close after max_idle.
            if len(self._pool) < self._nconns_min:
                self._nconns_min = len(self._pool)
            return connection

    def take(
        self,
        timeout: float,
        look_for_lost: Callable[[float | None], bool] = lambda since: False,
        queued: Waiter | None = None,
    ) -> PooledConnection:
        """Take an idle connection, or queue for one; as getconn(), without its own checks.

        A thread that leaves the queue, after its timeout or by an exception of any kind (gevent's
        timeouts and Ctrl-C), leaves nothing behind: getconn() would count it against max_waiting,
        and hand it a connection.

        Args:
            timeout: Seconds to wait at most.
            look_for_lost: Called during a wait, and before a refusal, without a lock: looks for
                connections in use that no code can reach any more, and tells whether there were
                any. Thorough if it was not since the given moment.
            queued: A waiter that `enqueue` has put into the queue; this thread goes on with it.

        Raises:
            PoolTimeout, PoolClosed, TooManyRequests: As getconn().
            Refused: No connection can be opened.
        """
        waiter = queued or Waiter(monotonic() + timeout)
        finds = self._finds
        try:
            try:
                connection = None
                if queued is None:
                    connection = self._take_or_queue(waiter, timeout, self.max_waiting)
                else:
                    # A deadline that was no matter to the pool as it was made.
                    waiter.deadline = min(waiter.deadline, monotonic() + timeout)
            except TooManyRequests:
                # The lost ones are on their way back, to one more waiter, by a worker perhaps; or
                # they have come by now.
                any_lost = look_for_lost(None) or self._finds != finds
                connection = self._take_or_queue(
                    waiter, timeout, 0 if any_lost else self.max_waiting
                )
            if connection is None:
                limit = current.get()
                if limit is None:
                    connection = self._wait(waiter, look_for_lost, None)
                else:
                    with limit.waking(waiter.give_up):
                        connection = self._wait(waiter, look_for_lost, limit)
                waiter.connection = None
        except BaseException:
            self.leave(waiter)
            raise
        return connection

    def enqueue(self, waiter: Waiter) -> bool:
        """Give a waiter a place in the queue, whose thread begins later.

        Returns:
            False if there is nothing to wait for, or no place: `take` serves or refuses a thread.
        """
        with self._lock:
            most = self.max_waiting
            is_full = most and len(self._waiting) >= most
            # Without workers the pool's tasks are run by threads that wait.
            if is_full or self._pool or self._closed or not self._workers:
                return False
            self._waiting.append(Place(waiter))  # type: ignore[arg-type]
            self._maybe_grow_pool()
        return True

    def _take_or_queue(
        self, waiter: Waiter, timeout: float, max_waiting: int
    ) -> PooledConnection | None:
        with self._lock:
            self._check_open_getconn()
            if timeout <= 0.0:
                raise PoolTimeout
            if self._pause is not None:
                self.end_pause_in_time()
            connection = self.take_idle()
            if connection is None:
                if max_waiting and len(self._waiting) >= max_waiting:
                    self._drop_empty_places()
                    if len(self._waiting) >= max_waiting:
                        raise TooManyRequests
                self._waiting.append(Place(waiter))  # type: ignore[arg-type]
                self._maybe_grow_pool()
        return connection

    def _wait(
        self,
        waiter: Waiter,
        look_for_lost: Callable[[float | None], bool],
        limit: Deadline | None,
    ) -> PooledConnection:
        watched = limit if limit is not None and limit.is_gone is not None else None
        started, deadline = waiter.since, waiter.deadline
        # Early enough for a connection that is found to come back in time.
        last_look_at = deadline - min(PATIENCE, (deadline - started) / 4)
        look_at = min(started + PATIENCE, last_look_at)
        while True:
            if not self._workers:
                self._work_without_threads()
            if watched is None:
                waiter.sleep(look_at)
            else:
                waiter.sleep(min(look_at, monotonic() + CLIENT_INTERVAL))
                watched.end_if_gone()
            with self._lock:
                if self._pause is not None:
                    self.end_pause_in_time()
                if waiter.error is not None:
                    raise waiter.error
                if waiter.connection is not None:
                    return waiter.connection
                now = monotonic()
                # Its own may have been brought forward.
                if now >= waiter.deadline:
                    raise PoolTimeout
            if now >= look_at:
                is_last = now >= last_look_at
                look_for_lost(started if is_last else None)
                look_at = deadline if is_last else min(now + PATIENCE, last_look_at)

    def give(self, connection: PooledConnection, now: float) -> None:
        """Hand a connection that came back to the next waiter, or keep it; as putconn().

        It is closed at the end of its lifetime, or if the pool was closed. Called under the lock.
        """
        session = connection.session
        session.idle_since = now
        if now >= session.expires_at:
            self.discard(connection, "lifetime")
        elif self._waiting or self._closed or self._is_steered:
            self._add_to_pool(connection)
        else:
            # As `_add_to_pool`.
            self._pool.append(connection)
            connection._pool = None

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out of the queue; what it was given goes to others."""
        # Connections are handed over under this lock, so from here on none is handed to it.
        with self._lock:
            self._remove([place for place in self._places if place.is_of(waiter)])
            connection, waiter.connection = waiter.connection, None
        # It has been raised, and its frames hold the waiter, and this pool.
        waiter.error = None
        if connection is not None:
            self._add_to_pool(connection)

    def found(self, connection: PooledConnection) -> None:
        """Take a connection in use that is not referred to any more; for finalizers.

        Those run in any thread, at any line and under any lock, at the exit of the interpreter and
        in forked processes too. So the pool's worker does the rest, and no lock is taken here.
        """
        checkout = connection.claim()
        if self._abandoned or (checkout is not None and not self._closed):
            slot = connection.session.slot
            if slot is not None and not self._slots.restore(slot):
                connection.session.doom("it was believed lost")
            if checkout is not None:
                # Cleared by the garbage collector too.
                checkout.connection = ref(connection)
            # In a forked process it stays here for good, since its session is the parent's.
            self._found.append((connection, checkout))
            self._finds += 1
        # Else it is closed as it is freed, and its slot becomes free.
        if not self._closed:
            self.run_later(self.take_back_found)

    def take_back_found(self) -> bool:
        """Give back the connections that were found; tell whether there were any."""
        any_found = False
        while self._found:
            with suppress(IndexError):
                connection, checkout = self._found.popleft()
                any_found = True
                if checkout is None or not checkout.take_back(connection):
                    # Dropped on its way to a user or back, in an unknown state.
                    self.discard(connection, "error")
        return self.recount() or any_found

    def recount(self) -> bool:
        """Correct slots and queue after interrupted threads; tell if a connection was lost."""
        with self._lock:
            lost = self._slots.give_up_lost()
            self._drop_empty_places()
            self._grow(at_least=self._min_size)
        for _ in range(lost):
            self._report_closed("error")
        return lost > 0

    def _drop_empty_places(self) -> None:
        self._remove([place for place in self._places if place.waiter is None])

    @property
    def _places(self) -> list[Place]:
        # psycopg_pool's queue. Its own places lose what is given to an interrupted thread. Copied
        # first, which no other thread divides: list() reads one after another without the GIL.
        return list(self._waiting.copy())  # type: ignore[arg-type]

    def _remove(self, places: list[Place]) -> None:
        for place in places:
            # Unless a signal handler of this thread has done so.
            with suppress(ValueError):
                self._waiting.remove(place)  # type: ignore[arg-type]

    def open_one(self) -> bool:
        """Have a connection opened, unless one is on its way or in a pause; tell whether it is."""
        with self._lock:
            wanted = not self._slots.opening and self._may_grow() and not self._connector.pause
            if wanted:
                self._add_one()
        return wanted

    def discard(self, connection: PooledConnection, reason: Reason) -> None:
        """Close a connection that was taken; open another only below min_size or for a waiter."""
        connection.session.closed_for = reason
        try:
            self._close_connection(connection)
        finally:
            with self._lock:
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

    @property
    def pause(self) -> Pause | None:
        """The pause under way."""
        pause = self._pause
        return pause if pause is not None and pause.left else None

    @pause.setter
    def pause(self, pause: Pause | None) -> None:
        """Begin a pause, or another in its place; with None resume, in the order of the queue."""
        with self._lock:
            self._pause = pause
            self._is_steered = pause is not None or self._wanted is not None
            if pause is None:
                while self._waiting and (idle := self.take_idle()) is not None:
                    self._add_to_pool(idle)
                self._grow(at_least=self._min_size)

    def end_pause_in_time(self) -> None:
        """Resume, if the time of the pause is over.

        A timer calls it, and those that wait: whatever has become of the timer's thread, it ends.
        """
        with self._lock:
            if self._pause is not None and not self._pause.left:
                self.pause = None

    @property
    def lent(self) -> int:
        """Connections in use, and those on their way to a user or back."""
        with self._lock:
            return max(0, self._slots.in_place - len(self._pool))

    @property
    def in_place(self) -> int:
        """Connections that are open."""
        return self._slots.in_place

    @property
    def has_room(self) -> bool:
        """Whether another connection may be opened."""
        return self._may_grow()

    @property
    def successes(self) -> int:
        """How many connections were opened."""
        return self._successes

    def mark(self) -> int:
        """Return what tells the connections of now, and the attempts under way, from later ones."""
        with self._lock:
            return self._slots.mark()

    def older(self, than: int) -> int:
        """Count the connections from before a mark."""
        return self._slots.older(than)

    def take_older(self, than: int, timeout: float) -> PooledConnection | None:
        """Take a connection from before a mark: an idle one, or the next that comes back.

        It goes before those that wait. One thread at a time may ask for it.

        Args:
            than: The mark.
            timeout: Seconds to wait at most.
        """
        waiter = Waiter(monotonic() + timeout)
        try:
            with self._lock:
                for connection in list(self._pool):
                    if _is_older(connection, than):
                        self._pool.remove(connection)
                        connection._pool = self
                        self._nconns_min = min(self._nconns_min, len(self._pool))
                        return connection
                self._wanted, self._is_steered = (Place(waiter), than), True
            while not (waiter.is_served or self._closed) and monotonic() < waiter.deadline:
                waiter.sleep(waiter.deadline)
        finally:
            with self._lock:
                # From here on none is handed to it.
                self._wanted, self._is_steered = None, self._pause is not None
        return waiter.connection

    def _leaves(self, connection: PooledConnection, place: Place, than: int) -> bool:
        return _is_older(connection, than) and place.set(connection)

    def sweep_older(self, than: int) -> int:
        """Close the idle connections from before a mark; return how many there were."""
        return self.sweep(lambda other: not _is_older(other, than), "drained")

    def open_one_at_a_time(self, only: bool) -> None:
        """Open no two connections at once from now on; or as many as are wanted again."""
        with self._lock:
            self._one_at_a_time = only
            self._grow(at_least=self._min_size)

    def set_sizes(self, min_size: int, max_size: int) -> None:
        """Have other sizes. What is beyond stays until it is taken by `take_older`."""
        with self._lock:
            self._min_size, self._max_size = min_size, max_size
            self._grow(at_least=min_size)

    def call_after(self, seconds: float, action: WeakMethod[Callable[[], object]]) -> None:
        """Run *action* once after that many seconds; it must not take long."""

        def run(_: RecoveringPool) -> None:
            method = action()
            if method is not None:
                method()

        self.schedule_task(_Later(self, run), seconds)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool; end a probe that waits for the server instead of joining it."""
        self._connector.close()
        # psycopg_pool waits that long for each of its threads, one after another.
        super().close(timeout / (self.num_workers + 1))
        # Connections that were found too late for the workers.
        self.take_back_found()

    def _close_connection(self, conn: PooledConnection) -> None:
        # psycopg_pool calls this too, for connections that it closes itself, and gives no reason.
        super()._close_connection(conn)
        slot, conn.session.slot = conn.session.slot, None
        if slot is None:
            return
        with self._lock:
            if not self._slots.give_up(slot):
                return
        reason = conn.session.closed_for
        if reason is None:
            reason = "drained" if self._closed else "idle"
        self._report_closed(reason)

    def abandon(self) -> None:
        """Forget a pool inherited through fork(): its threads, locks and sockets are the parent's.

        Without this mark its finalizer would take a lock that a thread of the parent may hold.
        """
        self._closed = self._abandoned = True

    def run_later(self, action: Callable[[], object]) -> None:
        """Run *action* in a thread of its own; at once, if the pool is closed."""
        if self._closed:
            action()
        else:
            self.start(action)

    def start(self, action: Callable[[], object]) -> None:
        """Run *action* in a thread of its own, which the pool's worker starts; see `_Start`."""
        task = _Start(self, _Call(self, action), f"{self.name}-helps")
        if not self._closed and self._workers:
            super().run_task(task)
            if not self._closed:
                return
            # It may be in the queue behind what tells the workers to stop, which comes later than
            # the mark.
        task.run()

    def repeat(self, action: WeakMethod[Callable[[], float]], delay: float) -> None:
        """Run *action* in a thread of its own after *delay* seconds, and after what it returns."""

        def run() -> None:
            pool, method = this(), action()
            if pool is not None and method is not None and not pool.closed:
                pool.repeat(action, method())

        this = ref(self)
        self.schedule_task(_Later(self, lambda pool: pool.run_later(run)), delay)

    def run_task(self, task: inside.MaintenanceTask) -> None:
        if not isinstance(task, inside.AddConnection):
            super().run_task(task)
            return
        with self._lock:
            # psycopg_pool hands that on to _add_connection(), without a look at it.
            task.attempt = self._slots.take()  # type: ignore[assignment]
        # A thread for each connection, which ends when that is open: as many as are wanted are
        # opened side by side, an idle process keeps no thread, and one that waits for a silent
        # server delays neither the pool's workers nor the exit of the process.
        super().run_task(_Start(self, task, f"{self.name}-opens"))

    def _maybe_grow_pool(self) -> None:
        # Called under the lock when a waiter has queued. One connection on its way for each
        # waiter, where psycopg_pool has one on its way for all of them.
        taken = len(self._slots)
        if taken >= self._max_size:
            return
        refusal = self._connector.standing_refusal()
        if refusal is not None and not taken:
            # No connection is on its way, and none will come back for the waiter.
            self._fail([self._places[-1]], refusal)
            self._waiting.pop()
        else:
            self._grow()

    def _grow(self, at_least: int = 0) -> None:
        """Have connections opened for those that wait, and up to *at_least*; under the lock."""
        if not self._may_grow() or self._pause is not None:
            return  # Before it counts those that wait, which are many if the pool is full.
        waiting = self.waiting
        while self._may_grow() and (self._slots.opening < waiting or len(self._slots) < at_least):
            if (self._connector.holds_off or self._one_at_a_time) and self._slots.opening:
                return  # That one has to show first that it is of use.
            pause = self._connector.pause
            if pause:
                if waiting and self._grows_later() is None:
                    task = _Later(self, RecoveringPool._grow_after_a_pause)
                    self._grows_later = ref(task)
                    # In a worker: an exception in this thread could leave a lock of psycopg_pool's
                    # scheduler held.
                    self.run_task(inside.Schedule(self, task, pause))
                return
            self._add_one()

    def _may_grow(self) -> bool:
        return not self._closed and len(self._slots) < self._max_size

    def _add_one(self) -> None:
        self.run_task(inside.AddConnection(self))

    def _grow_after_a_pause(self) -> None:
        with self._lock:
            self._grows_later = _nothing
            if self._connector.pause:
                self._grow()  # There has been another refusal meanwhile.
            elif self.waiting and not self._slots.opening and self._may_grow():
                # One attempt for all of them. If it succeeds, the others follow.
                self._add_one()

    def _shrink_pool(self) -> None:
        with self._lock:
            self._nconns = len(self._slots)
        super()._shrink_pool()

    def _add_to_pool(self, conn: PooledConnection) -> None:
        # As psycopg_pool's, which takes a waiter out of the queue before it is served: an
        # exception in between would leave it waiting in vain.
        conn._pool = self
        with self._lock:
            if self._wanted is not None and self._leaves(conn, *self._wanted):
                return
            while self._waiting and self._pause is None:
                try:
                    place: Place = self._waiting[0]  # type: ignore[assignment]
                except IndexError:
                    break  # A signal handler of this thread was first.
                served = not self._closed and place.set(conn)
                self._remove([place])
                if served:
                    return
            if not self._closed:
                self._pool.append(conn)
                # Only now: if this is interrupted before, the finalizer still reports it.
                conn._pool = None
                return
        self._close_connection(conn)

    def _add_connection(self, attempt: Any, growing: bool = False) -> None:
        slot: Slot = attempt
        try:
            connection = self._connector.open(
                self._attempt, lambda: self.waiting > 0, self._has_room
            )
        except BaseException as error:
            # Its frames hold the pool, and the retrying code holds the error.
            traceback.clear_frames(error.__traceback__)
            self._give_up(error, slot)
            if not isinstance(error, Exception):
                raise
        else:
            self._welcome(connection, slot)

    def _has_room(self) -> bool:
        return self._slots.in_place < self._max_size

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
        with self._lock:
            slot = self._slots.take()
        self._welcome(connection, slot)

    def _welcome(self, connection: PooledConnection, slot: Slot) -> None:
        """Keep a new connection, unless the pool is full by now."""
        connection.session.slot = slot
        with self._lock:
            self._successes += 1
            self._reported = False
            # Attempts hold slots too: the connections that arrive first stay.
            room = self._has_room()
            if room:
                self._slots.connected(slot)
        if room:
            self._add_to_pool(connection)
        else:
            self._close_connection(connection)
        with self._lock:
            self._grow()

    def _give_up(self, error: BaseException, slot: Slot) -> None:
        waiting = []
        with self._lock:
            self._slots.give_up(slot)
            if self._closed:
                return
            if is_permanent_refusal(error) and not self._slots.in_place:
                # No connection will come back for those that wait.
                waiting = self._places
                self._waiting.clear()
            # The probe may have ended because no thread waited, and one may wait by now.
            self._grow()
        self._fail(waiting, error)

    def _watch_patience(self) -> None:
        """An attempt has failed: check after reconnect_timeout whether one has succeeded."""
        with self._lock:
            if self._reconnect_failed is None or self._patience_ends or self._closed:
                return
            if self._reported and not self._waiting:
                return  # The last attempt of a probe that no thread waited for.
            self._patience_ends = True
            successes = self._successes

        def end(pool: RecoveringPool) -> None:
            with pool._lock:
                pool._patience_ends = False
                failed = pool._reported = pool._successes == successes
            if failed:
                # It is the project's code: it may take long, or raise SystemExit.
                start_thread(pool.reconnect_failed, f"{pool.name}-reconnect-failed")

        self.schedule_task(_Later(self, end), self.reconnect_timeout)

    def _start_workers(self) -> None:
        # A finalizer may put() a task while its thread is in another put(). psycopg_pool's own
        # queue would wait for ever then, since its lock is not reentrant.
        self._tasks = queue.SimpleQueue()  # type: ignore[assignment]
        with suppress(RuntimeError):
            # Raised where no thread can be started, as at the exit of the interpreter. They outlive
            # the request that opens the pool: see `start_thread`.
            Context().run(super()._start_workers)

    def _start_initial_tasks(self) -> None:
        if self._workers:
            super()._start_initial_tasks()

    def _work_without_threads(self) -> None:
        """Run the pool's tasks in the waiting thread, where the pool could start no thread."""
        while not self._workers and not self._closed:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            task.run()

    @staticmethod
    def _fail(waiting: list[Place], error: BaseException) -> None:
        for waiter in waiting:
            refusal = Refused(str(error))
            refusal.__cause__ = error
            waiter.fail(refusal)


def _is_older(connection: PooledConnection, than: int) -> bool:
    slot = connection.session.slot
    return slot is not None and slot.number < than


require_overrides("psycopg-pool", RecoveringPool, ConnectionPool)
