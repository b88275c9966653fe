"""Sums of counters that never go down: they keep the counts of pools that have gone."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from operator import add
from time import time
from typing import TYPE_CHECKING

from django_pooled.stats.combine import combine
from django_pooled.stats.counters import Counters, add_named
from django_pooled.stats.socket_folder import process_exists

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import PoolSnapshot

    from .site import SitePools

__all__ = ["SeenPool", "Sums"]

FORGET_AFTER = 600.0
"""Seconds after which a pool that neither answers nor is known to be gone counts as gone."""


@dataclass
class SeenPool:
    """A pool as it was last seen."""

    alias: str
    host: str
    pid: int
    seen: float
    """Seconds since the epoch."""
    counts: Counters


@dataclass
class Sums:
    """The counts of all pools of a site, including those that have gone.

    Prometheus takes a counter that goes down for one that began anew, and adds what it shows
    to what was before: so a sum over processes must not fall when one of them ends.

    What a process that was killed had counted since the last look is lost.
    """

    entries: dict[str, SeenPool] = field(default_factory=dict)
    """The pools that may still be there, by their ids."""
    retired: dict[str, Counters] = field(default_factory=dict)
    """The sum of all others, by alias."""

    def update(self, seen: SitePools) -> None:
        """Take in a look, and add pools that have gone to the retired."""
        living = {row.pool.id: row for row in seen.pools}
        for identity, entry in list(self.entries.items()):
            if identity not in living and self._is_gone(entry, seen):
                before = self.retired.get(entry.alias, Counters())
                self.retired[entry.alias] = _added(before, entry.counts)
                del self.entries[identity]
        for identity, row in living.items():
            counts = row.counters
            if identity in self.entries:
                # Another look may have been later, and yet have been written down before.
                counts = combine(self.entries[identity].counts, counts, max)
            process = row.process
            self.entries[identity] = SeenPool(
                row.pool.alias, process.host, process.pid, time(), counts
            )

    def _is_gone(self, entry: SeenPool, seen: SitePools) -> bool:
        if (entry.host, entry.pid) in seen.answered:
            return True  # Its process says so.
        if entry.pid in seen.silent:
            return False
        if entry.host == socket.gethostname() and not process_exists(entry.pid):
            return True
        # In another container perhaps, or its pid was given to another process.
        return time() - entry.seen > FORGET_AFTER

    def figures(self, seen: SitePools) -> list[tuple[str, PoolSnapshot | None, Counters]]:
        """Return alias, pool and counters of each; there is no pool where it did not answer."""
        living = {row.pool.id: row.pool for row in seen.pools}
        return [
            *((it.alias, living.get(identity), it.counts) for identity, it in self.entries.items()),
            *((alias, None, counts) for alias, counts in self.retired.items()),
        ]


def _added(before: Counters, counts: Counters) -> Counters:
    """Add up, with no more names of functions than one process has."""
    found = combine(before, counts, add)
    found.restarts_of = before.restarts_of.copy()
    for name, number in counts.restarts_of.items():
        add_named(found.restarts_of, name, number)
    return found
