"""An overview in Prometheus's text exposition format."""

# https://prometheus.io/docs/instrumenting/exposition_formats/

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .overview import Overview

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_POOL = (
    ("pool_idle", "idle", "gauge", "Connections in the pool."),
    ("pool_in_use", "in_use", "gauge", "Connections checked out."),
    ("pool_waiting", "waiting", "gauge", "Threads queued for a checkout."),
    ("pool_connecting", "connecting", "gauge", "Connections being opened."),
    ("pool_max_size", "max_size", "gauge", "Connections that the pool may have."),
    ("retry_budget_left", "retry_budget_left", "gauge", "Restarts that the budget allows now."),
    ("checkouts_total", "checkouts", "counter", "Connections handed to a thread."),
    ("checkout_wait_seconds_total", "wait.sum", "counter", "Time that checkouts took."),
    ("checkout_timeouts_total", "timeouts", "counter", "Checkouts that timed out."),
    ("checkouts_refused_total", "refused", "counter", "Checkouts refused at once."),
    ("connects_total", "connects", "counter", "Connections opened."),
    ("connect_failures_total", "connect_failures", "counter", "Connection attempts that failed."),
    ("discarded_total", "discarded", "counter", "Connections closed when given back."),
    ("dead_total", "closed.dead", "counter", "Idle connections found dead at checkout."),
    ("expired_total", "closed.lifetime", "counter", "Idle connections closed for their age."),
)
"""Name without prefix, key in the report, type, help."""

_COUNTED_BY_KIND = (
    ("restarts_total", "restarts", "sqlstate", "Transactions restarted, by SQLSTATE."),
    ("pinned_total", "pinned", "state", "Connections that session state kept with a request."),
    ("lost_commits_total", "lost_commits", "outcome", "COMMITs without an answer, by outcome."),
)
"""Name without prefix, key in the report, label, help."""


def render(overview: Overview) -> str:
    """Return the metrics of every process that answered, and of the servers."""
    return "".join(f"{line}\n" for line in _lines(overview))


def _lines(overview: Overview) -> Iterator[str]:
    rows = [(group.alias, row.pid, row) for group in overview.groups for row in group.rows]
    for name, key, kind, text in _POOL:
        yield from _head(name, kind, text)
        # Summed: a process may have two pools of one alias while its settings change, and the
        # same labels may appear only once.
        figures: dict[tuple[str, int], float] = defaultdict(float)
        for alias, pid, row in rows:
            figures[alias, pid] += row.number(key)
        for (alias, pid), figure in figures.items():
            yield _sample(name, figure, database=alias, pid=pid)
    for name, key, label, text in _COUNTED_BY_KIND:
        yield from _head(name, "counter", text)
        counts: dict[tuple[str, int, str], int] = defaultdict(int)
        for alias, pid, row in rows:
            for kind, count in row.counts(key).items():
                counts[alias, pid, kind] += count
        for (alias, pid, kind), count in counts.items():
            yield _sample(name, count, database=alias, pid=pid, **{label: kind})
    yield from _head("silent_processes", "gauge", "Processes that did not answer in time.")
    yield _sample("silent_processes", len(overview.collection.silent))
    yield from _head("server_up", "gauge", "Whether the database answered.")
    for server in overview.servers:
        yield _sample("server_up", int(server.error is None), database=server.alias)
    answered = [server for server in overview.servers if server.error is None]
    yield from _head("server_max_connections", "gauge", "Sessions that the server admits.")
    for server in answered:
        yield _sample("server_max_connections", server.max_connections, database=server.alias)
    yield from _head("server_free_connections", "gauge", "Sessions that the server has room for.")
    for server in answered:
        yield _sample("server_free_connections", server.free, database=server.alias)
    yield from _head("server_sessions", "gauge", "Client sessions by state.")
    for server in answered:
        for state, count in server.states.items():
            yield _sample("server_sessions", count, database=server.alias, state=state)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP django_pooled_{name} {text}"
    yield f"# TYPE django_pooled_{name} {kind}"


def _sample(name: str, value: float, **labels: object) -> str:
    inside = ",".join(f'{key}="{_escape(str(label))}"' for key, label in labels.items())
    number = int(value) if float(value).is_integer() else value
    return f"django_pooled_{name}{f'{{{inside}}}' if inside else ''} {number}"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
