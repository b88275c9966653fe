"""What is wrong with a server and its sessions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import duration, kinds, many

from .finding import Finding, Level
from .pooler_findings import of_pooler
from .session_owners import name_session, root_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.server.view import ServerView

__all__ = ["of_server"]

LONG_TRANSACTION = 60.0
"""Seconds after which a session that idles in its transaction is reported."""

LONG_BLOCK = 5.0
"""Seconds after which a session that waits for a lock is reported."""

SCARCE = 0.1
"""Share of max_connections below which the free ones are called scarce."""


def of_server(overview: Overview, name: str, server: ServerView) -> Iterator[Finding]:
    """Yield what is wrong with a server, on which the quoted databases are, or worth a note."""
    yield from of_pooler(name, server)
    if server.waits_in_pooler:
        return
    if server.error is not None:
        what = server.error
        if server.seen_by:
            # The server's words say no more, and are in the finding of failed connects.
            what = f"{_room_words(server)}{_most(server)} (seen by {server.seen_by})."
        sentence = f"The database {name} {server.failure}: {what}"
        yield Finding(Level.CRITICAL, sentence, "away", "database")
        return
    yield from _room(overview, name, server)
    yield from _idle_in_transaction(overview, name, server)
    yield from _blocked(overview, name, server)
    if server.pooler:
        sentence = (
            f"A pooler stands before the server of {name}: it is unknown which of its "
            f"sessions serves which connection or process."
        )
        yield Finding(Level.FINE, sentence, "pooler")
    else:
        yield from _unreachable(overview, server)


def _room(overview: Overview, name: str, server: ServerView) -> Iterator[Finding]:
    room = _room_words(server)
    if server.free < SCARCE * server.max_connections:
        if server.free:
            level, what = Level.WARNING, f"has room for {server.free} more connections"
        else:
            level, what = Level.CRITICAL, "is full (53300)"
        sentence = f"The server of {name} {what}: {room}{_most(server)}."
        yield Finding(level, sentence, "room", "database")
        return
    growth = sum(
        row.pool.max_size - row.pool.size
        for group in overview.groups
        if f'"{group.alias}"' in name and not group.foreign
        for row in group.rows
    )
    if growth > server.free and not server.pooler:
        sentence = (
            f"The pools of {name} may open {growth} more connections, "
            f"and its server has room for {server.free}."
        )
        yield Finding(Level.FINE, sentence, "room", "pool")


def _room_words(server: ServerView) -> str:
    room = f"{server.used} of {server.max_connections} connections are used"
    return f"{room} and {server.reserved} reserved" if server.reserved else room


def _most(server: ServerView) -> str:
    """Name the hosts and programs with most sessions."""
    ours = {f"by processes on {host}": sessions for host, (_, sessions) in server.hosts.items()}
    others = {f'by "{name or "unnamed"}"': count for name, count in server.others.items()}
    found = sorted((ours | others).items(), key=lambda pair: -pair[1])[:3]
    return f", {kinds(dict(found))}" if found else ""


def _idle_in_transaction(overview: Overview, name: str, server: ServerView) -> Iterator[Finding]:
    age = server.longest_idle_in_transaction
    if age is None or age <= LONG_TRANSACTION:
        return
    idle = [session for session in server.sessions if session.idles_in_transaction]
    sentence = f"A session on the server of {name} idles in its transaction for {duration(age)}"
    if idle:
        oldest = max(idle, key=lambda session: session.transaction or 0.0)
        sentence += f": {name_session(overview, server, oldest.pid)}"
    yield Finding(Level.WARNING, f"{sentence}.", "idle in transaction", "application")


def _blocked(overview: Overview, name: str, server: ServerView) -> Iterator[Finding]:
    blocked = [session for session in server.sessions if session.is_blocked]
    oldest = max(blocked, key=lambda session: session.since or 0.0, default=None)
    if oldest is None or (oldest.since or 0.0) < LONG_BLOCK:
        return
    wait = "waits for a lock" if len(blocked) == 1 else "wait for locks, the longest"
    what = f"{many(len(blocked), 'session')} on the server of {name} {wait}"
    sentence = f"{what} for {duration(oldest.since)}"
    trouble = "database"
    if (root := root_of(server, oldest)) is not None:
        sentence += f", behind {name_session(overview, server, root)}"
        holder = server.session(root)
        if holder is not None and holder.asks_nothing:
            trouble = "application"
    yield Finding(Level.WARNING, f"{sentence}.", "blocked", trouble)


def _unreachable(overview: Overview, server: ServerView) -> Iterator[Finding]:
    if hosts := Counter(group.host for group in overview.unreachable(server)):
        number = many(sum(hosts.values()), "more process", "more processes")
        named = ", ".join(
            f"{count} on {'this host' if host == overview.host else host}"
            for host, count in hosts.most_common(4)
        )
        rest = f", and {len(hosts) - 4} other hosts" if len(hosts) > 4 else ""
        sentence = f"PostgreSQL sees {number} that this command cannot reach ({named}{rest})."
        yield Finding(Level.FINE, sentence, "unreachable")
