"""Reports of pools as processes make them, and overviews of them, by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.poolstats.processes.report_parser import parse_report
from django_pooled.poolstats.server.view import ServerView
from django_pooled.stats.histogram import Histogram
from django_pooled.stats.snapshot import ProcessReport

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["connection", "overview", "pool", "process", "times"]


def times(*seconds: float) -> dict[str, Any]:
    """Return a histogram of these durations."""
    histogram = Histogram()
    for one in seconds:
        histogram.record(one)
    return histogram.as_report()


def pool(alias: str = "default", **figures: Any) -> dict[str, Any]:
    """Return a pool with one idle connection and 7 checkouts, unless told otherwise."""
    closed = dict.fromkeys(("idle", "lifetime", "dead", "error", "reset", "drained"), 0)
    idle, in_use = figures.get("idle", 1), figures.get("in_use", 0)
    return {
        "alias": alias,
        "pool_mode": "session",
        "min_size": 1,
        "max_size": 10,
        "size": idle + in_use,
        "idle": 1,
        "in_use": 0,
        "waiting": 0,
        "connecting": 0,
        "longest_waiting": None,
        "server": "db.example:5432/site",
        "retry_budget_left": 100.0,
        "last_error": None,
        "last_error_age": None,
        "sessions": {},
        "sessions_age": None,
        "max_connections": 0,
        "reserved": 0,
        "connected_again_age": None,
        "site": "",
        "settings": "",
        "read_only": None,
        "read_only_age": None,
        "timeout": 30.0,
        "max_waiting": 0,
        "lent": figures.get("in_use", 0),
        "paused_for": None,
        "paused_by": None,
        "to_replace": None,
        "age": 3600.0,
        "checkouts": 7,
        "checkins": max(0, figures.get("checkouts", 7) - in_use),
        "discarded": 0,
        "reclaimed": 0,
        "replaced": 0,
        "timeouts": 0,
        "exhausted": 0,
        "shed": 0,
        "refused": 0,
        "refused_writes": 0,
        "pooler_timeouts": 0,
        "connects": idle + in_use,
        "connect_failures": 0,
        "wait": times(*[0.001] * 7),
        "use": times(*[0.01] * 7),
        "connect": times(*[0.005] * min(idle + in_use, 100)),
        "restarts": {},
        "restarted": {},
        "restarts_of": {},
        "refused_restarts": {},
        "pinned": {},
        "lost_commits": {},
        "deadlines": {},
        "idempotency_keys": {},
        "held": {},
        "connections": [],
        **figures,
        "closed": {**closed, **figures.get("closed", {})},
    }


def connection(backend_pid: object, **figures: Any) -> dict[str, Any]:
    """Return a connection of a pool, idle unless told otherwise."""
    return {
        "backend_pid": backend_pid,
        "age": 60.0,
        "state": "idle",
        "since": 1.0,
        "by": None,
        "where": None,
        "pinned_by": None,
        "doomed_by": None,
        "status": "",
        "statement": None,
        **figures,
    }


def process(*pools: dict[str, Any], pid: int = 4121, **figures: Any) -> dict[str, Any]:
    """Return what a process reports; pools without an id go by their places."""
    values = {"version": 1, "pid": pid, "host": "web-1", "command": "gunicorn", "threads": 4}
    identified = [
        {"id": f"{pid}-{number}", **made} for number, made in enumerate(pools or [pool()])
    ]
    return {**values, "age": 3600.0, "pools": identified, **figures}


def overview(
    *processes: dict[str, Any] | ProcessReport,
    servers: Iterable[ServerView] | None = None,
    **more: Any,
) -> Overview:
    """Return one of these processes, of one without trouble if none is named."""
    reports = [
        one if isinstance(one, ProcessReport) else parse_report(json.dumps(one).encode())
        for one in processes or [process()]
    ]
    healthy = ServerView("default", max_connections=1000, reserved=3, used=10)
    return Overview(
        Collection(reports), [healthy] if servers is None else list(servers), host="web-1", **more
    )
