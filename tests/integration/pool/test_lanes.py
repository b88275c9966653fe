"""A pool that tells kinds of work apart: reservations, maxima, priorities."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled import lane
from django_pooled.errors import CheckoutTimeout, PoolExhausted
from django_pooled.stats.orders import Order
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool

LONG = 60.0


def checkout(pool: Pool, name: str) -> PooledConnection:
    with lane(name):
        return pool.checkout()


class Waiters:
    """Threads that wait, one after another, for a connection that they give back at once."""

    def __init__(self, pool: Pool) -> None:
        self.served: list[str] = []
        self.errors: list[Exception] = []
        self._pool = pool
        self._threads: list[threading.Thread] = []

    def add(self, name: str) -> None:
        """Have one more wait."""
        before = self._pool.gauges().waiting
        thread = threading.Thread(target=self._wait, args=(name,))
        self._threads.append(thread)
        thread.start()
        wait_until(lambda: self._pool.gauges().waiting == before + 1)

    def _wait(self, name: str) -> None:
        try:
            connection = checkout(self._pool, name)
        except Exception as error:
            self.errors.append(error)
        else:
            self.served.append(name)
            self._pool.checkin(connection)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60.0)
            assert not thread.is_alive()


def test_a_reserved_connection_is_had_while_requests_wait(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3, timeout=LONG, lanes={"admin": {"reserved": 1}})
    held = [checkout(pool, "web"), checkout(pool, "task")]
    waiters = Waiters(pool)
    waiters.add("web")
    waiters.add("task")
    # There is room for it, and no more is opened than may be used.
    assert pool.snapshot().counters.connects == 2
    admin = checkout(pool, "admin")
    assert pool.gauges().in_use == 3
    pool.checkin(admin)
    assert pool.gauges().idle == 1
    assert waiters.served == []
    for connection in held:
        pool.checkin(connection)
    waiters.join()
    assert sorted(waiters.served) == ["task", "web"]


def test_an_idle_connection_is_kept_for_the_lane_that_has_reserved_it(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2, timeout=3.0, lanes={"probe": {"reserved": 1}})
    fill_both = [checkout(pool, "probe"), checkout(pool, "probe")]
    for connection in fill_both:
        pool.checkin(connection)
    web = checkout(pool, "web")
    assert pool.gauges().idle == 1
    with pytest.raises(CheckoutTimeout, match="lane 'web' has 1, 1 reserved for others"):
        checkout(pool, "web")
    pool.checkin(checkout(pool, "probe"))
    pool.checkin(web)


def test_a_connection_goes_to_the_lane_of_the_highest_priority_and_there_to_the_first(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, timeout=LONG, lanes={})
    held = pool.checkout()
    waiters = Waiters(pool)
    for name in ("task", "web", "task", "admin", "web", "probe"):
        waiters.add(name)
    pool.checkin(held)
    waiters.join()
    assert waiters.served == ["probe", "admin", "web", "web", "task", "task"]


def test_a_lane_has_no_more_connections_than_its_maximum(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=4, timeout=LONG, lanes={"task": {"max": 2}})
    fill(pool, 4)
    held = [checkout(pool, "task"), checkout(pool, "task")]
    waiters = Waiters(pool)
    waiters.add("task")
    assert pool.gauges().idle == 2
    web = [checkout(pool, "web"), checkout(pool, "web")]
    # The first of these two is for nobody, the second one for the task that waits.
    pool.checkin(web.pop())
    assert waiters.served == []
    pool.checkin(held.pop())
    waiters.join()
    assert waiters.served == ["task"]
    pool.checkin(web.pop())
    pool.checkin(held.pop())


def test_one_that_waits_gets_an_idle_connection_when_its_lane_loses_one(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3, timeout=LONG, lanes={"task": {"max": 1}})
    fill(pool, 3)
    held = checkout(pool, "task")
    waiters = Waiters(pool)
    waiters.add("task")
    held.close()
    pool.checkin(held)
    waiters.join()
    assert waiters.served == ["task"]


def test_a_connection_that_is_dropped_counts_for_its_lane_no_more(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3, timeout=LONG, lanes={"task": {"max": 1}})
    held: list[Any] = [checkout(pool, "task")]
    waiters = Waiters(pool)
    waiters.add("task")
    held.clear()
    gc.collect()
    waiters.join()
    assert waiters.served == ["task"]


@pytest.mark.parametrize("lanes", [{"admin": {"reserved": 1}}, {"web": {"max": 1}}])
def test_one_that_only_refers_to_itself_is_found_though_another_is_idle(
    server: EmbeddedServer, make_pool: MakePool, lanes: dict[str, Any]
) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG, lanes=lanes)
    both = [checkout(pool, "web"), checkout(pool, "admin")]
    while both:
        pool.checkin(both.pop())
    gc.collect()
    gc.disable()
    try:
        cycle: list[Any] = [checkout(pool, "web")]
        cycle.append(cycle)
        del cycle
        assert (pool.gauges().idle, pool.gauges().in_use) == (1, 1)
        pool.checkin(checkout(pool, "web"))
    finally:
        gc.enable()


def test_requests_that_wait_do_not_count_against_an_admin(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, max_waiting=2, timeout=LONG, lanes={})
    held = pool.checkout()
    waiters = Waiters(pool)
    waiters.add("web")
    waiters.add("web")
    for name in ("web", "task"):
        with pytest.raises(PoolExhausted):
            checkout(pool, name)
    waiters.add("admin")
    waiters.add("admin")
    with pytest.raises(PoolExhausted):
        checkout(pool, "admin")
    pool.checkin(held)
    waiters.join()
    assert waiters.served == ["admin", "admin", "web", "web"]


def test_a_lane_may_wait_longer_than_the_others(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    lanes = {"task": {"queue_target": None}}
    pool = make_pool(
        server, max_size=1, timeout=LONG, queue_target=0.02, queue_interval=0.1, lanes=lanes
    )
    held = pool.checkout()
    waiters = Waiters(pool)
    waiters.add("task")
    with pytest.raises(PoolExhausted, match="the lane 'web' has 1") as caught:
        checkout(pool, "web")
    assert caught.value.limit == "queue_target"
    pool.checkin(held)
    waiters.join()
    assert (waiters.served, waiters.errors) == (["task"], [])


def test_an_overload_of_requests_leaves_admins_alone(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(
        server, max_size=1, timeout=LONG, queue_target=0.02, queue_interval=5.0, lanes={}
    )
    over = threading.Event()

    def visit() -> None:
        while not over.is_set():
            try:
                connection = checkout(pool, "web")
            except PoolExhausted:
                continue
            time.sleep(0.02)
            pool.checkin(connection)

    threads = [threading.Thread(target=visit) for _ in range(12)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: pool.snapshot().counters.shed > 0)
        for _ in range(5):
            pool.checkin(checkout(pool, "admin"))
    finally:
        over.set()
        for thread in threads:
            thread.join(60.0)


def test_a_pause_ends_with_the_limits_of_all_lanes_kept(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3, timeout=LONG, lanes={"admin": {"reserved": 1}})
    fill_all = [checkout(pool, "admin") for _ in range(3)]
    for connection in fill_all:
        pool.checkin(connection)
    pool.steering.obey(Order("pause", "", token="a", seconds=LONG), "user 33")
    waiters = Waiters(pool)
    for name in ("web", "web", "web", "admin"):
        waiters.add(name)
    assert pool.gauges().idle == 3
    pool.steering.obey(Order("resume", "", token="a"), "user 33")
    waiters.join()
    assert sorted(waiters.served) == ["admin", "web", "web", "web"]


def test_a_pool_is_made_no_smaller_than_its_lanes_are(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=5, timeout=LONG, lanes={"admin": {"reserved": 2}})
    answer = pool.steering.obey(Order("resize", "", min_size=1, max_size=2), "user 33")
    assert (answer.outcome, "3 connections" in answer.sentence) == ("refused", True)
    held = [checkout(pool, "web") for _ in range(3)]
    waiters = Waiters(pool)
    waiters.add("web")
    pool.steering.obey(Order("resize", "", min_size=1, max_size=6), "user 33")
    waiters.join()
    assert waiters.served == ["web"]
    for connection in held:
        pool.checkin(connection)


def test_a_pool_looks_at_itself_as_a_probe(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG, lanes={"probe": {"reserved": 1}})
    held = checkout(pool, "web")
    pool.look_at_server(timeout=5.0)
    assert pool.snapshot().sessions
    assert pool.check_readiness(5.0).result(5.0).serves
    pool.checkin(held)


def test_limits_hold_whatever_threads_do(server: EmbeddedServer, make_pool: MakePool) -> None:
    limits: Any = {"admin": {"reserved": 1}, "task": {"max": 2, "reserved": 1}}
    pool = make_pool(server, max_size=4, timeout=LONG, lanes=limits, max_lifetime=0.3)
    lock, held, worst, seen = threading.Lock(), Counter[str](), Counter[str](), []
    over = time.monotonic() + 4.0

    def work(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < over:
            name = chance.choice(["probe", "admin", "web", "web", "web", "task", "task"])
            connection = checkout(pool, name)
            with lock:
                held[name] += 1
                worst[name] = max(worst[name], held[name])
                worst["all"] = max(worst["all"], held.total())
                seen.append(name)
            if chance.random() < 0.02:
                connection.close()
            time.sleep(chance.random() * 0.004)
            with lock:
                held[name] -= 1
            pool.checkin(connection)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    assert worst["all"] == 4
    # Of four, one is the admin's and one the task's, unless they have it.
    assert worst["web"] <= 2
    assert worst["probe"] <= 2
    assert worst["task"] <= 2
    assert set(seen) == {"probe", "admin", "web", "task"}
    assert query(pool) == 42
