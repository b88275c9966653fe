"""Logins that the server refuses while the pool runs: how often they are tried, who is told."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled.errors import CheckoutTimeout, ConnectFailed
from embedded_postgres import free_port
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool

STEADY = {"initial": 0.5, "maximum": 0.5, "jitter": False}
"""A backoff by which the pauses after refusals are of 0.5, 1, and then 2 seconds."""

LONG = {"initial": 600.0, "maximum": 600.0, "jitter": False}


def execute(server: EmbeddedServer, *statements: str) -> None:
    with psycopg.connect(**server.parameters("template1"), autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement)


REFUSALS = {
    "password changed": ("ALTER ROLE clerk PASSWORD 'new'", "ALTER ROLE clerk PASSWORD 'old'"),
    "role locked": ("ALTER ROLE clerk NOLOGIN", "ALTER ROLE clerk LOGIN"),
    "role renamed": ("ALTER ROLE clerk RENAME TO gone", "ALTER ROLE gone RENAME TO clerk"),
    "database closed": (
        "ALTER DATABASE postgres ALLOW_CONNECTIONS false",
        "ALTER DATABASE postgres ALLOW_CONNECTIONS true",
    ),
}


@pytest.fixture
def clerk_s_pool(own_server: EmbeddedServer, make_pool: MakePool) -> Callable[..., Pool]:
    """Make pools for a role of the test."""
    execute(own_server, "CREATE ROLE clerk LOGIN PASSWORD 'old'")

    def make(**options: Any) -> Pool:
        parameters = {"user": "clerk", "password": "old"}
        return make_pool(own_server, parameters=parameters, **options)

    return make


@pytest.mark.parametrize("refusal", REFUSALS)
def test_many_threads_log_in_no_more_often_than_one_while_two_connections_serve_them(
    own_server: EmbeddedServer, clerk_s_pool: Callable[..., Pool], refusal: str
) -> None:
    pool = clerk_s_pool(max_size=8, backoff=STEADY)
    fill(pool, 2)
    refuse, mend = REFUSALS[refusal]
    execute(own_server, refuse)
    finished = threading.Event()
    served: list[int] = []

    def work() -> None:
        while not finished.is_set():
            connection = pool.checkout()
            connection.execute("SELECT pg_sleep(0.005)")
            pool.checkin(connection)
            served.append(1)

    with ThreadPoolExecutor(8) as threads:
        workers = [threads.submit(work) for _ in range(8)]
        time.sleep(4.0)  # the measured span
        failures = pool.snapshot().counters.connect_failures
        execute(own_server, mend)
        try:
            # It is found out by the pool itself, and then it grows for all that wait.
            wait_until(lambda: pool.gauges().size > 4)
        finally:
            finished.set()
        for worker in workers:
            worker.result(20)
    # Those under way at first, and then after 0.5, 1 and 2 seconds.
    assert 2 <= failures <= 6 + 3
    assert len(served) > 100
    assert pool.snapshot().counters.refused == 0


@contextlib.contextmanager
def refused_waiter(
    server: EmbeddedServer, clerk_s_pool: Callable[..., Pool], after: int
) -> Iterator[tuple[Pool, PooledConnection, Future[int]]]:
    """Give a pool, its only connection, and the answer of a thread that waits for another.

    The server has refused that one *after* times.
    """
    pool = clerk_s_pool(max_size=2, timeout=30.0, backoff=STEADY)
    connection = pool.checkout()
    execute(server, "ALTER ROLE clerk PASSWORD 'new'")
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(query, pool)
        wait_until(lambda: pool.snapshot().counters.connect_failures == after)
        yield pool, connection, answer


def test_a_waiter_whom_nobody_joins_is_served_once_the_refusal_is_over(
    own_server: EmbeddedServer, clerk_s_pool: Callable[..., Pool]
) -> None:
    # The one connection is in use for longer than the refusal lasts.
    with refused_waiter(own_server, clerk_s_pool, after=2) as (pool, connection, answer):
        execute(own_server, "ALTER ROLE clerk PASSWORD 'old'")
        assert answer.result(10) == 42
        pool.checkin(connection)


def test_waiters_are_told_of_a_refusal_once_the_last_connection_that_could_serve_them_is_gone(
    own_server: EmbeddedServer, clerk_s_pool: Callable[..., Pool]
) -> None:
    with refused_waiter(own_server, clerk_s_pool, after=1) as (pool, connection, answer):
        connection.session.doom("for the test")
        pool.checkin(connection)
        with pytest.raises(ConnectFailed, match="password authentication failed"):
            answer.result(10)


def test_connections_that_are_lost_are_not_replaced_while_a_refusal_stands(
    own_server: EmbeddedServer, clerk_s_pool: Callable[..., Pool]
) -> None:
    pool = clerk_s_pool(min_size=4, max_size=6, backoff=LONG)
    wait_until(lambda: pool.gauges().idle == 4)
    execute(own_server, "ALTER ROLE clerk PASSWORD 'new'")
    held = [pool.checkout() for _ in range(4)]
    for connection in held:
        connection.session.doom("for the test")
        pool.checkin(connection)
        wait_until(lambda: pool.snapshot().counters.connect_failures >= 1)
    with pytest.raises(ConnectFailed):
        query(pool)
    assert pool.snapshot().counters.connect_failures == 1


def test_credentials_that_change_are_fetched_once_more_at_the_first_refusal_only(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    calls: list[int] = []

    def password() -> str:
        calls.append(1)
        return "token of yesterday"

    pool = make_pool(
        server,
        min_size=0,
        credentials_change=True,
        parameters={"password": password},
        backoff={"initial": 0.05, "maximum": 0.05},
    )
    for attempts in (1, 2, 3):
        wait_until(lambda: not pool._connector.pause)
        with pytest.raises(ConnectFailed):
            query(pool)
        assert pool.snapshot().counters.connect_failures == attempts
    assert len(calls) == 2 + 1 + 1


# reconnect_failed


@pytest.fixture
def told() -> list[float]:
    return []


def make_watched(
    make_pool: MakePool, server: EmbeddedServer, told: list[float], **options: Any
) -> Pool:
    return make_pool(
        server,
        min_size=0,
        reconnect_failed=lambda pool: told.append(time.monotonic()),
        **options,
    )


@pytest.mark.parametrize(
    ("parameters", "error", "timeout"),
    # A login is refused when the server has answered; nobody answers at the port.
    [({"password": "wrong"}, ConnectFailed, 30.0), ({"port": free_port()}, CheckoutTimeout, 0.2)],
    ids=["refused", "away"],
)
def test_reconnect_failed_is_called_when_its_time_has_passed_and_not_before(
    server: EmbeddedServer,
    make_pool: MakePool,
    told: list[float],
    parameters: dict[str, Any],
    error: type[Exception],
    timeout: float,
) -> None:
    pool = make_watched(
        make_pool, server, told, parameters=parameters, timeout=timeout, reconnect_timeout=1.5
    )
    began = time.monotonic()
    while time.monotonic() < began + 1.0:
        with pytest.raises(error):
            query(pool)
    wait_until(lambda: told)
    assert told[0] >= began + 1.5
    # Nobody has asked again: it is not called again.
    time.sleep(2.0)
    assert len(told) == 1


def test_reconnect_failed_is_called_again_after_another_whole_period(
    server: EmbeddedServer, make_pool: MakePool, told: list[float]
) -> None:
    pool = make_watched(
        make_pool, server, told, parameters={"password": "wrong"}, reconnect_timeout=0.5
    )

    def told_twice() -> bool:
        with pytest.raises(ConnectFailed):
            query(pool)
        return len(told) >= 2

    wait_until(told_twice)
    assert told[1] - told[0] >= 0.5


def test_reconnect_failed_is_not_called_if_there_was_a_success_meanwhile(
    own_server: EmbeddedServer, make_pool: MakePool, told: list[float]
) -> None:
    execute(own_server, "CREATE ROLE clerk LOGIN PASSWORD 'new'")
    parameters = {"user": "clerk", "password": "old"}
    pool = make_watched(
        make_pool, own_server, told, parameters=parameters, reconnect_timeout=6.0, backoff=STEADY
    )
    with pytest.raises(ConnectFailed):
        query(pool)
    execute(own_server, "ALTER ROLE clerk PASSWORD 'old'")
    wait_until(lambda: not pool._connector.pause)
    assert query(pool) == 42
    assert pool._pool._patience_ends
    wait_until(lambda: not pool._pool._patience_ends, what="the end of the period")
    assert told == []


def test_a_reconnect_failed_that_hangs_holds_up_nothing(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    execute(own_server, "CREATE ROLE clerk LOGIN PASSWORD 'new'")
    released, called = threading.Event(), threading.Event()

    def reconnect_failed(pool: Any) -> None:
        called.set()
        assert released.wait(60)

    pool = make_pool(
        own_server,
        parameters={"user": "clerk", "password": "old"},
        reconnect_timeout=0.1,
        reconnect_failed=reconnect_failed,
        max_size=1,
    )
    with pytest.raises(ConnectFailed):
        query(pool)
    assert called.wait(10)
    execute(own_server, "ALTER ROLE clerk PASSWORD 'old'")
    try:
        wait_until(lambda: not pool._connector.pause)
        assert query(pool) == 42
    finally:
        released.set()
