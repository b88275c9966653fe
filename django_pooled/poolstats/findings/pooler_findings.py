"""Whether the pooler before a server, such as PgBouncer, has run out of server connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import duration, many

from .finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.rows import Group
    from django_pooled.poolstats.server.pgbouncer_console import PoolerQueue
    from django_pooled.poolstats.server.view import ServerView

__all__ = ["given_up", "has_none_free", "of_pooler"]

BRIEF, LONG = 0.1, 1.0
"""Seconds that the oldest client waits: nothing below the first, critical from the second on."""


def of_pooler(name: str, server: ServerView) -> Iterator[Finding]:
    """Yield what its console says of a pooler, or a query that it has let wait."""
    if not has_none_free(server):
        return
    queue = server.queue
    if queue is None:
        waited = (
            f"and their queries wait ({server.error})"
            if server.pooler_wait is None
            else f"and a query waited {duration(server.pooler_wait)} for one"
        )
        sentence = (
            f"The pooler of {name} has no free server connection, as it seems: it lets clients in, "
            f"{waited}."
        )
        yield Finding(Level.CRITICAL, sentence, "pooler full", "database")
        return
    clients = many(queue.waiting, "client waits", "clients wait")
    end = f"{clients}, the longest for {duration(queue.longest_waiting)}."
    if queue.active + queue.idle:
        used = "the only one is" if queue.pool_size == 1 else f"{_used(queue)} are"
        sentence = f"PgBouncer of {name} has no free server connection: {used} in use, {end}"
    else:
        sentence = f"PgBouncer of {name} can't connect to its server: {end}"
    level = Level.CRITICAL if queue.longest_waiting >= LONG else Level.WARNING
    yield Finding(level, sentence, "pooler full", "database")


def has_none_free(server: ServerView) -> bool:
    """Tell whether clients of a pooler wait for a server connection."""
    queue = server.queue
    if queue is None:
        return server.waits_in_pooler or server.pooler_wait is not None
    return bool(queue.waiting) and queue.longest_waiting >= BRIEF


def given_up(group: Group, seconds: float | None) -> Iterator[Finding]:
    """Yield the statements that a pooler gave up lately."""
    # Counted since the pool was opened, they may be long over.
    if seconds is not None and (number := group.counters.pooler_timeouts):
        sentence = (
            f'{many(number, "statement")} on "{group.name}" failed in the last '
            f"{duration(seconds)}: its pooler had no free server connection (query_wait_timeout)."
        )
        yield Finding(Level.CRITICAL, sentence, "pooler full", "database")


def _used(queue: PoolerQueue) -> str:
    if queue.active >= queue.pool_size:
        return f"all {queue.pool_size}"
    return f"{queue.active} of {queue.pool_size}"
