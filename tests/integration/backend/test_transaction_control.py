"""Transactions whose control travels with statements look as they do on Django's own engine.

Each scenario runs on both engines; what it notes has to be the same.
"""

from __future__ import annotations

import logging
import re
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import Error, connections, transaction
from django.db.transaction import atomic
from django.test.utils import CaptureQueriesContext
from psycopg import sql
from psycopg.pq import TransactionStatus

from tests.app.models import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.django_db(transaction=True)


class Engine:
    """One engine's side of a scenario, and what it notes."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.notes: list[object] = []
        self.wrapper: Any = connections[alias]

    @property
    def raw(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] = self.wrapper.connection
        return connection

    def note(self, what: object) -> None:
        self.notes.append(what)

    def atomic(self, **options: Any) -> Any:
        return atomic(using=self.alias, **options)

    def write(self, text: str) -> None:
        Note.objects.using(self.alias).create(text=text)

    def texts(self) -> list[str]:
        return sorted(Note.objects.using(self.alias).values_list("text", flat=True))

    def execute(self, statement: Any, parameters: Any = None) -> None:
        """Execute a statement through Django, and note all that it leaves on its cursor."""
        with self.wrapper.cursor() as cursor:
            try:
                cursor.execute(statement, parameters)
            except Exception as error:
                self.failed(error)
                raise
            finally:
                query = cursor.cursor._query
                self.note(query.query if query is not None else None)
            more: bool | None = True
            while more:
                columns = cursor.description
                rows = cursor.fetchall() if columns is not None else None
                names = [column.name for column in columns or ()]
                self.note((names, rows, cursor.rowcount, cursor.cursor.statusmessage))
                more = cursor.nextset()

    def failed(self, error: BaseException) -> None:
        cause = error if isinstance(error, psycopg.Error) else error.__cause__
        self.note((type(error).__name__, _plain(str(error))))
        if isinstance(cause, psycopg.Error):
            self.note((cause.sqlstate, cause.diag.statement_position, cause.diag.context))
        self.state()

    def state(self) -> None:
        """Note what the transaction is in."""
        # In transaction mode, a connection goes back with the end of its transaction.
        status = self.raw.info.transaction_status if self.raw is not None else 0
        self.note(TransactionStatus(status).name)
        wrapper = self.wrapper
        self.note((wrapper.needs_rollback, wrapper.in_atomic_block, len(wrapper.savepoint_ids)))

    def tries(self, function: Callable[[], object]) -> None:
        """Call, and note how that failed."""
        try:
            self.note(function())
        except (Error, psycopg.Error, LookupError, TypeError, ValueError) as error:
            self.failed(error)


def _plain(text: str) -> str:
    # Savepoints have the number of the thread, and one that counts on; keys are random.
    text = re.sub(r"[0-9a-f]{32}", "key", text)
    return re.sub(r"(s|_pg3)(\d+_x|_)\d+", r"\1", text)


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


Scenario = "Callable[[Engine], object]"
SCENARIOS: dict[str, Callable[[Engine], object]] = {}


def scenario(function: Callable[[Engine], object]) -> Callable[[Engine], object]:
    SCENARIOS[function.__name__] = function
    return function


FAILING = {
    "a syntax error": "SELEKT 1",
    "a column that does not exist": "SELECT 1, nope FROM app_note",
    "a table that does not exist": "INSERT INTO nope VALUES (1)",
    "a division by zero": "SELECT 1 / 0",
    "a wrong literal": "SELECT 'x'::int",
    "a violation": "INSERT INTO app_note (text, key) SELECT 'twice', md5('')::uuid"
    " FROM generate_series(1, 2)",
    "an error after a statement": "INSERT INTO app_note (text, key) VALUES ('a', md5('a')::uuid);"
    " SELECT 1 / 0",
    "a syntax error after a statement": "SELECT 1; SELEKT 2",
    "a parameter that is none": "SELECT $1",
    "VACUUM": "VACUUM app_note",
    "CREATE DATABASE": "CREATE DATABASE never",
    "CREATE INDEX CONCURRENTLY": "CREATE INDEX CONCURRENTLY never ON app_note (text)",
    "COPY by execute()": "COPY app_note TO STDOUT",
    "a level that is too late": "SELECT 1; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "nothing that is UTF-8": b"SELECT '\xff'",
    "an empty identifier": 'SELECT ""',
}
WORKING = {
    "several statements": "SELECT 1 AS a; SELECT 2 AS b, 3; UPDATE app_note SET text = text",
    "no statement": "",
    "a comment": "-- nothing",
    "a comment before": "/* why */ SELECT 1",
    "a comment after": "SELECT 1 -- why",
    "a semicolon after": "SELECT 1;",
    "a semicolon in a literal": "SELECT 'a;b', 'it''s; here'",
    "a backslash in a literal": r"SELECT E'it\'s; here'; SELECT 'x'",
    "a quote in a name": """SELECT 1 AS "it's"; SELECT 'x'""",
    "a quote in a comment": """SELECT 1 /* it's */; SELECT 'x'""",
    "dollar quotes": "SELECT $$a;b$$, $x$'$x$",
    "a block": "DO $$ BEGIN RAISE NOTICE 'here; there'; END $$",
    "parentheses": "(SELECT 1) UNION (SELECT 2) ORDER BY 1",
    "VALUES": "VALUES (1), (2)",
    "no columns": "SELECT",
    "RETURNING": "INSERT INTO app_note (text, key) VALUES ('r', md5('r')::uuid) RETURNING text",
    "a table": "CREATE TABLE made (id int); DROP TABLE made",
    "one table": "CREATE TEMP TABLE made (id int) ON COMMIT DROP",
    "a level": "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "a setting": "SET LOCAL statement_timeout = 5000",
    "a lock": "LOCK TABLE app_note IN SHARE MODE",
    "EXPLAIN": "EXPLAIN (COSTS OFF) SELECT 1",
    "Composed": sql.SQL("SELECT {}").format(sql.Literal("x;y")),
    "bytes": b"SELECT 1",
    "NOTIFY": "NOTIFY a_channel",
    "SHOW": "SHOW transaction_isolation",
    "a savepoint by hand": "SAVEPOINT mine",
}


def first(statement: Any) -> Callable[[Engine], object]:
    """The statement is the first of the transaction."""

    def run(engine: Engine) -> None:
        def block() -> None:
            with engine.atomic():
                try:
                    engine.execute(statement)
                finally:
                    engine.state()
                engine.write("after")

        engine.tries(block)

    return run


def nested(statement: Any) -> Callable[[Engine], object]:
    """The statement is the first in a savepoint, as the first of all."""

    def run(engine: Engine) -> None:
        def block() -> None:
            with engine.atomic():
                engine.execute(statement)

        with engine.atomic():
            engine.tries(block)
            engine.state()
            engine.write("after")

    return run


def nested_later(statement: Any) -> Callable[[Engine], object]:
    """The statement is the first in a savepoint, after others."""

    def run(engine: Engine) -> None:
        def block() -> None:
            with engine.atomic(), engine.atomic():
                engine.execute(statement)

        with engine.atomic():
            engine.write("before")
            with engine.atomic():
                engine.write("released")
            engine.tries(block)
            engine.state()
            engine.write("after")
            engine.tries(block)
            engine.write("later")

    return run


for _place in (first, nested, nested_later):
    for _title, _statement in {**FAILING, **WORKING}.items():
        SCENARIOS[f"{_place.__name__}: {_title}"] = _place(_statement)


@scenario
def parameters(engine: Engine) -> None:
    with engine.atomic():
        engine.execute("SELECT %s, %s", ["a;b", "$1 it's \\ -- /*"])
        with engine.atomic():
            engine.execute("SELECT %s::text, '100%%'", ["a;b"])
        engine.tries(lambda: engine.execute("SELECT %s", []))
        engine.state()
        with engine.atomic():
            engine.tries(lambda: engine.execute("SELECT %s", [object()]))
            engine.state()
            engine.execute("SELECT 1")


@scenario
def several_statements_with_parameters(engine: Engine) -> None:
    def both() -> None:
        with engine.atomic():
            engine.execute("SELECT %s::text; SELECT %s::text", ["it's;", "$1"])

    engine.tries(both)
    with engine.atomic():
        engine.write("one")
        engine.tries(both)


@scenario
def parameters_that_do_not_fit_come_first(engine: Engine) -> None:
    with engine.atomic(), engine.atomic():
        engine.tries(lambda: engine.execute("SELECT %s", []))
        engine.state()
        engine.write("after")


@scenario
def a_nul_in_a_parameter(engine: Engine) -> None:
    with engine.atomic():
        engine.tries(lambda: engine.execute("SELECT %s", ["a\0b"]))
        engine.state()
    engine.write("after")


@scenario
def savepoints_without_a_statement(engine: Engine) -> None:
    with engine.atomic():
        with engine.atomic(), engine.atomic():
            engine.state()
        engine.state()
        engine.write("one")
        with engine.atomic(), engine.atomic():
            pass
        with engine.atomic(), engine.atomic():
            engine.write("two")


@scenario
def a_savepoint_that_is_undone_before_its_first_statement(engine: Engine) -> None:
    def block() -> None:
        with engine.atomic():
            raise ValueError("no")

    with engine.atomic():
        engine.tries(block)
        engine.write("one")
        engine.tries(block)
        with engine.atomic():
            engine.tries(block)
            engine.write("two")
        engine.state()


@scenario
def what_was_released_is_undone_with_what_is_around_it(engine: Engine) -> None:
    def block() -> None:
        with engine.atomic():
            engine.write("no")
            with engine.atomic():
                engine.write("nor this")
            raise ValueError("no")

    with engine.atomic():
        engine.write("yes")
        engine.tries(block)
        engine.note(engine.texts())


@scenario
def savepoints_by_hand(engine: Engine) -> None:
    with engine.atomic():
        outer = transaction.savepoint(using=engine.alias)
        engine.write("one")
        inner = transaction.savepoint(using=engine.alias)
        transaction.savepoint_rollback(inner, using=engine.alias)
        transaction.savepoint_rollback(inner, using=engine.alias)
        engine.write("two")
        transaction.savepoint_rollback(inner, using=engine.alias)
        engine.write("three")
        transaction.savepoint_commit(outer, using=engine.alias)
        # It ended with the one around it.
        with engine.atomic():
            engine.tries(lambda: transaction.savepoint_commit(inner, using=engine.alias))
            engine.state()
            transaction.set_rollback(True, using=engine.alias)
        engine.write("four")


@scenario
def a_savepoint_that_is_not_there(engine: Engine) -> None:
    with engine.atomic():
        engine.write("one")
        for end in (transaction.savepoint_commit, transaction.savepoint_rollback):
            with engine.atomic():
                engine.tries(partial(end, "nope", using=engine.alias))
                engine.state()
                transaction.set_rollback(True, using=engine.alias)


@scenario
def a_savepoint_released_twice(engine: Engine) -> None:
    with engine.atomic():
        savepoint = transaction.savepoint(using=engine.alias)
        transaction.savepoint_commit(savepoint, using=engine.alias)
        engine.write("one")
        with engine.atomic():
            engine.tries(lambda: transaction.savepoint_commit(savepoint, using=engine.alias))
            engine.state()
            transaction.set_rollback(True, using=engine.alias)


@scenario
def an_outer_savepoint_ends_those_that_wait(engine: Engine) -> None:
    with engine.atomic():
        outer = transaction.savepoint(using=engine.alias)
        engine.write("one")
        inner = transaction.savepoint(using=engine.alias)
        transaction.savepoint_commit(outer, using=engine.alias)
        with engine.atomic():
            engine.tries(lambda: transaction.savepoint_rollback(inner, using=engine.alias))
            engine.state()
            transaction.set_rollback(True, using=engine.alias)
        engine.write("two")


@scenario
def names_that_are_used_again(engine: Engine) -> None:
    def block() -> None:
        with engine.atomic():
            engine.write("no")
            raise ValueError("no")

    with engine.atomic():
        for _ in range(3):
            transaction.clean_savepoints(using=engine.alias)
            with engine.atomic():
                engine.write("yes")
                transaction.clean_savepoints(using=engine.alias)
                engine.tries(block)


@scenario
def savepoints_ended_by_hand(engine: Engine) -> None:
    for statement in ("RELEASE SAVEPOINT {}", "ROLLBACK TO SAVEPOINT {}", "ROLLBACK", "COMMIT"):

        def block(statement: str = statement) -> None:
            with engine.atomic():
                engine.write("one")
                with engine.atomic():
                    name = engine.wrapper.savepoint_ids[-1]
                    with engine.atomic():
                        engine.write("two")
                    with engine.wrapper.cursor() as cursor:
                        cursor.execute(statement.format(f'"{name}"'))
                    engine.state()
                engine.write("three")

        engine.tries(block)
        engine.state()


@scenario
def a_transaction_without_autocommit(engine: Engine) -> None:
    transaction.set_autocommit(False, using=engine.alias)
    try:
        with engine.atomic(), engine.atomic():
            engine.state()
        engine.tries(lambda: transaction.set_autocommit(True, using=engine.alias))
        engine.state()
        with engine.atomic():
            engine.write("one")
        transaction.commit(using=engine.alias)
        engine.state()
        savepoint = transaction.savepoint(using=engine.alias)
        engine.write("two")
        transaction.savepoint_rollback(savepoint, using=engine.alias)
        transaction.rollback(using=engine.alias)
    finally:
        transaction.rollback(using=engine.alias)
        transaction.set_autocommit(True, using=engine.alias)


@scenario
def autocommit_in_a_transaction_of_psycopgs(engine: Engine) -> None:
    transaction.get_connection(engine.alias).ensure_connection()
    connection: Any = transaction.get_connection(engine.alias).connection

    with connection.transaction():
        engine.write("one")
        engine.tries(lambda: transaction.set_autocommit(True, using=engine.alias))
        engine.state()
    engine.state()


@scenario
def a_block_without_savepoint(engine: Engine) -> None:
    def block() -> None:
        with engine.atomic(), engine.atomic(savepoint=False):
            engine.execute("SELECT 1 / 0")

    engine.tries(block)
    with engine.atomic():
        engine.tries(block)
        engine.write("one")


@scenario
def needs_rollback_without_an_error(engine: Engine) -> None:
    with engine.atomic():
        engine.write("one")
        with engine.atomic():
            engine.write("two")
            transaction.set_rollback(True, using=engine.alias)
        with engine.atomic():
            transaction.set_rollback(True, using=engine.alias)
        engine.state()


@scenario
def copies(engine: Engine) -> None:
    def rows_of(statement: str) -> list[bytes]:
        with engine.wrapper.cursor() as cursor:
            with cursor.copy(statement) as copy:
                rows = [bytes(each) for each in copy]
            engine.note(cursor.rowcount)
            return rows

    for statement in ("COPY (SELECT 1, 2) TO STDOUT", "COPY nope TO STDOUT"):
        with engine.atomic():
            with engine.atomic():
                engine.tries(partial(rows_of, statement))
                engine.state()
                transaction.set_rollback(True, using=engine.alias)
            with engine.atomic():
                engine.write(statement)
            into = "COPY app_note (text, key) FROM STDIN"
            with engine.wrapper.cursor() as cursor, engine.atomic(), cursor.copy(into) as copy:
                copy.write_row((f"copied {statement}", "0" * 31 + str(len(statement) % 10)))


@scenario
def executemany(engine: Engine) -> None:
    def many(texts: list[str]) -> None:
        with engine.wrapper.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO app_note (text, key) VALUES (%s, md5(%s)::uuid)",
                [(text, text) for text in texts],
            )
            engine.note((cursor.rowcount, cursor.cursor.statusmessage))

    with engine.atomic():
        many(["a", "b"])
        with engine.atomic():
            many(["c", "d"])
        with engine.atomic():
            engine.tries(lambda: many(["e", "a"]))
            engine.state()
            transaction.set_rollback(True, using=engine.alias)
        many(["f"])
    with engine.atomic(), engine.atomic():
        many(["g"])


@scenario
def rows_that_are_streamed(engine: Engine) -> None:
    with engine.atomic():
        for _ in range(2):
            with engine.atomic(), engine.wrapper.cursor() as cursor:
                engine.note(list(cursor.stream("SELECT * FROM generate_series(1, 3)")))
        with engine.atomic():
            engine.write("one")
    with engine.atomic(), engine.atomic(), engine.wrapper.cursor() as cursor:
        engine.note(list(cursor.stream("SELECT * FROM generate_series(1, 3)")))


@scenario
def a_named_cursor_across_savepoints(engine: Engine) -> None:
    for number in range(5):
        engine.write(f"note {number}")
    with engine.atomic():
        seen = []
        for note in Note.objects.using(engine.alias).order_by("text").iterator(chunk_size=2):
            seen.append(note.text)
            with engine.atomic():
                engine.write(f"after {note.text}")
            with engine.atomic():
                pass
        engine.note(seen)
    with engine.atomic(), engine.atomic():
        rows = Note.objects.using(engine.alias).order_by("text").iterator(chunk_size=2)
        engine.note(next(rows).text)
        with engine.atomic():
            engine.note(next(rows).text)
            engine.note(next(rows).text)
        del rows


@scenario
def a_procedure(engine: Engine) -> None:
    with engine.atomic(), engine.atomic(), engine.wrapper.cursor() as cursor:
        engine.note(cursor.callproc("abs", [-1]))
        engine.note(cursor.fetchall())


@scenario
def psycopg_itself(engine: Engine) -> None:
    for depth in range(3):
        for kind in (psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor):
            with engine.atomic():
                if depth > 1:
                    engine.write(f"{depth}")
                with engine.atomic(savepoint=depth > 0):
                    engine.state()
                    engine.note(kind(engine.raw).execute("SELECT 1").fetchall())
                    engine.state()
        with engine.atomic(), engine.atomic(savepoint=depth > 0):
            cursor = engine.raw.execute("SELECT 1 AS one", binary=True)
            engine.note((cursor.fetchall(), cursor.statusmessage))
            engine.tries(lambda: engine.raw.execute("SELECT %s::int8", [5], binary=True).fetchall())
            transaction.set_rollback(True, using=engine.alias)


@scenario
def psycopgs_transaction(engine: Engine) -> None:
    def refused() -> None:
        with engine.raw.transaction():
            engine.write("undone")
            raise ValueError("no")

    for depth in range(3):
        with engine.atomic():
            if depth > 1:
                engine.write(f"{depth}")
            with engine.atomic(savepoint=depth > 0):
                with engine.raw.transaction() as block:
                    engine.note(block.savepoint_name)
                    engine.state()
                    with engine.atomic():
                        engine.write(f"within {depth}")
                engine.state()
                with engine.atomic():
                    engine.tries(refused)
                engine.state()
            if depth:
                transaction.set_rollback(True, using=engine.alias)


@scenario
def a_savepoint_of_an_earlier_transaction(engine: Engine) -> None:
    with engine.atomic():
        engine.write("one")
        earlier = transaction.savepoint(using=engine.alias)
    for end in (transaction.savepoint_commit, transaction.savepoint_rollback):
        with engine.atomic():
            engine.write("undone")
            engine.tries(partial(end, earlier, using=engine.alias))
            engine.state()
            transaction.set_rollback(True, using=engine.alias)


@scenario
def an_end_that_psycopg_refuses(engine: Engine) -> None:
    with engine.atomic():
        engine.write("one")
        for number, end in enumerate((engine.raw.commit, engine.raw.rollback)):
            with engine.raw.transaction(), engine.atomic():
                engine.tries(end)
                engine.write(f"within {number}")
            with engine.atomic():
                engine.write(f"after {number}")
    transaction.set_autocommit(False, using=engine.alias)
    with engine.raw.transaction():
        savepoint = transaction.savepoint(using=engine.alias)
        engine.tries(partial(transaction.commit, using=engine.alias))
        engine.write("undone")
        transaction.savepoint_rollback(savepoint, using=engine.alias)
        engine.write("two")
    engine.state()
    transaction.rollback(using=engine.alias)
    transaction.set_autocommit(True, using=engine.alias)


@scenario
def psycopgs_pipeline(engine: Engine) -> None:
    for depth in range(3):
        with engine.atomic():
            if depth > 1:
                engine.write(f"{depth}")
            with engine.atomic(savepoint=depth > 0), engine.wrapper.cursor() as cursor:
                with cursor.connection.pipeline():
                    cursor.execute("SELECT 1")
                    engine.note(cursor.fetchall())
                    with engine.atomic():
                        engine.write("within")
                engine.state()
                with engine.atomic():
                    engine.write("after")


@scenario
def the_end_by_psycopg(engine: Engine) -> None:
    for end in ("commit", "rollback"):

        def block(end: str = end) -> None:
            with engine.atomic():
                engine.write(end)
                with engine.atomic():
                    engine.write(f"nested {end}")
                with engine.atomic():
                    getattr(engine.raw, end)()
                    engine.state()

        engine.tries(block)
        engine.state()


@scenario
def a_setting_of_psycopg_in_a_transaction(engine: Engine) -> None:
    for name, value in (("read_only", True), ("autocommit", True), ("autocommit", False)):
        for writes in (False, True):
            with engine.atomic():
                if writes:
                    engine.write(f"{name} = {value}")
                with engine.atomic():
                    engine.tries(partial(setattr, engine.raw, name, value))
                    engine.state()
                    engine.tries(partial(engine.raw.set_autocommit, value))
                engine.note((engine.raw.autocommit, engine.raw.read_only))


@scenario
def psycopgs_autocommit_turned_on_before_a_nested_block(engine: Engine) -> None:
    def block() -> None:
        with engine.atomic():
            engine.raw.autocommit = True
            engine.write("done")
            with engine.atomic():
                engine.write("undone")
                raise LookupError

    engine.tries(block)


@scenario
def autocommit_set_in_a_pipeline(engine: Engine) -> None:
    def set_within() -> None:
        with engine.raw.pipeline():
            engine.raw.execute("SELECT 1")
            engine.raw.autocommit = not engine.raw.autocommit

    engine.wrapper.ensure_connection()
    kept = engine.raw
    for autocommit in (True, False):
        kept.autocommit = autocommit
        engine.tries(set_within)
        engine.note((kept.autocommit, TransactionStatus(kept.info.transaction_status).name))
        kept.rollback()
    kept.autocommit = True


@scenario
def characteristics(engine: Engine) -> None:
    shown = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " current_setting('transaction_deferrable')"
    )
    engine.wrapper.ensure_connection()
    engine.raw.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    engine.raw.read_only = engine.raw.deferrable = True
    try:
        with engine.atomic(), engine.atomic():
            engine.execute(shown)
            with engine.atomic():
                engine.tries(lambda: engine.write("refused"))
                transaction.set_rollback(True, using=engine.alias)
    finally:
        if engine.raw is not None:
            engine.raw.isolation_level = engine.raw.read_only = engine.raw.deferrable = None
    with engine.atomic(), engine.atomic():
        engine.execute(shown)


@scenario
def a_deferred_constraint(engine: Engine) -> None:
    def block() -> None:
        with engine.atomic(), engine.atomic():
            engine.execute("INSERT INTO app_ballot (counter_id, data, paper) VALUES (0, '{}', '')")

    engine.tries(block)
    engine.state()
    with engine.atomic():
        with engine.atomic():
            engine.write("one")
        with engine.atomic():
            engine.tries(lambda: engine.wrapper.check_constraints())


@scenario
def time_limits(engine: Engine) -> None:
    def slow() -> None:
        with engine.atomic():
            engine.execute("SELECT pg_sleep(10)")

    with engine.atomic():
        engine.execute("SET LOCAL statement_timeout = 50")
        engine.tries(slow)
        engine.state()
        engine.write("one")


@scenario
def notices(engine: Engine) -> None:
    heard = []
    engine.wrapper.ensure_connection()
    engine.raw.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    with engine.atomic():
        engine.execute("DROP TABLE IF EXISTS nope")
        with engine.atomic():
            engine.execute("CREATE TABLE IF NOT EXISTS app_note (id int)")
        engine.tries(lambda: engine.execute("DROP TABLE IF EXISTS nor_this; SELECT 1 / 0"))
        transaction.set_rollback(True, using=engine.alias)
    engine.note(heard)


@scenario
def what_is_logged(engine: Engine) -> None:
    with CaptureQueriesContext(engine.wrapper) as captured, engine.atomic():
        with engine.atomic():
            engine.note(Note.objects.using(engine.alias).count())
        with engine.atomic():
            pass
        engine.execute("SELECT %s", ["x"])
        engine.tries(lambda: nested("SELEKT")(engine))
    engine.note([_plain(query["sql"]) for query in captured.captured_queries])


@scenario
def wrappers_see_each_statement(engine: Engine) -> None:
    seen: list[object] = []

    def wrap(execute: Any, statement: str, parameters: Any, many: bool, context: Any) -> Any:
        seen.append(_plain(str(statement)))
        if statement.startswith("SAVEPOINT"):
            # One that asks between.
            with engine.wrapper.connection.cursor() as cursor:
                cursor.execute("SELECT 'between'")
                seen.append(cursor.fetchone())
            statement += " /* why */"
        found = execute(statement, parameters, many, context)
        cursor = context["cursor"].cursor
        seen.append((cursor.rowcount, cursor.description is None))
        if hasattr(psycopg.Cursor, "_statusmessage"):
            # Before psycopg 3.3 it cannot be set without a message of the server's.
            seen.append(cursor.statusmessage)
        return found

    with engine.wrapper.execute_wrapper(wrap), engine.atomic():
        with engine.atomic():
            engine.execute("SELECT 1")
        with engine.atomic():
            transaction.set_rollback(True, using=engine.alias)
        with engine.atomic():
            engine.execute("SELECT 2")
            transaction.set_rollback(True, using=engine.alias)
    engine.note(seen)


@scenario
def what_djangos_logger_says(engine: Engine) -> None:
    logger, said = logging.getLogger("django.db.backends"), Said()
    before, debug = logger.level, engine.wrapper.force_debug_cursor
    logger.addHandler(said)
    logger.setLevel(logging.DEBUG)
    engine.wrapper.force_debug_cursor = True
    try:
        with engine.atomic():
            with engine.atomic():
                engine.execute("SELECT %s", ["x"])
            engine.tries(lambda: nested("SELEKT")(engine))
            engine.write("one")
        with engine.atomic():
            engine.execute("SELECT 2")
            transaction.set_rollback(True, using=engine.alias)
    finally:
        engine.wrapper.force_debug_cursor = debug
        logger.setLevel(before)
        logger.removeHandler(said)
    differs = re.compile(r"\(\d+\.\d+\)|alias=\w+|UUID\('[^']*'\)")
    engine.note([differs.sub("", _plain(record.getMessage())) for record in said.records])


@scenario
def cursors_of_other_classes(engine: Engine) -> None:
    class Watching(psycopg.ClientCursor[Any]):
        """As that of a monitoring tool, set on the connection."""

        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            engine.note(("before", _plain(str(query))))
            found = super().execute(query, params, **options)
            engine.note(("after", self.rowcount, self.statusmessage))
            return found

    for kind in (Watching, psycopg.Cursor, psycopg.RawCursor):
        with engine.atomic():
            engine.raw.cursor_factory = kind
            with engine.atomic():
                engine.tries(lambda: nested("SELEKT")(engine))
                engine.execute("SELECT 1")
            with engine.atomic():
                engine.execute("INSERT INTO app_note (text, key) VALUES ('a', gen_random_uuid())")
                transaction.set_rollback(True, using=engine.alias)
            engine.execute("SELECT count(*) FROM app_note")
        engine.wrapper.close()


@scenario
def a_cursor_used_for_several_statements(engine: Engine) -> None:
    with engine.wrapper.cursor() as cursor:
        for _ in range(2):
            with engine.atomic():
                cursor.execute("SELECT 1 UNION SELECT 2 ORDER BY 1")
                engine.note(cursor.fetchone())
                with engine.atomic():
                    engine.note(cursor.fetchone())
                    cursor.execute("SELECT 3")
                    engine.note(cursor.fetchone())


@scenario
def ctrl_c(engine: Engine) -> None:
    def interrupted() -> None:
        with engine.atomic():
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            engine.execute("SELECT pg_sleep(10)")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with engine.atomic():
            engine.write("one")
            with pytest.raises(KeyboardInterrupt):
                interrupted()
            engine.state()
            engine.write("two")
        with pytest.raises(KeyboardInterrupt), engine.atomic():
            interrupted()
        engine.state()
    finally:
        signal.signal(signal.SIGALRM, before)
    engine.write("three")


@scenario
def the_session_ends(engine: Engine) -> None:
    def end() -> None:
        with psycopg.connect(
            host=engine.raw.info.host,
            port=engine.raw.info.port,
            user=engine.raw.info.user,
            dbname=engine.raw.info.dbname,
            autocommit=True,
        ) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [engine.raw.info.backend_pid])

    def at_first() -> None:
        with engine.atomic(), engine.atomic():
            end()
            engine.write("no")

    def later() -> None:
        with engine.atomic():
            with engine.atomic():
                engine.write("no")
            with engine.atomic():
                end()
                engine.write("no")

    engine.wrapper.ensure_connection()
    for block in (at_first, later):
        with pytest.raises(Error) as raised:
            block()
        engine.note((type(raised.value), getattr(raised.value.__cause__, "sqlstate", None)))
        engine.wrapper.close()
        engine.write("yes")


OPTIONS: dict[str, dict[str, Any]] = {
    "client-side binding": {},
    "server-side binding": {"server_side_binding": True},
    "prepared statements": {"server_side_binding": True, "prepare_threshold": 0},
}


@pytest.fixture(params=OPTIONS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(OPTIONS[request.param])


@pytest.fixture
def engines(
    server: EmbeddedServer, make_database: MakeDatabase, options: dict[str, Any]
) -> Iterator[Callable[..., Engine]]:
    def make(engine: str = "django_pooled", **pool: Any) -> Engine:
        name = str(connections["default"].settings_dict["NAME"])
        alias = make_database(server, options=options, database=name, **pool)
        if engine != "django_pooled":
            del connections.settings[alias]["OPTIONS"]["pool"]
            connections.settings[alias]["ENGINE"] = engine
        return Engine(alias)

    yield make
    Note.objects.all().delete()


def notes_of(run: Callable[[Engine], object], engine: Engine) -> list[object]:
    try:
        Note.objects.using(engine.alias).all().delete()
        engine.tries(lambda: run(engine))
        engine.wrapper.close()
        engine.note(engine.texts())
    finally:
        engine.wrapper.close()
    return engine.notes


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_is_as_on_djangos_engine(
    name: str, engines: Callable[..., Engine], options: dict[str, Any]
) -> None:
    expected = notes_of(SCENARIOS[name], engines("django.db.backends.postgresql"))
    assert notes_of(SCENARIOS[name], engines()) == expected
    if not options:
        assert notes_of(SCENARIOS[name], engines(pool_mode="transaction")) == expected
