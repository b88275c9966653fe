"""The counters of one pool since it was opened, written by many threads."""

from __future__ import annotations

import os
from collections import Counter
from copy import copy
from dataclasses import dataclass, field, fields
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from .histogram import Histogram

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    End = tuple[float, float, bool]

__all__ = ["MOST_FUNCTIONS", "OTHERS", "REASONS", "Counters", "Reason", "Record", "add_named"]

N = TypeVar("N", int, float)

Reason = Literal["idle", "lifetime", "dead", "error", "reset", "drained"]
"""Why a connection was closed."""

REASONS: Final[tuple[Reason, ...]] = ("idle", "lifetime", "dead", "error", "reset", "drained")

MOST_FUNCTIONS: Final = 100
"""Functions that are counted by their names; each is a series in monitoring."""

OTHERS: Final = "others"
"""The name under which all further ones are counted."""


def add_named(counts: dict[str, N], name: str, number: N) -> None:
    """Add to what is counted by the names of functions, which bounds how many there are."""
    if name not in counts and len(counts) >= MOST_FUNCTIONS:
        name = OTHERS
    counts[name] = counts[name] + number if name in counts else number


@dataclass
class Counters:
    """Totals since the pool was opened.

    They add up: ``checkouts == checkins + discarded + in use``, and at rest
    ``connects == size + sum(closed.values())``.
    """

    checkouts: int = 0
    """Connections handed to a thread."""
    checkins: int = 0
    """Connections given back and kept."""
    discarded: int = 0
    """Connections given back and closed: broken, poisoned, or the pool closed."""
    reclaimed: int = 0
    """Of those given back or closed, the ones that a thread had left behind when it ended, or that
    were let go of without being closed."""
    replaced: int = 0
    """Of those closed, the ones that were lost between two statements, in whose place their request
    got another."""
    timeouts: int = 0
    """Checkouts that ended in CheckoutTimeout."""
    exhausted: int = 0
    """Checkouts that ended in PoolExhausted: ``max_waiting`` threads were waiting already, or all
    of them for too long."""
    shed: int = 0
    """Of those, the ones that ``queue_target`` refused: all waited for too long."""
    refused: int = 0
    """Checkouts that ended in ConnectFailed: the server refuses connections."""
    refused_writes: int = 0
    """Writes that failed since the server is read-only (25006)."""
    pooler_timeouts: int = 0
    """Statements for which a pooler had no server connection (query_wait_timeout)."""
    connects: int = 0
    """Connections opened."""
    connect_failures: int = 0
    """Connection attempts that failed."""
    closed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    """Connections closed, by reason: beyond ``min_size`` and 'idle' for ``max_idle``; after their
    'lifetime'; found 'dead' at a check; for an 'error' while in use; because the 'reset' at
    checkin failed; 'drained' as the pool closed, its server was demoted, its tables changed, or
    an operator said so."""
    wait: Histogram = field(default_factory=Histogram)
    """How long each successful checkout took."""
    use: Histogram = field(default_factory=Histogram)
    """How long each connection that was given back had been in use."""
    connect: Histogram = field(default_factory=Histogram)
    """How long each successful connect took."""
    restarts: Counter[str] = field(default_factory=Counter)
    """Transactions restarted by retry_transaction, by SQLSTATE ('lost' where there was none)."""
    restarted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same restarts by SQLSTATE and how the attempt that followed ended: 'committed', 'again'
    (it was restarted too) or 'failed'; those still under way are missing. An attempt that was
    rolled back because its function asked for it counts as committed."""
    restarts_of: Counter[str] = field(default_factory=Counter)
    """The same restarts by the name of the function, or view, as in the logs; after so many
    different ones the rest is among 'others'."""
    held: dict[str, float] = field(default_factory=dict)
    """Seconds for which views, tasks and commands, or else functions, had connections in use, all
    connections together; bounded as those. As looks once a second found it: a short use counts in
    one of many looks, for a second then."""
    refused_restarts: Counter[str] = field(default_factory=Counter)
    """Retryable failures after which there was no other attempt, by what forbade it: 'attempts',
    'deadline', 'budget', 'other' (it wrote elsewhere, its inputs can't be put back)."""
    pinned: Counter[str] = field(default_factory=Counter)
    """Connections that transaction mode left with a request to its end, by what made it."""
    lost_commits: Counter[str] = field(default_factory=Counter)
    """COMMITs without an answer, by what was found out: 'committed', 'failed' or 'unknown'."""
    deadlines: Counter[str] = field(default_factory=Counter)
    """Deadlines of `django_pooled.deadline` that ended, by what became of the work: 'checkout' (it
    waited for a connection), 'refused' (a statement was not sent), 'cancelled' (one was cancelled
    on the server), 'closed' (the server did not answer, and the connection was closed)."""
    idempotency_keys: Counter[str] = field(default_factory=Counter)
    """Requests with an idempotency key, by what became of them: 'stored' with their response,
    'replayed' from it, 'conflict' with one under way (409), 'mismatch' with another one (422)."""


class Record:
    """Counters that many threads write.

    An exception may arrive between any two steps of a checkin (a time limit's, Ctrl-C), and who
    finds out then has it counted again. So an end is noted under a key, by one operation on a
    dictionary, which may be repeated; `fold` counts what is noted.

    Args:
        lock: The pool's; guards the sums too.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.id: str = os.urandom(8).hex()
        """Tells these counts from all others, of any pool, process and time: sums that a reader
        keeps must not fall when they begin anew."""
        self.begun_at: float = monotonic()
        self._failures_before = 0  # connects that had failed by then
        self.book: tuple[Counters, dict[object, End]] = (Counters(), {})
        """The totals, and by their keys the ends that are not among them; replaced together.

        Guarded by the lock. Until the next `fold`, an end counts once however often it is noted:
        how many seconds the checkout took, how many it lasted, and whether the connection went
        back, and was not closed."""

    def abandon(self, lock: threading.RLock) -> None:
        """After fork(): *lock* takes the place of the parent's, which may be held for ever."""
        self._lock = lock

    def begin_anew(self, connect_failures: int) -> None:
        """Count from 0 again; under the lock, once all ends are counted.

        Args:
            connect_failures: Connects that have failed until now, which are counted elsewhere.
        """
        self.id, self.begun_at = os.urandom(8).hex(), monotonic()
        self._failures_before = connect_failures
        self.book = (Counters(), {})

    def connect_failures(self, until_now: int) -> int:
        """Return how many connects have failed since it began, of all until now."""
        return max(0, until_now - self._failures_before)

    def hold(self, holders: Iterable[tuple[str, float]]) -> None:
        """Note that each of these holders had a connection in use for so many seconds more.

        A name that comes twice has two connections.
        """
        with self._lock:
            held = self.book[0].held
            for name, seconds in holders:
                add_named(held, name, seconds)

    def add(self, counter: str, kind: str | tuple[str, str] | None = None) -> None:
        """Add one to a counter, or to one kind of what it counts by kind."""
        with self._lock:
            if kind is None:
                setattr(self.book[0], counter, getattr(self.book[0], counter) + 1)
            else:
                getattr(self.book[0], counter)[kind] += 1

    def add_restart(self, reason: str, function: str, before: str | None) -> None:
        """Count a restart.

        Args:
            reason: The SQLSTATE of the attempt that failed, or 'lost'.
            function: The name of its function.
            before: The reason for which that attempt was a restart itself; None if it was none.
        """
        with self._lock:
            counters = self.book[0]
            counters.restarts[reason] += 1
            add_named(counters.restarts_of, function, 1)
            if before is not None:
                counters.restarted[before, "again"] += 1

    def fold(self) -> None:
        """Count the ends that are noted; under the lock, once they can't be noted again."""
        counters, ends = self.book
        totals = copy(counters)
        totals.wait, totals.use = counters.wait.copy(), counters.use.copy()
        for waited, used, kept in ends.values():
            if kept:
                totals.checkins += 1
            else:
                totals.discarded += 1
            totals.wait.record(waited)
            totals.use.record(used)
        self.book = (totals, {})

    def connect(self, seconds: float) -> None:
        """Count a connection that took that many seconds to open."""
        with self._lock:
            counters = self.book[0]
            counters.connects += 1
            counters.connect.record(seconds)

    def counters(self, in_use: Callable[[], Iterable[float]]) -> Counters:
        """Return the counters as they are at one moment.

        Args:
            in_use: Returns how long each checkout took that has not ended, after it has had the
                others counted; called under the lock.
        """
        seen = Counters()
        with self._lock:
            waits = list(in_use())
            counters = self.book[0]
            for name in _NAMES:
                value = getattr(counters, name)
                setattr(seen, name, value if isinstance(value, int) else value.copy())
            for waited in waits:
                seen.wait.record(waited)
        # None is counted on its own: a checkout takes no lock for it.
        seen.checkouts = seen.wait.count
        return seen


_NAMES = [f.name for f in fields(Counters)]
