"""Everything that is private of psycopg_pool: its deques, tasks and threads, under names of ours.

psycopg_pool opens connections one at a time, retries each with a backoff of its own that has
no cap, lets nobody end a wait early, and keeps waiters that timed out in its queue. None of
it can be changed by its options, so `PsycopgPool` replaces the methods that decide when and
where a connection is opened, and touches the queue of waiters and the deque of idle connections
under psycopg_pool's own lock. What it decides instead is in growth.py and queue.py. A name that is
gone is found out as this module is loaded; when what a name stands for changes, the tests of this
module fail.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, ref

from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from django_pooled.activity import start_thread
from django_pooled.diagnostics.required_names import Need, needed_of, require, require_overrides

from .connection import PooledConnection

with needed_of("psycopg-pool"):
    from psycopg_pool import pool as inside

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from .slots import Slot
    from .waiter import Place

__all__ = ["Later", "PoolClosed", "PoolTimeout", "PsycopgPool", "TooManyRequests"]


LONGEST = TIMEOUT_MAX / 2
"""Seconds until a task is run, at most."""

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
    # What has names of its own is there by now.
    pool = ConnectionPool("", min_size=0, max_size=1, open=False)
    require(
        "psycopg-pool",
        (
            Need(inside.MaintenanceTask, "run tick _run", tasks),
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

    Not in the calling thread, which would wait until the new one runs.
    """

    def __init__(self, pool: PsycopgPool, task: inside.MaintenanceTask, name: str) -> None:
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


class Later(inside.MaintenanceTask):
    """A task at a later moment, which does not keep the pool from being freed."""

    def __init__(self, pool: PsycopgPool, action: Callable[[Any], object]) -> None:
        super().__init__(pool)
        self._action = action

    def tick(self) -> None:
        # In the scheduler's thread: a worker may be busy with something that hangs.
        pool = self.pool()
        if isinstance(pool, PsycopgPool) and not pool.closed:
            self._action(pool)

    _run = None  # type: ignore[assignment]  # abstract, and only called by ticks


