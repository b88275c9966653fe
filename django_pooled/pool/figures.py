"""The figures of a pool at one moment: how full it is, and all that poolstats shows of it."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.diagnostics.redaction import told
from django_pooled.errors import Gauges

from .checkouts import described

if TYPE_CHECKING:
    from django_pooled.stats.counters import Record
    from django_pooled.stats.names import SiteName
    from django_pooled.stats.snapshot import PoolSnapshot

    from .checkouts import Checkouts
    from .connector import Connector
    from .eviction import Eviction
    from .options import PoolOptions
    from .queue import RecoveringPool
    from .server_sessions import ServerSessions
    from .steering import Steering

__all__ = ["Figures"]


class Figures:
    """Reads the parts of one pool, each under its lock.

    Args:
        alias: The pool's alias.
        options: Its options.
        server: Where the connections lead to, for people.
        site: The site that it belongs to.
        pool: Its connections and its waiters.
        connector: What opens them.
        checkouts: Which are in use.
        eviction: What it knows of a server that is read-only.
        steering: The orders of an operator.
        record: Its counters.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        server: str,
        site: SiteName,
        pool: RecoveringPool,
        connector: Connector,
        checkouts: Checkouts,
        eviction: Eviction,
        steering: Steering,
        record: Record,
    ) -> None:
        self._alias = alias
        self._options = options
        self._server = server
        self._site = site
        self._pool = pool
        self._connector = connector
        self._checkouts = checkouts
        self._eviction = eviction
        self._steering = steering
        self._record = record

    def gauges(self) -> Gauges:
        """How full the pool is now."""
        self._checkouts.end_lost()
        # As at one moment: what comes back in between would count twice, or not at all.
        with self._checkouts.lock:
            return self._gauges(len(self._checkouts))

    def _gauges(self, in_use: int) -> Gauges:
        """Return the gauges; under the lock."""
        idle = self._pool.idle
        return Gauges(
            size=idle + in_use,
            idle=idle,
            in_use=in_use,
            waiting=self._pool.waiting,
            max_size=self._pool.max_size,
        )

    def snapshot(self, sessions: ServerSessions | None, retry_budget: float | None) -> PoolSnapshot:
        """Describe the pool.

        Args:
            sessions: Those that the server had at the last look.
            retry_budget: Restarts that are left; None without a limit.
        """
        from django_pooled.stats.snapshot import PoolSnapshot

        self._checkouts.end_lost()
        with self._checkouts.lock:
            counters = self._checkouts.counters()
            # Those of the same moment: another may have begun since.
            in_use = counters.checkouts - counters.checkins - counters.discarded
            gauges = self._gauges(in_use)
        counters.connect_failures = self._record.connect_failures(self._connector.failures)
        error = self._connector.last_error
        again_at = self._connector.connected_again_at
        read_only = self._eviction.read_only
        refused_at = read_only and read_only.refused_at
        pause = self._pool.pause
        return PoolSnapshot(
            alias=self._alias,
            pool_mode=self._options.pool_mode,
            min_size=self._pool.min_size,
            max_size=gauges.max_size,
            size=gauges.size,
            idle=gauges.idle,
            in_use=gauges.in_use,
            waiting=gauges.waiting,
            longest_waiting=self._pool.longest_waiting,
            connecting=self._pool.opening,
            server=self._server,
            age=monotonic() - self._record.begun_at,
            retry_budget_left=retry_budget,
            last_error=told(error) if error else None,
            last_error_age=monotonic() - self._connector.last_error_at if error else None,
            read_only=read_only and read_only.words,
            read_only_age=None if refused_at is None else monotonic() - refused_at,
            sessions=sessions.by_name if sessions else Counter(),
            sessions_age=monotonic() - sessions.seen_at if sessions else None,
            max_connections=sessions.max_connections if sessions else 0,
            reserved=sessions.reserved if sessions else 0,
            connected_again_age=None if again_at is None else monotonic() - again_at,
            counters=counters,
            connections=[*self._checkouts.describe(), *map(described, self._pool.idle_connections)],
            name=self._options.name or self._alias,
            id=self._record.id,
            site=self._site.key,
            settings=self._site.settings,
            timeout=self._options.timeout,
            max_waiting=self._options.max_waiting,
            lent=self._pool.lent,
            paused_for=pause and pause.left,
            paused_by=pause and pause.by,
            to_replace=self._steering.to_replace,
        )
