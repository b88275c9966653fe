"""Sums of counters that never go down: what a pool had counted stays when the pool has gone."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, fields
from operator import add
from time import time
from typing import TYPE_CHECKING, Any

from django_pooled.stats.snapshot import Counters
from django_pooled.stats.socket_folder import process_exists

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from .site import Look

    Counts: TypeAlias = dict[str, Any]

__all__ = ["Book", "Entry"]

FORGET_AFTER = 600.0
"""Seconds after which a pool that neither answers nor is known to be gone counts as gone."""

_COUNTERS = frozenset(counter.name for counter in fields(Counters))


@dataclass
class Entry:
    """A pool that was seen, with what it had counted then."""

    alias: str
    host: str
    pid: int
    seen: float
    """Seconds since the epoch."""
    counts: Counts


@dataclass
class Book:
    """What the pools of a site have counted, those that are no more included.

    Prometheus takes a counter that goes down for one that began anew, and adds what it shows
    to what was before: so a sum over processes must not fall when one of them ends.

    What a process that was killed had counted since the last look is lost.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    """The pools that may still be there, by identity."""
    retired: dict[str, Counts] = field(default_factory=dict)
    """The sum of all others, by alias."""

    def settle(self, look: Look) -> None:
        """Write down what was seen, and add pools that have gone to the retired."""
        living = {pool.identity: pool for pool in look.pools}
        for identity, entry in list(self.entries.items()):
            if identity not in living and self._is_gone(entry, look):
                before = self.retired.get(entry.alias, {})
                self.retired[entry.alias] = _combined(before, entry.counts, add)
                del self.entries[identity]
        for identity, pool in living.items():
            counts = {key: pool.figures[key] for key in _COUNTERS & pool.figures.keys()}
            if identity in self.entries:
                # Another look may have been later, and yet have been written down before.
                counts = _combined(self.entries[identity].counts, counts, max)
            self.entries[identity] = Entry(pool.alias, pool.host, pool.pid, time(), counts)

    def _is_gone(self, entry: Entry, look: Look) -> bool:
        if (entry.host, entry.pid) in look.answered:
            return True  # Its process says so.
        if entry.pid in look.silent:
            return False
        if entry.host == socket.gethostname() and not process_exists(entry.pid):
            return True
        # In another container perhaps, or its pid was given to somebody else.
        return time() - entry.seen > FORGET_AFTER

    def figures(self, look: Look) -> list[tuple[str, dict[str, Any]]]:
        """Return figures to add up, with the alias of each.

        Those of a living pool are its gauges too; the others have counters only.
        """
        living = {pool.identity: pool.figures for pool in look.pools}
        found = [
            (entry.alias, {**living.get(identity, {}), **entry.counts})
            for identity, entry in self.entries.items()
        ]
        return [*found, *self.retired.items()]


def _combined(one: Any, other: Any, how: Callable[[Any, Any], Any]) -> Any:
    """Combine two sets of counters number by number; what only one of them has is kept."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            # The longest of some durations is not their sum.
            key: _combined(one[key], other[key], max if key == "max" else how)
            if key in one and key in other
            else one.get(key, other.get(key))
            for key in [*one, *(key for key in other if key not in one)]
        }
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [how(*pair) for pair in zip(one, other, strict=True)]
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return how(one, other)
    return other
