"""The last quarter of an hour of this process's pools, in intervals of a few seconds."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import fields
from operator import sub
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

from .combine import combine
from .counters import Counters
from .histogram import Histogram
from .snapshot import counters_as_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from .snapshot import PoolSnapshot

__all__ = ["INTERVAL", "KEPT", "History"]

KEPT = 15 * 60.0
"""Seconds that are remembered."""

INTERVAL = 5.0
"""Seconds of an interval. It begins at a multiple of this in all processes, so that a reader can
add their figures up."""

OFTEN = 1.0
"""Seconds from look to look while a pool is used; otherwise there is one in an interval."""

SHARE = 0.01
"""Of a processor at most: with very many pools there are fewer looks, and longer intervals."""

MOST_BYTES = 512 * 1024
"""Of all intervals; beyond, the oldest are forgotten."""

MOST_CONNECTIONS = 20
"""Holders that are kept of a pool with waiters, the longest first."""

# What a reader takes for granted where it is missing.
_NOTHING: tuple[object, ...] = (None, 0, 0.0, "", [], {})


class _Look(NamedTuple):
    moment: float
    pools: dict[str, PoolSnapshot]
    """By their ids."""


class _Interval(NamedTuple):
    begun: float
    """Seconds since the epoch."""
    text: bytes


class History:
    """Looks at the pools, and keeps of each interval what was counted and its worst moment.

    The thread of the process's socket does all of it: no request takes part, and nothing is shared.
    A child begins with nothing after a fork. With its process a history ends.

    Args:
        look: Returns the pools as they are; called with the seconds since the last time.
    """

    def __init__(self, look: Callable[[float], list[PoolSnapshot]]) -> None:
        self._look = look
        self._kept: deque[_Interval] = deque()
        self._bytes = 0
        self._base = self._last = _Look(monotonic(), {})
        """At the beginning of the interval, and the latest."""
        self._worst: dict[str, PoolSnapshot] = {}
        self._begun = time()
        self._is_used = True
        self._took = 0.0
        """Seconds of the latest look."""

    @property
    def pause(self) -> float:
        """Seconds until the next look is due."""
        left = INTERVAL - time() % INTERVAL
        return max(min(left, OFTEN) if self._is_used else left, self._took / SHARE)

    def sample(self) -> None:
        """Look at the pools; at the end of an interval, keep what it was."""
        now = monotonic()
        pools = {pool.id: pool for pool in self._look(now - self._last.moment)}
        before, self._last = self._last, _Look(now, pools)
        self._is_used = any(
            pool.in_use or pool.waiting or _checkouts(pool) != _checkouts(before.pools.get(key))
            for key, pool in pools.items()
        )
        for key, pool in pools.items():
            worst = self._worst.get(key)
            if worst is None or _badness(pool) >= _badness(worst):
                self._worst[key] = pool
        if time() // INTERVAL != self._begun // INTERVAL:
            self._keep()
        self._took = monotonic() - now

    def encoded(self, since: float) -> bytes:
        """Return a JSON list of the intervals that began since then, the oldest first.

        The last one is that under way, up to the latest look.

        Args:
            since: Seconds since the epoch.
        """
        kept = [interval.text for interval in self._kept if interval.begun >= since]
        if self._last.moment > self._base.moment:
            kept.append(self._encode())
        return b"[" + b",".join(kept) + b"]"

    def _keep(self) -> None:
        text, begun = self._encode(), self._begun
        self._base, self._begun, self._worst = self._last, time(), {}
        self._kept.append(_Interval(begun, text))
        self._bytes += len(text)
        while self._bytes > MOST_BYTES or self._kept[0].begun < begun - KEPT:
            self._bytes -= len(self._kept.popleft().text)

    def _encode(self) -> bytes:
        seconds = self._last.moment - self._base.moment
        pools = [
            _sparse(self._worst[key], _counted(pool, self._base), seconds)
            for key, pool in self._last.pools.items()
        ]
        interval = {"time": self._begun, "seconds": seconds, "pools": pools}
        return json.dumps(interval, separators=(",", ":")).encode()


def _checkouts(pool: PoolSnapshot | None) -> int:
    return pool.counters.checkouts if pool is not None else 0


def _badness(pool: PoolSnapshot) -> tuple[float, ...]:
    return pool.waiting, pool.longest_waiting or 0.0, pool.in_use


def _counted(pool: PoolSnapshot, base: _Look) -> Counters:
    """Return what a pool has counted since a look; a new one has counted all of it since then."""
    before = base.pools.get(pool.id)
    counters = combine(pool.counters, before.counters if before else Counters(), sub)
    for counter in fields(counters):
        times = getattr(counters, counter.name)
        if isinstance(times, Histogram):
            # The longest is known for the whole time only: of a part of it, the bucket's bound.
            times.longest = times.quantile(1.0) or 0.0
    return counters


def _sparse(pool: PoolSnapshot, counters: Counters, seconds: float) -> dict[str, Any]:
    values = pool.as_json() | counters_as_json(counters)
    in_use = [one for one in pool.connections if one["state"] != "idle"]
    longest = sorted(in_use, key=lambda one: -one["since"])[:MOST_CONNECTIONS]
    values["connections"] = [_given(dict(one)) for one in longest] if pool.waiting else []
    for fault, age in (("last_error", "last_error_age"), ("read_only", "read_only_age")):
        # One of an earlier interval is among that one's.
        if (values.get(age) or 0.0) > seconds + OFTEN:
            values[fault] = values[age] = None
    for name, value in values.items():
        if isinstance(value, dict) and name in ("wait", "use", "connect"):
            values[name] = value if value["count"] else None
        elif isinstance(value, dict):
            values[name] = _given(value)
    needed = {key: values[key] for key in ("size", "idle", "in_use", "waiting", "max_size")}
    return _given(values) | needed


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in _NOTHING}
