"""The pools of processes, and what those of one database add up to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from django_pooled.stats.combine import total
from django_pooled.stats.snapshot import counters_as_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from django_pooled.stats.histogram import Histogram
    from django_pooled.stats.snapshot import Counters, PoolSnapshot, ProcessReport

    Gauge: TypeAlias = Literal["size", "idle", "in_use", "waiting", "max_size", "connecting"]

__all__ = [
    "Failure",
    "Group",
    "PoolRow",
    "failed_checkouts",
    "last_failure",
]

GAUGES: tuple[Gauge, ...] = ("size", "idle", "in_use", "waiting", "max_size", "connecting")
"""The figures of a pool that are of this moment and make sense added up."""


class PoolRow(NamedTuple):
    """One pool of one process."""

    process: ProcessReport
    pool: PoolSnapshot

    @property
    def counters(self) -> Counters:
        """What the pool has counted."""
        return self.pool.counters

    @property
    def utilisation(self) -> float:
        """Share of ``max_size`` that is in use."""
        return self.pool.in_use / (self.pool.max_size or 1)

    @property
    def budget_is_spent(self) -> bool:
        """No transaction can be restarted now."""
        left = self.pool.retry_budget_left
        return left is not None and left < 1

    @property
    def starved(self) -> bool:
        """Threads wait, and no connection is left to hand out or to open."""
        pool = self.pool
        return bool(pool.waiting) and not pool.idle and pool.in_use >= pool.max_size


@dataclass
class Group:
    """The pools of all processes that lead to the same database under the same alias.

    Of one user: figures that another user's processes report must not pass for a part of these.
    """

    alias: str
    server: str
    rows: list[PoolRow]
    user: int | None = None
    """Whose processes they are, if not those of the user that was asked for."""
    name: str = ""
    """The alias; more than that for pools of other sites, databases and users."""
    foreign: bool = False
    """Whether they are of another site, or of a site's tests."""

    def __post_init__(self) -> None:
        self.name = self.name or self.alias

    @cached_property
    def counters(self) -> Counters:
        """The sum of what all pools have counted."""
        return total(row.counters for row in self.rows)

    def sum(self, gauge: Gauge) -> int:
        """Return the sum of a figure of this moment over all pools."""
        return sum(getattr(row.pool, gauge) for row in self.rows)

    @property
    def failed(self) -> int:
        """Checkouts that ended without a connection."""
        return sum(failed_checkouts(self.counters).values())

    @property
    def longest_waiting(self) -> float | None:
        """Seconds that the oldest waiter has waited; None without one."""
        waits = (row.pool.longest_waiting for row in self.rows)
        return max((wait for wait in waits if wait is not None), default=None)

    @property
    def utilisation(self) -> float:
        """Share of all ``max_size`` that is in use."""
        return self.sum("in_use") / (self.sum("max_size") or 1)

    @property
    def least_budget_left(self) -> float | None:
        """The restarts left in the process that has fewest; None without budgets."""
        budgets = (row.pool.retry_budget_left for row in self.rows)
        return min((left for left in budgets if left is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the sums in plain values, with percentiles in place of histograms."""
        times = ("wait", "use", "connect")
        return {
            "alias": self.alias,
            "server": self.server,
            "user": self.user,
            "processes": len(self.rows),
            **{gauge: self.sum(gauge) for gauge in GAUGES},
            "longest_waiting": self.longest_waiting,
            "retry_budget_left": self.least_budget_left,
            **counters_as_json(self.counters),
            **{key: _percentiles(getattr(self.counters, key)) for key in times},
        }


def failed_checkouts(counters: Counters) -> dict[str, int]:
    """Return how many checkouts ended without a connection, by what they ended in."""
    return {
        "timed out": counters.timeouts,
        "refused by max_waiting": counters.exhausted - counters.shed,
        "refused by queue_target": counters.shed,
        "refused by the server": counters.refused,
    }


class Failure(NamedTuple):
    """A failed attempt to connect."""

    error: str
    age: float
    """Seconds."""
    is_over: bool = False
    """Whether a later attempt has succeeded."""


def last_failure(rows: Iterable[PoolRow]) -> Failure | None:
    """Return the last failure to connect of any of these pools."""
    failures = [
        Failure(
            row.pool.last_error,
            row.pool.last_error_age or 0.0,
            row.pool.connected_again_age is not None,
        )
        for row in rows
        if row.pool.last_error
    ]
    return min(failures, key=lambda failure: failure.age, default=None)


def _percentiles(times: Histogram) -> dict[str, Any]:
    return {
        "count": times.count,
        "sum": times.total,
        "p50": times.quantile(0.5),
        "p95": times.quantile(0.95),
        "p99": times.quantile(0.99),
        "max": times.longest,
    }
