"""The queue of a pool: which waiter is handed the next connection, and how a wait ends."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from .deadline import current
from .growth import GrowingPool, Refused
from .psycopg_pool_private import PoolClosed, PoolTimeout, TooManyRequests
from .waiter import Overdue, Place, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.stats.counters import Reason

    from .connection import PooledConnection, Use
    from .deadline import Deadline
    from .pause import Pause
    from .session import Session

__all__ = [
    "PoolClosed",
    "PoolTimeout",
    "RecoveringPool",
    "Refused",
    "TooManyRequests",
]

PATIENCE = 1.0
"""Seconds that a thread waits before it has lost connections looked for."""

PATIENCE_IN_OVERLOAD = 10.0
"""Seconds between two looks for lost connections before waiters are refused for their delay: each
may stop all threads for a while."""

CLIENT_INTERVAL = 0.1
"""Seconds after which a thread that waits looks again whether its client has gone."""


class RecoveringPool(GrowingPool):
    """The connections of a pool: idle, handed to those that wait, or taken out by an operator.

    Args:
        arguments: As `GrowingPool`.
        options: As `GrowingPool`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Both under the lock.
        self._pause: Pause | None = None
        self._wanted: tuple[Place, int] | None = None  # for a connection that is older, see `slots`
        # Connections that were dropped while in use. Only ever appended to and popped from, which
        # takes no lock: finalizers append.
        self._found: deque[tuple[PooledConnection, Use | None]] = deque()
        self._finds = 0  # only compared: two finalizers at once may count as one
        self._looks_again_at = 0.0  # without a lock: if two threads look at once, both may
        super().__init__(*arguments, **options)

    @property
    def idle(self) -> int:
        """Connections ready for a checkout."""
        return len(self.ready)

    @property
    def has_idle(self) -> bool:
        """Whether one is handed out to a new waiter."""
        return bool(self.ready) and not self.holds_back

    @property
    def idle_connections(self) -> list[PooledConnection]:
        """The connections ready for a checkout, which may be in use the next moment."""
        return list(self.ready.copy())

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
        found = [place.waiter for place in self._all_places()]
        return [waiter for waiter in found if waiter is not None and now < waiter.deadline]

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
            PoolTimeout, PoolClosed, TooManyRequests: As getconn(); and see `is_overdue`.
            Refused: No connection can be opened.
        """
        waiter = queued or self.waiter(timeout)
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
        with self.lock:
            most = self.max_waiting
            is_full = (most and self.ahead_of(waiter) >= most) or self.has_enough_like(waiter)
            # Without workers the pool's tasks are run by threads that wait.
            if is_full or self.is_free_for(waiter) or self.closed or not self.has_threads:
                return False
            self.places.append(Place(waiter))
            self.grow_for_waiter()
        return True

    def _take_or_queue(
        self, waiter: Waiter, timeout: float, max_waiting: int
    ) -> PooledConnection | None:
        with self.lock:
            self.check_open()
            if timeout <= 0.0:
                raise PoolTimeout
            if self.holds_back:
                self.end_pause_in_time()
            connection = self.take_idle_for(waiter)
            if connection is None:
                if max_waiting and self.ahead_of(waiter) >= max_waiting:
                    self._drop_empty_places()
                    if self.ahead_of(waiter) >= max_waiting:
                        raise TooManyRequests
                if waiter.lane is not None and self.has_enough_like(waiter):
                    raise Overdue(waiter.lane)
                self.places.append(Place(waiter))
                self.grow_for_waiter()
        return connection

    # Decisions, for a subclass with other ones

    def waiter(self, timeout: float) -> Waiter:
        """Make a waiter for the calling thread."""
        return Waiter(monotonic() + timeout)

    def is_free_for(self, waiter: Waiter) -> bool:
        """Tell whether a connection is idle that a new waiter may have; under the lock."""
        return self.has_idle

    def take_idle_for(self, waiter: Waiter) -> PooledConnection | None:
        """Take an idle connection for a new waiter; under the lock."""
        return self.take_idle()

    def ahead_of(self, waiter: Waiter) -> int:
        """Count the places of those that are served before a new waiter; under the lock."""
        return len(self.places)

    def next_place(self) -> Place | None:
        """Return the place whose turn it is; under the lock."""
        try:
            return self.places[0]
        except IndexError:
            return None  # A signal handler of this thread was first, or there is none.

    def serve(self, place: Place, connection: PooledConnection) -> bool:
        """Hand a connection over to a waiter; tell whether it was taken. Under the lock."""
        return place.set(connection)

    def next_look(self, waiter: Waiter) -> float:
        """Return the monotonic moment from which a waiter may be overdue; infinite for never."""
        return inf

    def is_overdue(self, waiter: Waiter) -> bool:
        """Tell whether a waiter has waited for too long: then `take` refuses it; without a lock."""
        return False

    def has_enough_like(self, waiter: Waiter) -> bool:
        """Tell whether a new waiter would wait for too long; under the lock."""
        return False

    def waits_begin_anew(self) -> None:
        """From now on waits are for connections in use; under the lock."""

    def steer(self) -> None:
        """Find out whether what comes back has to be looked at; under the lock."""
        self.is_steered = self.holds_back or self._wanted is not None

    @property
    def smallest(self) -> int:
        """The connections that it has to have."""
        return 1

    def describe_lane(self) -> str:
        """Say what the lane of the running code has, for an error; empty without lanes."""
        return ""

    # Waits

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
            if not self.has_threads:
                self.work_without_threads()
            wakes_at = min(look_at, self.next_look(waiter))
            if watched is None:
                waiter.sleep(wakes_at)
            else:
                waiter.sleep(min(wakes_at, monotonic() + CLIENT_INTERVAL))
                watched.end_if_gone()
            if self.is_overdue(waiter) and monotonic() >= self._looks_again_at:
                # In an overload none waits for as long as others have patience.
                self._looks_again_at = monotonic() + PATIENCE_IN_OVERLOAD
                look_for_lost(None)
            with self.lock:
                if self.holds_back:
                    self.end_pause_in_time()
                if waiter.error is not None:
                    raise waiter.error
                if waiter.connection is not None:
                    return waiter.connection
                now = monotonic()
                # Its own may have been brought forward.
                if now >= waiter.deadline:
                    raise PoolTimeout
                if waiter.lane is not None and self.is_overdue(waiter):
                    raise Overdue(waiter.lane)
            if now >= look_at:
                is_last = now >= last_look_at
                look_for_lost(started if is_last else None)
                look_at = deadline if is_last else min(now + PATIENCE, last_look_at)

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out of the queue; what it was given goes to others."""
        # Connections are handed over under this lock, so from here on none is handed to it.
        with self.lock:
            self._remove([place for place in self._all_places() if place.is_of(waiter)])
            connection, waiter.connection = waiter.connection, None
        # It has been raised, and its frames hold the waiter, and this pool.
        waiter.error = None
        if connection is not None:
            self.hand_over(connection)

    def found(self, connection: PooledConnection) -> None:
        """Take a connection in use that is not referred to any more; for finalizers.

        Those run in any thread, at any line and under any lock, at the exit of the interpreter and
        in forked processes too. So the pool's worker does the rest, and no lock is taken here.
        """
        checkout = connection.claim()
        if self._abandoned or (checkout is not None and not self.closed):
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
        if not self.closed:
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
        with self.lock:
            lost = self._slots.give_up_lost()
            self._drop_empty_places()
            self.grow(at_least=self.min_size)
        for _ in range(lost):
            self._report_closed("error")
        return lost > 0

    def _drop_empty_places(self) -> None:
        self._remove([place for place in self._all_places() if place.waiter is None])

    def _all_places(self) -> list[Place]:
        # Copied first, which no other thread divides: list() reads one after another without the
        # GIL.
        return list(self.places.copy())

    def _remove(self, places: list[Place]) -> None:
        for place in places:
            # Unless a signal handler of this thread has done so.
            with suppress(ValueError):
                self.places.remove(place)

    def sweep(self, alive: Callable[[PooledConnection], bool], reason: Reason) -> int:
        """Discard every idle connection for which *alive* is false; return how many."""
        with self.lock:
            connections = list(self.ready)
            self.ready.clear()
        dead = 0
        for connection in connections:
            if alive(connection):
                self.hand_over(connection)
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
        with self.lock:
            self._pause, self.holds_back = pause, pause is not None
            self.steer()
            if pause is None:
                self.waits_begin_anew()
                self.hand_out_idle()
                self.grow(at_least=self.min_size)

    def hand_out_idle(self) -> None:
        """Hand idle connections to those that wait and may have them by now; under the lock."""
        while self.ready and not self.holds_back and self.next_place() is not None:
            try:
                connection = self.ready[0]
                self.take_this(connection)
            except (IndexError, ValueError):
                return  # A signal handler of this thread was first.
            self.hand_over(connection)

    def end_pause_in_time(self) -> None:
        """Resume, if the time of the pause is over.

        A timer calls it, and those that wait: whatever has become of the timer's thread, it ends.
        """
        with self.lock:
            if self._pause is not None and not self._pause.left:
                self.pause = None

    def mark(self) -> int:
        """Return what tells the connections of now, and the attempts under way, from later ones."""
        with self.lock:
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
            with self.lock:
                for connection in list(self.ready):
                    if _is_older(connection, than):
                        self.take_this(connection)
                        return connection
                self._wanted, self.is_steered = (Place(waiter), than), True
            while not (waiter.is_served or self.closed) and monotonic() < waiter.deadline:
                waiter.sleep(waiter.deadline)
        finally:
            with self.lock:
                # From here on none is handed to it.
                self._wanted = None
                self.steer()
        return waiter.connection

    def _leaves(self, connection: PooledConnection, place: Place, than: int) -> bool:
        return _is_older(connection, than) and place.set(connection)

    def take_out(self, session: Session, *, if_needless: bool = False) -> PooledConnection | None:
        """Take the connection of a session for the pool itself, if it is idle.

        It does not count as needed.

        Args:
            session: The session.
            if_needless: Only to close it, and if that many are not needed; see `needless`.
        """
        with self.lock:
            found = [each for each in list(self.ready) if each.session is session]
            if not found or self.holds_back:
                return None
            (connection,) = found
            if not if_needless:
                self.take_this(connection, as_needed=False)
            elif self.needless and self.in_place > self.min_size:
                self.take_needless(connection)
            else:
                return None
            return connection

    def put_back(self, connection: PooledConnection) -> None:
        """Make a connection idle again that was taken by `take_out`, in its turn as before."""
        with self.lock:
            if self.places or self.closed or self.is_steered:
                self.hand_over(connection)
            else:
                self.keep(connection, in_front=True)

    def sweep_older(self, than: int) -> int:
        """Close the idle connections from before a mark; return how many there were."""
        return self.sweep(lambda other: not _is_older(other, than), "drained")

    def set_sizes(self, min_size: int, max_size: int) -> None:
        """Have other sizes. What is beyond stays until it is taken by `take_older`."""
        with self.lock:
            super().set_sizes(min_size, max_size)
            self.grow(at_least=min_size)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool; end a probe that waits for the server instead of joining it."""
        super().close(timeout)
        # Connections that were found too late for the workers.
        self.take_back_found()

    def hand_over(self, connection: PooledConnection) -> None:
        # psycopg_pool's takes a waiter out of the queue before it is served: an exception in
        # between would leave it waiting in vain.
        self.mark_in_use(connection)
        with self.lock:
            if self._wanted is not None and self._leaves(connection, *self._wanted):
                return
            while not self.holds_back and (place := self.next_place()) is not None:
                served = not self.closed and self.serve(place, connection)
                self._remove([place])
                if served:
                    return
            if not self.closed:
                self.keep(connection)
                return
        self.close_connection(connection)


def _is_older(connection: PooledConnection, than: int) -> bool:
    slot = connection.session.slot
    return slot is not None and slot.number < than
