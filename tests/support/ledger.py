"""A table that threads write rows into, to compare what was acknowledged with what is there."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import connections

from django_pooled import Backoff, retry_transaction
from tests.support.pools import snapshot_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.stats.snapshot import PoolSnapshot
    from embedded_postgres import EmbeddedServer

__all__ = ["QUICK", "THREADS", "Ledger"]

QUICK = Backoff(initial=0.01, maximum=0.2)
THREADS = 3


class Ledger:
    """A database with one table, and threads that write rows into it.

    Each row is one call under ``retry_transaction``; what returned is acknowledged.

    Args:
        alias: The database, as Django reaches it.
        server: The one that has the table, to be asked past all that is before it.
    """

    def __init__(self, alias: str, server: EmbeddedServer) -> None:
        self.alias, self.server = alias, server
        self.acknowledged: list[int] = []
        self.failures: list[BaseException] = []
        self._numbers = itertools.count()
        self._over = threading.Event()
        self.ask("DROP TABLE IF EXISTS ledger", "CREATE TABLE ledger (number int)")

    def ask(self, *statements: str) -> list[Any]:
        """Ask the server itself."""
        with psycopg.connect(**self.server.parameters("postgres"), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def query(self, statement: str) -> Any:
        """Ask as Django does in this thread; return the first value of the answer."""
        with connections[self.alias].cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    def write(self, **arguments: Any) -> None:
        """Write a row, and note what became of it."""
        number = next(self._numbers)

        @retry_transaction(using=self.alias, **{"backoff": QUICK, "max_attempts": 200, **arguments})
        def insert() -> None:
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SELECT count(*) FROM ledger WHERE number = %s", [number])
                found = cursor.fetchall()
                assert found == [(0,)], f"{number} is there before it was written: {found}"
                cursor.execute("INSERT INTO ledger VALUES (%s)", [number])

        try:
            insert()
        except Exception as error:
            self.failures.append(error)
        else:
            self.acknowledged.append(number)
        finally:
            connections[self.alias].close()

    def _keep_writing(self, arguments: dict[str, Any]) -> None:
        while not self._over.is_set():
            self.write(**arguments)

    @contextmanager
    def load(self, **arguments: Any) -> Iterator[None]:
        """Have threads write rows before, during and after the block."""
        threads = [
            threading.Thread(target=self._keep_writing, args=(arguments,)) for _ in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_more()
            yield
            self.wait_for_more()
        finally:
            self._over.set()
            for thread in threads:
                thread.join(20.0)

    def wait_for_more(self) -> None:
        """Wait until more rows are acknowledged, by all threads as a rule."""
        enough = len(self.acknowledged) + 10 * THREADS
        wait_until(lambda: len(self.acknowledged) >= enough, 20.0, f"more rows: {self.failures}")

    @property
    def rows(self) -> list[int]:
        """What is in the table."""
        return sorted(self.ask("SELECT number FROM ledger"))

    @property
    def pool(self) -> PoolSnapshot:
        """The database's pool in this process."""
        return snapshot_of(self.alias)
