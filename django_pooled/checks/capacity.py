"""Compares the connections that all processes may open with the server's limits: W010."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from django_pooled.pool.options import PoolOptions

    from .declared_processes import Workers
    from .server_facts import ServerFacts

__all__ = ["Limit", "Neighbour", "check_capacity", "limits_of"]


class Neighbour(NamedTuple):
    """A pooled database on the same server; the one that is checked is one, too."""

    alias: str
    options: PoolOptions
    same_role: bool
    same_database: bool


class Limit(NamedTuple):
    """A limit on the connections of several databases together."""

    words: str
    connections: int
    databases: dict[str, PoolOptions]
    """The databases whose pools it limits."""


class Demand(NamedTuple):
    """Connections that pools may come to need."""

    words: str
    connections: int


def check_capacity(
    alias: str,
    limits: Sequence[Limit],
    workers: Sequence[Workers],
    live: Mapping[str, int],
) -> list[CheckMessage]:
    """Compare each limit with what is known of processes.

    What the settings of one host or container say, and the processes that run now on all of
    them: the larger counts. Where neither is known, one process has to fit.
    """
    messages: list[CheckMessage] = []
    for limit in limits:
        demand = max(
            _of_one(limit), _of_workers(limit, workers), _of_live(alias, limit, live),
            key=lambda demand: demand.connections,
        )  # fmt: skip
        if demand.connections > limit.connections:
            messages.append(
                CheckWarning(
                    f"DATABASES[{alias!r}]: {demand.words} may open {demand.connections} "
                    f"connections, and {limit.words}.",
                    hint="Lower max_size or the number of processes, or raise the limit. "
                    "Migrations, people and the processes of the next release connect, too.",
                    id="django_pooled.W010",
                )
            )
    return messages


def limits_of(facts: ServerFacts, neighbours: Sequence[Neighbour]) -> list[Limit]:
    """Return the server's, the role's and the database's limit, those that there are."""
    everything = {other.alias: other.options for other in neighbours}
    admitted = facts.max_connections - facts.reserved
    words = f"the server admits {admitted} (max_connections is {facts.max_connections}"
    words += f", {facts.reserved} of them reserved)" if facts.reserved else ")"
    limits = [Limit(words, admitted, everything)]
    if facts.role_limit is not None:
        words = f"the role {facts.role!r} may have {facts.role_limit} (its CONNECTION LIMIT)"
        mine = {other.alias: other.options for other in neighbours if other.same_role}
        limits.append(Limit(words, facts.role_limit, mine))
    if facts.database_limit is not None:
        words = f"the database {facts.database!r} admits {facts.database_limit} "
        words += "(its CONNECTION LIMIT)"
        mine = {other.alias: other.options for other in neighbours if other.same_database}
        limits.append(Limit(words, facts.database_limit, mine))
    return limits


def _of_one(limit: Limit) -> Demand:
    sizes = [options.max_size for options in limit.databases.values()]
    return Demand(f"one process, with max_size {_sum(sizes)},", sum(sizes))


def _of_workers(limit: Limit, workers: Sequence[Workers]) -> Demand:
    total = sum(
        each.processes * each.connections(options)
        for each in workers
        for options in limit.databases.values()
    )
    parts = [f"{_count(each.processes)} ({each.source})" for each in workers]
    return Demand(" and ".join(parts), total)


def _of_live(alias: str, limit: Limit, live: Mapping[str, int]) -> Demand:
    others = sum(options.max_size for other, options in limit.databases.items() if other != alias)
    total = sum(size + others for size in live.values())
    return Demand(f"{_count(len(live))} with a pool, as there are now,", total)


def _sum(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))


def _count(number: int) -> str:
    return f"{number} process{'' if number == 1 else 'es'}"
