"""A pool that is paused, drained and resized while threads use it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled.errors import CheckoutTimeout, PoolClosed, PoolExhausted
from django_pooled.pool.deadline import deadline
from django_pooled.pool.readiness import State
from django_pooled.stats.orders import Order
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.pool import Pool
    from django_pooled.stats.orders import Answer, Verb
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

LONG = 60.0


def order(pool: Pool, verb: Verb, by: str = "user 33", token: str = "a", **values: Any) -> Answer:
    return pool.steering.obey(Order(verb, "", token=token, **values), by)


def pause(pool: Pool, seconds: float = LONG, **values: Any) -> Answer:
    return order(pool, "pause", seconds=seconds, **values)


def drained(pool: Pool) -> bool:
    return pool.snapshot().to_replace is None


def has_left(pool: Pool, number: int) -> bool:
    return (pool.snapshot().to_replace or 0) == number


def has_made_more(pool: Pool, checkouts: int) -> bool:
    return pool.snapshot().counters.checkouts > checkouts


def pids(pool: Pool) -> set[int]:
    return {it["backend_pid"] for it in pool.snapshot().connections}


class Threads:
    """Threads that query the pool once, and what came of it."""

    def __init__(self, pool: Pool, number: int) -> None:
        self.answers: list[Any] = []
        self.errors: list[Exception] = []
        self._pool = pool
        self.threads = [threading.Thread(target=self._query) for _ in range(number)]
        for thread in self.threads:
            thread.start()

    def _query(self) -> None:
        try:
            self.answers.append(query(self._pool))
        except Exception as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60.0)
            assert not thread.is_alive()


@contextlib.contextmanager
def load(pool: Pool, threads: int) -> Iterator[list[Exception]]:
    """Have threads query all the time; yields what has failed."""
    over, failed = threading.Event(), []

    def work() -> None:
        while not over.is_set():
            try:
                query(pool)
            except Exception as error:
                failed.append(error)

    working = [threading.Thread(target=work) for _ in range(threads)]
    for thread in working:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in working:
            thread.join(60.0)


# Pauses


def test_a_paused_pool_hands_out_nothing_though_it_is_idle_and_serves_all_after_that(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2, timeout=LONG)
    fill(pool, 2)
    assert pause(pool).outcome == "paused"
    waiters = Threads(pool, 5)
    wait_until(lambda: pool.gauges().waiting == 5)
    assert pool.gauges().idle == 2
    assert waiters.answers == []
    assert order(pool, "resume").outcome == "resumed"
    waiters.join()
    assert waiters.answers == [42] * 5
    assert pool.snapshot().counters.connects == 2


def test_what_comes_back_in_a_pause_is_kept_for_its_end(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=1, max_size=1, timeout=LONG)
    held = pool.checkout()
    pause(pool)
    waiters = Threads(pool, 1)
    wait_until(lambda: pool.gauges().waiting == 1)
    assert pool.snapshot().lent == 1
    pool.checkin(held)
    assert pool.snapshot().lent == 0
    assert pool.gauges().waiting == 1
    order(pool, "resume")
    waiters.join()
    assert waiters.answers == [42]


def test_no_connection_is_opened_for_those_that_wait_in_a_pause(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=3, timeout=LONG)
    pause(pool)
    waiters = Threads(pool, 3)
    wait_until(lambda: pool.gauges().waiting == 3)
    assert pool.snapshot().connecting == 0
    order(pool, "resume")
    waiters.join()
    assert waiters.answers == [42] * 3


def test_a_pause_ends_by_itself(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, timeout=LONG)
    fill(pool, 1)
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        pause(pool, 0.3, by="user 7 (process 9)")
        assert query(pool) == 42
        wait_until(lambda: len(caplog.records) == 2)
    assert [record.getMessage() for record in caplog.records] == [
        "pool 'default': paused: checkouts wait, for 0.3 s at most (by user 7 (process 9))",
        "pool 'default': resumed (by itself, since the time of its pause is over)",
    ]


def test_a_pause_ends_though_the_thread_of_its_timer_has_died(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(server, timeout=LONG)
    fill(pool, 1)
    monkeypatch.setattr(pool._pool, "schedule_task", lambda task, delay: None)
    pause(pool, 0.3)
    assert query(pool) == 42
    assert not pool.snapshot().paused


def test_a_pause_that_is_renewed_lasts_and_ends_by_itself_after_that(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, timeout=LONG)
    fill(pool, 1)
    pause(pool, 0.2)
    for _ in range(10):
        assert pause(pool, 0.4, renews=True).outcome == "extended"
        time.sleep(0.05)
    waiters = Threads(pool, 1)
    wait_until(lambda: pool.gauges().waiting == 1)
    waiters.join()
    assert waiters.answers == [42]
    assert pause(pool, 1.0, renews=True).outcome == "refused"


def test_a_checkout_in_a_pause_fails_after_its_own_timeout_and_says_who_has_paused(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, timeout=0.3)
    fill(pool, 1)
    pause(pool, by="user 33 (process 4711)")
    with pytest.raises(CheckoutTimeout, match=r"0.3 s: paused by user 33 \(process 4711\), for "):
        pool.checkout()
    order(pool, "resume")
    assert query(pool) == 42


def test_a_deadline_ends_a_wait_in_a_pause(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, timeout=LONG)
    fill(pool, 1)
    pause(pool)
    with pytest.raises(CheckoutTimeout, match="deadline"), deadline(0.2):
        pool.checkout()
    order(pool, "resume")


def test_max_waiting_holds_in_a_pause(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, timeout=LONG, max_waiting=2)
    fill(pool, 1)
    pause(pool)
    waiters = Threads(pool, 2)
    wait_until(lambda: pool.gauges().waiting == 2)
    with pytest.raises(PoolExhausted, match="paused by user 33"):
        pool.checkout()
    order(pool, "resume")
    waiters.join()
    assert waiters.answers == [42] * 2


def test_a_paused_pool_closes_and_its_waiters_are_told(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, timeout=LONG)
    fill(pool, 1)
    pause(pool)
    waiters = Threads(pool, 2)
    wait_until(lambda: pool.gauges().waiting == 2)
    pool.close()
    waiters.join()
    assert [type(error) for error in waiters.errors] == [PoolClosed] * 2
    assert pool.gauges().size == 0


def test_a_paused_pool_is_ready(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    fill(pool, 1)
    pause(pool)
    found = pool.check_readiness(1.0).result(10.0)
    assert found is State.PAUSED
    assert found.serves
    order(pool, "resume")


def test_a_second_operator_is_refused_and_may_end_the_pause(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    pause(pool, by="user 1 (process 5)")
    refused = pause(pool, by="user 2", token="b")
    assert refused.outcome == "refused"
    assert refused.sentence.startswith("it is paused by user 1 (process 5) already, for ")
    # One run of the command ends its own only, and an operator any.
    assert order(pool, "resume", token="b").outcome == "refused"
    assert pool.snapshot().paused_by == "user 1 (process 5)"
    assert order(pool, "resume", token="").outcome == "resumed"
    assert order(pool, "resume", token="").outcome == "running"


def test_pauses_under_load_lose_nothing(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, min_size=2, max_size=4, timeout=LONG)
    with load(pool, 8) as failed:
        for _ in range(30):
            pause(pool)
            wait_until(lambda: not pool.snapshot().lent)
            done = pool.snapshot().counters.checkouts
            assert pool.gauges().in_use == 0
            assert pool.snapshot().counters.checkouts == done
            order(pool, "resume")
            wait_until(partial(has_made_more, pool, done))
    assert failed == []
    counters = pool.snapshot().counters
    assert counters.checkouts == counters.checkins + counters.discarded


# Drains


def test_a_drain_replaces_idle_connections_and_then_those_in_use(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=4, max_size=4)
    fill(pool, 4)
    held, before = pool.checkout(), pids(pool)
    assert order(pool, "drain").sentence == "4 connections to replace"
    wait_until(lambda: pool.snapshot().to_replace == 1)
    assert held.execute("SELECT 1").fetchone() == (1,)
    assert len(pids(pool) & before) == 1
    pool.checkin(held)
    wait_until(lambda: drained(pool))
    assert not pids(pool) & before
    wait_until(lambda: pool.gauges().size == 4)
    counters = pool.snapshot().counters
    assert counters.connects == 8
    assert counters.closed["drained"] == 4


def test_a_drain_opens_one_connection_at_a_time_and_fails_no_request(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    pool = make_pool(server, through=proxy, min_size=6, max_size=6, timeout=LONG)
    fill(pool, 6)
    most = []
    with load(pool, 9) as failed:
        before = pids(pool)
        order(pool, "drain")
        while not drained(pool):
            snapshot = pool.snapshot()
            most.append((snapshot.connecting, 6 - snapshot.size))
            time.sleep(0.001)
    assert failed == []
    assert not pids(pool) & before
    assert max(connecting for connecting, _ in most) == 1
    assert len(proxy.connects()) == 12


def test_a_drain_replaces_what_a_thread_keeps_once_it_comes_back(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=1, max_size=3)
    held = [pool.checkout() for _ in range(3)]
    before = pids(pool)
    order(pool, "drain")
    for number, connection in enumerate(held, start=1):
        assert connection.execute("SELECT 1").fetchone() == (1,)
        pool.checkin(connection)
        wait_until(partial(has_left, pool, 3 - number))
    held.clear()
    wait_until(lambda: drained(pool))
    assert not pids(pool) & before


def test_nothing_more_leaves_while_connecting_fails(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    backoff = {"initial": 0.02, "maximum": 0.05}
    pool = make_pool(server, through=proxy, min_size=4, max_size=4, backoff=backoff)
    fill(pool, 4)
    proxy.down()
    order(pool, "drain")
    wait_until(lambda: pool.snapshot().counters.connect_failures > 5)
    assert pool.snapshot().to_replace == 3
    # What is left serves.
    for _ in range(10):
        assert query(pool) == 42
    proxy.forward()
    wait_until(lambda: drained(pool))
    wait_until(lambda: pool.gauges().size == 4)
    assert query(pool) == 42


def test_a_drain_with_a_wrong_new_password_costs_one_connection(
    make_server: Callable[..., EmbeddedServer], make_pool: MakePool
) -> None:
    server = make_server()
    execute(server, "CREATE ROLE clerk LOGIN PASSWORD 'first'")
    password = ["first"]
    pool = make_pool(
        server,
        min_size=3,
        max_size=3,
        parameters={"user": "clerk", "password": lambda: password[0]},
        credentials_change=True,
        backoff={"initial": 0.02, "maximum": 0.05},
    )
    fill(pool, 3)
    execute(server, "ALTER ROLE clerk PASSWORD 'second'")
    order(pool, "drain")
    wait_until(lambda: pool.snapshot().counters.connect_failures > 1)
    assert pool.snapshot().to_replace == 2
    assert query(pool) == 42
    password[0] = "second"
    wait_until(lambda: drained(pool))
    wait_until(lambda: pool.gauges().size == 3)


def test_in_a_pause_all_leave_together_and_as_many_are_there_at_its_end(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=1, max_size=5, timeout=LONG)
    fill(pool, 5)
    before = pids(pool)
    pause(pool)
    waiters = Threads(pool, 5)
    wait_until(lambda: pool.gauges().waiting == 5)
    order(pool, "drain")
    wait_until(lambda: drained(pool))
    wait_until(lambda: pool.gauges().idle == 5)
    assert not pids(pool) & before
    order(pool, "resume")
    waiters.join()
    assert waiters.answers == [42] * 5
    assert pool.snapshot().counters.connects == 10


def test_a_second_drain_begins_anew_and_ends(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, min_size=2, max_size=2)
    fill(pool, 2)
    held = pool.checkout()
    order(pool, "drain")
    wait_until(lambda: pool.snapshot().to_replace == 1)
    order(pool, "drain", token="b")
    before = pids(pool)
    assert pool.snapshot().to_replace in (1, 2)
    pool.checkin(held)
    wait_until(lambda: drained(pool))
    assert not pids(pool) & before


def test_a_closed_pool_drains_no_more(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=1)
    held = pool.checkout()
    order(pool, "drain")
    pool.close(timeout=0.1)
    wait_until(lambda: drained(pool))
    pool.checkin(held)
    assert pool.gauges().size == 0


# Sizes


def test_a_larger_pool_serves_more_at_once(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=1, timeout=LONG)
    held = pool.checkout()
    waiters = Threads(pool, 2)
    wait_until(lambda: pool.gauges().waiting == 2)
    assert order(pool, "resize", min_size=2, max_size=3).outcome == "resized"
    waiters.join()
    assert waiters.answers == [42] * 2
    assert pool.gauges().max_size == 3
    pool.checkin(held)


def test_a_smaller_pool_closes_what_is_beyond_as_it_comes_back(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=1, max_size=4)
    held = [pool.checkout() for _ in range(4)]
    order(pool, "resize", min_size=1, max_size=2)
    assert pool.gauges().size == 4
    for connection in held:
        pool.checkin(connection)
    held.clear()
    wait_until(lambda: pool.gauges().size == 2)
    assert query(pool) == 42
    assert pool.snapshot().max_size == 2


@pytest.mark.parametrize("sizes", [(2, 1), (0, 0)])
def test_sizes_that_do_not_fit_are_refused(
    server: EmbeddedServer, make_pool: MakePool, sizes: tuple[int, int]
) -> None:
    pool = make_pool(server, max_size=4)
    answer = order(pool, "resize", min_size=sizes[0], max_size=sizes[1])
    assert answer.outcome == "refused"
    assert pool.gauges().max_size == 4


def execute(server: EmbeddedServer, statement: str) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute(statement)


# Counts


def test_counts_begin_anew_and_add_up(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=2)
    fill(pool, 2)
    held, before = pool.checkout(), pool.snapshot()
    assert before.counters.checkouts == 3
    answer = order(pool, "reset-stats")
    after = pool.snapshot()
    assert (answer.outcome, answer.pool) == ("reset", after.id)
    assert after.id != before.id
    assert after.age < before.age
    assert after.counters.checkouts == after.in_use == 1
    assert after.counters.connects == 0
    pool.checkin(held)
    assert query(pool) == 42
    counters = pool.snapshot().counters
    assert (counters.checkouts, counters.checkins, counters.discarded) == (2, 2, 0)


def test_connects_that_failed_are_counted_anew_too(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    pool = make_pool(server, through=proxy, min_size=0, timeout=0.3, backoff={"initial": 0.02})
    proxy.down()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    assert pool.snapshot().counters.connect_failures > 0
    proxy.forward()
    wait_until(lambda: query(pool) == 42)
    order(pool, "reset-stats")
    assert pool.snapshot().counters.connect_failures == 0
    assert pool.snapshot().counters.timeouts == 0
