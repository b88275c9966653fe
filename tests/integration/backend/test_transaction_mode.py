"""``pool_mode="transaction"``: who holds a connection when, and that no state is handed on."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import DatabaseError, DataError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import atomic

from django_pooled import retry_transaction
from django_pooled.testing import fail_next_transaction, no_waiting
from tests.support.pools import snapshot_of
from tests.support.threads import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.base import DatabaseWrapper
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


@pytest.fixture
def database(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[Any]:
    """A wrapper whose pool has two connections, and a table "item" with 1 to 5 in it."""
    alias = make_database(server, pool_mode="transaction", max_size=2, timeout=5.0)
    wrapper = connections[alias]
    with wrapper.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS item; CREATE TABLE item (x int)")
        cursor.execute("INSERT INTO item SELECT generate_series(1, 5)")
    yield wrapper
    wrapper.close()
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP TABLE item")


def in_use(wrapper: DatabaseWrapper) -> int:
    pool = snapshot_of(wrapper.alias)
    return pool.in_use


def counters(wrapper: DatabaseWrapper) -> Any:
    pool = snapshot_of(wrapper.alias)
    return pool.counters


def ask(wrapper: Any, statement: str, *params: object) -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(statement, params or None)
        return cursor.fetchone()[0]


def test_a_statement_in_autocommit_leaves_no_connection_in_use(database: Any) -> None:
    with database.cursor() as cursor:
        assert in_use(database) == 1
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert in_use(database) == 0
        assert cursor.rowcount == 5
        assert cursor.description[0].name == "x"
        assert cursor.fetchone() == (1,)
        assert cursor.fetchmany(2) == [(2,), (3,)]
        assert list(cursor) == [(4,), (5,)]


def test_one_cursor_can_execute_again_and_again(database: Any) -> None:
    with database.cursor() as cursor:
        for number in range(3):
            cursor.execute("SELECT %s", [number])
            assert in_use(database) == 0
            assert cursor.fetchall() == [(number,)]
        cursor.executemany("INSERT INTO item VALUES (%s)", [[6], [7]])
        assert (cursor.rowcount, in_use(database)) == (2, 0)


def test_what_is_set_on_a_cursor_stays_with_it(database: Any) -> None:
    with database.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.cursor.arraysize = 3
        cursor.execute("SELECT x FROM item")
        assert len(cursor.fetchmany()) == 3


def test_a_cursor_that_is_closed_stays_closed(database: Any) -> None:
    with database.cursor() as cursor:
        cursor.execute("SELECT 1")
    with pytest.raises(Exception, match="the cursor is closed"):
        cursor.execute("SELECT 1")
    assert in_use(database) == 0


def test_a_cursor_without_a_statement_gives_its_connection_back_when_closed(database: Any) -> None:
    with database.cursor():
        assert in_use(database) == 1
    assert in_use(database) == 0


def test_a_statement_that_fails_gives_its_connection_back(database: Any) -> None:
    with pytest.raises(ProgrammingError), database.cursor() as cursor:
        cursor.execute("SELECT no_such_column")
    assert in_use(database) == 0
    assert ask(database, "SELECT 1") == 1


def test_a_connection_lost_in_a_statement_does_not_come_back(database: Any) -> None:
    pid = ask(database, "SELECT pg_backend_pid()")
    with pytest.raises(Exception, match="terminating connection"), database.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert ask(database, "SELECT pg_backend_pid()") != pid
    assert counters(database).discarded == 1


def test_a_transaction_holds_one_connection_to_its_end(database: Any) -> None:
    with atomic(using=database.alias):
        pid = ask(database, "SELECT pg_backend_pid()")
        assert in_use(database) == 1
        with atomic(using=database.alias):
            assert ask(database, "SELECT pg_backend_pid()") == pid
            ask(database, "SELECT x FROM item WHERE x = 1 FOR UPDATE")
        assert in_use(database) == 1
    assert in_use(database) == 0


def test_a_rolled_back_transaction_gives_its_connection_back(database: Any) -> None:
    def fails() -> None:
        with atomic(using=database.alias):
            ask(database, "SELECT 1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert in_use(database) == 0


def test_on_commit_callbacks_run_and_find_connections_of_their_own(database: Any) -> None:
    found: list[object] = []

    def callback() -> None:
        found.append(ask(database, "SELECT count(*) FROM item"))
        with atomic(using=database.alias):
            found.append(ask(database, "SELECT max(x) FROM item"))
            transaction.on_commit(lambda: found.append("inner"), using=database.alias)

    with atomic(using=database.alias):
        with database.cursor() as cursor:
            cursor.execute("INSERT INTO item VALUES (9)")
        transaction.on_commit(callback, using=database.alias)
        transaction.on_commit(lambda: found.append("second"), using=database.alias)
    assert found == [6, 9, "inner", "second"]
    assert in_use(database) == 0


def test_on_commit_outside_a_transaction_needs_no_connection(database: Any) -> None:
    before = counters(database).checkouts
    ran: list[bool] = []
    transaction.on_commit(lambda: ran.append(True), using=database.alias)
    assert ran == [True]
    assert counters(database).checkouts == before


def test_a_transaction_begun_by_hand_holds_its_connection(database: Any) -> None:
    with database.cursor() as cursor:
        cursor.execute("BEGIN")
        assert in_use(database) == 1
        cursor.execute("INSERT INTO item VALUES (6)")
        cursor.execute("ROLLBACK")
        assert in_use(database) == 0
    assert ask(database, "SELECT count(*) FROM item") == 5


def test_a_failed_transaction_begun_by_hand_is_held_until_it_is_ended(database: Any) -> None:
    with database.cursor() as cursor:
        cursor.execute("BEGIN")
        with pytest.raises(ProgrammingError):
            cursor.execute("SELECT no_such_column")
        assert in_use(database) == 1
        cursor.execute("ROLLBACK")
        assert in_use(database) == 0


def test_autocommit_switched_off_holds_a_connection_until_it_is_on_again(database: Any) -> None:
    transaction.set_autocommit(False, using=database.alias)
    ask(database, "SELECT 1")
    transaction.commit(using=database.alias)
    assert in_use(database) == 1
    assert not transaction.get_autocommit(using=database.alias)
    transaction.set_autocommit(True, using=database.alias)
    assert in_use(database) == 0


def test_a_server_side_cursor_holds_its_connection_until_it_is_closed(database: Any) -> None:
    with database.chunked_cursor() as cursor:
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert cursor.fetchmany(2) == [(1,), (2,)]
        assert in_use(database) == 1
        assert ask(database, "SELECT 1") == 1
        assert in_use(database) == 1
        assert list(cursor) == [(3,), (4,), (5,)]
    assert in_use(database) == 0


def test_a_server_side_cursor_in_a_transaction_leaves_it_open(database: Any) -> None:
    with atomic(using=database.alias):
        with database.chunked_cursor() as cursor:
            cursor.execute("SELECT x FROM item ORDER BY x")
            assert cursor.fetchone() == (1,)
        assert in_use(database) == 1
    assert in_use(database) == 0


def test_copy_holds_its_connection_until_its_block_ends(database: Any) -> None:
    with database.cursor() as cursor:
        with cursor.copy("COPY item FROM STDIN") as copy:
            copy.write_row([6])
            assert in_use(database) == 1
        assert in_use(database) == 0
        with cursor.copy("COPY item TO STDOUT") as copy:
            assert len(list(copy.rows())) == 6
        with pytest.raises(ZeroDivisionError), cursor.copy("COPY item FROM STDIN"):
            raise ZeroDivisionError
        assert in_use(database) == 0
    assert ask(database, "SELECT count(*) FROM item") == 6


def test_stream_holds_its_connection_until_the_last_row(database: Any) -> None:
    with database.cursor() as cursor:
        rows = cursor.stream("SELECT x FROM item ORDER BY x")
        assert next(rows) == (1,)
        assert in_use(database) == 1
        assert len(list(rows)) == 4
        assert in_use(database) == 0


def test_more_threads_than_connections_take_turns_within_a_request(database: Any) -> None:
    alias = database.alias
    all_asked = threading.Barrier(6)
    errors: list[BaseException] = []

    def request() -> None:
        try:
            wrapper = connections[alias]
            ask(wrapper, "SELECT 1")
            # In session mode two would hold the connections here, and the others wait in vain.
            all_asked.wait(10)
            ask(wrapper, "SELECT 2")
        except BaseException as error:
            errors.append(error)
        finally:
            connections[alias].close()

    at_once(request, 6)
    assert errors == []
    assert in_use(database) == 0


LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"


@pytest.mark.parametrize(
    ("statement", "state", "clean"),
    [
        ("SET statement_timeout TO '77s'", "SELECT current_setting('statement_timeout')", "0"),
        ("SELECT pg_advisory_lock(4711)", LOCKS, 0),
        ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()", 0),
        ("CREATE TEMP TABLE scratch ()", "SELECT to_regclass('pg_temp.scratch')::text", None),
        ("PREPARE question AS SELECT 1", PREPARED, 0),
    ],
)
def test_state_of_the_session_keeps_it_to_the_request_s_end_and_goes_no_further(
    database: Any, statement: str, state: str, clean: object
) -> None:
    pid = ask(database, "SELECT pg_backend_pid()")
    with database.cursor() as cursor:
        cursor.execute(statement)
    assert in_use(database) == 1
    assert ask(database, state) != clean
    assert ask(database, "SELECT pg_backend_pid()") == pid
    database.close()
    assert in_use(database) == 0
    assert ask(database, "SELECT pg_backend_pid()") == pid
    assert ask(database, state) == clean
    assert ask(database, "SELECT current_setting('TimeZone')") == "UTC"
    assert sum(counters(database).pinned.values()) == 1


def test_state_that_ends_with_its_transaction_keeps_nothing(database: Any) -> None:
    with atomic(using=database.alias):
        ask(database, "SELECT set_config('app.tenant', 'a', true)")
        ask(database, "SELECT pg_advisory_xact_lock(4711)::text")
    assert in_use(database) == 0
    assert not counters(database).pinned


def test_a_lost_commit_is_resolved_and_a_failed_attempt_restarted(database: Any) -> None:
    attempts = 0

    @retry_transaction(using=database.alias)
    def work() -> None:
        nonlocal attempts
        attempts += 1
        with database.cursor() as cursor:
            cursor.execute("INSERT INTO item VALUES (%s)", [100 + attempts])

    with (
        fail_next_transaction("40001", using=database.alias),
        fail_next_transaction(None, phase="answer", using=database.alias),
        no_waiting(),
    ):
        work()
    assert attempts == 2
    assert in_use(database) == 0
    assert ask(database, "SELECT array_agg(x)::text FROM item WHERE x > 100") == "{102}"


def test_characteristics_of_a_retried_transaction_are_not_handed_on(database: Any) -> None:
    @retry_transaction(using=database.alias, isolation_level=psycopg.IsolationLevel.SERIALIZABLE)
    def work() -> str:
        return str(ask(database, "SELECT current_setting('transaction_isolation')"))

    assert work() == "serializable"
    with atomic(using=database.alias):
        assert ask(database, "SELECT current_setting('transaction_isolation')") == "read committed"


def test_the_connection_of_a_cursor_can_be_asked_for(database: Any) -> None:
    with database.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert in_use(database) == 0
        assert cursor.connection.info.dbname == "postgres"
        assert in_use(database) == 1
    assert in_use(database) == 0


def test_a_receiver_of_connection_created_may_query(database: Any) -> None:
    seen: list[object] = []

    def receiver(connection: Any, **kwargs: object) -> None:
        if connection is database:
            seen.append(ask(connection, "SELECT count(*) FROM item"))

    connection_created.connect(receiver)
    try:
        with database.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert in_use(database) == 0
            cursor.execute("SELECT 2")
        with atomic(using=database.alias):
            ask(database, "SELECT 3")
    finally:
        connection_created.disconnect(receiver)
    assert seen == [5, 5, 5]
    assert in_use(database) == 0


def test_statements_within_ensure_connection_do_not_take_the_connection_from_the_cursor(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    ensure = database.ensure_connection

    def ensure_and_ask() -> None:
        is_new = database.connection is None
        ensure()
        if is_new:
            # As somebody's own backend may, at each new connection.
            seen.append(ask(database, "SELECT count(*) FROM item"))

    monkeypatch.setattr(database, "ensure_connection", ensure_and_ask)
    with database.cursor() as cursor:
        assert in_use(database) == 1
        cursor.execute("SELECT 1")
        assert (cursor.fetchone(), in_use(database)) == ((1,), 0)
        cursor.execute("SELECT 2")
        assert (cursor.fetchone(), in_use(database)) == ((2,), 0)
    assert set(seen) == {5}


def test_psycopg_s_own_ways_with_a_cursor_work(database: Any) -> None:
    # Below Django's wrapping of cursors.
    with database.cursor().cursor as cursor:
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert in_use(database) == 0
        assert list(cursor) == [(number,) for number in range(1, 6)]
    with database.chunked_cursor().cursor as cursor:
        cursor.itersize = 2
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert (cursor.itersize, cursor.name[:12]) == (2, "_django_curs")
        assert in_use(database) == 1
        assert list(cursor) == [(number,) for number in range(1, 6)]
    assert in_use(database) == 0


def failing_execution(cursor: Any) -> None:
    cursor.execute("INSERT INTO item VALUES (1 / 0)")


def failing_executions(cursor: Any) -> None:
    cursor.executemany("INSERT INTO item VALUES (1 / %s)", [[1], [0]])


def failing_copy(cursor: Any) -> None:
    with cursor.copy("COPY item FROM STDIN") as copy:
        copy.write_row(["not a number"])


def failing_stream(cursor: Any) -> None:
    list(cursor.stream("SELECT 1 / (x - 3) FROM item ORDER BY x"))


@pytest.mark.parametrize(
    "fail", [failing_execution, failing_executions, failing_copy, failing_stream]
)
def test_whatever_fails_gives_its_connection_back_and_within_a_transaction_ends_that(
    database: Any, fail: Callable[[Any], None]
) -> None:
    # Django translates errors of execute() and executemany() alone.
    errors = (DataError, psycopg.DataError)
    with pytest.raises(errors), database.cursor() as cursor:
        fail(cursor)
    assert in_use(database) == 0
    with pytest.raises(errors), atomic(using=database.alias), database.cursor() as cursor:
        fail(cursor)
    assert in_use(database) == 0
    assert ask(database, "SELECT count(*) FROM item") == 5


def test_a_session_is_pinned_once_by_what_comes_first(database: Any) -> None:
    with database.cursor() as cursor:
        cursor.execute("SET statement_timeout = '1min'")
        cursor.execute("SET lock_timeout = '1min'")
    assert sum(counters(database).pinned.values()) == 1
    assert in_use(database) == 1
    database.close()
    assert ask(database, "SHOW statement_timeout") == "0"


# What an interruption leaves


@pytest.mark.parametrize("leave", ["close", "forget_connection"])
def test_a_statement_that_came_to_no_end_keeps_no_later_connection(
    database: Any, leave: str
) -> None:
    cursor = database.cursor()
    held = cursor.cursor.source.begin_statement(cursor.cursor)
    assert not database.release()
    getattr(database, leave)()
    assert ask(database, "SELECT 42") == 42
    assert database.connection is None
    database.pool.checkin(held)


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_an_interruption_as_iterators_are_closed_leaves_nothing_in_use(
    server: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    class Interruption(BaseException):
        """As Ctrl-C."""

    alias = make_database(server, pool_mode=pool_mode, max_size=1, timeout=5.0)
    wrapper: Any = connections[alias]
    with wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 9)")
        assert cursor.fetchone() == (1,)

        def interrupt() -> None:
            raise Interruption

        inner = cursor.cursor
        inner.close, own = interrupt, inner.close
        with pytest.raises(Interruption):
            wrapper.close()
        inner.close = own
        assert in_use(wrapper) == 0
    assert ask(wrapper, "SELECT 42") == 42
    wrapper.close()
    assert counters(wrapper).reclaimed == 0


def test_a_wrapper_that_is_shared_keeps_what_a_thread_got_before_that_was_not_allowed_to(
    database: Any,
) -> None:
    """That thread has ended, and its connection is taken back while another thread uses it."""

    def failure_of_a_thread() -> BaseException | None:
        failures: list[BaseException] = []

        def run() -> None:
            try:
                ask(database, "SELECT 1")
            except DatabaseError as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return failures[0] if failures else None

    interval = sys.getswitchinterval()
    # Threads take turns as often as can be: between any two steps.
    sys.setswitchinterval(5e-6)
    try:
        for _ in range(1000):
            assert "thread" in str(failure_of_a_thread())
            database.inc_thread_sharing()
            try:
                assert failure_of_a_thread() is None
            finally:
                database.dec_thread_sharing()
    finally:
        sys.setswitchinterval(interval)
