"""What is wrong with the pools of one database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from django_pooled.pool.connect_errors import answer_in
from django_pooled.poolstats.formatting import brief, duration, kinds, many
from django_pooled.poolstats.rows import failed_checkouts, last_failure
from django_pooled.sql.sqlstates import named
from django_pooled.stats.combine import total

from .diagnosis import diagnose
from .finding import Finding, Level
from .pooler_findings import given_up
from .session_owners import name_connection, name_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import Group, PoolRow

__all__ = ["of_group"]

RECENT = 60.0
"""Seconds for which a failed connection attempt is reported."""

FORGOTTEN = 60.0
"""Seconds after which a connection in use whose session is idle is reported."""

CHURN = 1.0
"""Connections opened a second above which they are compared with the checkouts."""

BROKEN = ("dead", "error", "reset")
"""Reasons for which healthy connections are not closed."""

SHORT, LONG = 0.1, 1.0
"""Seconds that a waiter waits: a note below the first, critical from the second on."""

REMEDIES = {
    "idle": "a larger min_size or max_idle would keep them.",
    "lifetime": "max_lifetime is short.",
    "dead": "they are closed from outside while they are idle.",
    "error": "they break while in use.",
    "reset": "they can't be reset when they are given back.",
    "drained": "pools are closed or drained, or the server is demoted, again and again.",
}


def of_group(overview: Overview, group: Group) -> Iterator[Finding]:
    """Yield what is wrong with the pools of one database, or worth a note."""
    yield from _paused(group)
    yield from _read_only(overview, group)
    yield from given_up(group, overview.seconds)
    yield from _waiters(overview, group)
    yield from _failures(overview, group)
    yield from _forgotten(overview, group)
    yield from _connects(overview, group)
    yield from _restarts(group)


def _read_only(overview: Overview, group: Group) -> Iterator[Finding]:
    found: dict[str, list[PoolRow]] = {}
    for row in group.rows:
        # Without a connection, it is another incident by now.
        if row.pool.read_only is not None and not _is_cut_off(row):
            found.setdefault(row.pool.read_only, []).append(row)
    for words, rows in found.items():
        sentence = f'"{group.name}": {words}: writes fail (25006)'
        refused = sum(row.counters.refused_writes for row in rows)
        age = min(row.pool.read_only_age or 0.0 for row in rows)
        level = Level.CRITICAL
        if not any(row.pool.writes_fail for row in rows):
            # Perhaps a replica, to which something wrote by mistake.
            level, sentence = Level.FINE, f"{sentence}, the last one {duration(age)} ago"
        elif overview.seconds is not None and refused:
            sentence += f", {refused} in the last {duration(overview.seconds)}"
        yield Finding(level, f"{sentence}.", "read only", "database")


def _paused(group: Group) -> Iterator[Finding]:
    found: dict[str, list[PoolRow]] = {}
    for row in group.rows:
        if row.pool.paused:
            found.setdefault(row.pool.paused_by or "an operator", []).append(row)
    for by, rows in found.items():
        left = max(row.pool.paused_for or 0.0 for row in rows)
        waits = [row for row in rows if row.pool.waiting]
        waiters = f": {_who_waits(group, waits)}" if waits else ""
        sentence = (
            f'"{group.name}" is paused in {name_process(rows)} by {by}, and resumes by itself '
            f"within {duration(left)}{waiters}."
        )
        yield Finding(Level.WARNING, sentence, "paused")


def _waiters(overview: Overview, group: Group) -> Iterator[Finding]:
    # Those of a paused pool wait for its operator, whatever its connections do.
    waiting = [row for row in group.rows if row.pool.waiting and not row.pool.paused]
    if starved := [row for row in waiting if row.starved]:
        held = sum(row.pool.in_use for row in starved)
        found = diagnose(overview, starved)
        all_held = f"all {held} connections are" if held > 1 else "the only connection is"
        sentence = f"{_who_waits(group, starved)}: {all_held} in use{found.holder}."
        if found.trouble:
            sentence += f" The trouble is the {found.trouble}: {found.sentence}"
        yield Finding(_level(group, starved, Level.CRITICAL), sentence, "waiting", found.trouble)
    if without := [row for row in waiting if _is_cut_off(row)]:
        who = _who_waits(group, without)
        sentence = f"{who}: connecting fails, and no connection is left."
        yield Finding(Level.CRITICAL, sentence, "waiting", "database")
    others = [row for row in waiting if not row.starved and not _is_cut_off(row)]
    if refused := [row for row in others if row.pool.size < row.pool.max_size and _is_refused(row)]:
        yield _waits_for_connects(group, refused)
        others = [row for row in others if row not in refused]
    opening = [row for row in others if row.pool.size < row.pool.max_size]
    for rows, why in (
        (opening, "while connections are being opened"),
        ([row for row in others if row not in opening], "while connections change hands"),
    ):
        if rows:
            sentence = f"{_who_waits(group, rows)} {why}."
            yield Finding(_level(group, rows, Level.WARNING), sentence, "waiting")


def _waits_for_connects(group: Group, rows: list[PoolRow]) -> Finding:
    """Describe waiters of pools that have connections, and can't open those that are missing."""
    part, failure = replace(group, rows=rows), last_failure(rows)
    size, most = part.sum("size"), many(part.sum("max_size"), "connection")
    sentence = (
        f"{_who_waits(group, rows)}: only {size} of {most} {'is' if size == 1 else 'are'} open, "
        f"and the server {answer_in(failure.error if failure else '')}."
    )
    return Finding(_level(group, rows, Level.CRITICAL), sentence, "waiting", "database")


