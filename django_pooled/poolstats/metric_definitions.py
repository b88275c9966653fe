"""The metrics of pools and servers: name, help, labels, and the figure that each shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "BY_KIND",
    "COUNTERS",
    "FINDINGS",
    "FINDING_LABELS",
    "GAUGES",
    "PROCESSES",
    "SERVER_GAUGES",
    "SERVER_LABELS",
    "SERVER_SESSIONS",
    "SILENT_PROCESSES",
    "TIMES",
    "ByKind",
    "Gauge",
    "pool_labels",
]


class Gauge(NamedTuple):
    """A figure of a pool that is of this moment."""

    name: str
    key: str
    text: str
    combine: Callable[[Iterable[float]], float] = sum
    """Combines the figures of several pools with the same labels."""
    none: float | None = None
    """The figure of a pool that has None; without one, there is no sample."""


class ByKind(NamedTuple):
    """A figure that is counted by kind."""

    name: str
    key: str
    labels: tuple[str, ...]
    text: str
    always: tuple[str, ...] = ()
    """Kinds with samples from the start, so that their first occurrence is an increase."""


GAUGES = (
    Gauge("pool_size", "size", "Connections that are open: idle and in use."),
    Gauge("pool_idle", "idle", "Connections in the pool."),
    Gauge("pool_in_use", "in_use", "Connections checked out."),
    Gauge("pool_waiting", "waiting", "Threads queued for a checkout."),
    Gauge(
        "pool_longest_waiting_seconds",
        "longest_waiting",
        "Time that the oldest of them has waited.",
        max,
        none=0.0,
    ),
    Gauge("pool_connecting", "connecting", "Connections being opened."),
    Gauge("pool_min_size", "min_size", "Connections kept open even when idle."),
    Gauge("pool_max_size", "max_size", "Connections that the pool may have."),
    Gauge(
        "pool_read_only",
        "writes_fail",
        "Whether the server refuses writes (25006), though it should not.",
        max,
    ),
    Gauge("pool_paused", "paused", "Whether checkouts wait since an operator says so.", max),
    Gauge(
        "retry_budget_left",
        "retry_budget_left",
        "Restarts that the budget allows now, in the process that has least.",
        min,
    ),
)

COUNTERS = (
    ("checkouts_total", "checkouts", "Connections handed to a thread."),
    ("checkins_total", "checkins", "Connections given back and kept."),
    ("discarded_total", "discarded", "Connections given back and closed."),
    ("reclaimed_total", "reclaimed", "Connections left behind by a thread."),
    ("replaced_total", "replaced", "Connections lost between statements, and replaced."),
    ("checkout_timeouts_total", "timeouts", "Checkouts that timed out."),
    (
        "checkouts_exhausted_total",
        "exhausted",
        "Checkouts refused by max_waiting or queue_target.",
    ),
    ("checkouts_shed_total", "shed", "Of those, refused by queue_target."),
    ("checkouts_refused_total", "refused", "Checkouts that the server refused."),
    ("refused_writes_total", "refused_writes", "Writes that a read-only server refused."),
    (
        "pooler_timeouts_total",
        "pooler_timeouts",
        "Statements for which a pooler had no server connection.",
    ),
    ("connects_total", "connects", "Connections opened."),
    ("connect_failures_total", "connect_failures", "Connects that failed."),
)
"""Name, key in the report, help."""

BY_KIND = (
    ByKind(
        "connections_closed_total",
        "closed",
        ("reason",),
        "Connections closed, by reason.",
        ("idle", "lifetime", "dead", "error", "reset", "drained"),
    ),
    ByKind("restarts_total", "restarts", ("sqlstate",), "Transactions restarted, by SQLSTATE."),
    ByKind(
        "function_restarts_total",
        "restarts_of",
        ("function",),
        "Transactions restarted, by the function or view.",
    ),
    ByKind(
        "restarts_refused_total",
        "refused_restarts",
        ("reason",),
        "Retryable failures after which there was no other attempt.",
        ("attempts", "deadline", "budget", "other"),
    ),
    ByKind(
        "deadlines_exceeded_total",
        "deadlines",
        ("outcome",),
        "Deadlines that ended, by what became of the work.",
        ("checkout", "refused", "cancelled", "closed"),
    ),
    ByKind("pinned_total", "pinned", ("state",), "Connections that session state kept."),
    ByKind(
        "lost_commits_total",
        "lost_commits",
        ("outcome",),
        "COMMITs without an answer, by outcome.",
        ("committed", "failed", "unknown"),
    ),
    ByKind(
        "idempotency_keys_total",
        "idempotency_keys",
        ("outcome",),
        "Requests with an idempotency key, by outcome.",
        ("stored", "replayed", "conflict", "mismatch"),
    ),
    ByKind(
        "restart_outcomes_total",
        "restarted",
        ("sqlstate", "outcome"),
        "Restarts by SQLSTATE and by how the attempt that followed ended.",
    ),
)

TIMES = (
    ("checkout_wait_seconds", "wait", "Time of each successful checkout."),
    ("use_seconds", "use", "Time that each connection given back was in use."),
    ("connect_seconds", "connect", "Time of each successful connect."),
)
"""Name, key in the report, help."""

SERVER_LABELS = ("database", "server")
SERVER_GAUGES = (
    ("server_up", None, "Whether the database answered."),
    ("server_standby", "standby", "Whether it is a standby."),
    ("server_max_connections", "max_connections", "Sessions that the server admits."),
    ("server_free_connections", "free", "Sessions that the server has room for."),
    ("server_blocked_sessions", "blocked", "Sessions that wait for a lock."),
)
"""Name, key in the view of a server, help; with a key, for servers that answered."""

SERVER_SESSIONS = ByKind(
    "server_sessions", "states", (*SERVER_LABELS, "state"), "Client sessions by state."
)

PROCESSES = ("processes", "Processes that answered.")
SILENT_PROCESSES = ("silent_processes", "Processes that did not answer in time.")
"""Name, help."""


FINDINGS = ("findings", "Findings, by code and level; the runbook has a section for each code.")
"""Name, help."""
FINDING_LABELS = ("finding", "level")


def pool_labels(
    alias: str,
    *,
    server: str | None = None,
    pid: int | None = None,
    user: int | None = None,
    host: str | None = None,
) -> dict[str, str]:
    """Return the labels of a pool's figures; those that not every pool has come last.

    Args:
        alias: Key of the database.
        server: Where it leads to, unless the figures are of one site.
        pid: Of the process, unless the figures of several are added up.
        user: Of the process, if it is not the one that was asked for: in different containers
            they may have the same pid.
        host: Of the process, in another container than the reader.
    """
    values = {"database": alias, "server": server, "pid": pid, "user": user, "host": host}
    return {name: str(value) for name, value in values.items() if value is not None}
