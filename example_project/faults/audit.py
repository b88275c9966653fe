"""What the table itself says of the votes that were sent, by a connection of no pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dj_database_url
import psycopg
from django.db.utils import ConnectionHandler

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID


@dataclass(frozen=True)
class Findings:
    """One look at the table, by one snapshot."""

    rows: dict[UUID, int]
    """How many rows each of the tokens has, without those that have none."""
    tallies: dict[str, int]
    """What is kept beside the votes, for each candidate."""
    counted: dict[str, int]
    """What that should be: all votes there are, counted one by one."""

    @property
    def doubled(self) -> int:
        """Votes that count more than once, be it as rows or in a tally."""
        twice = sum(count - 1 for count in self.rows.values())
        return twice + sum(max(0, n - self.counted[who]) for who, n in self.tallies.items())


def connect(url: str) -> psycopg.Connection[Any]:
    """Connect to the site's database as Django would, but directly.

    Raises:
        psycopg.OperationalError: It can't be had.
    """
    settings = dj_database_url.parse(url, engine="django.db.backends.postgresql")
    parameters = ConnectionHandler({"default": {**settings}})["default"].get_connection_params()
    parameters |= {"connect_timeout": 2, "application_name": "serve"}
    return psycopg.connect(**parameters)


def look(connection: psycopg.Connection[Any], tokens: Iterable[UUID]) -> Findings:
    """Look for the votes with these tokens, and count all others for the tallies.

    Raises:
        psycopg.OperationalError: The connection was lost.
    """
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    with connection.transaction():
        rows = connection.execute(
            "SELECT token, count(*) FROM votes_vote WHERE token = ANY(%s) GROUP BY token",
            [list(tokens)],
        ).fetchall()
        both = connection.execute(
            "SELECT candidate, t.count, count(v.id) FROM votes_tally t "
            "LEFT JOIN votes_vote v USING (candidate) GROUP BY candidate, t.count"
        ).fetchall()
    return Findings(
        dict(rows),
        {who: tally for who, tally, _ in both},
        {who: counted for who, _, counted in both},
    )


def end_sessions(connection: psycopg.Connection[Any], names: list[str]) -> int:
    """End the sessions of these names with pg_terminate_backend, and return how many there were.

    Raises:
        psycopg.Error: The connection was lost, or the role may not do that.
    """
    ended = connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = ANY(%s) AND datname = current_database()",
        [names],
    )
    return len(ended.fetchall())
