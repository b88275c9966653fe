"""A thread that waits for a connection, and its place in the queue."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING
from weakref import ref

from psycopg_pool import TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection
    from .lanes import Lane

__all__ = ["Overdue", "Place", "Waiter"]


class Overdue(TooManyRequests):
    """A waiter has waited too long, as all do.

    Args:
        lane: Its lane.
    """

    def __init__(self, lane: Lane) -> None:
        super().__init__(f"lane {lane.name!r}")
        self.lane = lane


class Waiter:
    """What a waiting thread is given; the thread's own frame has the only strong reference.

    The pool's lock guards `connection` and `error`. The waiting thread takes it before it reads
    either, and a thread that hands over a connection holds it meanwhile.

    Args:
        deadline: The monotonic moment at which the wait ends.
        woken: Called as it is woken, by any thread and with the pool's lock held, if the wait
            begins without a thread.
    """

    __slots__ = (
        "__weakref__",
        "_gate",
        "_woken",
        "connection",
        "deadline",
        "error",
        "lane",
        "since",
    )

    def __init__(self, deadline: float, woken: Callable[[], object] | None = None) -> None:
        self.since: float = monotonic()
        self.deadline = deadline
        self.connection: PooledConnection | None = None
        self.error: BaseException | None = None
        self.lane: Lane | None = None
        """Set as it is queued, in a pool that has lanes or bounds the delay."""
        self._woken = woken
        # A bare lock, which is opened by its release: a Condition has another lock inside, which an
        # exception from a signal handler can leave locked for ever.
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def is_served(self) -> bool:
        """Whether it has a connection or an error."""
        return self.connection is not None or self.error is not None

    def sleep(self, until: float) -> None:
        """Sleep until woken, or that monotonic moment. It may wake for nothing."""
        self._gate.acquire(timeout=max(0.0, until - monotonic()))

    def wake(self) -> None:
        """Wake the thread, which sleeps or is about to."""
        try:  # noqa: SIM105  # suppress() takes three calls, at each checkin of a full pool
            self._gate.release()
        except RuntimeError:
            # The thread that serves it opens the gate, and so may one that ends its wait.
            pass
        if self._woken is not None:
            self._woken()

    def give_up(self) -> None:
        """End the wait, from any thread; a connection that was handed over meanwhile counts."""
        self.deadline = monotonic()
        self.wake()


class Place:
    """A place in the queue, which is empty once its waiter does not exist any more.

    psycopg_pool's own queue knows its ``WaitingClient`` by `set` and `fail`.

    Args:
        waiter: Whose place it is.
    """

    __slots__ = ("_waiter",)

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = ref(waiter)

    @property
    def waiter(self) -> Waiter | None:
        """The thread that waits here still."""
        waiter = self._waiter()
        # As `is_served`: a pool that is full asks this at each checkin.
        if waiter is None or waiter.connection is not None or waiter.error is not None:
            return None
        return waiter

    def is_of(self, waiter: Waiter) -> bool:
        """Tell whose place it is."""
        return self._waiter() is waiter

    def set(self, connection: PooledConnection) -> bool:
        """Hand over a connection; tell whether it was taken. Under the pool's lock."""
        waiter = self.waiter
        if waiter is None:
            return False
        # In this order: one that is woken for nothing sleeps again, but one that is never woken
        # waits in vain. It cannot read the connection before the lock is released.
        waiter.wake()
        waiter.connection = connection
        return True

    def fail(self, error: BaseException) -> bool:
        """End the wait with an error; tell whether it did."""
        waiter = self.waiter
        if waiter is None:
            return False
        # psycopg_pool holds no lock here as it closes.
        waiter.error = error
        waiter.wake()
        return True
