"""The result of an order in each process, in a line, and the exit code of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.formatting import duration, many
from django_pooled.stats.orders import REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django_pooled.poolstats.rows import PoolRow

    from .operator import Reply

__all__ = [
    "Result",
    "busy_words",
    "exit_code",
    "failures",
    "holders",
    "obeys",
    "results",
    "waiters",
]


class Result(NamedTuple):
    """What became of an order in one process, or in one of its pools."""

    level: Level
    who: str
    sentence: str


def results(reply: Reply, *, state: bool = True) -> list[Result]:
    """Return what became of an order, pool by pool, then the processes that did nothing.

    Args:
        reply: The answers.
        state: Whether to say what is in use too.
    """
    found = []
    for row in reply.rows:
        answer = reply.answer(row)
        if answer is not None:
            level = Level.WARNING if answer.outcome == REFUSED else Level.FINE
            more = f"; {busy_words([row])}" if state and not level else ""
            found.append(Result(level, _name(row), f"{answer.sentence}{more}"))
    return [*found, *failures(reply)]


def failures(reply: Reply) -> list[Result]:
    """Return the processes that did not obey at all, and what to do."""
    found = [
        Result(
            Level.WARNING,
            f"{report.pid} {report.command}",
            "takes no orders: it runs an earlier version of django_pooled. Restart it",
        )
        for report in reply.too_old
    ]
    found += [
        Result(Level.WARNING, f"{report.pid} {report.command}", f"refused: {why}")
        for report, why in reply.refused
    ]
    found += [
        Result(
            Level.WARNING,
            str(pid),
            "does not answer: stopped, or too busy. Continue it (kill -CONT), or end it",
        )
        for pid in reply.silent
    ]
    found += [Result(Level.WARNING, "", problem) for problem in reply.collection.problems]
    return found


def busy_words(rows: Iterable[PoolRow]) -> str:
    """Say how many connections are in use, and who holds the longest."""
    rows = list(rows)
    number = sum(row.pool.lent for row in rows)
    if not number:
        return "nothing in use"
    named = holders(rows)
    return f"{number} in use{', the longest ' + named if named else ''}"


def holders(rows: Iterable[PoolRow]) -> str:
    """Name the longest holder: "for 3.4 s by votes.views.cast"."""
    held = [
        (connection["since"], connection["by"] or connection["where"] or "")
        for row in rows
        for connection in row.pool.connections
        if connection["state"] != "idle"
    ]
    if not held:
        return ""
    since, who = max(held)
    return f"for {duration(since)}{f' by {who}' if who else ''}"


def exit_code(found: Iterable[Result], reply: Reply) -> int:
    """Return 0 if all was done, 1 if not everywhere or not yet, 2 if no pool has obeyed."""
    if not any(result.level for result in found):
        return 0
    return 1 if any(obeys(reply, row) for row in reply.rows) else 2


def obeys(reply: Reply, row: PoolRow) -> bool:
    """Tell whether a pool has obeyed."""
    answer = reply.answer(row)
    return answer is not None and answer.outcome != REFUSED


def _name(row: PoolRow) -> str:
    return f'{row.process.pid} {row.process.command} "{row.pool.alias}"'


def waiters(rows: Iterable[PoolRow]) -> str:
    """Say how many threads wait."""
    rows = list(rows)
    number = sum(row.pool.waiting for row in rows)
    waits = [row.pool.longest_waiting or 0.0 for row in rows if row.pool.waiting]
    longest = f", the longest for {duration(max(waits))}" if waits else ""
    return f"{many(number, 'waiter')}{longest}"
