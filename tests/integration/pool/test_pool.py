from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled.errors import (
    CheckoutTimeout,
    ConnectFailed,
    PoolClosed,
    PoolError,
    PoolExhausted,
)
from django_pooled.pool.backoff import Backoff
from django_pooled.pool.connection import PooledConnection
from django_pooled.pool.connector import Connector
from django_pooled.pool.deadline import Deadline, current
from django_pooled.pool.waiter import Waiter
from embedded_postgres import free_port
from tests.servers.postgresql import backend_count, backend_pids, kill_backends
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool


def test_a_connection_is_used_again_after_its_checkin(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    first = pool.checkout()
    pool.checkin(first)
    second = pool.checkout()
    pool.checkin(second)
    assert first.session is second.session
    assert pool.snapshot().counters.connects == 1


def test_200_threads_share_5_connections_and_lose_none(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=5, timeout=60.0)
    most, lock, at_once = 0, threading.Lock(), 0

    def work() -> int:
        nonlocal most, at_once
        for _ in range(10):
            connection = pool.checkout()
            with lock:
                at_once += 1
                most = max(most, at_once)
            connection.execute("SELECT 1")
            with lock:
                at_once -= 1
            pool.checkin(connection)
        return 10

    with ThreadPoolExecutor(200) as threads:
        done = sum(future.result(60) for future in [threads.submit(work) for _ in range(200)])
    snapshot = pool.snapshot()
    assert done == 2000
    assert most <= 5
    assert snapshot.size == snapshot.idle <= 5
    assert snapshot.waiting == snapshot.in_use == 0
    assert snapshot.counters.checkouts == snapshot.counters.checkins == 2000
    assert snapshot.counters.connects <= 5


def test_a_pool_grows_by_as_many_connections_as_there_are_waiters(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=10)
    with ThreadPoolExecutor(4) as threads:
        held = [future.result(10) for future in [threads.submit(pool.checkout) for _ in range(4)]]
    for connection in held:
        pool.checkin(connection)
    # Their threads have ended, so the pool may be giving some of them back itself.
    wait_until(lambda: (pool.snapshot().connecting, pool.gauges().idle) == (0, 4))


@pytest.mark.parametrize("idle", [1, 6])
def test_backends_killed_while_idle_fail_no_checkout(
    own_server: EmbeddedServer, make_pool: MakePool, idle: int
) -> None:
    pool = make_pool(own_server, max_size=idle)
    fill(pool, idle)
    # Without the one that has found the server started.
    wait_until(lambda: len(backend_pids(own_server, "postgres")) == idle)
    assert kill_backends(own_server, "postgres") == idle
    assert [query(pool) for _ in range(idle * 2)] == [42] * idle * 2
    assert pool.snapshot().counters.closed["dead"] == idle


def test_a_killed_server_s_idle_connections_are_found_dead_all_at_once(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(own_server, max_size=8)
    fill(pool, 8)
    own_server.kill()
    own_server.start()
    assert query(pool) == 42
    # One checkout found all eight, and only what was missed has been opened.
    assert pool.snapshot().counters.closed["dead"] == 8
    assert pool.snapshot().counters.connects <= 10


def test_a_backend_killed_while_in_use_takes_its_connection_out_of_the_pool(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(own_server, max_size=2)
    connection = pool.checkout()
    kill_backends(own_server, "postgres")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    pool.checkin(connection)
    assert query(pool) == 42
    assert pool.snapshot().counters.discarded == 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_load_rides_out_a_server_that_is_away_for_3_seconds(
    own_server: EmbeddedServer, make_pool: MakePool, end: str
) -> None:
    pool = make_pool(own_server, max_size=5, timeout=30.0)
    finished = threading.Event()
    refused: list[PoolError] = []
    broken: list[psycopg.Error] = []
    served: list[float] = []

    def work() -> None:
        while not finished.is_set():
            try:
                query(pool)
            except PoolError as error:
                refused.append(error)
            except psycopg.Error as error:
                broken.append(error)
            else:
                served.append(time.monotonic())

    with ThreadPoolExecutor(20) as threads:
        workers = [threads.submit(work) for _ in range(20)]
        wait_until(lambda: len(served) > 200)
        own_server.stop() if end == "stop" else own_server.kill()
        away_from = time.monotonic()
        # The outage itself, not a wait for something to happen.
        time.sleep(3)
        own_server.start()
        back_at = time.monotonic()
        wait_until(lambda: served[-1] > back_at, timeout=10)
        count = len(served)
        wait_until(lambda: len(served) > count + 200)
        finished.set()
        for worker in workers:
            worker.result(30)
    # Only what was on its way when the server went can have failed: at most once a connection.
    assert refused == []
    assert len(broken) <= 5 + 5
    assert not [moment for moment in served if away_from + 0.5 < moment < back_at - 0.5]
    assert pool.gauges().size <= 5
    assert pool.gauges().in_use == 0


def test_waiters_are_served_in_order_once_the_server_is_back(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    proxy.down()
    pool = make_pool(server, through=proxy, min_size=0, max_size=1, timeout=30.0)
    order: list[int] = []

    def wait(number: int) -> None:
        connection = pool.checkout()
        order.append(number)
        pool.checkin(connection)

    threads = []
    for number in range(10):
        threads.append(threading.Thread(target=wait, args=[number]))
        threads[-1].start()
        wait_until(lambda: pool.gauges().waiting == len(threads))
    proxy.forward()
    for thread in threads:
        thread.join(10)
    assert order == list(range(10))


def test_one_probe_at_a_time_knocks_while_the_server_is_away(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, max_size=10, backoff={"initial": 0.2, "maximum": 0.2})
    query(pool)
    proxy.down()
    proxy.cut()
    before = pool.snapshot().counters.connect_failures
    with ThreadPoolExecutor(10) as threads:
        waiting = [threads.submit(query, pool) for _ in range(10)]
        # The measured span, in which ten connections are wanted.
        time.sleep(2.0)
        knocks = pool.snapshot().counters.connect_failures - before
        proxy.forward()
        assert [future.result(10) for future in waiting] == [42] * 10
    # Waits are 0.1 s on average, so some 20 in 2 s; ten connections each would make 200.
    assert 3 <= knocks <= 60


def test_a_wrong_password_fails_every_waiter_with_the_server_s_words(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, parameters={"password": "not this one"}, timeout=30.0)
    with ThreadPoolExecutor(10) as threads:
        refusals = [threads.submit(query, pool) for _ in range(10)]
        for future in refusals:
            with pytest.raises(ConnectFailed, match="password authentication failed") as refused:
                future.result(10)
            assert isinstance(refused.value.__cause__, psycopg.OperationalError)
            assert "not this one" not in str(refused.value)
            assert refused.value.elapsed < 10


def test_mending_the_cause_heals_the_running_pool(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    with psycopg.connect(**own_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'old'")
        pool = make_pool(own_server, parameters={"user": "clerk", "password": "new"})
        with pytest.raises(ConnectFailed, match="clerk"):
            query(pool)
        admin.execute("ALTER ROLE clerk PASSWORD 'new'")
    assert wait_until(lambda: query(pool), timeout=5.0) == 42


def test_a_refusal_that_stands_is_told_without_another_login(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(
        server,
        min_size=0,
        parameters={"password": "not this one"},
        backoff={"initial": 600.0, "maximum": 600.0, "jitter": False},
        timeout=600.0,
    )
    for _ in range(20):
        with pytest.raises(ConnectFailed, match="password authentication failed") as refused:
            query(pool)
    assert pool.snapshot().counters.connect_failures == 1
    assert refused.value.elapsed < 60.0


def test_waiters_are_served_by_what_is_in_use_when_the_pool_cannot_grow(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    with psycopg.connect(**own_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'old'")
        pool = make_pool(own_server, parameters={"user": "clerk", "password": "old"}, max_size=5)
        connection = pool.checkout()
        admin.execute("ALTER ROLE clerk PASSWORD 'new'")
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(query, pool) for _ in range(3)]
        wait_until(lambda: pool.gauges().waiting == 3 and pool.snapshot().connecting == 0)
        assert "clerk" in (pool.snapshot().last_error or "")
        pool.checkin(connection)
        assert [answer.result(10) for answer in answers] == [42] * 3


def test_credentials_that_change_get_a_second_chance_after_a_refusal(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    tokens = iter(["token of yesterday", server.password])
    pool = make_pool(
        server,
        min_size=0,
        credentials_change=True,
        parameters={"password": lambda: next(tokens)},
    )
    assert query(pool) == 42
    assert pool.snapshot().counters.connect_failures == 0


def test_a_demoted_server_loses_all_its_connections_at_the_first_refused_write(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(own_server, max_size=3)
    fill(pool, 3)
    first, second = pool.checkout(), pool.checkout()
    with psycopg.connect(**own_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
    wait_until(lambda: first.execute("SHOW transaction_read_only").fetchone() == ("on",))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as refused:
        first.execute("CREATE TABLE never (x int)")
    pool.note_error(first, refused.value)
    pool.checkin(first)
    pool.checkin(second)
    assert first.session.closed_for is not None
    assert second.session.closed_for is not None
    assert pool.gauges().idle == 0
    assert pool.snapshot().counters.discarded == 2
    closed = pool.snapshot().counters.closed
    assert (closed["error"], closed["drained"], closed["dead"]) == (0, 3, 0)


def test_a_read_only_transaction_of_the_client_s_own_costs_no_connection(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    connection.read_only = True
    connection.autocommit = False
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as refused:
        connection.execute("CREATE TABLE never (x int)")
    pool.note_error(connection, refused.value)
    pool.checkin(connection)
    assert connection.session.closed_for is None


def test_a_silent_server_gets_one_knock_at_a_time(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, max_size=5, parameters={"connect_timeout": 2})
    fill(pool, 5)
    proxy.deaf()
    proxy.cut()
    before = len(proxy.connects())
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(query, pool) for _ in range(5)]
        wait_until(lambda: pool.snapshot().counters.connect_failures >= 2)
        # Counted in this order, one more may be under way and no second one.
        failures = pool.snapshot().counters.connect_failures
        assert len(proxy.connects()) - before <= failures + 1
        proxy.forward()
        proxy.cut()
        assert [answer.result(20) for answer in answers] == [42] * 5


def test_an_attempt_that_timed_out_leaves_no_socket(server: EmbeddedServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        opening = Connector("default", Backoff(), 0.0, opened=lambda seconds: None)
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            opening.open(
                lambda: PooledConnection.connect(
                    host="127.0.0.1", port=port, user="x", dbname="x", connect_timeout=2
                ),
                wanted=lambda: False,
            )
        client, _ = silent.accept()
        with client:
            client.settimeout(5)
            # What libpq sent, and then the end: not when the garbage collector comes by.
            while client.recv(4096):
                pass
    assert isinstance(opening.last_error, psycopg.errors.ConnectionTimeout)


def test_a_cold_burst_opens_all_its_connections_side_by_side(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, min_size=0, max_size=10)
    proxy.deaf()
    with ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(query, pool) for _ in range(20)]
        # All of them knock before the first has an answer.
        wait_until(lambda: len(proxy.connects()) == 10)
        proxy.forward()
        proxy.cut()
        assert [answer.result(20) for answer in answers] == [42] * 20
    assert pool.gauges().size <= 10


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody_here"}, "nobody_here"),
        ({"sslmode": "require"}, "SSL"),
        ({"options": "-c no_such_setting=1"}, "unrecognized configuration parameter"),
    ],
    ids=["unknown database", "unknown role", "TLS not offered", "unknown setting"],
)
def test_other_permanent_failures_are_told_at_once_too(
    server: EmbeddedServer, make_pool: MakePool, parameters: dict[str, str], words: str
) -> None:
    pool = make_pool(server, parameters=parameters, timeout=60.0)
    with pytest.raises(ConnectFailed, match=words) as refused:
        query(pool)
    assert refused.value.elapsed < 30


def test_a_client_that_pg_hba_does_not_know_is_told_so_and_let_in_once_it_does(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    rules = own_server.data / "pg_hba.conf"
    with psycopg.connect(**own_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'secret'")
        everybody = rules.read_text()
        rules.write_text("host all postgres 127.0.0.1/32 scram-sha-256\n")
        admin.execute("SELECT pg_reload_conf()")
        parameters = {"user": "clerk", "password": "secret"}
        pool = make_pool(own_server, min_size=0, parameters=parameters)
        # The postmaster reads its rules a moment after it was told to.
        refused = wait_until(lambda: refusal(pool))
        assert "no pg_hba.conf entry" in refused
        rules.write_text(everybody)
        admin.execute("SELECT pg_reload_conf()")
        assert wait_until(lambda: query(pool)) == 42


def refusal(pool: Pool) -> str:
    try:
        query(pool)
    except ConnectFailed as error:
        return str(error)
    return ""


def test_waiters_hear_of_a_refusal_as_soon_as_the_server_has_spoken(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, parameters={"password": "not-the-password"}, timeout=30.0)
    told_at: list[float] = []

    def wait() -> None:
        with pytest.raises(ConnectFailed):
            pool.checkout()
        told_at.append(time.monotonic())

    with ThreadPoolExecutor(10) as threads:
        for future in [threads.submit(wait) for _ in range(10)]:
            future.result(20)
    answered_at = pool._connector.last_error_at
    # Some 5 ms on an idle machine; the bound is for a busy one.
    assert max(told_at) - answered_at < 1.0


def test_an_error_in_the_connection_s_own_configuration_is_permanent(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(
        server,
        configure=lambda connection: connection.execute("SET TimeZone TO 'Mars/Olympus'"),
        timeout=60.0,
    )
    with pytest.raises(ConnectFailed, match="Mars/Olympus"):
        query(pool)
    wait_until(lambda: backend_count(server, "postgres") == 0)


def test_a_closed_port_ends_in_a_timeout_that_shows_the_connect_error(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, parameters={"port": free_port()}, timeout=0.5, max_size=3)
    with pytest.raises(CheckoutTimeout) as timeout:
        query(pool)
    assert "pool 'default'" in str(timeout.value)
    assert "size 0 of 3, 0 idle, 0 in use" in str(timeout.value)
    assert "Connection refused" in str(timeout.value)
    assert isinstance(timeout.value.__cause__, psycopg.OperationalError)
    assert timeout.value.alias == "default"
    assert timeout.value.elapsed >= 0.5


def test_a_saturated_pool_ends_in_a_timeout_that_names_the_gauges(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, timeout=0.2)
    connection = pool.checkout()
    try:
        with pytest.raises(CheckoutTimeout, match=r"size 1 of 1, 0 idle, 1 in use") as timeout:
            pool.checkout()
        assert timeout.value.__cause__ is None
        assert pool.snapshot().counters.timeouts == 1
    finally:
        pool.checkin(connection)


def test_more_waiters_than_max_waiting_are_refused_and_the_pool_stays_usable(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, max_waiting=2, timeout=0.3)
    for _ in range(3):
        connection = pool.checkout()
        with ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(pool.checkout) for _ in range(2)]
            wait_until(lambda: pool.gauges().waiting == 2)
            with pytest.raises(PoolExhausted, match="2 threads are waiting already"):
                pool.checkout()
            for future in waiting:
                with pytest.raises(CheckoutTimeout):
                    future.result(10)
        # psycopg_pool would still count both, and refuse everybody from now on.
        assert pool.gauges().waiting == 0
        pool.checkin(connection)
        assert query(pool) == 42


def test_a_wait_that_something_else_ends_loses_no_connection(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alarm(BaseException):
        """As gevent.Timeout, or Ctrl-C."""

    def interrupted(self: Waiter, until: float) -> None:
        raise Alarm

    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    monkeypatch.setattr(Waiter, "sleep", interrupted)
    with pytest.raises(Alarm):
        pool.checkout()
    assert pool.gauges().waiting == 0
    pool.checkin(connection)
    assert pool.gauges().idle == 1
    assert query(pool) == 42


@pytest.mark.parametrize("learns", ["told", "looks"])
def test_a_deadline_that_is_ended_early_ends_the_wait_for_a_connection(
    server: EmbeddedServer, make_pool: MakePool, learns: str
) -> None:
    pool = make_pool(server, max_size=1, timeout=3600.0)
    connection, gone = pool.checkout(), threading.Event()
    limit = Deadline(float("inf"), is_gone=gone.is_set if learns == "looks" else None)
    errors = []

    def wait() -> None:
        current.set(limit)
        try:
            pool.checkout()
        except CheckoutTimeout as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    wait_until(lambda: pool.gauges().waiting == 1)
    if learns == "looks":
        gone.set()
    else:
        limit.end("the client has gone")
    thread.join(10.0)
    assert "the client has gone before a connection was had" in errors[0]
    assert pool.gauges().waiting == 0
    pool.checkin(connection)
    assert query(pool) == 42


def test_a_connection_past_its_lifetime_is_replaced_at_checkout(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_lifetime=0.05)
    first = pool.checkout()
    pool.checkin(first)
    wait_until(lambda: time.monotonic() > first.session.expires_at)
    second = pool.checkout()
    pool.checkin(second)
    assert first.session is not second.session
    assert pool.snapshot().counters.closed["lifetime"] == 1


def test_an_open_transaction_is_rolled_back_at_checkin(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    connection.autocommit = False
    connection.read_only = True
    connection.execute("SELECT 1")
    pool.checkin(connection)
    assert "rolled back a transaction left open" in caplog.text
    again = pool.checkout()
    assert again.session is connection.session
    assert (again.autocommit, again.read_only, again.isolation_level) == (True, None, None)
    pool.checkin(again)


def test_reset_discard_leaves_no_session_state(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(
        server,
        max_size=1,
        reset="discard",
        configure=lambda connection: connection.execute("SET TimeZone TO 'UTC'"),
    )
    connection = pool.checkout()
    connection.execute("SET TimeZone TO 'Asia/Tokyo'")
    connection.execute("CREATE TEMP TABLE scratch (x int)")
    connection.execute("LISTEN news")
    connection.execute("SELECT pg_advisory_lock(1)")
    pool.checkin(connection)
    again = pool.checkout()
    assert again.session is connection.session
    state = again.execute(
        "SELECT current_setting('TimeZone'), to_regclass('scratch'), "
        "(SELECT count(*) FROM pg_listening_channels()), "
        "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
    ).fetchone()
    assert state == ("UTC", None, 0, 0)
    pool.checkin(again)


def test_a_poisoned_connection_does_not_go_back(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    connection.session.doom("25006: cannot execute INSERT in a read-only transaction")
    pool.checkin(connection)
    assert connection.session.closed_for is not None
    assert query(pool) == 42


def test_a_reset_that_something_else_ends_loses_no_connection(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    class Alarm(BaseException):
        """As gevent.Timeout, or Ctrl-C."""

    def reset(connection: Any) -> None:
        raise Alarm

    pool = make_pool(server, max_size=1, reset=reset)
    connection = pool.checkout()
    with pytest.raises(Alarm):
        pool.checkin(connection)
    assert pool.gauges().in_use == 0
    assert connection.session.closed_for is not None
    again = pool.checkout()
    with pytest.raises(Alarm):
        pool.checkin(again)


def test_a_second_checkin_is_no_error(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    pool.checkin(connection)
    pool.checkin(connection)
    assert pool.gauges().idle == 1


def test_the_project_s_own_check_is_asked_too(server: EmbeddedServer, make_pool: MakePool) -> None:
    rejected: list[Any] = []

    def check(connection: Any) -> None:
        if not rejected:
            rejected.append(connection)
            raise RuntimeError("not this one")

    pool = make_pool(server, check=check)
    connection = pool.checkout()
    pool.checkin(connection)
    assert rejected[0].session is not connection.session
    assert rejected[0].closed


def test_a_checkout_from_a_closed_pool_says_so(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    session = connection.pgconn
    pool.close()
    with pytest.raises(PoolClosed, match="the pool is closed"):
        pool.checkout()
    pool.checkin(connection)
    assert session.status == psycopg.pq.ConnStatus.BAD


def test_closing_under_load_lets_those_in_use_finish_and_refuses_the_others(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=4)
    outcomes: list[str] = []

    def work() -> None:
        while True:
            try:
                connection = pool.checkout()
            except PoolClosed:
                outcomes.append("refused")
                return
            try:
                connection.execute("SELECT pg_sleep(0.1)")
                outcomes.append("finished")
            except psycopg.Error:
                outcomes.append("broken")
            finally:
                pool.checkin(connection)

    with ThreadPoolExecutor(12) as threads:
        workers = [threads.submit(work) for _ in range(12)]
        wait_until(lambda: pool.gauges().in_use == 4)
        pool.close(timeout=10.0)
        assert pool.gauges().in_use == 0
        for worker in workers:
            worker.result(10)
    assert outcomes.count("refused") == 12
    assert outcomes.count("finished") >= 4
    assert "broken" not in outcomes
    wait_until(lambda: backend_count(server, "postgres") == 0)


def test_closing_waits_no_longer_than_its_timeout_and_not_for_the_closing_thread(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    mine = pool.checkout()
    session = mine.pgconn
    started = time.monotonic()
    pool.close(timeout=30.0)
    assert time.monotonic() - started < 10
    pool.checkin(mine)
    assert session.status == psycopg.pq.ConnStatus.BAD


def test_closing_does_not_wait_for_a_server_that_is_away(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(
        server,
        parameters={"port": free_port()},
        backoff={"initial": 600.0, "maximum": 600.0, "jitter": False},
        timeout=60.0,
    )
    errors: list[Exception] = []

    def wait() -> None:
        try:
            pool.checkout()
        except PoolError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: pool.gauges().waiting == 1 and pool.snapshot().last_error)
    started = time.monotonic()
    pool.close(timeout=600.0)
    assert time.monotonic() - started < 60.0
    waiter.join(10)
    assert [type(error) for error in errors] == [PoolClosed]


def test_a_thread_that_ends_with_a_connection_gives_it_back_with_a_warning(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=1)

    def forget() -> None:
        connection = pool.checkout()
        connection.autocommit = False
        connection.execute("SELECT 1")

    for _ in range(3):
        thread = threading.Thread(target=forget)
        thread.start()
        thread.join()
    wait_until(lambda: pool.gauges().idle == 1 and pool.snapshot().counters.reclaimed == 3)
    assert "tests.integration.pool.test_pool.forget:" in caplog.text


def test_a_long_hold_is_logged_with_its_stack_when_others_wait_in_vain(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=1, timeout=0.3, leak_after=0.1)

    def holds_it_too_long() -> Any:
        return pool.checkout()

    connection = holds_it_too_long()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    pool.checkin(connection)
    held = [getattr(record, "seconds", 0.0) for record in caplog.records]
    assert caplog.text.count("in holds_it_too_long") == len(held) >= 2
    assert all(seconds >= 0.1 * 2**i for i, seconds in enumerate(held))


def test_a_frozen_server_is_found_within_check_timeout(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, check_after=0.0, check_timeout=0.3, timeout=2.0)
    query(pool)
    proxy.freeze()
    started = time.monotonic()
    with pytest.raises(CheckoutTimeout):
        query(pool)
    assert time.monotonic() - started < 8
    proxy.forward()


def test_credentials_are_asked_for_at_each_connect(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    asked: list[str] = []

    def token() -> str:
        asked.append("token")
        return server.password

    pool = make_pool(server, max_size=2, parameters={"password": token})
    held = [pool.checkout() for _ in range(2)]
    for connection in held:
        pool.checkin(connection)
    assert asked
    assert server.password not in repr(pool.snapshot())


def test_the_log_never_shows_a_password(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pool = make_pool(server, parameters={"port": free_port()}, timeout=0.3)
    with pytest.raises(CheckoutTimeout) as timeout:
        query(pool)
    assert server.password not in caplog.text
    assert server.password not in str(timeout.value)


def test_a_notification_does_not_make_a_connection_look_dead(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    connection.execute("LISTEN news")
    pool.checkin(connection)
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as other:
        other.execute("NOTIFY news, 'hello'")
    again = pool.checkout()
    pool.checkin(again)
    assert again.session is connection.session


def test_the_server_s_goodbye_is_believed_before_it_closes(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(own_server, max_size=1)
    connection = pool.checkout()
    pid = connection.info.backend_pid
    pool.checkin(connection)
    kill_backends(own_server, "postgres")
    assert query(pool) == 42
    assert pid not in backend_pids(own_server, "postgres")


def test_a_pool_is_whole_again_after_an_outage_longer_than_reconnect_timeout(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    gave_up = threading.Event()
    proxy.down()
    pool = make_pool(
        server,
        through=proxy,
        max_size=2,
        timeout=0.3,
        reconnect_timeout=0.1,
        reconnect_failed=lambda _: gave_up.set(),
    )
    with pytest.raises(CheckoutTimeout):
        query(pool)
    assert gave_up.wait(10)
    proxy.forward()
    assert wait_until(lambda: query(pool)) == 42
    fill(pool, 2)


def test_a_checkout_that_something_else_ends_loses_no_connection(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    class Alarm(BaseException):
        """As gevent.Timeout, or Ctrl-C."""

    checked: list[Any] = []

    def check(connection: Any) -> None:
        checked.append(connection)
        if len(checked) == 1:
            raise Alarm

    pool = make_pool(server, max_size=1, check=check)
    with pytest.raises(Alarm):
        pool.checkout()
    assert checked[0].closed
    assert query(pool) == 42
    assert pool.snapshot().counters.checkouts == 1


def test_a_connection_handed_to_a_waiter_who_is_gone_by_then_goes_back(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alarm(BaseException):
        """As gevent.Timeout, or Ctrl-C."""

    sleep = Waiter.sleep

    def interrupted(self: Waiter, until: float) -> None:
        sleep(self, until)
        raise Alarm

    pool = make_pool(server, min_size=0, max_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(Waiter, "sleep", interrupted)
        with pytest.raises(Alarm):
            pool.checkout()
    assert (pool.gauges().idle, pool.gauges().waiting) == (1, 0)
    assert query(pool) == 42
    assert pool.snapshot().counters.connects == 1


def test_a_demoted_server_takes_no_connection_to_another_host_along(
    make_server: Callable[..., EmbeddedServer],
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_pool: MakePool,
) -> None:
    server = make_server()
    proxy = make_proxy(server)
    both = {"host": "127.0.0.1,127.0.0.1", "port": f"{proxy.port},{server.port}"}
    pool = make_pool(server, min_size=0, max_size=2, parameters=both)
    demoted = pool.checkout()
    proxy.down()
    promoted = pool.checkout()
    assert (demoted.place[1], promoted.place[1]) == (proxy.port, server.port)
    demoted.execute("SET default_transaction_read_only = on")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as refused:
        demoted.execute("CREATE TABLE never (x int)")
    pool.note_error(demoted, refused.value)
    pool.checkin(demoted)
    pool.checkin(promoted)
    assert demoted.session.closed_for is not None
    assert promoted.session.closed_for is None
    assert pool.gauges().idle == 1


def test_a_thread_that_ends_after_its_pool_was_closed_leaves_nothing_open(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    taken, closed = threading.Event(), threading.Event()
    left: list[PooledConnection] = []

    def forget() -> None:
        left.append(pool.checkout())
        taken.set()
        closed.wait(10)

    thread = threading.Thread(target=forget)
    thread.start()
    assert taken.wait(10)
    pool.close(timeout=0.1)
    closed.set()
    thread.join()
    wait_until(lambda: left[0].closed)
    assert pool.gauges().in_use == 0
    assert pool.snapshot().counters.reclaimed == 1


def test_a_process_that_gets_no_more_threads_opens_its_connections_all_the_same(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.endswith("-opens"):
            raise RuntimeError("can't start new thread")
        start(self)

    pool = make_pool(server, min_size=0, max_size=2)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    fill(pool, 2)
    assert query(pool) == 42


def test_what_a_user_has_set_on_a_connection_is_unset_at_checkin(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    connection.autocommit = False
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    connection.read_only = True
    connection.deferrable = True
    pool.checkin(connection)
    again = pool.checkout()
    assert again.session is connection.session
    assert again.autocommit
    assert (again.isolation_level, again.read_only, again.deferrable) == (None, None, None)
    pool.checkin(again)


@pytest.mark.parametrize("broken", [False, True])
def test_a_second_checkin_changes_nothing(
    server: EmbeddedServer, make_pool: MakePool, broken: bool
) -> None:
    pool = make_pool(server, min_size=0, max_size=2)
    connection = pool.checkout()
    if broken:
        connection.close()
    pool.checkin(connection)
    pool.checkin(connection)
    counters = pool.snapshot().counters
    assert (counters.checkouts, counters.checkins, counters.discarded) == (1, not broken, broken)
    assert pool.gauges().size == (0 if broken else 1)


def test_what_came_back_just_before_a_thread_queues_is_taken_at_once(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    fill(pool, 1)
    # As if it had found none a moment before.
    connection = pool._pool.take(5.0)
    assert pool.gauges().idle == pool.gauges().waiting == 0
    pool._pool.give(connection, time.monotonic())
    assert pool.gauges().idle == 1
