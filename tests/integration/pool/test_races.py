"""Threads that do something at the same moment, one of them in the midst of it, on real servers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.errors import ConnectFailed
from django_pooled.pool.eviction import _is_read_only
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool

PATIENCE = 30.0


def test_a_connection_is_closed_once_no_other_thread_looks_at_it(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    looks, may_end = threading.Event(), threading.Event()

    def look(pgconn: Any) -> int:
        looks.set()
        assert may_end.wait(PATIENCE)
        # By the memory of libpq, which closing frees.
        return int(pgconn.transaction_status)

    with ThreadPoolExecutor(2) as threads:
        looking = threads.submit(connection.look, look)
        assert looks.wait(PATIENCE)
        closing = threads.submit(connection.close)
        assert connection.pgconn.status == ConnStatus.OK
        may_end.set()
        assert looking.result(PATIENCE) == TransactionStatus.IDLE
        closing.result(PATIENCE)
    assert connection.look(lambda pgconn: pytest.fail("it is closed")) is None
    pool.checkin(connection)


def test_a_closed_connection_of_another_thread_is_described_as_closed(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    connection.close()
    assert [it["status"] for it in pool.snapshot().connections] == ["closed"]
    # As it is asked of all others, once one has reached a server that can write again.
    assert not _is_read_only(connection)
    pool.checkin(connection)


def test_a_connection_that_is_at_work_is_not_asked_for_what_its_server_says(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    assert not _is_read_only(connection)
    with connection.lock:
        assert _is_read_only(connection)
    connection.execute("SET default_transaction_read_only = on")
    assert _is_read_only(connection)
    pool.checkin(connection)


def test_a_waiter_gets_the_connection_that_another_thread_has_taken_and_still_checks(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    checks, may_end = threading.Event(), threading.Event()

    def check(connection: PooledConnection) -> None:
        checks.set()
        assert may_end.wait(PATIENCE)

    with psycopg.connect(**own_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE racer LOGIN PASSWORD 'old'")
        pool = make_pool(
            own_server,
            parameters={"user": "racer", "password": "old"},
            max_size=2,
            check=check,
            check_timeout=PATIENCE,
            timeout=PATIENCE,
        )
        may_end.set()
        fill(pool, 1)
        may_end.clear()
        checks.clear()
        admin.execute("ALTER ROLE racer PASSWORD 'new'")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(query, pool)
        assert checks.wait(PATIENCE)
        # It is neither idle nor in use, and no other one can be opened.
        assert (pool.gauges().idle, pool.gauges().in_use) == (0, 0)
        second = threads.submit(query, pool)
        wait_until(lambda: "racer" in (pool.snapshot().last_error or ""))
        wait_until(lambda: pool.snapshot().connecting == 0)
        assert pool.gauges().waiting == 1
        may_end.set()
        try:
            assert [first.result(PATIENCE), second.result(PATIENCE)] == [42, 42]
        except ConnectFailed as error:
            pytest.fail(f"a waiter was refused: {error}")
