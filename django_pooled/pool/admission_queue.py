"""A queue with lanes, or with a bound on the delay: `Admission` decides in it."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from .admission import Admission
from .queue import RecoveringPool

if TYPE_CHECKING:
    from .connection import PooledConnection
    from .lanes import Lane
    from .options import PoolOptions
    from .slots import Slot
    from .waiter import Place, Waiter

__all__ = ["AdmissionQueue", "queue_for"]


def queue_for(options: PoolOptions, *arguments: Any, **more: Any) -> RecoveringPool:
    """Make the queue that these options ask for: in the order of arrival, or this one.

    Args:
        options: The pool's.
        arguments: As `RecoveringPool`.
        more: As `RecoveringPool`.
    """
    if options.lanes is None and options.queue_target is None:
        return RecoveringPool(*arguments, **more)
    return AdmissionQueue(Admission(options), *arguments, **more)


class AdmissionQueue(RecoveringPool):
    """A queue in which `Admission` says who may have a connection, who is next, who is refused.

    The slot of a connection in use knows its lane, so the count of a lane is right whatever becomes
    of the connection: see `Slots`.

    Args:
        admission: Decides, under the lock.
        arguments: As `RecoveringPool`.
        options: As `RecoveringPool`.
    """

    def __init__(self, admission: Admission, *arguments: Any, **options: Any) -> None:
        self._admission = admission
        # Under the lock, as what is decided by it.
        self._came_back_at = 0.0  # when the last connection came back that was in use
        self._uncounted_since: float | None = None  # since when waits are for something else
        super().__init__(*arguments, **options)
        self.is_steered = True

    def steer(self) -> None:
        self.is_steered = True

    def waiter(self, timeout: float) -> Waiter:
        waiter = super().waiter(timeout)
        waiter.lane = self._admission.lane_of_caller()
        return waiter

    def enqueue(self, waiter: Waiter) -> bool:
        waiter.lane = self._admission.lane_of_caller()
        return super().enqueue(waiter)

    def take_idle(self) -> PooledConnection | None:
        if not self.ready:
            return None
        # Before the lock: the lane may be found out by code of the project.
        lane = self._admission.lane_of_caller()
        with self.lock:
            return self._take_idle_in(lane)

    def take_idle_for(self, waiter: Waiter) -> PooledConnection | None:
        return self._take_idle_in(waiter.lane)

    def is_free_for(self, waiter: Waiter) -> bool:
        return super().is_free_for(waiter) and self._admits(waiter.lane)

    def _take_idle_in(self, lane: Lane | None) -> PooledConnection | None:
        if not self._admits(lane):
            return None
        connection = super().take_idle()
        if connection is not None and connection.session.slot is not None:
            connection.session.slot.lane = lane
            if lane is not None and lane.delay is not None:
                lane.delay.note_taken()
        return connection

    def _admits(self, lane: Lane | None) -> bool:
        return lane is None or self._admission.admits(lane, self._slots.held(), self.max_size)

    def hand_over(self, connection: PooledConnection) -> None:
        slot = connection.session.slot
        with self.lock:
            if slot is not None:
                if slot.lane is not None:
                    self._came_back_at = monotonic()
                slot.lane = None
            super().hand_over(connection)

    def next_place(self) -> Place | None:
        held = self._slots.held()
        return self._admission.next(self._all_places(), held, self.max_size, monotonic())

    def serve(self, place: Place, connection: PooledConnection) -> bool:
        waiter, slot = place.waiter, connection.session.slot
        if waiter is not None and slot is not None:
            # In this order: one that is interrupted in between has no connection.
            slot.lane = waiter.lane
            self._admission.note_served(waiter, monotonic())
        served = super().serve(place, connection)
        if not served and slot is not None:
            slot.lane = None
        return served

    def ahead_of(self, waiter: Waiter) -> int:
        if waiter.lane is None:
            return super().ahead_of(waiter)
        return self._admission.ahead(waiter.lane, self._all_places())

    @property
    def wanted(self) -> int:
        return self._admission.wanted(self._waiters(), self._slots.held(), self.max_size)

    def grow(self, at_least: int = 0) -> None:
        # One in use less, or more room: a lane that was at its limit may have an idle one.
        self.hand_out_idle()
        super().grow(at_least)

    def next_look(self, waiter: Waiter) -> float:
        delay = None if waiter.lane is None else waiter.lane.delay
        if delay is None or not self._waits_for_connections:
            return inf
        return delay.refuses_from(waiter.since)

    def is_overdue(self, waiter: Waiter) -> bool:
        delay = None if waiter.lane is None else waiter.lane.delay
        if delay is None:
            return False
        with self.lock:
            return self._counts_delay() and delay.refuses(waiter.since, monotonic())

    def has_enough_like(self, waiter: Waiter) -> bool:
        if waiter.lane is None or not self._counts_delay():
            return False
        return self._admission.has_enough(waiter.lane, self._all_places(), monotonic())

    def _counts_delay(self) -> bool:
        """Tell whether waiters may be refused for their delay; under the lock."""
        if not self._waits_for_connections:
            if self._uncounted_since is None:
                self._uncounted_since = self._connector.in_doubt_since or monotonic()
            return False
        if self._uncounted_since is not None:
            now = monotonic()
            self._admission.begin_anew(now, after=now - self._uncounted_since)
            self._uncounted_since = None
        return True

    @property
    def _waits_for_connections(self) -> bool:
        """Whether waiters wait for those in use, not for the end of a pause or for the server.

        While it is unknown whether the server is there, those in use may be dead, unless one of
        them has come back since.
        """
        if self.holds_back or not self.in_place:
            return False
        doubted = self._connector.in_doubt_since
        return doubted is None or self._came_back_at > doubted

    def waits_begin_anew(self) -> None:
        self._admission.begin_anew(monotonic())

    def _welcome(self, connection: PooledConnection, slot: Slot) -> None:
        with self.lock:
            if not self.in_place:
                self.waits_begin_anew()
        super()._welcome(connection, slot)

    @property
    def smallest(self) -> int:
        return self._admission.smallest

    def describe_lane(self) -> str:
        lane = self._admission.lane_of_caller()
        with self.lock:
            return self._admission.describe(lane, self._slots.held())
