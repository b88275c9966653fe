"""What is wrong with the pools of one database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .diagnosis import diagnose
from .finding import Finding, Level
from .formatting import brief, duration, kinds, many
from .session_owners import name_connection, name_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .overview import Overview
    from .rows import Group, PoolRow

__all__ = ["of_group"]

RECENT = 60.0
"""Seconds for which a failed connection attempt stays worth a word."""

FORGOTTEN = 60.0
"""Seconds after which a connection in use that asks nothing is worth a word."""

CHURN = 1.0
"""Connections opened a second from which on they are counted against the checkouts."""

BROKEN = ("dead", "error", "reset")
"""Reasons for which healthy connections are not closed."""

SHORT, LONG = 0.1, 1.0
"""Seconds that a waiter waits: below the first it is worth a note, from the second on critical."""

REMEDIES = {
    "idle": "a larger min_size or max_idle would keep them.",
    "lifetime": "max_lifetime is short.",
    "dead": "something cuts them while they are idle.",
    "error": "they break while in use.",
    "reset": "they can't be reset when they are given back.",
    "drained": "pools are closed, or the server is demoted again and again.",
}


def of_group(overview: Overview, group: Group) -> Iterator[Finding]:
    """Yield what is worth a word; an overview of the last seconds makes for fresher ones."""
    yield from _waiters(overview, group)
    yield from _failures(overview, group)
    yield from _forgotten(overview, group)
    yield from _connects(overview, group)
    yield from _restarts(group)


def _waiters(overview: Overview, group: Group) -> Iterator[Finding]:
    waiting = [row for row in group.rows if row.number("waiting")]
    if starved := [row for row in waiting if row.starved]:
        held = _total(starved, "in_use")
        found = diagnose(overview, starved)
        all_held = f"all {held:.0f} connections are" if held > 1 else "the only connection is"
        sentence = f"{_who_waits(group, starved)}: {all_held} in use{found.holder}."
        if found.trouble:
            sentence += f" The trouble is the {found.trouble}: {found.sentence}"
        yield Finding(_level(starved, Level.CRITICAL), sentence, "waiting", found.trouble)
    if without := [row for row in waiting if _is_cut_off(row)]:
        who = _who_waits(group, without)
        sentence = f"{who}: connecting fails, and no connection is left."
        yield Finding(Level.CRITICAL, sentence, "waiting", "database")
    others = [row for row in waiting if not row.starved and not _is_cut_off(row)]
    if opening := [row for row in others if row.number("size") < row.number("max_size")]:
        sentence = f"{_who_waits(group, opening)} while connections are being opened."
        yield Finding(_level(opening, Level.WARNING), sentence, "waiting")
    if others := [row for row in others if row not in opening]:
        sentence = f"{_who_waits(group, others)} while connections change hands."
        yield Finding(_level(others, Level.WARNING), sentence, "waiting")


def _level(rows: Sequence[PoolRow], worst: Level) -> Level:
    """Judge waiters by how long the oldest waits; an older process does not tell."""
    longest = max(
        row.number("longest_waiting") if row.has("longest_waiting") else LONG for row in rows
    )
    if longest < SHORT:
        return Level.FINE
    return worst if longest >= LONG else min(worst, Level.WARNING)


def _who_waits(group: Group, rows: Sequence[PoolRow]) -> str:
    ages = [row.number("longest_waiting") for row in rows if row.has("longest_waiting")]
    longest = f", the longest for {duration(max(ages))}" if ages else ""
    waiters = many(_total(rows, "waiting"), "waiter")
    return f'{waiters} for "{group.name}" in {name_process(rows)}{longest}'


def _failed_lately(row: PoolRow) -> bool:
    return bool(row.figures.get("last_error")) and row.number("last_error_age") <= RECENT


def _is_cut_off(row: PoolRow) -> bool:
    return not row.number("size") and _failed_lately(row)


def _failures(overview: Overview, group: Group) -> Iterator[Finding]:
    if failed := [row for row in group.rows if _failed_lately(row)]:
        last = min(failed, key=lambda row: row.number("last_error_age"))
        error = brief(str(last.figures["last_error"]))
        age = f"{last.number('last_error_age'):.0f} s ago"
        sentence = f'{name_process(failed)} failed to connect to "{group.name}", last {age}: '
        sentence = sentence[0].upper() + sentence[1:] + error
        yield Finding(Level.WARNING, sentence, "connect", "database")
    if overview.seconds is None:
        # Since when the pool was opened: perhaps long over, and in the table anyway.
        return
    ended = {
        "timed out": sum(row.number("timeouts") for row in group.rows),
        "refused by max_waiting": sum(row.number("exhausted") for row in group.rows),
        "refused by the server": sum(row.number("refused") for row in group.rows),
    }
    if failures := sum(ended.values()):
        what = f'{many(failures, "checkout")} for "{group.name}" failed'
        sentence = f"{what} in the last {duration(overview.seconds)}: {kinds(ended)}."
        yield Finding(Level.WARNING, sentence, "failed")
    broken = {kind: group.counts("closed")[kind] for kind in BROKEN}
    if number := sum(broken.values()):
        what = f'{many(number, "connection")} of "{group.name}" broke'
        sentence = f"{what} in the last {duration(overview.seconds)}: {kinds(broken)}."
        yield Finding(Level.WARNING, sentence, "broken", "database")


def _forgotten(overview: Overview, group: Group) -> Iterator[Finding]:
    """Find what is in use and asks nothing: one in a transaction is found on the server."""
    found = []
    for row in group.rows:
        for connection in row.connections:
            session = overview.session(row, connection)
            if connection.get("state") == "in use" and session and session.state == "idle":
                quiet = session.since or 0.0
                if quiet >= FORGOTTEN:
                    found.append((quiet, row, connection))
    if found:
        quiet, row, connection = max(found, key=lambda one: one[0])
        what = f'{many(len(found), "connection")} of "{group.name}"'
        verb, they = ("is", "it") if len(found) == 1 else ("are", "they")
        where = f" ({connection['where']})" if connection.get("where") else ""
        sentence = (
            f"{what} {verb} in use without a question to the database, the longest for "
            f"{duration(quiet)}{name_connection(connection)}{where} in {name_process([row])}: "
            f"perhaps {they} {'was' if they == 'it' else 'were'} forgotten."
        )
        scarce = row.utilisation >= 0.8
        yield Finding(Level.WARNING if scarce else Level.FINE, sentence, "forgotten", "application")


def _connects(overview: Overview, group: Group) -> Iterator[Finding]:
    churning = [(row, pace) for row in group.rows if (pace := _churn(overview, row))]
    if churning:
        rows = [row for row, _ in churning]
        checkouts, connects = _total(rows, "checkouts"), _total(rows, "connects")
        closed = {kind: sum(row.counts("closed").get(kind, 0) for row in rows) for kind in REMEDIES}
        most = max(closed, key=lambda kind: closed[kind])
        pace = sum(pace for _, pace in churning)
        sentence = (
            f'{name_process(rows)} opened {pace:.1f} connections to "{group.name}" a second, '
            f"{connects:.0f} for {many(checkouts, 'checkout')}"
        )
        remedy = f": {kinds(closed)}; {REMEDIES[most]}" if closed[most] else "."
        yield Finding(Level.WARNING, sentence[0].upper() + sentence[1:] + remedy, "churn", "pool")


def _churn(overview: Overview, row: PoolRow) -> float:
    """Return how many connections a second are opened that checkouts are too few for."""
    seconds, connects = overview.seconds or row.number("age"), row.number("connects")
    # The first ones fill the pool, and are no news.
    if connects <= row.number("max_size") or connects * 10 < row.number("checkouts"):
        return 0.0
    pace = connects / max(seconds, 1.0)
    return pace if pace >= CHURN else 0.0


def _restarts(group: Group) -> Iterator[Finding]:
    if spent := [row for row in group.rows if row.budget_is_spent]:
        sentence = (
            f'The retry budget for "{group.name}" is spent in {name_process(spent)}, by a function '
            f"or all: transactions that could be restarted fail instead."
        )
        yield Finding(Level.WARNING, sentence, "budget")
    restarts, checkouts = group.restarts, group.totals["checkouts"]
    if restarts >= 10 and restarts * 5 >= checkouts:
        by_kind = group.counts("restarts")
        conflicts = sum(by_kind[kind] for kind in ("40001", "40P01"))
        trouble = "application" if conflicts * 2 >= restarts else "database"
        sentence = (
            f'{many(restarts, "transaction")} on "{group.name}" had to be restarted, in '
            f"{many(checkouts, 'checkout')}: {kinds(by_kind, times='x ')}."
        )
        yield Finding(Level.WARNING, sentence, "restarts", trouble)
    if unknown := group.counts("lost_commits")["unknown"]:
        many_commits = many(unknown, "COMMIT")
        sentence = f'{many_commits} on "{group.name}" had no answer, and the outcome stays unknown.'
        yield Finding(Level.FINE, sentence, "unknown commits", "database")


def _total(rows: Sequence[PoolRow], key: str) -> float:
    return sum(row.number(key) for row in rows)
