"""The pools of all processes, and what they add up to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from django_pooled.stats.histogram import Histogram
from django_pooled.stats.snapshot import nested

__all__ = ["COUNTED", "COUNTED_BY_KIND", "GAUGES", "TIMES", "Group", "PoolRow"]

GAUGES = ("size", "idle", "in_use", "waiting", "max_size", "connecting")
"""The figures of a pool that are of this moment and make sense added up."""

COUNTED = (
    *("checkouts", "checkins", "discarded", "reclaimed", "timeouts", "exhausted", "refused"),
    *("connects", "connect_failures"),
)
"""Those that are counted since the pool was opened."""

COUNTED_BY_KIND = ("closed", "restarts", "refused_restarts", "pinned", "lost_commits")
"""Those that are counted by kind."""

TIMES = ("wait", "use", "connect")
"""The histograms: of checkouts, of the time in use, of connects."""

SUMMED = (*GAUGES, *COUNTED)
"""The figures of a pool that make sense added up."""


class PoolRow(NamedTuple):
    """One pool of one process."""

    pid: int
    command: str
    figures: dict[str, Any]
    host: str = ""
    user: int | None = None
    """Whose process it is, where that is known."""

    @classmethod
    def of(cls, figures: dict[str, Any]) -> PoolRow:
        """Return the row of a pool whose process does not matter."""
        return cls(0, "", figures)

    @property
    def utilisation(self) -> float:
        """Share of ``max_size`` that is in use."""
        return self.number("in_use") / (self.number("max_size") or 1)

    @property
    def failed(self) -> float:
        """Checkouts that ended without a connection."""
        return sum(self.number(key) for key in ("timeouts", "exhausted", "refused"))

    @property
    def connections(self) -> list[dict[str, Any]]:
        """Its connections; none where an older process does not list them."""
        found = self.figures.get("connections")
        return [it for it in found if isinstance(it, dict)] if isinstance(found, list) else []

    def number(self, key: str) -> float:
        """Return a figure, 0 where an older process has none."""
        value = self.figures.get(key)
        return value if isinstance(value, (int, float)) else 0

    def has(self, key: str) -> bool:
        """Tell whether there is such a figure: an older process lacks some, a pool others."""
        return isinstance(self.figures.get(key), (int, float))

    def counts(self, key: str) -> dict[str, int]:
        """Return what is counted by kind: restarts by SQLSTATE, lost COMMITs by outcome."""
        return _counts(self.figures.get(key))

    def times(self, key: str) -> Histogram:
        """Return durations: 'wait', 'use' or 'connect'; none where an older process has none."""
        return Histogram.from_report(self.figures.get(key))

    @property
    def outcomes(self) -> dict[tuple[str, str], int]:
        """How restarts ended, by SQLSTATE and outcome."""
        found = self.figures.get("restarted")
        if not isinstance(found, dict):
            return {}
        return {
            (str(sqlstate), outcome): count
            for sqlstate, counts in found.items()
            for outcome, count in _counts(counts).items()
        }

    @property
    def restarts(self) -> int:
        """Transactions restarted, whatever for."""
        return sum(self.counts("restarts").values())

    @property
    def has_budget(self) -> bool:
        """Whether restarts are bounded in that process."""
        return self.has("retry_budget_left")

    @property
    def budget_is_spent(self) -> bool:
        """No transaction can be restarted now."""
        return self.has_budget and self.number("retry_budget_left") < 1

    @property
    def starved(self) -> bool:
        """Threads wait, and no connection is left to hand out or to open."""
        full = self.number("in_use") >= self.number("max_size")
        return bool(self.number("waiting")) and not self.number("idle") and full


@dataclass
class Group:
    """The pools of all processes that lead to the same database under the same alias.

    Of one user: what another's processes say must not pass for a part of these.
    """

    alias: str
    server: str
    rows: list[PoolRow]
    user: int | None = None
    """Whose processes they are, where those of several users are in sight."""
    name: str = ""
    """The alias; with the user and the server where others have the same alias."""

    def __post_init__(self) -> None:
        self.name = self.name or self.alias

    @property
    def totals(self) -> dict[str, float]:
        """The sum over all processes of each figure that can be added up."""
        return {key: sum(row.number(key) for row in self.rows) for key in SUMMED}

    @property
    def restarts(self) -> int:
        """Transactions restarted, in all processes."""
        return sum(row.restarts for row in self.rows)

    def counts(self, key: str) -> Counter[str]:
        """Return what is counted by kind, of all processes."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.counts(key))
        return total

    def times(self, key: str) -> Histogram:
        """Return durations of all processes together."""
        total = Histogram()
        for row in self.rows:
            total.merge(row.times(key))
        return total

    @property
    def outcomes(self) -> Counter[tuple[str, str]]:
        """How restarts ended, by SQLSTATE and outcome, in all processes."""
        total: Counter[tuple[str, str]] = Counter()
        for row in self.rows:
            total.update(row.outcomes)
        return total

    def as_json(self) -> dict[str, Any]:
        """Return what the pools add up to in plain values."""
        return {
            "alias": self.alias,
            "server": self.server,
            "user": self.user,
            "processes": len(self.rows),
            **self.totals,
            "longest_waiting": self.longest_waiting,
            "retry_budget_left": self.least_budget_left,
            **{key: self.counts(key) for key in COUNTED_BY_KIND},
            "restarted": nested(self.outcomes),
            **{key: _percentiles(self.times(key)) for key in TIMES},
        }

    @property
    def longest_waiting(self) -> float | None:
        """Seconds that the oldest waiter has waited; None without one."""
        waits = [row.number("longest_waiting") for row in self.rows if row.has("longest_waiting")]
        return max(waits, default=None)

    @property
    def utilisation(self) -> float:
        """Share of all ``max_size`` that is in use."""
        most = sum(row.number("max_size") for row in self.rows)
        return sum(row.number("in_use") for row in self.rows) / (most or 1)

    @property
    def least_budget_left(self) -> float | None:
        """What the process that restarted most may still restart; None without budgets."""
        return min(
            (row.number("retry_budget_left") for row in self.rows if row.has_budget), default=None
        )


def _percentiles(times: Histogram) -> dict[str, Any]:
    return {
        "count": times.count,
        "sum": times.total,
        "p50": times.quantile(0.5),
        "p95": times.quantile(0.95),
        "p99": times.quantile(0.99),
        "max": times.longest,
    }


def _counts(found: object) -> dict[str, int]:
    if not isinstance(found, dict):
        return {}
    return {str(kind): count for kind, count in found.items() if isinstance(count, int)}