def _level(group: Group, rows: list[PoolRow], worst: Level) -> Level:
    """Judge waiters by how long the oldest waits."""
    longest = replace(group, rows=rows).longest_waiting
    if longest is None:
        return worst
    if longest < SHORT:
        return Level.FINE
    return worst if longest >= LONG else min(worst, Level.WARNING)


def _who_waits(group: Group, rows: list[PoolRow]) -> str:
    part = replace(group, rows=rows)
    longest = part.longest_waiting
    since = "" if longest is None else f", the longest for {duration(longest)}"
    waiters = many(part.sum("waiting"), "waiter")
    return f'{waiters} for "{group.name}" in {name_process(rows)}{since}'


def _failed_lately(row: PoolRow) -> bool:
    failure = last_failure([row])
    return failure is not None and failure.age <= RECENT


def _is_refused(row: PoolRow) -> bool:
    """Whether it can't connect at the moment."""
    return _failed_lately(row) and row.pool.connected_again_age is None


def _is_cut_off(row: PoolRow) -> bool:
    return not row.pool.size and _is_refused(row)


def _failures(overview: Overview, group: Group) -> Iterator[Finding]:
    yield from _connect_failures(group)
    if overview.seconds is None:
        # Counted since the pool was opened, they may be long over.
        return
    span = f"in the last {duration(overview.seconds)}"
    if group.failed:
        what = f'{many(group.failed, "checkout")} for "{group.name}" failed'
        sentence = f"{what} {span}: {kinds(failed_checkouts(group.counters))}."
        level = Level.CRITICAL if group.failed >= group.counters.checkouts else Level.WARNING
        yield Finding(level, sentence, "failed")
    broken = {kind: group.counters.closed[kind] for kind in BROKEN}
    # Those have a finding of their own.
    broken["error"] = max(0, broken["error"] - group.counters.pooler_timeouts)
    if number := sum(broken.values()):
        what = f'{many(number, "connection")} of "{group.name}" broke'
        yield Finding(Level.WARNING, f"{what} {span}: {kinds(broken)}.", "broken", "database")


def _connect_failures(group: Group) -> Iterator[Finding]:
    lately = [row for row in group.rows if _failed_lately(row)]
    failing = [row for row in lately if _is_refused(row)]
    rows = failing or lately
    if failure := last_failure(rows):
        # Waiters or not: without a connection, each request fails.
        level = Level.WARNING if any(row.pool.size for row in group.rows) else Level.CRITICAL
        when = f", last {failure.age:.0f} s ago"
        if not failing:
            level, when = Level.FINE, f" {failure.age:.0f} s ago, and connected again since"
        who = name_process(rows)
        sentence = f'{who} failed to connect to "{group.name}"{when}: {brief(failure.error)}'
        yield Finding(level, sentence[0].upper() + sentence[1:], "connect", "database")


