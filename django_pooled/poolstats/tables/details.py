"""The lines below the table of pools: how connections came and went, what was restarted."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import brief, count, cut, duration, kinds, labelled, many
from django_pooled.poolstats.rows import failed_checkouts, last_failure
from django_pooled.sql.sqlstates import named
from django_pooled.stats.counters import OTHERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import Group
    from django_pooled.stats.counters import Counters
    from django_pooled.stats.histogram import Histogram

__all__ = ["held_longest", "lines"]

MOST_HOLDERS = 5
"""Views and tasks that are named."""

REFUSALS = {
    "attempts": "after the last attempt",
    "deadline": "past the deadline",
    "budget": "with the budget spent",
    "other": "not fit to run again",
}

DEADLINES = {
    "checkout": "while waiting for a connection",
    "refused": "before a statement",
    "cancelled": "amid a statement",
    "closed": "without an answer",
}


_NAMED = 5
"""Functions that are named in a line."""


def lines(overview: Overview, width: int) -> list[str]:
    """Say it for each database, leaving out what never happened."""
    found = []
    for group in overview.groups:
        found.append(cut(f'"{group.name}" {_span(overview, group)}', width))
        for label, text in _details(group):
            found += labelled(label, text, width)
    return found


def _span(overview: Overview, group: Group) -> str:
    if overview.seconds is not None:
        return f"in the last {duration(overview.seconds)}"
    return f"since it was opened, {duration(max(row.pool.age for row in group.rows))} ago"


def _details(group: Group) -> Iterator[tuple[str, str]]:
    counters = group.counters
    if replacing := sum(row.pool.to_replace or 0 for row in group.rows):
        yield "draining", f"{many(replacing, 'connection')} to be replaced still"
    if counters.use.count:
        yield "in use for", _times(counters.use)
    if holders := held_longest(counters.held):
        yield "held longest", holders
    opened = f"{count(counters.connects)} connection{'' if counters.connects == 1 else 's'}"
    connect = counters.connect
    yield "opened", f"{opened} ({_times(connect)})" if connect.count else opened
    if closed := kinds(counters.closed):
        yield "closed", f"{count(counters.closed.total())}: {closed}"
    yield from _failures(group, counters)
    yield from _restarts(group, counters)
    if pinned := kinds(counters.pinned, times="x "):
        yield "kept by requests", pinned


def held_longest(held: Mapping[str, float]) -> str:
    """List the views and tasks that held connections for the longest time in all, with shares."""
    most = sorted(held.items(), key=lambda holder: -holder[1])
    parts = [
        f"{name} {duration(seconds)} ({seconds / sum(held.values()):.0%})"
        for name, seconds in most[:MOST_HOLDERS]
        if seconds
    ]
    if len(most) > MOST_HOLDERS:
        parts.append(f"{duration(sum(seconds for _, seconds in most[MOST_HOLDERS:]))} by others")
    return ", ".join(parts)


def _times(times: Histogram) -> str:
    parts = [f"p{share:.0f} {duration(times.quantile(share / 100))}" for share in (50.0, 99.0)]
    return f"{', '.join(parts)}, max {duration(times.longest)}"


def _failures(group: Group, counters: Counters) -> Iterator[tuple[str, str]]:
    if counters.connect_failures:
        text = f"{count(counters.connect_failures)} times"
        if failure := last_failure(group.rows):
            again = ", connected again since" if failure.is_over else ""
            text += f", last {duration(failure.age)} ago{again}: {brief(failure.error)}"
        yield "failed to connect", text
    if group.failed:
        yield "failed checkouts", kinds(failed_checkouts(counters))
    if counters.refused_writes:
        yield "refused writes", f"{count(counters.refused_writes)} by a read-only server (25006)"
    if counters.pooler_timeouts:
        text = many(counters.pooler_timeouts, "statement") + " without a server connection"
        yield "pooler timeouts", text
    ended = {DEADLINES.get(kind, kind): n for kind, n in counters.deadlines.items()}
    if any(ended.values()):
        yield "deadlines ended", kinds(ended)
    if counters.reclaimed:
        text = f"{many(counters.reclaimed, 'connection')} that a thread left behind at its end"
        yield "reclaimed", text
    if counters.replaced:
        text = f"{many(counters.replaced, 'connection')} lost between two statements of a request"
        yield "replaced", text


def _functions(restarts: Mapping[str, int]) -> str:
    """List the functions that were restarted most, and count the rest."""
    named = Counter(restarts)
    others = named.pop(OTHERS, 0)
    most = named.most_common(_NAMED)
    others += named.total() - sum(number for _, number in most)
    rest = {"others": others} if others else {}
    return ", ".join(kinds(part, times="x ") for part in (dict(most), rest) if any(part.values()))


def _restarts(group: Group, counters: Counters) -> Iterator[tuple[str, str]]:
    parts = []
    for sqlstate, number in counters.restarts.most_common():
        outcomes = {
            outcome: n for (state, outcome), n in counters.restarted.items() if state == sqlstate
        }
        end = f": {kinds(outcomes)}" if any(outcomes.values()) else ""
        parts.append(f"{count(number)} x {named(sqlstate)}{end}")
    if parts:
        yield "restarted", "; ".join(parts)
    if functions := _functions(counters.restarts_of):
        yield "restarted most", functions
    refused = {REFUSALS.get(kind, kind): n for kind, n in counters.refused_restarts.items()}
    if any(refused.values()):
        yield "not restarted", kinds(refused)
    if lost := kinds(counters.lost_commits):
        yield "lost COMMITs", lost
    if keys := kinds(counters.idempotency_keys):
        yield "idempotency keys", keys
    left = group.least_budget_left
    if left is not None and (parts or left < 1):
        yield "retry budget", f"{left:.0f} restarts left in the process that has fewest"
