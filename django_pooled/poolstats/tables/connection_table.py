"""The connections of the pools as a table, each with its session on the server."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from django_pooled.poolstats.findings.session_owners import name_session
from django_pooled.poolstats.formatting import cut, cut_left, duration, many

if TYPE_CHECKING:
    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import PoolRow
    from django_pooled.poolstats.server.sessions import Session
    from django_pooled.stats.snapshot import ConnectionFigures

__all__ = ["lines"]

_COLUMNS = (
    ("process", 7),
    ("backend", 7),
    ("state", -9),
    ("for", 6),
    ("age", 6),
    ("session on the server", -26),
)
"""Heading and width; the rest of the line tells what has the connection in use."""

_FIXED = sum(abs(width) + 1 for _, width in _COLUMNS)


def lines(overview: Overview, width: int) -> list[str]:
    """Lay the connections of each database out: those in use first, the longest before all."""
    found = []
    for group in overview.groups:
        connections = sorted(
            ((row, connection) for row in group.rows for connection in row.pool.connections),
            key=lambda pair: (pair[1]["state"] == "idle", -pair[1]["since"]),
        )
        found.append(cut(f'"{group.name}": {_sum(connections)}', width))
        if connections:
            found.append(_line([name for name, _ in _COLUMNS], "in use by"))
        for row, connection in connections:
            found += _connection(overview, row, connection, width)
    return found


def _sum(connections: list[tuple[PoolRow, ConnectionFigures]]) -> str:
    if not connections:
        return "no connections"
    states = Counter(connection["state"] for _, connection in connections)
    parts = [f"{number} {state}" for state, number in states.items()]
    return f"{many(len(connections), 'connection')}, {', '.join(parts)}"


def _connection(
    overview: Overview, row: PoolRow, connection: ConnectionFigures, width: int
) -> list[str]:
    session = overview.session(row, connection)
    cells = [
        str(row.process.pid),
        str(overview.backend_pid(row, connection) or "-"),
        connection["state"],
        duration(connection["since"]),
        duration(connection["age"]),
        _session_state(session),
    ]
    by, where = connection["by"], connection["where"]
    found = [_line(cells, cut_left(by or where or "", max(0, width - _FIXED)))]
    more = []
    if session is not None and session.blocked_by:
        server = next(it for it in overview.servers if it.session(session.pid) is session)
        more.append(f"behind {name_session(overview, server, session.blocked_by[0])}")
    if by and where and _is_code_of(by, where):
        more.append(f"at {where}")
    if connection["statement"]:
        more.append(f"runs {connection['statement']}")
    if connection["pinned_by"]:
        more.append(f"kept by {connection['pinned_by']}")
    if connection["doomed_by"]:
        more.append(f"will be closed: {connection['doomed_by']}")
    if more:
        found.append(" " * 16 + cut("; ".join(more), width - 16))
    return found


def _is_code_of(by: str, where: str) -> bool:
    """Whether a line is the view's own code; a server's or another library's says little."""
    package, dot, _ = by.rpartition(" ")[2].partition(".")
    return not dot or where.startswith(f"{package}.")


def _session_state(session: Session | None) -> str:
    if session is None:
        return "-"
    state = (session.wait or session.state).replace(": ", ":")
    return f"{cut(state, 19)} {duration(session.since)}"


def _line(cells: list[str], who: str) -> str:
    laid_out = [
        f"{cut(cell, -width):<{-width}}" if width < 0 else f"{cut(cell, width):>{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    ]
    return " ".join([*laid_out, who]).rstrip()
