"""What a table has no room for: how connections came and went, and what was restarted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formatting import brief, count, duration, kinds, labelled, many, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.stats.histogram import Histogram

    from .overview import Overview
    from .rows import Group

__all__ = ["lines"]

REFUSALS = {
    "attempts": "after the last attempt",
    "deadline": "past the deadline",
    "budget": "with the budget spent",
    "other": "not fit to run again",
}


def lines(overview: Overview, width: int) -> list[str]:
    """Say it for each database, leaving out what never happened."""
    found = []
    for group in overview.groups:
        found.append(plain(f'"{group.name}" {_span(overview, group)}')[:width])
        for label, text in _facts(group):
            found += labelled(label, text, width)
    return found


def _span(overview: Overview, group: Group) -> str:
    if overview.seconds is not None:
        return f"in the last {duration(overview.seconds)}"
    ages = [row.number("age") for row in group.rows if row.has("age")]
    return f"since it was opened, {duration(max(ages))} ago" if ages else "since it was opened"


def _facts(group: Group) -> Iterator[tuple[str, str]]:
    totals = group.totals
    use, connect = group.times("use"), group.times("connect")
    if use.count:
        yield "in use for", _times(use)
    opened = f"{count(totals['connects'])} connections"
    yield "opened", f"{opened} ({_times(connect)})" if connect.count else opened
    if closed := kinds(group.counts("closed")):
        yield "closed", f"{count(group.counts('closed').total())}: {closed}"
    yield from _failures(group)
    yield from _restarts(group)
    if pinned := kinds(group.counts("pinned"), times="x "):
        yield "kept by requests", pinned


def _times(times: Histogram) -> str:
    parts = [f"p{share:.0f} {duration(times.quantile(share / 100))}" for share in (50.0, 99.0)]
    return f"{', '.join(parts)}, max {duration(times.longest)}"


def _failures(group: Group) -> Iterator[tuple[str, str]]:
    totals = group.totals
    if failures := totals["connect_failures"]:
        last = min(
            (row for row in group.rows if row.figures.get("last_error")),
            key=lambda row: row.number("last_error_age"),
            default=None,
        )
        text = f"{count(failures)} times"
        if last is not None:
            error, age = str(last.figures["last_error"]), last.number("last_error_age")
            text += f", last {duration(age)} ago: {brief(error)}"
        yield "failed to connect", text
    failed = {
        "timed out": totals["timeouts"],
        "refused by max_waiting": totals["exhausted"],
        "refused by the server": totals["refused"],
    }
    if any(failed.values()):
        yield "failed checkouts", kinds(failed)
    if totals["reclaimed"]:
        text = f"{many(totals['reclaimed'], 'connection')} that a thread left behind at its end"
        yield "reclaimed", text


def _restarts(group: Group) -> Iterator[tuple[str, str]]:
    restarts, outcomes = group.counts("restarts"), group.outcomes
    if restarts:
        parts = []
        for sqlstate, number in restarts.most_common():
            ends = {outcome: n for (state, outcome), n in outcomes.items() if state == sqlstate}
            end = f" ({kinds(ends)})" if ends else ""
            parts.append(f"{count(number)} x {sqlstate}{end}")
        yield "restarted", ", ".join(parts)
    refused = {REFUSALS.get(kind, kind): n for kind, n in group.counts("refused_restarts").items()}
    if any(refused.values()):
        yield "not restarted", kinds(refused)
    if lost := kinds(group.counts("lost_commits")):
        yield "lost COMMITs", lost
    left = group.least_budget_left
    if left is not None and (restarts or left < 1):
        yield "retry budget", f"{left:.0f} restarts left in the process that has fewest"
