"""What an overview means: sentences for an operator, and a status for a probe."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from .probe import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .overview import Group, Overview, PoolRow
    from .server_view import ServerView

__all__ = ["Finding", "Level", "find", "status"]

RECENT = 60.0
"""Seconds for which a failed connection attempt stays worth a word."""

LONG_TRANSACTION = 60.0
"""Seconds after which a session that idles in its transaction is worth a word."""

SCARCE = 0.1
"""Share of max_connections below which what is free is called scarce."""


class Level(IntEnum):
    """How bad it is; the number is the exit code of ``poolstats --check``."""

    FINE = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Finding(NamedTuple):
    """A sentence, and how bad what it says is."""

    level: Level
    sentence: str


def find(overview: Overview) -> list[Finding]:
    """Say in sentences what is wrong or worth knowing, the worst first."""
    found = [
        finding
        for group in overview.groups
        for finding in (*_waiters(group), *_errors(group), *_retries(group))
    ]
    for names, server in overview.servers_by_address:
        found += _server(overview, names, server)
    if pids := overview.collection.silent:
        who = f"Process {pids[0]} does" if len(pids) == 1 else f"Processes {_list(pids)} do"
        found.append(Finding(Level.WARNING, f"{who} not answer: stopped, or too busy."))
    found += [Finding(Level.WARNING, problem) for problem in overview.collection.problems]
    if not overview.groups:
        whose = f' of "{overview.alias}"' if overview.alias else ""
        sentence = f"No process that could be reached has an open pool{whose}."
        found.append(Finding(Level.UNKNOWN, sentence))
    order = (Level.CRITICAL, Level.UNKNOWN, Level.WARNING, Level.FINE)
    return sorted(found, key=lambda finding: order.index(finding.level))


def status(findings: list[Finding]) -> Level:
    """Return the level of the worst; what is known to be critical outweighs the unknown."""
    return findings[0].level if findings else Level.FINE


def _waiters(group: Group) -> Iterator[Finding]:
    starved = [row for row in group.rows if row.starved]
    if starved:
        waiting, held = _total(starved, "waiting"), _total(starved, "in_use")
        who = f'{_count(waiting, "waiter")} for "{group.alias}" in {_where(starved)}'
        held_all = f"all {held} connections are" if held > 1 else "the only connection is"
        yield Finding(Level.CRITICAL, f"{who}: {held_all} in use.")
    without = [row for row in group.rows if row.number("waiting") and _is_cut_off(row)]
    if without:
        who = f'{_count(_total(without, "waiting"), "waiter")} for "{group.alias}"'
        sentence = f"{who} in {_where(without)}: connecting fails, and no connection is left."
        yield Finding(Level.CRITICAL, sentence)
    others = [
        row
        for row in group.rows
        if row.number("waiting") and not row.starved and not _is_cut_off(row)
    ]
    if others:
        who = f'{_count(_total(others, "waiting"), "waiter")} for "{group.alias}"'
        sentence = f"{who} in {_where(others)} while connections are being opened."
        yield Finding(Level.WARNING, sentence)


def _failed_lately(row: PoolRow) -> bool:
    return bool(row.figures.get("last_error")) and row.number("last_error_age") <= RECENT


def _is_cut_off(row: PoolRow) -> bool:
    return not row.number("size") and _failed_lately(row)


def _errors(group: Group) -> Iterator[Finding]:
    failed = [row for row in group.rows if _failed_lately(row)]
    if failed:
        last = min(failed, key=lambda row: row.number("last_error_age"))
        error = one_line(str(last.figures["last_error"]))
        age = f"{last.number('last_error_age'):.0f} s ago"
        sentence = f'{_where(failed)} failed to connect to "{group.alias}", last {age}: {error}'
        yield Finding(Level.WARNING, sentence[0].upper() + sentence[1:])


def _retries(group: Group) -> Iterator[Finding]:
    spent = [row for row in group.rows if row.budget_is_spent]
    if spent:
        sentence = (
            f'The retry budget for "{group.alias}" is spent in {_where(spent)}: transactions that '
            f"could be restarted fail instead."
        )
        yield Finding(Level.WARNING, sentence)
    unknown = group.counts("lost_commits")["unknown"]
    if unknown:
        many = _count(unknown, "COMMIT")
        sentence = f'{many} on "{group.alias}" had no answer, and the outcome stays unknown.'
        yield Finding(Level.FINE, sentence)


def _server(overview: Overview, name: str, server: ServerView) -> Iterator[Finding]:
    if server.error is not None:
        yield Finding(Level.CRITICAL, f"The database {name} does not answer: {server.error}")
        return
    room = f"{server.used} of {server.max_connections} connections are used"
    if server.reserved:
        room += f" and {server.reserved} reserved"
    if not server.free:
        yield Finding(Level.CRITICAL, f"The server of {name} is full: {room}.")
    elif server.free < SCARCE * server.max_connections:
        sentence = f"The server of {name} has room for {server.free} more connections: {room}."
        yield Finding(Level.WARNING, sentence)
    else:
        growth = sum(
            row.number("max_size") - row.number("size")
            for group in overview.groups
            if f'"{group.alias}"' in name
            for row in group.rows
        )
        if growth > server.free:
            sentence = (
                f"The pools of {name} may open {growth:.0f} more connections, "
                f"and its server has room for {server.free}."
            )
            yield Finding(Level.FINE, sentence)
    age = server.longest_idle_in_transaction
    if age is not None and age > LONG_TRANSACTION:
        sentence = f"A session on the server of {name} idles in its transaction for {age:.0f} s."
        yield Finding(Level.WARNING, sentence)
    if hosts := overview.unreachable_by_host(server):
        many = _count(sum(hosts.values()), "more process", "more processes")
        places = ", ".join(
            f"{count} on {'this host' if host == overview.host else host}"
            for host, count in hosts.most_common(4)
        )
        rest = f", and {len(hosts) - 4} other hosts" if len(hosts) > 4 else ""
        sentence = f"PostgreSQL sees {many} that this command cannot reach ({places}{rest})."
        yield Finding(Level.FINE, sentence)


def _total(rows: list[PoolRow], key: str) -> int:
    return int(sum(row.number(key) for row in rows))


def _where(rows: list[PoolRow]) -> str:
    if len(rows) == 1:
        return f"process {rows[0].pid} ({rows[0].command})"
    return f"{len(rows)} processes"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _list(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:5]))
    return f"{shown} and {len(pids) - 5} more" if len(pids) > 5 else shown
