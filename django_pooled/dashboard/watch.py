"""Snapshots of all pools and servers, shared by all viewers of this process."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from django.db import connections

from django_pooled.pool import registry
from django_pooled.poolstats.difference import since
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.past import Past
from django_pooled.poolstats.processes.collect import Collection, collect_all
from django_pooled.poolstats.site import Site
from django_pooled.poolstats.sources import pooled_aliases, stats_dirs
from django_pooled.stats.history import KEPT
from django_pooled.stats.snapshot import process_report
from django_pooled.stats.socket_folder import this_user

from .server_watch import LINGER, ServerWatch

if TYPE_CHECKING:
    from .server_watch import Answer

__all__ = ["Snapshot", "Watch", "past", "snapshot"]

FRESH = 0.9
"""Seconds for which a snapshot serves all viewers: less than the time between two polls."""

FRESH_PAST = 10.0
"""Seconds for which a look at the past serves all viewers."""

PROCESSES = 0.5
"""Seconds that the processes have for their answer."""

SERVERS = 0.25
"""Seconds that the servers have beyond that: a frozen one must not hold a worker for long."""


SPAN = 10.0
"""Seconds back to the snapshot that one is compared with for recent counts."""

NEXT = 3.0
"""Seconds after which a look is no longer the next one: what was said before is too old."""

APART = 3.0
"""Seconds at least between snapshots that are kept for that: each may be of many processes."""


class Snapshot(NamedTuple):
    """The pools and servers at one moment."""

    overview: Overview
    recent: Overview | None
    """The same, with the counts of the last seconds only; None at first."""
    servers: list[Answer]
    taken: float
    """In seconds since 1970, as browsers count."""


class Watch:
    """Takes snapshots; one for each process.

    Args:
        linger: Seconds without a viewer after which the connections are closed.
    """

    def __init__(self, linger: float = LINGER) -> None:
        self._lock = threading.Lock()  # guards all below; held while one viewer asks for all
        self._latest: Snapshot | None = None
        self._until = 0.0
        """The moment at which the latest snapshot is too old for other viewers."""
        self._past: Past | None = None
        self._earlier: list[Overview] = []
        self._heard = Collection()
        """What the processes answered at the latest look."""
        self._finds_full = False
        self._aliases = pooled_aliases()
        # Wrappers of its own: those in django.db.connections belong to a thread.
        self._servers = [
            ServerWatch(connections.create_connection(alias), linger=linger)
            for alias in self._aliases
        ]

    @property
    def open(self) -> bool:
        """Whether there may be a connection to a server."""
        return any(server.open for server in self._servers)

    def snapshot(self) -> Snapshot:
        """Ask processes and servers, in bounded time, or return the latest if it is fresh."""
        with self._lock:
            if self._latest is None or monotonic() > self._until:
                self._latest = self._take()
                self._until = monotonic() + FRESH
            return self._latest

    def past(self) -> Past:
        """Ask the processes what they remember; no server is asked."""
        with self._lock:
            if self._past is None or time() - self._past.until > FRESH_PAST:
                self._past = Past(Overview(self._collect(history=True), [], site=self._site), KEPT)
            return self._past

    @property
    def _site(self) -> Site:
        return Site.of_settings(self._aliases)

    def _collect(self, *, history: bool = False, sessions: bool = False) -> Collection:
        # Of this user alone, also for root: other users may answer anything.
        return collect_all(
            stats_dirs(self._aliases),
            PROCESSES,
            uid=this_user(),
            site=self._site,
            history=history,
            sessions=sessions,
        )

    def _take(self) -> Snapshot:
        taken = time()
        asked = [server.want() for server in self._servers]
        # A server that is full lets no more in, so that the processes have to tell who is there.
        site, before = self._site, self._heard
        self._heard = collection = self._collect(sessions=self._finds_full)
        if self._latest is not None and taken - self._latest.taken < NEXT:
            # A busy host lets one answer come late: a process is silent from the second one on.
            collection = before.updated(collection)
        if os.getpid() not in {report.pid for report in collection.reports}:
            # This process is shown even if nothing is published.
            own = site.own([process_report(registry.snapshots())])
            collection = replace(collection, reports=[*collection.reports, *own])
        deadline = monotonic() + SERVERS
        answers = [
            server.latest(since, deadline - monotonic())
            for server, since in zip(self._servers, asked, strict=True)
        ]
        heard = [answer.view for answer in answers if answer.age is not None]
        self._finds_full = any(view.is_full for view in heard)
        overview = Overview(collection, heard, site=site)
        return Snapshot(overview, self._recent(overview), answers, taken)

    def _recent(self, overview: Overview) -> Overview | None:
        kept = [earlier for earlier in self._earlier if overview.taken - earlier.taken <= SPAN]
        recent = since(overview, kept[0]) if kept else None
        if not kept or overview.taken - kept[-1].taken >= APART:
            kept.append(overview)
        self._earlier = kept
        return recent


_watches: dict[int, Watch] = {}
"""By process, those of parents too, which are never freed: their connections and threads are the
parents'. Only ever added to, by setdefault(), which no other thread divides."""


def snapshot() -> Snapshot:
    """Take a snapshot, with the watch of this process."""
    return current().snapshot()


def past() -> Past:
    """Ask for the past, with the watch of this process."""
    return current().past()


def current() -> Watch:
    """Return the watch of this process, a new one after a fork."""
    pid = os.getpid()
    watch = _watches.get(pid)
    # It asks nothing until it is used: of two viewers who come first together, both get one.
    return _watches.setdefault(pid, Watch()) if watch is None else watch
