"""A pool whose waiters are refused once all of them wait too long."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.errors import CheckoutTimeout, PoolExhausted
from django_pooled.stats.orders import Order
from tests.support.pools import fill, query
from tests.support.threads import at_once
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool

LONG = 60.0


class Waiters:
    """Threads that check out, and keep what they get for a while."""

    def __init__(self, pool: Pool, number: int, keep: float = 0.0) -> None:
        self.served: list[float] = []
        self.errors: list[Any] = []
        self._pool, self._keep = pool, keep
        self.threads = [threading.Thread(target=self._wait) for _ in range(number)]
        for thread in self.threads:
            thread.start()

    def _wait(self) -> None:
        began = time.monotonic()
        try:
            connection = self._pool.checkout()
        except Exception as error:
            self.errors.append(error)
            return
        self.served.append(time.monotonic() - began)
        time.sleep(self._keep)
        self._pool.checkin(connection)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60.0)
            assert not thread.is_alive()


def test_waiters_of_a_pool_that_serves_none_are_refused_long_before_their_timeout(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG, queue_target=0.05, queue_interval=0.2)
    held = [pool.checkout(), pool.checkout()]
    waiters = Waiters(pool, 5)
    waiters.join()
    assert waiters.served == []
    assert [error.limit for error in waiters.errors] == ["queue_target"] * 5
    assert all(isinstance(error, PoolExhausted) for error in waiters.errors)
    assert all(error.elapsed < LONG / 2 for error in waiters.errors)
    assert "queue_target, 0.05 s" in str(waiters.errors[0])
    counters = pool.snapshot().counters
    assert (counters.exhausted, counters.shed, counters.timeouts) == (5, 5, 0)
    assert pool.gauges().waiting == 0
    for connection in held:
        pool.checkin(connection)
    # No wait, no refusal.
    assert query(pool) == 42


def test_a_new_waiter_is_served_after_others_were_refused(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, timeout=LONG, queue_target=5.0, queue_interval=0.2)
    held = pool.checkout()
    old = Waiters(pool, 3)
    old.join()
    assert [error.limit for error in old.errors] == ["queue_target"] * 3
    new = Waiters(pool, 1)
    wait_until(lambda: pool.gauges().waiting == 1)
    pool.checkin(held)
    new.join()
    assert (len(new.served), new.errors) == (1, [])


def test_those_that_are_served_in_an_overload_are_served_soon(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG, queue_target=0.1, queue_interval=0.3)
    fill(pool, 2)
    over, served, refused = time.monotonic() + 3.0, [], []

    def visit() -> None:
        while time.monotonic() < over:
            began = time.monotonic()
            try:
                connection = pool.checkout()
            except PoolExhausted:
                refused.append(time.monotonic() - began)
                time.sleep(0.2)
                continue
            served.append((began, time.monotonic() - began))
            time.sleep(0.05)
            pool.checkin(connection)

    at_once(visit, 40)
    # 40 visitors would wait for a second each; 40 connections a second are to be had.
    assert len(served) > 60
    assert len(refused) > 60
    late = sorted(waited for began, waited in served if began > over - 2.0)
    assert late[len(late) // 2] < 0.6
    assert pool.snapshot().counters.shed == len(refused)


def test_nobody_is_refused_without_an_overload(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG, queue_target=0.05, queue_interval=3.0)
    fill(pool, 2)
    for _ in range(4):
        # Each burst has waits above twice the target, and is gone soon.
        burst = Waiters(pool, 8, keep=0.1)
        burst.join()
        assert burst.errors == []
        time.sleep(1.0)


def test_a_pause_is_no_overload(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG, queue_target=0.02, queue_interval=1.5)
    fill(pool, 2)
    pool.steering.obey(Order("pause", "", token="a", seconds=LONG), "user 33")
    waiters = Waiters(pool, 6)
    wait_until(lambda: pool.gauges().waiting == 6)
    time.sleep(3.5)  # two intervals, and more
    assert waiters.errors == []
    pool.steering.obey(Order("resume", "", token="a"), "user 33")
    waiters.join()
    assert (len(waiters.served), waiters.errors) == (6, [])


def test_a_server_that_is_away_is_no_overload(
    server: EmbeddedServer, make_pool: MakePool, proxy: Any
) -> None:
    pool = make_pool(server, proxy, max_size=2, timeout=LONG, queue_target=0.02, queue_interval=1.5)
    assert query(pool) == 42
    proxy.down()
    proxy.cut()
    waiters = Waiters(pool, 6)
    wait_until(lambda: pool.gauges().waiting == 6)
    wait_until(lambda: pool.snapshot().counters.connect_failures >= 2)
    time.sleep(3.5)
    assert waiters.errors == []
    proxy.forward()
    waiters.join()
    assert (len(waiters.served), waiters.errors) == (6, [])


def test_a_server_that_is_away_is_no_overload_though_one_keeps_its_dead_connection(
    make_server: Callable[..., EmbeddedServer], make_pool: MakePool
) -> None:
    server = make_server()
    pool = make_pool(server, max_size=2, timeout=LONG, queue_target=0.02, queue_interval=0.5)
    fill(pool, 2)
    kept = pool.checkout()
    server.stop("fast")
    waiters = Waiters(pool, 6)
    wait_until(lambda: pool.snapshot().counters.connect_failures >= 2)
    since = time.monotonic()
    # Several intervals, and attempts.
    wait_until(lambda: time.monotonic() > since + 2.0 or waiters.errors)
    assert (pool.gauges().in_use, pool.gauges().waiting, waiters.errors) == (1, 6, [])
    server.start()
    waiters.join()
    assert (len(waiters.served), waiters.errors) == (6, [])
    pool.checkin(kept)


def test_an_overload_is_one_though_no_more_connections_can_be_opened(
    server: EmbeddedServer, make_pool: MakePool, proxy: Any
) -> None:
    pool = make_pool(server, proxy, max_size=3, timeout=LONG, queue_target=0.02, queue_interval=0.2)
    fill(pool, 2)
    proxy.down()
    waiters = [Waiters(pool, 10, keep=0.1)]
    wait_until(lambda: pool.snapshot().counters.connect_failures >= 2)
    # Visitors come as long as it takes.
    while not any(found.errors for found in waiters):
        waiters.append(Waiters(pool, 10, keep=0.1))
        wait_until(lambda: pool.gauges().waiting < 10)
    for each in waiters:
        each.join()
    assert {error.limit for each in waiters for error in each.errors} == {"queue_target"}
    proxy.forward()


def test_lost_connections_are_found_though_none_waits_for_long(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, timeout=LONG, queue_target=0.05, queue_interval=0.1)
    gc.collect()
    gc.disable()
    try:
        cycle: list[Any] = [pool.checkout()]
        cycle.append(cycle)
        del cycle
        with pytest.raises(PoolExhausted):
            pool.checkout()
        wait_until(lambda: pool.gauges().idle == 1)
        assert query(pool) == 42
    finally:
        gc.enable()


def test_max_waiting_says_so_itself(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=1, timeout=LONG, max_waiting=1, queue_target=30.0)
    held = pool.checkout()
    waiters = Waiters(pool, 1)
    wait_until(lambda: pool.gauges().waiting == 1)
    with pytest.raises(PoolExhausted, match="1 thread is waiting already") as caught:
        pool.checkout()
    assert caught.value.limit == "max_waiting"
    counters = pool.snapshot().counters
    assert (counters.exhausted, counters.shed) == (1, 0)
    pool.checkin(held)
    waiters.join()


def test_the_timeout_holds_beside_it(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=1, timeout=0.2, queue_target=30.0)
    held = pool.checkout()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    pool.checkin(held)
