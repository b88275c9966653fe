"""Pools and servers in Prometheus's text exposition format."""

# https://prometheus.io/docs/instrumenting/exposition_formats/

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.diagnostics.redaction import printable
from django_pooled.stats.histogram import BOUNDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import TypeAlias

    from .overview import Overview, PoolRow

    Labels: TypeAlias = Mapping[str, str]
    Row: TypeAlias = tuple[Labels, PoolRow]

__all__ = ["CONTENT_TYPE", "SILENT", "gauge_lines", "pool_lines", "render", "server_lines"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Number(NamedTuple):
    """A figure of a pool that is one number."""

    name: str
    key: str
    kind: str
    text: str
    combine: Callable[[Iterable[float]], float] = sum
    """Makes one figure of those of several pools that have the same labels."""
    none: float | None = None
    """What is meant by null: without, nothing is said of that pool."""

    def of(self, row: PoolRow) -> float | None:
        if row.has(self.key):
            return row.number(self.key)
        # Nor of what an older process does not report.
        return self.none if self.key in row.figures else None


class _Kinds(NamedTuple):
    """A figure that is counted by kind."""

    name: str
    key: str
    label: str
    text: str
    always: tuple[str, ...] = ()
    """Kinds that are there from the start, so that their first occurrence is an increase."""


_NUMBERS = (
    _Number("pool_size", "size", "gauge", "Connections that are open: idle and in use."),
    _Number("pool_idle", "idle", "gauge", "Connections in the pool."),
    _Number("pool_in_use", "in_use", "gauge", "Connections checked out."),
    _Number("pool_waiting", "waiting", "gauge", "Threads queued for a checkout."),
    _Number(
        "pool_longest_waiting_seconds",
        "longest_waiting",
        "gauge",
        "Time that the oldest of them has waited.",
        max,
        none=0.0,
    ),
    _Number("pool_connecting", "connecting", "gauge", "Connections being opened."),
    _Number("pool_min_size", "min_size", "gauge", "Connections kept open even when idle."),
    _Number("pool_max_size", "max_size", "gauge", "Connections that the pool may have."),
    _Number(
        "retry_budget_left",
        "retry_budget_left",
        "gauge",
        "Restarts that the budget allows now, in the process that has least.",
        min,
    ),
    _Number("checkouts_total", "checkouts", "counter", "Connections handed to a thread."),
    _Number("checkins_total", "checkins", "counter", "Connections given back and kept."),
    _Number("discarded_total", "discarded", "counter", "Connections given back and closed."),
    _Number("reclaimed_total", "reclaimed", "counter", "Connections left behind by a thread."),
    _Number("checkout_timeouts_total", "timeouts", "counter", "Checkouts that timed out."),
    _Number(
        "checkouts_exhausted_total", "exhausted", "counter", "Checkouts refused by max_waiting."
    ),
    _Number("checkouts_refused_total", "refused", "counter", "Checkouts that the server refused."),
    _Number("connects_total", "connects", "counter", "Connections opened."),
    _Number("connect_failures_total", "connect_failures", "counter", "Connects that failed."),
)

_KINDS = (
    _Kinds(
        "connections_closed_total",
        "closed",
        "reason",
        "Connections closed, by reason.",
        ("idle", "lifetime", "dead", "error", "reset", "drained"),
    ),
    _Kinds("restarts_total", "restarts", "sqlstate", "Transactions restarted, by SQLSTATE."),
    _Kinds(
        "restarts_refused_total",
        "refused_restarts",
        "reason",
        "Retryable failures after which there was no other attempt.",
        ("attempts", "deadline", "budget", "other"),
    ),
    _Kinds("pinned_total", "pinned", "state", "Connections that session state kept."),
    _Kinds(
        "lost_commits_total",
        "lost_commits",
        "outcome",
        "COMMITs without an answer, by outcome.",
        ("committed", "failed", "unknown"),
    ),
)

_TIMES = (
    ("checkout_wait_seconds", "wait", "Time of each successful checkout."),
    ("use_seconds", "use", "Time that each connection given back was in use."),
    ("connect_seconds", "connect", "Time of each successful connect."),
)
"""Name, key in the report, help."""


def render(overview: Overview) -> str:
    """Return the metrics of every process that answered, each by its pid, and of the servers."""
    rows = [
        (
            # Two users' processes in different containers may have the same pid.
            {"database": group.alias, "pid": str(row.pid)}
            | ({} if group.user is None else {"user": str(group.user)}),
            row,
        )
        for group in overview.groups
        for row in group.rows
    ]
    lines = (*pool_lines(rows), *server_lines(overview))
    return "".join(f"{line}\n" for line in lines)


def pool_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the metrics of pools.

    Args:
        rows: Pools, each with its labels. Those with the same labels are added up: two pools of
            one alias while the settings of a process change, or all processes of a host.
    """
    pools: dict[tuple[tuple[str, str], ...], list[PoolRow]] = {}
    for labels, row in rows:
        pools.setdefault(tuple(labels.items()), []).append(row)
    merged = [(dict(labels), found) for labels, found in pools.items()]
    for number in _NUMBERS:
        yield from _head(number.name, number.kind, number.text)
        for labels, found in merged:
            if known := [figure for row in found if (figure := number.of(row)) is not None]:
                yield _sample(number.name, number.combine(known), labels)
    for kinds in _KINDS:
        yield from _head(kinds.name, "counter", kinds.text)
        for labels, found in merged:
            counts = dict.fromkeys(kinds.always, 0)
            for row in found:
                for kind, count in row.counts(kinds.key).items():
                    counts[kind] = counts.get(kind, 0) + count
            for kind, count in counts.items():
                yield _sample(kinds.name, count, {**labels, kinds.label: kind})
    yield from _outcomes(merged)
    for name, key, text in _TIMES:
        yield from _head(name, "histogram", text)
        for labels, found in merged:
            times = Histogram()
            for row in found:
                times.merge(row.times(key))
            yield from _histogram(name, times, labels)


def _outcomes(merged: list[tuple[dict[str, str], list[PoolRow]]]) -> Iterator[str]:
    name = "restart_outcomes_total"
    text = "Restarts by SQLSTATE and by how the attempt that followed ended."
    yield from _head(name, "counter", text)
    for labels, found in merged:
        counts: dict[tuple[str, str], int] = {}
        for row in found:
            for kind, count in row.outcomes.items():
                counts[kind] = counts.get(kind, 0) + count
        for (sqlstate, outcome), count in counts.items():
            yield _sample(name, count, {**labels, "sqlstate": sqlstate, "outcome": outcome})


def _histogram(name: str, times: Histogram, labels: Labels) -> Iterator[str]:
    bounds = [f"{bound:g}" for bound in BOUNDS] + ["+Inf"]
    for bound, count in zip(bounds, accumulate(times.buckets), strict=True):
        yield _sample(f"{name}_bucket", count, {**labels, "le": bound})
    yield _sample(f"{name}_sum", times.total, labels)
    yield _sample(f"{name}_count", times.count, labels)


SILENT = "Processes that did not answer in time."


def server_lines(overview: Overview) -> Iterator[str]:
    """Yield the metrics of what did not answer, and of the servers."""
    yield from gauge_lines("silent_processes", len(overview.collection.silent), SILENT)
    yield from _head("server_up", "gauge", "Whether the database answered.")
    for server in overview.servers:
        yield _sample("server_up", server.error is None, {"database": server.alias})
    answered = [server for server in overview.servers if server.error is None]
    for name, figure, text in (
        ("server_max_connections", "max_connections", "Sessions that the server admits."),
        ("server_free_connections", "free", "Sessions that the server has room for."),
        ("server_blocked_sessions", "blocked", "Sessions that wait for a lock."),
    ):
        yield from _head(name, "gauge", text)
        for server in answered:
            yield _sample(name, getattr(server, figure), {"database": server.alias})
    yield from _head("server_sessions", "gauge", "Client sessions by state.")
    for server in answered:
        for state, count in server.states.items():
            labels = {"database": server.alias, "state": state}
            yield _sample("server_sessions", count, labels)


def gauge_lines(name: str, value: float, text: str) -> Iterator[str]:
    """Yield a metric of one figure, without labels.

    Args:
        name: Without the prefix.
        value: The figure.
        text: What it is.
    """
    yield from _head(name, "gauge", text)
    yield _sample(name, value, {})


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    # Only texts of this package.
    yield f"# HELP django_pooled_{name} {text}"
    yield f"# TYPE django_pooled_{name} {kind}"


def _sample(name: str, value: float, labels: Labels) -> str:
    inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
    number = int(value) if float(value).is_integer() else value
    return f"django_pooled_{name}{f'{{{inside}}}' if inside else ''} {number}"


def _escape(label: str) -> str:
    # Names of sessions come from whoever opened them: the format has an escape for the end of a
    # line alone, and a terminal may show the rest.
    if not label.isprintable():
        label = "\n".join(map(printable, label.split("\n")))
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
