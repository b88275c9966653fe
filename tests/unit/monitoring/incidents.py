"""Incidents, each with a look before it and one amid it, as poolstats would have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from django_pooled.poolstats.server.pgbouncer_console import PoolerQueue
from django_pooled.poolstats.server.sessions import Session
from django_pooled.poolstats.server.view import ServerView, summed
from tests.support.reports import connection, overview, pool, process, times

if TYPE_CHECKING:
    from django_pooled.poolstats.overview import Overview

__all__ = ["CALM", "EVERYTHING", "INCIDENTS", "Incident"]

SECONDS = 480.0
"""Between the two looks."""


class Incident(NamedTuple):
    """Two looks; what is counted in between rises evenly."""

    before: Overview
    amid: Overview
    fires: frozenset[tuple[str, str]] = frozenset()
    """The alerts that fire meanwhile, by the codes of findings, with their severities."""


def _server(*sessions: Session, **figures: Any) -> ServerView:
    """Return a server with these sessions and much room."""
    view = ServerView("default", **{"max_connections": 1000, "reserved": 3, **figures})
    view.sessions = list(sessions)
    found = summed(view)
    found.used = figures.get("used", found.used)
    return found


def _incident(
    *fires: tuple[str, str], servers: list[ServerView] | None = None, **figures: Any
) -> Incident:
    """Return an incident of one pool, which makes 10 checkouts a second unless told otherwise."""
    before: dict[str, Any] = {"checkouts": 1000}
    amid: dict[str, Any] = {"checkouts": 5800, **figures}
    return _of_pools(before, amid, *fires, servers=servers)


def _of_pools(
    before: dict[str, Any],
    amid: dict[str, Any],
    *fires: tuple[str, str],
    servers: list[ServerView] | None = None,
) -> Incident:
    first, second = overview(process(pool(**before))), overview(process(pool(**amid)))
    if servers is not None:
        second.servers = servers
    second.taken = first.taken + SECONDS
    return Incident(first, second, frozenset(fires))


def _unanswered(silent: list[int], problems: list[str], *fires: tuple[str, str]) -> Incident:
    found = _incident(*fires)
    found.amid.collection.silent, found.amid.collection.problems = silent, problems
    return found


def _nobody() -> Incident:
    found = _incident(("nothing", "warning"))
    found.amid.collection.reports = []
    return found


BUSY: dict[str, Any] = {"in_use": 10, "idle": 0, "waiting": 4}
FAILING: dict[str, Any] = {"last_error": "connection refused", "last_error_age": 0.5}
HELD = [connection(51, state="in use", since=90.0, by="shop.views.report", where="shop.views:7")]
NAME = "django 4121@web-1"

CALM = _incident(
    in_use=3,
    idle=5,
    longest_waiting=0.02,
    waiting=1,
    connects=12,
    closed={"idle": 5, "lifetime": 4},
    restarts={"40001": 30},
    restarted={"40001": {"committed": 30}},
    lost_commits={"committed": 2, "failed": 1},
    wait=times(*[0.002] * 50),
)
"""A busy day: transactions conflict now and then, and a worker was replaced."""

EVERYTHING = _of_pools(
    # What has no sample before has no rate.
    {
        "checkouts": 1000,
        "restarts": {"40001": 0},
        "restarts_of": {"shop.views.pay": 0},
        "restarted": {"40001": {"committed": 0}},
        "pinned": {"SET": 0},
    },
    {
        "checkouts": 5800,
        "in_use": 3,
        "waiting": 1,
        "longest_waiting": 0.02,
        "timeouts": 9,
        "exhausted": 9,
        "refused": 9,
        "connects": 60,
        "connect_failures": 9,
        "refused_writes": 9,
        "restarts": {"40001": 30},
        "restarts_of": {"shop.views.pay": 30},
        "restarted": {"40001": {"committed": 30}},
        "pinned": {"SET": 9},
        "wait": times(*[0.002] * 5000),
        "use": times(*[0.02] * 5000),
        "connect": times(*[0.02] * 60),
    },
    servers=[_server(Session(7, "psql", "idle in transaction", since=90.0, transaction=95.0))],
)
"""Each metric has samples, and each histogram rises."""

INCIDENTS = {
    "holders": _incident(("waiting", "critical"), **BUSY, longest_waiting=4.0),
    "away": _of_pools(
        {"checkouts": 1000},
        {"checkouts": 1000, "size": 0, "idle": 0, "connect_failures": 90, "timeouts": 300}
        | {"waiting": 4, "longest_waiting": 3.0, **FAILING},
        ("away", "critical"),
        ("connect", "critical"),
        ("failed", "critical"),
        ("waiting", "critical"),
        servers=[ServerView("default", error="connection refused")],
    ),
    "one host cut off": _incident(("connect", "warning"), connect_failures=60, **FAILING),
    "refused by max_waiting": _incident(
        ("failed", "warning"), exhausted=40, **BUSY, longest_waiting=0.05
    ),
    "role refused": _of_pools(
        {"checkouts": 1000, "refused": 3},
        {"checkouts": 1010, "refused": 500},
        ("failed", "critical"),
    ),
    "firewall": _incident(("broken", "warning"), closed={"dead": 96}, connects=97),
    "restarted servers": _incident(("broken", "warning"), closed={"error": 48}, connects=49),
    "short lifetime": _incident(("churn", "warning"), connects=960, closed={"lifetime": 950}),
    "budget": _incident(("budget", "warning"), retry_budget_left=0.2),
    "conflicts": _incident(("restarts", "warning"), restarts={"40P01": 100, "40001": 1800}),
    "lost commit": _incident(
        ("unknown-commits", "warning"), lost_commits={"unknown": 4, "committed": 9}
    ),
    "standby": _incident(
        ("read-only", "critical"),
        read_only="db:5432 is a read-only standby",
        read_only_age=2.0,
        refused_writes=50,
        connects=960,
        closed={"drained": 950},
    ),
    "paused": _incident(
        ("paused", "warning"),
        paused_for=300.0,
        paused_by="user 33 (process 4711)",
        waiting=4,
        longest_waiting=3.0,
        checkouts=1000,
    ),
    "full pooler": _incident(
        ("pooler-full", "critical"), closed={"error": 90}, connects=91, pooler_timeouts=90
    ),
    "full pooler, seen by its console": _incident(
        ("pooler-full", "critical"),
        servers=[_server(pooler=True, queue=PoolerQueue(6, 4.0, active=2, idle=0, pool_size=2))],
    ),
    "stopped process": _unanswered([4122], [], ("silent", "warning")),
    "another version": _unanswered([], ["Process 9 answered nonsense."], ("problem", "warning")),
    "not running": _nobody(),
    "scarce": _incident(
        ("room", "warning"), servers=[_server(max_connections=100, used=93, reserved=3)]
    ),
    "full": _incident(
        ("room", "critical"), servers=[_server(max_connections=100, used=97, reserved=3)]
    ),
    "lock": _incident(
        ("blocked", "warning"),
        servers=[_server(Session(7, NAME, "active", "Lock: transactionid", since=20.0))],
    ),
    "forgotten psql": _incident(
        ("idle-in-transaction", "warning"),
        servers=[_server(Session(7, "psql", "idle in transaction", since=90.0, transaction=95.0))],
    ),
    "forgotten connection": _incident(
        ("forgotten", "warning"),
        in_use=1,
        idle=0,
        max_size=1,
        connections=HELD,
        servers=[_server(Session(51, NAME, "idle", since=85.0))],
    ),
}
"""By a name: at least one for each finding that has an alert."""
