from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled.errors import CheckoutTimeout
from tests.servers.postgresql import backend_count
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool

STEADY = {"initial": 0.5, "maximum": 0.5, "jitter": False}
"""A backoff whose longer waits, after the first two, are of 2 seconds: all are known."""


class WrongServer(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 6])
@pytest.mark.parametrize("error", [WrongServer("a standby"), psycopg.ProgrammingError("a standby")])
def test_a_check_that_fails_is_waited_out_and_named(
    server: EmbeddedServer, make_pool: MakePool, threads: int, error: Exception
) -> None:
    def check(connection: PooledConnection) -> None:
        raise error

    pool = make_pool(server, min_size=0, timeout=2.0, check=check, backoff=STEADY)
    with ThreadPoolExecutor(threads) as executor:
        for answer in [executor.submit(query, pool) for _ in range(threads)]:
            with pytest.raises(CheckoutTimeout, match=r"\['check'\] raised .*: a standby") as found:
                answer.result(20)
            assert found.value.__cause__ is error
    # Each at first, and then one after 0.5, 1 and 2 seconds.
    assert pool.snapshot().counters.connects <= threads + 3
    assert pool.gauges().size == 0


def test_a_check_that_passes_again_ends_the_wait(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    failing = threading.Event()
    failing.set()

    def check(connection: PooledConnection) -> None:
        if failing.is_set():
            raise WrongServer

    pool = make_pool(server, min_size=0, max_size=4, timeout=30.0, check=check)
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(query, pool) for _ in range(4)]
        wait_until(lambda: pool.snapshot().counters.closed["dead"] >= 5)
        failing.clear()
        assert [answer.result(20) for answer in answers] == [42] * 4
    fill(pool, 4)
    assert pool._connector.trouble is None


def test_a_check_that_fails_whatever_was_used_before_costs_no_connect_for_each_request(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    seen: Counter[int] = Counter()

    def check(connection: PooledConnection) -> None:
        seen[connection.info.backend_pid] += 1
        if seen[connection.info.backend_pid] > 1:
            raise WrongServer

    pool = make_pool(server, min_size=0, timeout=30.0, check=check, backoff=STEADY)
    began, served = time.monotonic(), 0
    while time.monotonic() < began + 4.0:
        assert query(pool) == 42
        served += 1
    # Two at once, and then after 0.5, 1, 2 and 2 seconds.
    assert served == pool.snapshot().counters.connects
    assert 3 <= served <= 6


def test_many_threads_open_no_more_connections_than_one_while_those_used_before_fail(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    used: set[int] = set()
    finished = threading.Event()

    def check(connection: PooledConnection) -> None:
        pid = connection.info.backend_pid
        if pid in used:
            raise WrongServer
        used.add(pid)

    def work() -> int:
        served = 0
        while not finished.is_set():
            try:
                served += query(pool) == 42
            except CheckoutTimeout as error:
                assert isinstance(error.__cause__, WrongServer)  # noqa: PT017 - of each thread
        return served

    pool = make_pool(server, min_size=0, max_size=6, timeout=3.0, check=check, backoff=STEADY)
    with ThreadPoolExecutor(6) as threads:
        workers = [threads.submit(work) for _ in range(6)]
        time.sleep(6.0)  # the measured span
        connects = pool.snapshot().counters.connects
        finished.set()
        served = sum(worker.result(20) for worker in workers)
    # Twice as many as there are threads, until that has been found out, and then one at a time,
    # after 0.5, 1 and 2 seconds.
    assert connects <= 2 * 6 + 6
    assert served >= 6


def test_a_check_that_fails_for_every_second_connection_leaves_the_others(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    order: dict[int, int] = {}

    def check(connection: PooledConnection) -> None:
        number = order.setdefault(connection.info.backend_pid, len(order))
        if number % 2:
            raise WrongServer

    pool = make_pool(server, min_size=0, max_size=4, check=check)
    fill(pool, 4)
    for _ in range(20):
        assert query(pool) == 42
    assert pool.snapshot().counters.closed["dead"] == len(order) - 4


def test_idle_connections_that_fail_together_are_replaced_without_a_wait(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    demoted: set[int] = set()

    def check(connection: PooledConnection) -> None:
        if connection.info.backend_pid in demoted:
            raise WrongServer

    # A wait would be longer than the checkout may take.
    backoff = {"initial": 600.0, "maximum": 600.0, "jitter": False}
    pool = make_pool(server, max_size=4, check=check, backoff=backoff)
    fill(pool, 4)
    for _ in range(4):
        query(pool)
    demoted.update(connection.info.backend_pid for connection in pool._pool.idle_connections)
    assert query(pool) == 42
    assert pool.snapshot().counters.closed["dead"] == 4


@pytest.mark.parametrize("way", ["on the server", "in the process"])
def test_a_check_that_hangs_is_given_up_after_check_timeout(
    server: EmbeddedServer, make_pool: MakePool, way: str
) -> None:
    released = threading.Event()
    checked: list[PooledConnection] = []

    def check(connection: PooledConnection) -> None:
        checked.append(connection)
        if len(checked) == 1:
            if way == "on the server":
                connection.execute("SELECT pg_sleep(1000)")
            assert released.wait(60)

    pool = make_pool(server, min_size=0, timeout=30.0, check=check, check_timeout=0.5)
    try:
        assert query(pool) == 42
        assert pool.snapshot().counters.closed["dead"] == 1
        # The server has been asked to end what it did for the check.
        wait_until(lambda: backend_count(server, "postgres") == 1)
    finally:
        released.set()


def test_a_check_that_always_hangs_keeps_a_checkout_no_longer_than_its_timeout(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    released = threading.Event()
    pool = make_pool(
        server,
        min_size=0,
        timeout=1.0,
        check=lambda connection: released.wait(60),
        check_timeout=30.0,
    )
    try:
        with pytest.raises(CheckoutTimeout, match="TimeoutError: given up after") as timeout:
            query(pool)
        assert timeout.value.elapsed < 20.0
    finally:
        released.set()


def test_a_check_that_raises_no_exception_reaches_the_caller_and_is_waited_out(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    def check(connection: PooledConnection) -> None:
        raise SystemExit("check")

    pool = make_pool(server, min_size=0, timeout=2.0, check=check, backoff=STEADY)
    began, ends = time.monotonic(), 0
    while time.monotonic() < began + 3.0:
        with pytest.raises((SystemExit, CheckoutTimeout)):
            query(pool)
        ends += 1
    assert ends <= 5
    assert pool.gauges().size == 0


def test_a_check_sees_the_context_of_its_checkout(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[Any] = []
    pool = make_pool(server, check=lambda connection: seen.append(tenant.get()))
    tenant.set("ada")
    query(pool)
    assert seen == ["ada"]
