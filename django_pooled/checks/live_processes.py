"""The processes that have a pool at this moment, with the most connections each may open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.poolstats.processes.collect import collect
from django_pooled.stats.names import session_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django_pooled.pool.options import PoolOptions

__all__ = ["live_processes"]

PATIENCE = 0.5
"""Seconds for processes that do not answer; the others take milliseconds."""


def live_processes(
    alias: str, server: str, options: PoolOptions, sessions: Iterable[str]
) -> dict[str, int]:
    """Return ``max_size`` by process; those of this host are asked, others have the same as here.

    Args:
        alias: Key of the database in ``settings.DATABASES``.
        server: Where the pools of this database lead to, as they name it.
        options: The options in this process's settings.
        sessions: Names of sessions that PostgreSQL sees in this database.
    """
    found = dict.fromkeys(sessions, options.max_size)
    if isinstance(options.stats_dir, bool):
        return found
    for report in collect(options.stats_dir, PATIENCE).reports:
        for pool in report.pools:
            if (pool.alias, pool.server) == (alias, server):
                # At most one, but while settings change.
                found[session_name(report.pid, report.host)] = pool.max_size
    return found
