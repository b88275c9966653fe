"""What one pool did since it was opened, written down by many threads."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, Literal

from .histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["REASONS", "Counters", "Reason", "Record"]

Reason = Literal["idle", "lifetime", "dead", "error", "reset", "drained"]
"""Why a connection was closed."""

REASONS: Final[tuple[Reason, ...]] = ("idle", "lifetime", "dead", "error", "reset", "drained")


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
    """Of those given back, the ones a thread had left behind when it ended."""
    timeouts: int = 0
    """Checkouts that ended in CheckoutTimeout."""
    exhausted: int = 0
    """Checkouts that ended in PoolExhausted: ``max_waiting`` threads were waiting already."""
    refused: int = 0
    """Checkouts that ended in ConnectFailed: the server refuses connections."""
    connects: int = 0
    """Connections opened."""
    connect_failures: int = 0
    """Connection attempts that failed."""
    closed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    """Connections closed, by reason: beyond ``min_size`` and 'idle' for ``max_idle``; after their
    'lifetime'; found 'dead' at a check; for an 'error' while in use; because the 'reset' at
    checkin failed; 'drained' as the pool closed, its server was demoted or its tables changed."""
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
    refused_restarts: Counter[str] = field(default_factory=Counter)
    """Retryable failures after which there was no other attempt, by what forbade it: 'attempts',
    'deadline', 'budget', 'other' (it wrote elsewhere, its inputs can't be put back)."""
    pinned: Counter[str] = field(default_factory=Counter)
    """Connections that transaction mode left with a request to its end, by what made it."""
    lost_commits: Counter[str] = field(default_factory=Counter)
    """COMMITs without an answer, by what was found out: 'committed', 'failed' or 'unknown'."""


class Record:
    """Counters that many threads write, and the lock that keeps their sums right."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        """The pool's one lock: it guards its idle connections and waiters too."""
        self._counters = Counters()

    def abandon(self) -> None:
        """After fork(): a thread of the parent may hold the lock."""
        self.lock = threading.RLock()

    def add(self, counter: str, kind: str | tuple[str, str] | None = None) -> None:
        """Add one to a counter, or to one kind of what it counts by kind."""
        with self.lock:
            if kind is None:
                setattr(self._counters, counter, getattr(self._counters, counter) + 1)
            else:
                getattr(self._counters, counter)[kind] += 1

    def checkin(self, waited: float, used: float, kept: bool) -> None:
        """Count a checkout that has ended, in seconds of either; under the lock."""
        counters = self._counters
        if kept:
            counters.checkins += 1
        else:
            counters.discarded += 1
        counters.wait.record(waited)
        counters.use.record(used)

    def connect(self, seconds: float) -> None:
        """Count a connection that took that many seconds to open."""
        with self.lock:
            self._counters.connects += 1
            self._counters.connect.record(seconds)

    def counters(self, in_use: Callable[[], Iterable[float]]) -> Counters:
        """Return the counters as they are at one moment.

        Args:
            in_use: Returns how long each checkout took that has not ended; called under the lock.
        """
        seen = Counters()
        with self.lock:
            for name in _NAMES:
                value = getattr(self._counters, name)
                setattr(seen, name, value if isinstance(value, int) else value.copy())
            for waited in in_use():
                seen.wait.record(waited)
        # None is counted on its own: a checkout takes no lock for it.
        seen.checkouts = seen.wait.count
        return seen


_NAMES = [f.name for f in fields(Counters)]
