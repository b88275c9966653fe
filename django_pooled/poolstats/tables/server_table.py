"""The servers in a few lines each: free connections, and sessions by state, host and program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import cut, duration, kinds, labelled, many

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.server.pgbouncer_console import PoolerQueue
    from django_pooled.poolstats.server.view import ServerView

__all__ = ["lines"]

MOST = 3
"""Hosts, and programs of others, that are named."""


def lines(overview: Overview, width: int) -> list[str]:
    """Describe each server that answered."""
    found = []
    for names, server in overview.servers_by_address:
        if server.error is None or server.seen_by:
            found.append(cut(_room(names, server), width))
            for label, text in _details(server):
                found += labelled(label, text, width)
        elif server.queue is not None:
            found.append(cut(f"PgBouncer of {names}", width))
            found += labelled("in PgBouncer", _queue(server.queue), width)
    return found


def _room(names: str, server: ServerView) -> str:
    standby = ", a standby" if server.standby else ""
    reserved = f", {server.reserved} reserved" if server.reserved else ""
    pooler = ", behind a pooler" if server.pooler else ""
    return (
        f"PostgreSQL {server.version}".strip() + f"{standby} of {names}{pooler}: {server.used} of "
        f"{server.max_connections} connections used, {server.free} free{reserved}"
    )


def _queue(queue: PoolerQueue) -> str:
    waits = many(queue.waiting, "client waits", "clients wait")
    if queue.waiting:
        waits += f", the longest for {duration(queue.longest_waiting)}"
    return f"{queue.active} of {queue.pool_size} in use, {queue.idle} idle; {waits}"


def _details(server: ServerView) -> Iterator[tuple[str, str]]:
    if server.queue is not None:
        yield "in PgBouncer", _queue(server.queue)
    age = server.longest_idle_in_transaction
    states = kinds(server.states) or "none"
    if age is not None:
        states += f"; oldest idle in transaction {duration(age)}"
    blocked = f"; {server.blocked} waiting for a lock" if server.blocked else ""
    if server.error is None:
        yield "sessions", f"{states}{blocked}"
    if server.hosts and not server.pooler:
        hosts = sorted(server.hosts.items(), key=lambda host: (-host[1][1], host[0]))
        parts = [
            f"{host} {many(processes, 'process', 'processes')} with {sessions}"
            for host, (processes, sessions) in hosts[:MOST]
        ]
        if len(hosts) > MOST:
            parts.append(f"{len(hosts) - MOST} more hosts")
        yield "by host", ", ".join(parts)
    if server.others:
        others = {name or "(no name)": count for name, count in server.others.items()}
        named = dict(list(others.items())[:MOST])
        rest = sum(list(others.values())[MOST:])
        yield "others", kinds({**named, **({"more": rest} if rest else {})})