def _forgotten(overview: Overview, group: Group) -> Iterator[Finding]:
    """Find connections in use with an idle session; idle transactions are the server's finding."""
    found = []
    for row in group.rows:
        for connection in row.pool.connections:
            session = overview.session(row, connection)
            if connection["state"] == "in use" and session and session.state == "idle":
                quiet = session.since or 0.0
                if quiet >= FORGOTTEN:
                    found.append((quiet, row, connection))
    if found:
        quiet, row, connection = max(found, key=lambda one: one[0])
        what = f'{many(len(found), "connection")} of "{group.name}"'
        verb, they = ("is", "it was") if len(found) == 1 else ("are", "they were")
        where = f" ({connection['where']})" if connection["where"] else ""
        sentence = (
            f"{what} {verb} in use without a query, the longest for "
            f"{duration(quiet)}{name_connection(connection)}{where} in {name_process([row])}: "
            f"perhaps {they} forgotten."
        )
        scarce = row.utilisation >= 0.8
        yield Finding(Level.WARNING if scarce else Level.FINE, sentence, "forgotten", "application")


def _connects(overview: Overview, group: Group) -> Iterator[Finding]:
    churning = [
        (row, pace)
        for row in group.rows
        if row.pool.read_only is None and (pace := _churn(overview, row))
    ]
    if churning:
        rows = [row for row, _ in churning]
        counters = total(row.counters for row in rows)
        closed = {reason: counters.closed[reason] for reason in REMEDIES}
        most = max(closed, key=lambda reason: closed[reason])
        sentence = (
            f"{name_process(rows)} opened {sum(pace for _, pace in churning):.1f} connections to "
            f'"{group.name}" a second, {counters.connects} for '
            f"{many(counters.checkouts, 'checkout')}"
        )
        remedy = f": {kinds(closed)}; {REMEDIES[most]}" if closed[most] else "."
        yield Finding(Level.WARNING, sentence[0].upper() + sentence[1:] + remedy, "churn", "pool")


def _churn(overview: Overview, row: PoolRow) -> float:
    """Return how many connections a second are opened, if the checkouts do not account for them."""
    # Those that a pooler closed, having none for a statement, have a finding of their own.
    connects = max(0, row.counters.connects - row.counters.pooler_timeouts)
    # The first ones fill the pool.
    if connects <= row.pool.max_size or connects * 10 < row.counters.checkouts:
        return 0.0
    pace = connects / max(overview.seconds or row.pool.age, 1.0)
    return pace if pace >= CHURN else 0.0


def _restarts(group: Group) -> Iterator[Finding]:
    if spent := [row for row in group.rows if row.budget_is_spent]:
        sentence = (
            f'The retry budget for "{group.name}" is spent in {name_process(spent)}, by a function '
            f"or all: transactions that could be restarted fail instead."
        )
        yield Finding(Level.WARNING, sentence, "budget")
    by_kind, checkouts = group.counters.restarts, group.counters.checkouts
    restarts = by_kind.total()
    if restarts >= 10 and restarts * 5 >= checkouts:
        conflicts = by_kind["40001"] + by_kind["40P01"]
        trouble = "application" if conflicts * 2 >= restarts else "database"
        failures = {named(kind): number for kind, number in by_kind.items()}
        sentence = (
            f'{many(restarts, "transaction")} on "{group.name}" had to be restarted, in '
            f"{many(checkouts, 'checkout')}: {kinds(failures, times='x ')}."
        )
        yield Finding(Level.WARNING, sentence, "restarts", trouble)
    if unknown := group.counters.lost_commits["unknown"]:
        many_commits = many(unknown, "COMMIT")
        sentence = f'{many_commits} on "{group.name}" had no answer, and the outcome stays unknown.'
        yield Finding(Level.FINE, sentence, "unknown commits", "database")
