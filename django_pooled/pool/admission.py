"""Who gets a connection: which lane may take one, which waiter is next, which waited too long."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING

from .lane_context import lane_of_caller
from .lanes import LANES, Lane, LaneOptions
from .queue_delay import QueueDelay
from .waiter import Overdue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .options import PoolOptions
    from .waiter import Place, Waiter

__all__ = ["Admission"]


class Admission:
    """The lanes of one pool; all is one lane without the option ``lanes``.

    A lane may take a connection if it has fewer than are reserved for it, or if one is left beside
    what is reserved for others; never beyond its own ``max``. So what is reserved and not in use is
    always left. A connection that comes back goes to the first waiter of the lane of the highest
    priority that may take one.

    The pool's lock guards it, but for `lane_of_caller`.

    Args:
        options: The pool's.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._has_lanes = options.lanes is not None
        given = options.lanes or {}
        default = LaneOptions(queue_target=options.queue_target)
        names = LANES if self._has_lanes else ("all",)
        self._lanes = {
            name: _lane(name, rank, given.get(name, default), options.queue_interval)
            for rank, name in enumerate(names)
        }
        self._have_limits = any(lane.reserved or lane.max < inf for lane in self._lanes.values())
        self._only = None if self._has_lanes else self._lanes["all"]

    @property
    def smallest(self) -> int:
        """The connections that are reserved, and one for the lanes without."""
        reserved = [lane.reserved for lane in self._lanes.values()]
        return sum(reserved) + (not all(reserved))

    def lane_of_caller(self) -> Lane:
        """Return the lane of the running code."""
        return self._only or self._lanes[lane_of_caller()]

    def admits(self, lane: Lane, held: Counter[Lane], max_size: int) -> bool:
        """Tell whether a lane may take a connection.

        Args:
            lane: The lane.
            held: The connections that each lane has in use.
            max_size: The pool's.
        """
        if not self._have_limits:
            return True
        mine = held[lane]
        if mine >= lane.max:
            return False
        if mine < lane.reserved:
            return True
        return held.total() + self._kept_from(lane, held) < max_size

    def _kept_from(self, lane: Lane, held: Counter[Lane]) -> int:
        others = (other for other in self._lanes.values() if other is not lane)
        return sum(max(0, other.reserved - held[other]) for other in others)

    def describe(self, lane: Lane, held: Counter[Lane]) -> str:
        """Say what a lane has, and what it cannot have, for an error."""
        if not self._has_lanes:
            return ""
        most = f" of at most {lane.max}" if lane.max < inf else ""
        kept = self._kept_from(lane, held)
        reserved = f", {kept} reserved for others" if kept else ""
        return f"; the lane {lane.name!r} has {held[lane]}{most}{reserved}"

    def next(
        self, places: Iterable[Place], held: Counter[Lane], max_size: int, now: float
    ) -> Place | None:
        """Return the place of the waiter that gets a connection, or None; refuse the overdue ones.

        Args:
            places: The queue.
            held: The connections that each lane has in use.
            max_size: The pool's.
            now: The monotonic moment.
        """
        found, rank, waiting = None, len(self._lanes), set()
        for place in places:
            waiter = place.waiter
            if waiter is None or waiter.lane is None:
                continue
            lane = waiter.lane
            if lane.delay is not None and lane.delay.refuses(waiter.since, now):
                place.fail(Overdue(lane))
                continue
            waiting.add(lane)
            if lane.rank < rank and self.admits(lane, held, max_size):
                found, rank = place, lane.rank
        for lane in self._lanes.values():
            if lane.delay is not None and lane.rank < rank and lane not in waiting:
                # It might have had this connection.
                lane.delay.note_idle()
        return found

    def wanted(self, waiters: Iterable[Waiter], held: Counter[Lane], max_size: int) -> int:
        """Count the waiters that could all have a connection now."""
        held = Counter(held)
        count = 0
        for waiter in sorted(waiters, key=lambda waiter: waiter.lane.rank if waiter.lane else 0):
            if waiter.lane is not None and self.admits(waiter.lane, held, max_size):
                held[waiter.lane] += 1
                count += 1
        return count

    def ahead(self, lane: Lane, places: Iterable[Place]) -> int:
        """Count the waiters that are served before a new one of that lane."""
        waiters = (place.waiter for place in places)
        return sum(
            waiter is not None and waiter.lane is not None and waiter.lane.rank <= lane.rank
            for waiter in waiters
        )

    def has_enough(self, lane: Lane, places: Iterable[Place], now: float) -> bool:
        """Tell whether a new waiter of that lane is refused, since it would wait too long."""
        if lane.delay is None:
            return False
        waiters = (place.waiter for place in places)
        since = [each.since for each in waiters if each is not None and each.lane is lane]
        return lane.delay.has_enough(since, now)

    def note_served(self, waiter: Waiter, now: float) -> None:
        """A waiter gets a connection."""
        if waiter.lane is not None and waiter.lane.delay is not None:
            waiter.lane.delay.note_served(waiter.since, now)
            waiter.lane.delay.note_taken()

    def begin_anew(self, now: float, after: float = inf) -> None:
        """Count waits from now on: they were for the end of a pause, or for the server.

        Args:
            now: The monotonic moment.
            after: Seconds for which they were. What is below a lane's target is no matter there.
        """
        for lane in self._lanes.values():
            if lane.delay is not None and after >= lane.delay.target:
                lane.delay.begin_anew(now)


def _lane(name: str, rank: int, options: LaneOptions, interval: float) -> Lane:
    target = options.queue_target
    return Lane(
        name,
        rank,
        options.reserved,
        inf if options.max is None else options.max,
        None if target is None else QueueDelay(target, interval),
    )
