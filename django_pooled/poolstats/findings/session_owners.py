"""Names for the owner of a session: a view or task of the site, or another program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import PoolRow
    from django_pooled.poolstats.server.sessions import Session
    from django_pooled.poolstats.server.view import ServerView
    from django_pooled.stats.snapshot import ConnectionFigures

__all__ = ["name_connection", "name_process", "name_session", "root_of"]


def name_process(rows: Iterable[PoolRow]) -> str:
    """Name the process of these pools, or say how many there are."""
    names = dict.fromkeys(f"process {row.process.pid} ({row.process.command})" for row in rows)
    return next(iter(names)) if len(names) == 1 else f"{len(names)} processes"


def name_connection(connection: ConnectionFigures) -> str:
    """Name the view or line of code that has a connection in use: " by votes.views.cast"."""
    user = connection["by"] or connection["where"]
    return f" by {user}" if user else ""


def name_session(overview: Overview, server: ServerView, pid: int) -> str:
    """Name a session and its owner, with its state if it holds others up while idle."""
    if pid == 0:
        return "a prepared transaction"
    session = server.session(pid)
    if session is None:
        return f"session {pid}"
    if owner := overview.owner(pid):
        row, connection = owner
        name = f"session {pid}{name_connection(connection)} in {name_process([row])}"
    else:
        name = f'session {pid} ("{session.application_name}")'
    if session.asks_nothing and session.since is not None:
        return f"{name}, {session.state} for {duration(session.since)}"
    return name


def root_of(server: ServerView, session: Session) -> int | None:
    """Return the session at the end of the queue for a lock, which waits for none itself.

    None where that is not known, or they wait for each other.
    """
    seen: set[int] = set()
    found: Session | None = session
    while found is not None and found.is_blocked:
        if found.pid in seen or not found.blocked_by:
            return None
        seen.add(found.pid)
        first = found.blocked_by[0]
        found = server.session(first)
        if found is None:
            return first
    return None if found is None else found.pid
