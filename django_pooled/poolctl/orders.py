"""The orders of the command, each from the first question to the last line and the exit code."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.formatting import brief, many
from django_pooled.stats.orders import REFUSED

from .results import Result, busy_words, exit_code, failures, holders, obeys, results, waiters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django_pooled.poolstats.rows import PoolRow

    from .console import Console
    from .operator import Operator, Reply

__all__ = [
    "Refused",
    "check_length",
    "drain",
    "pause",
    "require_processes",
    "reset_stats",
    "resize",
    "resume",
]

STEP = 0.1
"""Seconds between two looks at the processes."""

NOBODY = (
    "No process with an open pool could be reached. Run the command as the user that runs the "
    "site, in its container: manage.py poolstats says where it looked."
)

NO_SUCH_PROCESS = (
    "Process {pid} has no open pool of this site, or can't be reached: manage.py poolstats "
    "--processes lists those that can."
)


class Refused(Exception):
    """Nothing was done; the message says why, and what to do.

    Args:
        message: For the operator.
        code: The exit code.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def require_processes(reply: Reply) -> list[PoolRow]:
    """Return the pools that were reached.

    Raises:
        Refused: There are none.
    """
    rows = reply.rows
    if not rows:
        told = [f"{it.who} {it.sentence}.".strip() for it in failures(reply)]
        nobody = NOBODY if reply.pid is None else NO_SUCH_PROCESS.format(pid=reply.pid)
        raise Refused(" ".join([nobody, *told]), code=3)
    return rows


def check_length(rows: Sequence[PoolRow], seconds: float, *, beyond_timeout: bool) -> None:
    """Refuse a pause that is longer than checkouts wait.

    Raises:
        Refused: Checkouts would fail in it.
    """
    shortest = min(rows, key=lambda row: row.pool.timeout).pool
    if seconds >= shortest.timeout and not beyond_timeout:
        raise Refused(
            f'A checkout of "{shortest.alias}" fails after {shortest.timeout:g} s (timeout), and '
            f"the pause may last {seconds:g} s: requests would fail. Say --for with less than "
            f"{shortest.timeout:g}, or --beyond-timeout to let them fail."
        )


def drain(operator: Operator, console: Console, *, wait: float) -> int:
    """Have all connections replaced, and show how far that is, for *wait* seconds at most."""
    given = reply = operator.give("drain")
    require_processes(reply)
    found = failures(reply)
    began, total = monotonic(), {row.pool.id: row.pool.to_replace or 0 for row in reply.rows}
    obeyed = {row.pool.id for row in reply.rows if obeys(reply, row)}
    while (left := _left(reply)) and monotonic() < began + wait:
        told = f"draining: {left} of {many(sum(total.values()), 'connection')} left"
        console.progress(f"{told}{_trouble(reply)}")
        time.sleep(STEP)
        reply = operator.look()
    for row in reply.rows:
        if row.pool.id not in obeyed:
            continue
        who = f'{row.process.pid} {row.process.command} "{row.pool.alias}"'
        all_of_it, rest = total.get(row.pool.id, 0), row.pool.to_replace or 0
        if not rest:
            found.append(Result(Level.FINE, who, f"{many(all_of_it, 'connection')} replaced"))
            continue
        named = holders([row])
        why = f"in use, the longest {named}" if named else "not replaced yet"
        found.append(
            Result(
                Level.WARNING,
                who,
                f"{rest} of {all_of_it} left, {why}: each is replaced as it comes back"
                f"{_trouble(reply, row)}",
            )
        )
    console.results(found)
    return exit_code(found, given)


def pause(
    operator: Operator, console: Console, *, seconds: float, wait: float, beyond_timeout: bool
) -> int:
    """Have checkouts wait, and wait until nothing is in use, for *wait* seconds at most."""
    rows = require_processes(operator.look())
    check_length(rows, seconds, beyond_timeout=beyond_timeout)
    for row in rows:
        if row.pool.max_waiting:
            most = many(row.pool.max_waiting, "waiter")
            console.say(f'"{row.pool.alias}" refuses checkouts beyond {most} (max_waiting).')
            break
    try:
        return _pause(operator, console, seconds=seconds, wait=wait)
    except BaseException:
        # Some may be paused though not all have answered yet.
        operator.give("resume")
        raise


def _pause(operator: Operator, console: Console, *, seconds: float, wait: float) -> int:
    ends = datetime.now().astimezone() + timedelta(seconds=seconds)
    until = monotonic() + min(wait, seconds)
    given = reply = operator.give("pause", seconds=seconds)
    while any(row.pool.lent for row in _paused(reply)) and monotonic() < until:
        console.progress(f"pausing: {busy_words(_paused(reply))}; {waiters(reply.rows)}")
        time.sleep(STEP)
        reply = operator.look()
    found = failures(given)
    for row in given.rows:
        answer = given.answer(row)
        if answer is not None:
            now = [it for it in reply.rows if it.pool.id == row.pool.id]
            level = Level.WARNING if answer.outcome == REFUSED or any_lent(now) else Level.FINE
            who = f'{row.process.pid} {row.process.command} "{row.pool.alias}"'
            found.append(Result(level, who, f"{answer.sentence}; {busy_words(now)}"))
    console.results(found)
    if any(given.answer(row) is not None for row in given.rows):
        console.say(
            f"They resume by themselves at {ends:%H:%M:%S}; manage.py poolctl resume ends it."
        )
    return exit_code(found, given)


def any_lent(rows: Sequence[PoolRow]) -> bool:
    """Tell whether any connection is in use."""
    return any(row.pool.lent for row in rows)


def resume(operator: Operator, console: Console) -> int:
    """End any pause."""
    reply = operator.give("resume", own=False)
    require_processes(reply)
    found = results(reply)
    console.results(found)
    return exit_code(found, reply)


def reset_stats(operator: Operator, console: Console) -> int:
    """Have the figures begin at 0."""
    reply = operator.give("reset-stats")
    require_processes(reply)
    found = results(reply, state=False)
    console.results(found)
    return exit_code(found, reply)


def resize(operator: Operator, console: Console, *, min_size: int, max_size: int) -> int:
    """Have other sizes until the processes end."""
    reply = operator.give("resize", min_size=min_size, max_size=max_size)
    require_processes(reply)
    found = results(reply)
    console.results(found)
    console.say("It lasts until a process ends: those that start later have the settings' sizes.")
    return exit_code(found, reply)


def _left(reply: Reply) -> int:
    return sum(row.pool.to_replace or 0 for row in reply.rows)


def _paused(reply: Reply) -> list[PoolRow]:
    return [row for row in reply.rows if row.pool.paused]


def _trouble(reply: Reply, only: PoolRow | None = None) -> str:
    """Say that connecting fails, where it does."""
    for row in [only] if only is not None else reply.rows:
        if row.pool.to_replace and row.pool.last_error and row.pool.connected_again_age is None:
            return f"; connecting fails: {brief(row.pool.last_error)}"
    return ""
