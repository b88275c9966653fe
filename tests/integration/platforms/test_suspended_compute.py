"""A compute that is suspended while nobody asks, as Neon's: what wakes it, and what waits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections, transaction

from django_pooled import retry_transaction
from django_pooled.errors import CheckoutTimeout
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase, MakePool

COLD_START = 1.5
"""Seconds: Neon's documentation says a few hundred milliseconds, and not always."""


def traffic(proxy: FaultProxy) -> tuple[int, int]:
    return proxy.round_trips(), len(proxy.connects())


def quiet_for(pool: Pool, proxy: FaultProxy, seconds: float) -> bool:
    """Tell whether a pool that nobody uses leaves the server alone for that long."""
    before = traffic(proxy)
    time.sleep(seconds)
    return traffic(proxy) == before


def test_the_first_requests_after_a_suspension_wait_for_the_cold_start_and_none_fails(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, min_size=0, max_size=4, timeout=30.0)
    fill(pool, 4)
    assert proxy.suspend(COLD_START) == 4
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: query(pool), range(8))) == [42] * 8
    assert time.monotonic() - began >= COLD_START
    counters = pool.snapshot().counters
    assert (counters.timeouts, counters.connect_failures) == (0, 0)


def test_a_connect_timeout_below_the_cold_start_costs_attempts_and_no_request(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    # Two seconds are the least that libpq takes.
    pool = make_pool(
        server, through=proxy, min_size=0, timeout=30.0, parameters={"connect_timeout": 2}
    )
    query(pool)
    proxy.suspend(4.0)
    assert query(pool) == 42
    counters = pool.snapshot().counters
    assert counters.timeouts == 0
    assert counters.connect_failures >= 1


def test_a_timeout_below_the_cold_start_fails_the_first_request_and_serves_the_next(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, min_size=0, timeout=0.3)
    query(pool)
    proxy.suspend(COLD_START)
    with pytest.raises(CheckoutTimeout, match="1 being opened"):
        query(pool)
    # The attempt goes on, and what it brings is kept.
    wait_until(lambda: pool.gauges().idle == 1)
    before = len(proxy.connects())
    assert query(pool) == 42
    assert len(proxy.connects()) == before


def test_a_transaction_and_a_request_that_begin_after_a_suspension_do_not_notice(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, min_size=0)
    calls: list[int] = []

    def ask() -> Any:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 42")
            [found] = cursor.fetchone()
            return found

    @retry_transaction(using=alias)
    def write() -> Any:
        calls.append(1)
        return ask()

    assert ask() == 42  # This thread keeps its connection, as one of an interactive session.
    proxy.suspend(0.2)
    assert ask() == 42
    proxy.suspend(0.2)
    with transaction.atomic(using=alias):
        assert ask() == 42
    proxy.suspend(0.2)
    assert write() == 42
    assert calls == [1]


# What keeps it awake.


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": 0},
        {"min_size": 1},
        {"min_size": 4, "check_after": 0.0},
    ],
    ids=["none is kept", "one is kept", "checked at each checkout"],
)
def test_an_idle_pool_sends_nothing(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, options: dict[str, Any]
) -> None:
    pool = make_pool(server, through=proxy, max_size=4, **options)
    wait_until(lambda: pool.gauges().idle >= options["min_size"])
    fill(pool, 4)
    assert quiet_for(pool, proxy, 2.0)


@pytest.mark.parametrize("max_lifetime", [1.0, 1800.0])
def test_a_pool_that_closes_what_is_idle_opens_no_other(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, max_lifetime: float
) -> None:
    pool = make_pool(
        server, through=proxy, min_size=0, max_size=4, max_idle=0.2, max_lifetime=max_lifetime
    )
    fill(pool, 4)
    wait_until(lambda: proxy.established() == 0)
    assert quiet_for(pool, proxy, 2.0)


@pytest.mark.parametrize("options", [{"max_lifetime": 1.0}, {"keepalive": 0.2}])
def test_what_min_size_keeps_is_kept_fit_which_wakes_it(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, options: dict[str, Any]
) -> None:
    pool = make_pool(server, through=proxy, min_size=1, **options)
    wait_until(lambda: pool.gauges().idle == 1)
    before = traffic(proxy)
    wait_until(lambda: traffic(proxy) != before)


@pytest.mark.parametrize("min_size", [0, 1])
def test_a_suspension_is_not_answered_by_a_connect(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, min_size: int
) -> None:
    pool = make_pool(server, through=proxy, min_size=min_size, max_size=4)
    fill(pool, 4)
    proxy.suspend(60.0)
    assert quiet_for(pool, proxy, 2.0)
    proxy.forward()
    assert query(pool) == 42


def test_a_probe_for_readiness_wakes_it(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, min_size=0)
    query(pool)
    proxy.suspend(0.0)
    before = len(proxy.connects())
    wait_until(lambda: pool.check_readiness(5.0).result(5.0).serves)
    assert len(proxy.connects()) > before
