"""What is used of psycopg's private parts is as it was; a failure here names what to look at."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.string import StrBinaryDumper, TextLoader

from django_pooled.pool import psycopg_private
from django_pooled.pool.connection import PooledConnection
from tests.support.references import needs_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer


@pytest.fixture
def connection(server: EmbeddedServer) -> Iterator[PooledConnection]:
    made = PooledConnection.connect(**server.parameters("postgres"), autocommit=True)
    yield made
    made.close()


def test_a_session_goes_on_with_a_new_object_and_the_old_one_is_closed(
    connection: PooledConnection,
) -> None:
    connection._created_at, connection._expire_at = 1.0, 2.0
    connection.prepare_threshold = 0
    connection.remember_configuration()
    cursor = psycopg.Cursor(connection)
    cursor.execute("SELECT 1")
    prepared = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    new = connection.renewed()
    try:
        assert connection.closed
        assert not connection.broken
        assert (new._created_at, new._expire_at, new.autocommit) == (1.0, 2.0, True)
        # psycopg knows what the session has prepared already.
        assert new.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == prepared
        assert new.session is connection.session
        connection.close()
        assert new.execute("SELECT 1").fetchone() == (1,)
    finally:
        new.close()


def test_notices_reach_the_object_that_is_in_use(connection: PooledConnection) -> None:
    connection.remember_configuration()
    new = connection.renewed()
    seen: list[str | None] = []
    new.add_notice_handler(lambda diagnostic: seen.append(diagnostic.message_primary))
    new.execute("DO $$ BEGIN RAISE NOTICE 'here'; END $$")
    new.close()
    assert seen == ["here"]


def test_a_question_is_run_while_psycopg_holds_its_lock(connection: PooledConnection) -> None:
    connection.autocommit = False
    with connection.lock:
        (answer,) = connection.ask("SELECT 6", locked=True)
    assert answer.get_value(0, 0) == b"6"
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    with pytest.raises(psycopg.errors.UndefinedTable):
        connection.ask("SELECT * FROM nowhere")
    connection.rollback()


def test_a_cursor_can_be_moved_to_another_connection(
    connection: PooledConnection, server: EmbeddedServer
) -> None:
    other = PooledConnection.connect(**server.parameters("postgres"), autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        psycopg_private.move_cursor(cursor, other)
        assert cursor.fetchone() == (connection.info.backend_pid,)
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() == (other.info.backend_pid,)
    other.close()


def test_a_pipeline_is_noticed(connection: PooledConnection) -> None:
    assert not psycopg_private.is_piping(connection)
    with connection.pipeline():
        assert psycopg_private.is_piping(connection)


def test_prepared_statements_that_are_gone_are_forgotten(connection: PooledConnection) -> None:
    connection.prepare_threshold = 0
    psycopg.Cursor(connection).execute("SELECT 7")
    psycopg.ClientCursor(connection).execute("DISCARD ALL")
    psycopg_private.forget_prepared(connection)
    assert not connection._prepared._names
    assert not connection._prepared._to_flush
    for _ in range(2):
        assert psycopg.Cursor(connection).execute("SELECT 7").fetchone() == (7,)


def came_back(connection: PooledConnection) -> PooledConnection:
    """Return the object that a pool makes of one that came back."""
    connection._pool = None
    connection.remember_configuration()
    return connection.renewed()


CHANGES: dict[str, Callable[[PooledConnection], object]] = {
    "row factory": lambda made: setattr(made, "row_factory", dict_row),
    "cursor factory": lambda made: setattr(made, "cursor_factory", psycopg.RawCursor),
    "autocommit": lambda made: setattr(made, "autocommit", False),
    "isolation level": lambda made: setattr(made, "isolation_level", 4),
    "read only": lambda made: setattr(made, "read_only", True),
    "loader": lambda made: made.adapters.register_loader("int4", TextLoader),
    "dumper": lambda made: made.adapters.register_dumper(str, StrBinaryDumper),
    "type": lambda made: made.adapters.types.add(TypeInfo("mood", 70_001, 70_002)),
    "notice handler": lambda made: made.add_notice_handler(print),
    "notify handler": lambda made: made.add_notify_handler(print),
    "notification": lambda made: made.execute("LISTEN here; NOTIFY here"),
    "attribute": lambda made: setattr(made, "tenant", "acme"),
}


def values_of(connection: PooledConnection) -> list[object]:
    """Return what the checkin compares; the last two go by the way of `as_made`."""
    as_made = connection.as_made
    assert as_made is not None
    return [*vars(connection).values(), *as_made.adapters.values(), *as_made.types.values()]


@needs_counts
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_connection_object_is_seen(connection: PooledConnection, change: str) -> None:
    made = came_back(connection)
    try:
        as_made = made.as_made
        assert as_made is not None
        with made.transaction(), made.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert values_of(made) == as_made.values
        CHANGES[change](made)
        assert values_of(made) != as_made.values
    finally:
        made.close()


@needs_counts
def test_a_closed_cursor_parts_from_its_connection_and_tells_its_statement(
    connection: PooledConnection,
) -> None:
    cursor = psycopg.ClientCursor(connection)
    cursor.execute("SELECT %s", [7])
    cursor.close()
    held = sys.getrefcount(connection)
    psycopg_private.part(cursor)
    # By itself, by its adaptation, and by that of its statement.
    assert sys.getrefcount(connection) == held - 2
    assert cursor._query is not None
    assert cursor._query.query == b"SELECT 7"
    assert cursor.connection.closed
    with pytest.raises(psycopg.InterfaceError, match="the cursor is closed"):
        cursor.fetchone()