class PsycopgPool(ConnectionPool[PooledConnection]):
    """psycopg_pool, without its decisions.

    Those that a subclass has to make have no body here. `take_idle` and `give`, which each request
    needs, are whole, since a call costs.

    Args:
        lock: Guards what psycopg_pool's own lock does, instead of it.
        use_lifo: Whether the idle connection that came back last is taken first.
        options: psycopg_pool's own.
    """

    def __init__(self, lock: threading.RLock, use_lifo: bool = False, **options: Any) -> None:
        super().__init__(connection_class=PooledConnection, open=False, **options)
        self.lock = self._lock = lock
        self.ready: deque[PooledConnection] = self._pool
        """The idle connections, those that were given back first in front. Under the lock;
        lengths and copies are read without."""
        self.places: deque[Place] = self._waiting  # type: ignore[assignment]
        """The queue of those that wait. Under the lock, as `ready`."""
        self.holds_back = False
        """Whether nothing that is idle is handed out; under the lock."""
        self.is_steered = False
        """Whether what comes back is looked at by `hand_over`; under the lock."""
        self._next_idle = self._pool.pop if use_lifo else self._pool.popleft
        # How many were never needed from one look of `_shrink_pool` to the next, as _nconns_min is
        # since the last one; under the lock. At first none is known to be needless.
        self._needless_before = 0
        self._abandoned = False  # set by the only thread of a forked process

    # Decisions

    def hand_over(self, connection: PooledConnection) -> None:
        """Give a connection that is new, or came back, to a waiter; or `keep` it."""
        raise NotImplementedError

    def grow_for_waiter(self) -> None:
        """Have a connection opened for the last place of the queue; called under the lock."""
        raise NotImplementedError

    def take_slot(self) -> Slot:
        """Take the slot of an attempt to open a connection; called under the lock."""
        raise NotImplementedError

    def open_in(self, slot: Slot) -> None:
        """Open a connection; in a thread of its own."""
        raise NotImplementedError

    def slots_taken(self) -> int:
        """Return how many connections there are, those being opened included."""
        raise NotImplementedError

    def was_closed(self, connection: PooledConnection) -> None:
        """Take note of a connection that is closed, by this pool or by psycopg_pool."""
        raise NotImplementedError

    def discard_expired(self, connection: PooledConnection) -> None:
        """Close a connection that comes back at the end of its lifetime."""
        raise NotImplementedError

    # Connections

    def take_idle(self) -> PooledConnection | None:
        """Take an idle connection, or return None, without a place in the queue.

        No thread waits while one is idle, but in a pause: a connection that comes back is handed
        to a waiter.
        """
        # With all in use, the queue is next, which takes the lock once more.
        if not self._pool:
            return None
        with self._lock:
            if self.holds_back:
                return None
            try:
                connection = self._next_idle()
            except IndexError:
                # Another thread has taken the last one, or a signal handler of this thread.
                return None
            connection._pool = self
            # Those that were never needed are what psycopg_pool may close after max_idle.
            if len(self._pool) < self._nconns_min:
                self._nconns_min = len(self._pool)
            return connection

    def take_this(self, connection: PooledConnection, *, as_needed: bool = True) -> None:
        """Take one of the idle connections; under the lock.

        Args:
            connection: The connection.
            as_needed: Whether it counts as needed, as those do that users take.
        """
        self._pool.remove(connection)
        connection._pool = self
        if as_needed:
            self._nconns_min = min(self._nconns_min, len(self._pool))

    @property
    def needless(self) -> int:
        """Idle connections that were not needed for ``max_idle`` seconds; under the lock."""
        return max(0, min(self._nconns_min, self._needless_before, len(self._pool)))

    def take_needless(self, connection: PooledConnection) -> None:
        """Take one of the idle connections for good, which was needless; under the lock."""
        self.take_this(connection, as_needed=False)
        self._nconns_min -= 1
        self._needless_before -= 1

    def give(self, connection: PooledConnection, now: float) -> None:
        """Hand a connection that came back to the next waiter, or keep it; as putconn().

        It is closed at the end of its lifetime, or if the pool was closed. Called under the lock.
        """
        session = connection.session
        session.idle_since = now
        if now >= session.expires_at:
            self.discard_expired(connection)
        elif self._waiting or self._closed or self.is_steered:
            self.hand_over(connection)
        else:
            # As `keep`.
            self._pool.append(connection)
            connection._pool = None

    def keep(self, connection: PooledConnection, *, in_front: bool = False) -> None:
        """Keep a connection idle, *in_front* as the one idle longest; under the lock."""
        if in_front:
            self._pool.appendleft(connection)
        else:
            self._pool.append(connection)
        # Only now: if this is interrupted before, the finalizer still reports it.
        connection._pool = None

    def mark_in_use(self, connection: PooledConnection) -> None:
        """Have the finalizer of a connection report it, until it is kept."""
        connection._pool = self

    def check_open(self) -> None:
        """Raise an error if the pool is closed.

        Raises:
            PoolClosed: It is, or is not open yet.
        """
        self._check_open_getconn()

    def set_sizes(self, min_size: int, max_size: int) -> None:
        """Have other sizes; under the lock."""
        self._min_size, self._max_size = min_size, max_size

    @property
    def has_reconnect_failed(self) -> bool:
        """Whether the project wants to know when the server stays away."""
        return self._reconnect_failed is not None

    def _maybe_grow_pool(self) -> None:
        self.grow_for_waiter()

    def _add_connection(self, attempt: Any, growing: bool = False) -> None:
        self.open_in(attempt)

    def _add_to_pool(self, conn: PooledConnection) -> None:
        self.hand_over(conn)

    def _close_connection(self, conn: PooledConnection) -> None:
        # psycopg_pool calls this too, for connections that it closes itself.
        super()._close_connection(conn)
        self.was_closed(conn)

    def _shrink_pool(self) -> None:
        with self._lock:
            self._nconns = before = self.slots_taken()
            self._needless_before = self._nconns_min
        super()._shrink_pool()
        with self._lock:
            self._needless_before -= before - self.slots_taken()

    def close_connection(self, connection: PooledConnection) -> None:
        """Close a connection that was taken, and its session."""
        self._close_connection(connection)

    # Threads and tasks

    @property
    def has_threads(self) -> bool:
        """Whether the pool has workers; else its tasks are run by threads that wait."""
        return bool(self._workers)

    def open_another(self) -> None:
        """Have a connection opened, by `open_in`; under the lock."""
        self.run_task(inside.AddConnection(self))

    def run_task(self, task: inside.MaintenanceTask) -> None:
        if not isinstance(task, inside.AddConnection):
            super().run_task(task)
            return
        with self._lock:
            # psycopg_pool hands that on to _add_connection(), without a look at it.
            task.attempt = self.take_slot()  # type: ignore[assignment]
        # A thread for each connection, which ends when that is open: as many as are wanted are
        # opened side by side, an idle process keeps no thread, and one that waits for a silent
        # server delays neither the pool's workers nor the exit of the process.
        super().run_task(_Start(self, task, f"{self.name}-opens"))

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
        """Run *action* in a thread of its own after *delay* seconds, and after what it returns.

        One that fails is run again after as long as before.
        """

        def run() -> None:
            pool, method, seconds = this(), action(), delay
            if pool is None or method is None or pool.closed:
                return
            try:
                seconds = method()
            finally:
                pool.repeat(action, seconds)

        this = ref(self)
        self.schedule_by_worker(Later(self, lambda pool: pool.run_later(run)), delay)

    def call_after(self, seconds: float, action: WeakMethod[Callable[[], object]]) -> None:
        """Run *action* once after that many seconds; it must not take long."""

        def run(_: PsycopgPool) -> None:
            method = action()
            if method is not None:
                method()

        self.schedule_task(Later(self, run), seconds)

    def schedule_task(self, task: inside.MaintenanceTask, delay: float) -> None:
        # Python waits no longer than that. An error would end the thread that runs all such tasks.
        super().schedule_task(task, min(delay, LONGEST))

    def schedule_by_worker(self, task: Later, seconds: float) -> None:
        """Schedule a task in a worker.

        An exception in this thread could leave a lock of psycopg_pool's scheduler held.
        """
        self.run_task(inside.Schedule(self, task, seconds))

    def work_without_threads(self) -> None:
        """Run the pool's tasks in the waiting thread, where the pool could start no thread."""
        while not self._workers and not self._closed:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            task.run()

    def _start_workers(self) -> None:
        # A finalizer may put() a task while its thread is in another put(). psycopg_pool's own
        # queue would wait for ever then, since its lock is not reentrant.
        self._tasks = queue.SimpleQueue()  # type: ignore[assignment]
        started = threading.Event()

        def start() -> None:
            try:
                # Raised where no thread can be started, as at the exit of the interpreter.
                with suppress(RuntimeError):
                    super(PsycopgPool, self)._start_workers()
            finally:
                started.set()

        # In another thread, since psycopg_pool starts its own in its own way; see `start_thread`.
        with suppress(RuntimeError):
            start_thread(start, f"{self.name}-starts")
            started.wait()

    def _start_initial_tasks(self) -> None:
        if self._workers:
            super()._start_initial_tasks()

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool, and end its threads."""
        # psycopg_pool waits that long for each of its threads, one after another.
        super().close(timeout / (self.num_workers + 1))

    def abandon(self) -> None:
        """Forget a pool inherited through fork(): its threads, locks and sockets are the parent's.

        Without this mark its finalizer would take a lock that a thread of the parent may hold.
        """
        self._closed = self._abandoned = True


require_overrides("psycopg-pool", PsycopgPool, ConnectionPool)
